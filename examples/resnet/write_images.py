"""Write the digits of scikit-learn as PNGs: ``train/3/0042.png`` is a three.

A task needs files before its first trial, so ``data()`` calls this. By hand: ``python
write_images.py FOLDER``.
"""

import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

N_TRAIN, N_VAL = 800, 200


def write_images(folder):
    """Write all images that are missing. Several workers may do so at the same time."""
    digits = load_digits()
    order = np.random.default_rng(7).permutation(len(digits.images))[: N_TRAIN + N_VAL]
    for number, row in enumerate(order):
        part = "train" if number < N_TRAIN else "val"
        path = folder / part / str(digits.target[row]) / f"{number:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.round(digits.images[row] * 255 / 16).astype(np.uint8)
            mine = path.with_name(f".{path.name}.{os.getpid()}")
            Image.fromarray(pixels).save(mine, format="PNG")
            mine.replace(path)


if __name__ == "__main__":
    write_images(Path(sys.argv[1]))

"""Images in files, loaded batch by batch, for a small residual network with batch normalisation.

Data that does not fit in memory is given as a dataset. The engine shuffles it, loads it with worker
processes, and hands each batch to all trials of an array. Here the files are made first: a few
hundred small PNGs of stripes, crosses and discs, in a folder of the user's cache.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from coarsefine import Data, Loaded

SIDE = 12  # pixels
N_TRAIN, N_VAL = 360, 120
KINDS = ("stripes", "cross", "disc")


def draw(kind, rng):
    """Return an image (SIDE, SIDE) of bytes."""
    y, x = np.mgrid[:SIDE, :SIDE] - rng.uniform(3, SIDE - 4, size=(2, 1, 1))
    size = rng.uniform(2.5, 4.5)
    if kind == "stripes":
        shape = np.cos(rng.uniform(1.2, 1.8) * (x + y)) > 0
    elif kind == "cross":
        shape = (np.minimum(abs(x), abs(y)) < 0.8) & (np.maximum(abs(x), abs(y)) < size)
    else:
        shape = np.hypot(x, y) < size
    noise = rng.normal(0, 25, size=(SIDE, SIDE))
    return np.clip(60 + 140 * shape + noise, 0, 255).astype(np.uint8)


def write_files(folder):
    """Write the images once. Several workers may do so at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    for number in range(N_TRAIN + N_VAL):
        path = folder / f"{number:04d}.png"
        image = draw(KINDS[number % len(KINDS)], rng)
        if not path.exists():
            part = folder / f".{number:04d}.{os.getpid()}"
            Image.fromarray(image).save(part, format="PNG")
            part.replace(path)


class Files(Dataset):
    """Some of the files: each example is an image (1, SIDE, SIDE) and its class."""

    def __init__(self, folder, numbers, mirror):
        self.folder, self.numbers, self.mirror = folder, numbers, mirror

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, place):
        number = self.numbers[place]
        with Image.open(self.folder / f"{number:04d}.png") as image:
            pixels = torch.from_numpy(np.array(image, dtype=np.float32)) / 255 - 0.4
        if self.mirror and torch.rand(()) < 0.5:  # seeded by the engine for each epoch
            pixels = pixels.flip(-1)
        return pixels.unsqueeze(0), number % len(KINDS)


class Block(nn.Module):
    """Two convolutions with batch normalisation, added to their input."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, inputs):
        """Return the sum, rectified."""
        return torch.relu(inputs + self.body(inputs))


class Shapes:
    """The kind of a shape."""

    def data(self):
        """Return the parts, each as a dataset of files."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir())
        folder = home / f"coarsefine-shapes-{os.getuid()}"
        write_files(folder)
        numbers = range(N_TRAIN + N_VAL)
        return Data(
            train=Loaded(Files(folder, numbers[:N_TRAIN], mirror=True), num_workers=1),
            val=Loaded(Files(folder, numbers[N_TRAIN:], mirror=False)),
            test=None,
            n_classes=len(KINDS),
        )

    def model(self, hp):
        """Return a new residual network."""
        channels = hp["channels"]
        return nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            *(Block(channels) for _ in range(hp["blocks"])),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, len(KINDS)),
        )

"""Handwritten digits: 1,797 real images of 8x8 pixels, and models for them.

The images come from scikit-learn, and the parts equal those of its ``train_test_split``. This
module does both without importing scikit-learn. The import takes 1.5 s in each process, which is
longer than most trials on these images take.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.errors import TaskError
from common.search.values import Scalar
from worker.tasks.base import Data, Part
from worker.tasks.images import image_model
from worker.tasks.models import built_in

SPLIT_SEED = 231  # never change it: another seed would move images between the parts
VAL_SHARE = TEST_SHARE = 0.2
SHAPE = (1, 8, 8)
BRIGHTEST = 16  # value of the brightest pixel
N_CLASSES = 10
# Path in scikit-learn's folder. Each row is one image: 64 pixels and the class.
IMAGES_FILE = Path("datasets", "data", "digits.csv.gz")
COLUMNS = 65


class Digits:
    """The built-in task ``digits``: 1,077 training, 360 validation and 360 test images.

    ``image_model`` describes its models.
    """

    image_shape = SHAPE
    preprocess = "normalise"

    def data(self) -> Data:
        """Return the data in a stratified 60/20/20 split.

        Inputs are (n, 64), with pixels in [0, 1].

        Raises:
            TaskError: scikit-learn, which contains the images, is not installed, or its file is
                damaged.
        """
        images, labels = _read()
        rest, test = split_stratified(labels, TEST_SHARE, SPLIT_SEED)
        share = VAL_SHARE / (1 - TEST_SHARE)
        train, val = (rest[places] for places in split_stratified(labels[rest], share, SPLIT_SEED))

        def part(rows: np.ndarray) -> Part:
            inputs = torch.from_numpy((images[rows] / BRIGHTEST).astype(np.float32))
            return Part(inputs, torch.from_numpy(labels[rows]))

        return Data(part(train), part(val), part(test), n_classes=N_CLASSES)

    @built_in
    def model(self, hp: Mapping[str, Scalar]) -> nn.Sequential:
        """Return the model for ``hp``; see ``image_model``.

        Raises:
            TaskError: a hyperparameter has a value that the model cannot have.
        """
        return image_model(hp, SHAPE, N_CLASSES)


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels (n, 64), from 0 to 16, and the classes (n,)."""
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise TaskError(
            "task digits: its images come with scikit-learn, which is not installed; `pip install "
            "scikit-learn`"
        )
    path = Path(spec.submodule_search_locations[0]) / IMAGES_FILE
    try:
        cells = gzip.decompress(path.read_bytes()).replace(b"\n", b",").rstrip(b",").split(b",")
        rows = np.array(cells).astype(np.int64).reshape(-1, COLUMNS)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise TaskError(
            f"task digits: {path} cannot be read ({error}); install scikit-learn again"
        ) from error
    return rows[:, :-1], rows[:, -1]


def split_stratified(
    labels: np.ndarray, test_share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of two parts in which every class has the same share.

    The indices of each part are in random order.

    Source: scikit-learn 1.9, ``train_test_split(np.arange(n), test_size=test_share,
    stratify=labels, random_state=seed)``. This function repeats its random draws one by one. NumPy
    guarantees that ``RandomState`` never changes.

    Args:
        labels: the classes, (n,).
        test_share: share of the second part; its size is rounded up to whole examples.
        seed: seed of the random draws.
    """
    n_test = int(np.ceil(test_share * len(labels)))
    counts = np.bincount(labels)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    draw = np.random.RandomState(seed)
    n_first = _shares(counts, len(labels) - n_test, draw)
    n_second = _shares(counts - n_first, n_test, draw)
    first: list[np.ndarray] = []
    second: list[np.ndarray] = []
    for places, n_one, n_other in zip(members, n_first, n_second, strict=True):
        shuffled = places[draw.permutation(len(places))]
        first.append(shuffled[:n_one])
        second.append(shuffled[n_one : n_one + n_other])
    return draw.permutation(np.concatenate(first)), draw.permutation(np.concatenate(second))


def _shares(counts: np.ndarray, n: int, draw: np.random.RandomState) -> np.ndarray:
    """Return how many examples of each class to take, ``n`` in all, in proportion to ``counts``.

    The method is largest remainders. Among equal remainders the choice is random.
    """
    exact = counts / counts.sum() * n
    whole: np.ndarray = np.floor(exact)
    missing = int(n - whole.sum())
    remainders = exact - whole
    for remainder in np.sort(np.unique(remainders))[::-1]:
        if not missing:
            break
        (alike,) = np.where(remainders == remainder)
        taken = min(len(alike), missing)
        whole[draw.choice(alike, size=taken, replace=False)] += 1
        missing -= taken
    shares: np.ndarray = whole.astype(np.int64)
    return shares

"""CIFAR-10: 60,000 coloured images of 32x32 pixels in ten classes, from the binary version, in which nothing is pickled."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import nn

from common.errors import TaskError
from common.options import DATA_FOLDER
from common.space import Scalar
from worker.tasks.base import Data
from worker.tasks.files import DataFile, DataSet, find
from worker.tasks.images import image_model, image_part

SHAPE = (3, 32, 32)
N_CLASSES = 10
ROW_BYTES = 1 + 3 * 32 * 32  # a label, then red, green and blue
FOLDER = "cifar-10-batches-bin"  # in the archive, and where it was unpacked by hand
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))  # the last is the validation part
TEST = "test_batch.bin"
LARGEST_BYTES = 1 << 28  # eight times what a standard file holds
CIFAR10 = DataSet(
    "CIFAR-10",
    ("cifar10", "."),
    (DataFile("cifar-10-binary.tar.gz", 170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),),
    ("https://www.cs.toronto.edu/~kriz",),
)


class Cifar10:
    """The built-in task. Models: see ``image_model``."""

    files = CIFAR10
    image_shape = SHAPE
    preprocess = "normalise"
    data_dir: Path = DATA_FOLDER

    def data(self) -> Data:
        """Pixels in [0, 1]; the fifth training file, 10,000 images, is the validation part, the test file the test part.

        Raises:
            TaskError: a file is missing, damaged, or not what its name says.
        """
        batches = dict(self._batches())
        train = [batches[name] for name in TRAIN[:-1]]
        images, labels = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
        return Data(image_part(images, labels), image_part(*batches[TRAIN[-1]]), image_part(*batches[TEST]), n_classes=N_CLASSES)

    def model(self, hp: Mapping[str, Scalar]) -> nn.Module:
        """See ``image_model``."""
        return image_model(hp, SHAPE, N_CLASSES)

    def _batches(self) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
        """Name, images and labels of each file: unpacked beside the archive if they are there, else read from within it."""
        folders = (self.data_dir / folder / FOLDER for folder in self.files.folders)
        unpacked = next((folder for folder in folders if all((folder / name).is_file() for name in (*TRAIN, TEST))), None)
        if unpacked is None:
            yield from _archived(find(self.files, self.data_dir)[0])
            return
        for name in (*TRAIN, TEST):
            try:
                content = (unpacked / name).read_bytes()
            except OSError as error:
                raise TaskError(f"{unpacked / name}: cannot be read ({error.strerror}); check its permissions") from error
            yield name, rows(content, f"{unpacked / name}")


def _archived(path: Path) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    remedy = "remove it, so that it is downloaded again, or put the standard file there"
    missing = {*TRAIN, TEST}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if folder.removeprefix("./") != FOLDER or name not in missing or not member.isfile() or member.size > LARGEST_BYTES:
                    continue
                opened = archive.extractfile(member)
                assert opened is not None  # as for every regular file
                missing.remove(name)
                yield name, rows(opened.read(), f"{path}: {member.name}")
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise TaskError(f"{path}: cannot be unpacked ({error}); {remedy}") from error
    if missing:
        raise TaskError(f"{path}: holds no {FOLDER}/{min(missing)}; {remedy}")


def rows(content: bytes, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3072) and labels (n,) of one file.

    Raises:
        TaskError: no whole number of rows, or a label that is no class.
    """
    if not content or len(content) % ROW_BYTES:
        raise TaskError(
            f"{place}: has {len(content)} bytes, no multiple of {ROW_BYTES}; it is cut off or another file, put the standard one there"
        )
    table = np.frombuffer(content, np.uint8).reshape(-1, ROW_BYTES)
    labels, images = table[:, 0], table[:, 1:]
    if int(labels.max()) >= N_CLASSES:
        raise TaskError(f"{place}: holds the label {int(labels.max())}; labels run from 0 to {N_CLASSES - 1}: put the standard file there")
    return images, labels

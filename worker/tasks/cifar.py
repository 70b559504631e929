"""CIFAR-10: 60,000 colour images of 32x32 pixels in ten classes.

The data are read from the binary version, which contains no pickles.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import nn

from common.errors import TaskError
from common.options import DATA_FOLDER
from common.search.values import Scalar
from worker.tasks.base import Data
from worker.tasks.files import DataFile, DataSet, find
from worker.tasks.images import image_model, image_part
from worker.tasks.models import built_in

SHAPE = (3, 32, 32)
N_CLASSES = 10
ROW_BYTES = 1 + 3 * 32 * 32  # the label, then the red, green and blue pixels
FOLDER = "cifar-10-batches-bin"  # in the archive, or unpacked by hand
# The last file is the validation part.
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"
LARGEST_BYTES = 1 << 28  # eight times the size of a standard file
CIFAR10 = DataSet(
    "CIFAR-10",
    ("cifar10", "."),
    (
        DataFile(
            "cifar-10-binary.tar.gz",
            170052171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    ("https://www.cs.toronto.edu/~kriz",),
)


class Cifar10:
    """The built-in task ``cifar10``. ``image_model`` describes its models."""

    files = CIFAR10
    image_shape = SHAPE
    preprocess = "normalise"
    data_dir: Path = DATA_FOLDER

    def data(self) -> Data:
        """Return the data, with pixels in [0, 1].

        The fifth training file (10,000 images) is the validation part. The test file is the test
        part.

        Raises:
            TaskError: a file is missing or damaged, or is not what its name says.
        """
        batches = dict(self._batches())
        train = [batches[name] for name in TRAIN[:-1]]
        images, labels = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
        return Data(
            image_part(images, labels),
            image_part(*batches[TRAIN[-1]]),
            image_part(*batches[TEST]),
            n_classes=N_CLASSES,
        )

    @built_in
    def model(self, hp: Mapping[str, Scalar]) -> nn.Module:
        """Return the model for ``hp``; see ``image_model``."""
        return image_model(hp, SHAPE, N_CLASSES)

    def _batches(self) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
        """Yield name, images and labels of each file.

        The unpacked files are read if they are all there, else the archive.
        """
        folders = (self.data_dir / folder / FOLDER for folder in self.files.folders)
        unpacked = next(
            (
                folder
                for folder in folders
                if all((folder / name).is_file() for name in (*TRAIN, TEST))
            ),
            None,
        )
        if unpacked is None:
            yield from _read_archive(find(self.files, self.data_dir)[0])
            return
        for name in (*TRAIN, TEST):
            try:
                content = (unpacked / name).read_bytes()
            except OSError as error:
                raise TaskError(
                    f"{unpacked / name}: cannot be read ({error.strerror}); check its permissions"
                ) from error
            yield name, rows(content, f"{unpacked / name}")


def _read_archive(path: Path) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    remedy = "remove it, so that it is downloaded again, or put the standard file there"
    missing = {*TRAIN, TEST}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if (
                    folder.removeprefix("./") != FOLDER
                    or name not in missing
                    or not member.isfile()
                    or member.size > LARGEST_BYTES
                ):
                    continue
                opened = archive.extractfile(member)
                assert opened is not None  # it is None only for members that are not files
                missing.remove(name)
                yield name, rows(opened.read(), f"{path}: {member.name}")
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise TaskError(f"{path}: cannot be unpacked ({error}); {remedy}") from error
    if missing:
        raise TaskError(f"{path}: holds no {FOLDER}/{min(missing)}; {remedy}")


def rows(content: bytes, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (n, 3072) and labels (n,) in one file.

    Raises:
        TaskError: the file does not hold a whole number of rows, or a label is not a class.
    """
    if not content or len(content) % ROW_BYTES:
        raise TaskError(
            f"{place}: has {len(content)} bytes, no multiple of {ROW_BYTES}; it is cut off or "
            "another file, put the standard one there"
        )
    table = np.frombuffer(content, np.uint8).reshape(-1, ROW_BYTES)
    labels, images = table[:, 0], table[:, 1:]
    if int(labels.max()) >= N_CLASSES:
        raise TaskError(
            f"{place}: holds the label {int(labels.max())}; labels run from 0 to {N_CLASSES - 1}: "
            "put the standard file there"
        )
    return images, labels

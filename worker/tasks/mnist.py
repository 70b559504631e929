"""MNIST and Fashion-MNIST: 70,000 grey images of 28x28 pixels in ten classes, in the IDX format."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import nn

from common.errors import TaskError
from common.options import DATA_FOLDER
from common.space import Scalar
from worker.tasks.base import Data
from worker.tasks.files import DataFile, DataSet, find
from worker.tasks.images import image_model, image_part

SHAPE = (1, 28, 28)
N_CLASSES = 10
VAL_SHARE = 6  # the last sixth of the training files, 10,000 of 60,000, is the validation part
BYTES_TYPE = 0x08  # IDX's word for unsigned bytes, in the third byte of a file
LARGEST_BYTES = 1 << 30  # twenty times what a standard file unpacks to; a header that promises more is damaged
MNIST = DataSet(
    "MNIST",
    ("mnist", "MNIST/raw"),  # the second is where torchvision puts them
    (
        DataFile("train-images-idx3-ubyte.gz", 9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        DataFile("train-labels-idx1-ubyte.gz", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        DataFile("t10k-images-idx3-ubyte.gz", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        DataFile("t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
)
FASHION_MNIST = DataSet(
    "Fashion-MNIST",
    ("fashion_mnist", "FashionMNIST/raw"),
    (
        DataFile("train-images-idx3-ubyte.gz", 26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        DataFile("train-labels-idx1-ubyte.gz", 29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        DataFile("t10k-images-idx3-ubyte.gz", 4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        DataFile("t10k-labels-idx1-ubyte.gz", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
)


class Mnist:
    """The built-in task: handwritten digits. Models: see ``image_model``.

    Inputs are centred unless the search says otherwise. They are not divided by each pixel's deviation: at the rim are pixels that are
    black in all images but a few, which a division by almost nothing would make the loudest of all.
    """

    files = MNIST
    image_shape = SHAPE
    preprocess = "centre"
    data_dir: Path = DATA_FOLDER

    def data(self) -> Data:
        """Pixels in [0, 1]; of the training files the last sixth is the validation part, the test files are the test part.

        Raises:
            TaskError: a file is missing, damaged, or not what its name says.
        """
        train_images, train_labels, test_images, test_labels = find(self.files, self.data_dir)
        images, labels = read_pair(train_images, train_labels)
        n_train = len(labels) - len(labels) // VAL_SHARE
        return Data(
            image_part(images[:n_train], labels[:n_train]),
            image_part(images[n_train:], labels[n_train:]),
            image_part(*read_pair(test_images, test_labels)),
            n_classes=N_CLASSES,
        )

    def model(self, hp: Mapping[str, Scalar]) -> nn.Module:
        """See ``image_model``."""
        return image_model(hp, SHAPE, N_CLASSES)


class FashionMnist(Mnist):
    """The built-in task: pictures of clothes, as many and as large as MNIST's, harder to tell apart."""

    files = FASHION_MNIST


def read_pair(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) and their labels (n,), as bytes.

    Raises:
        TaskError: a file is damaged, or they do not belong together.
    """
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1)
    if pixels.shape[1:] != SHAPE[1:]:
        raise TaskError(f"{images}: holds images of {pixels.shape[1]}x{pixels.shape[2]} pixels, not 28x28; put the standard file there")
    if len(pixels) != len(numbers) or len(numbers) < VAL_SHARE:
        raise TaskError(f"{images} holds {len(pixels)} images, {labels.name} {len(numbers)} labels; put the standard files there, both")
    if int(numbers.max()) >= N_CLASSES:
        raise TaskError(
            f"{labels}: holds the label {int(numbers.max())}; labels run from 0 to {N_CLASSES - 1}: put the standard file there"
        )
    return pixels, numbers


def read_idx(path: Path, n_dimensions: int) -> np.ndarray:
    """The bytes of a gzipped IDX file, in the shape that its header says.

    Raises:
        TaskError: it is no such file, cut off, or holds more than it says.
    """
    try:
        with gzip.open(path) as file:
            header = file.read(4 + 4 * n_dimensions)
            if header[:4] != bytes([0, 0, BYTES_TYPE, n_dimensions]) or len(header) < 4 + 4 * n_dimensions:
                raise _damaged(
                    path, f"starts with {header[:4].hex(' ') or 'nothing'}, not as an IDX file of bytes in {n_dimensions} dimensions"
                )
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
            wanted = math.prod(shape)
            if wanted > LARGEST_BYTES:
                raise _damaged(path, f"its header promises {wanted} bytes")
            content = file.read(wanted + 1)  # one more, to see that it ends; the checksum is looked at there as well
    except (OSError, EOFError, zlib.error) as error:  # of gzip: not gzipped or a wrong checksum, cut off, damaged inside
        raise _damaged(path, f"cannot be unpacked ({error})") from error
    if len(content) != wanted:
        told = f"only {len(content)}" if len(content) < wanted else "more"
        raise _damaged(path, f"its header says {'x'.join(map(str, shape))}, {wanted} bytes, and it holds {told}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _damaged(path: Path, why: str) -> TaskError:
    return TaskError(f"{path}: {why}; remove it, so that it is downloaded again, or put the standard file there")

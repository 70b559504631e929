"""MNIST and Fashion-MNIST: 70,000 grey images each, of 28x28 pixels in ten classes.

Both are in the IDX format.
"""

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
from common.search.values import Scalar
from worker.tasks.base import Data
from worker.tasks.files import DataFile, DataSet, find
from worker.tasks.images import image_model, image_part
from worker.tasks.models import built_in

SHAPE = (1, 28, 28)
N_CLASSES = 10
VAL_SHARE = 6  # the validation part is the last sixth of the training files, 10,000 of 60,000
BYTES_TYPE = 0x08  # IDX's code for unsigned bytes, in the third byte of a file
# Twenty times the unpacked size of a standard file. A header that gives more is damaged.
LARGEST_BYTES = 1 << 30
MNIST = DataSet(
    "MNIST",
    ("mnist", "MNIST/raw"),  # torchvision uses the second folder
    (
        DataFile(
            "train-images-idx3-ubyte.gz",
            9912422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        DataFile(
            "train-labels-idx1-ubyte.gz",
            28881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        DataFile(
            "t10k-images-idx3-ubyte.gz",
            1648877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        DataFile(
            "t10k-labels-idx1-ubyte.gz",
            4542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    ),
)
FASHION_MNIST = DataSet(
    "Fashion-MNIST",
    ("fashion_mnist", "FashionMNIST/raw"),
    (
        DataFile(
            "train-images-idx3-ubyte.gz",
            26421880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        DataFile(
            "train-labels-idx1-ubyte.gz",
            29515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        DataFile(
            "t10k-images-idx3-ubyte.gz",
            4422102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        DataFile(
            "t10k-labels-idx1-ubyte.gz",
            5148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
)


class Mnist:
    """The built-in task ``mnist``: handwritten digits. ``image_model`` describes its models.

    Inputs are centred unless the search says otherwise. They are not divided by the standard
    deviation of each pixel. Some pixels at the rim are black in almost all images: dividing by
    their tiny deviation would make them the largest inputs of all.
    """

    files = MNIST
    image_shape = SHAPE
    preprocess = "centre"
    data_dir: Path = DATA_FOLDER

    def data(self) -> Data:
        """Return the data, with pixels in [0, 1].

        The last sixth of the training files is the validation part. The test files are the test
        part.

        Raises:
            TaskError: a file is missing or damaged, or is not what its name says.
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

    @built_in
    def model(self, hp: Mapping[str, Scalar]) -> nn.Module:
        """Return the model for ``hp``; see ``image_model``."""
        return image_model(hp, SHAPE, N_CLASSES)


class FashionMnist(Mnist):
    """The built-in task ``fashion_mnist``: pictures of clothes.

    There are as many as in MNIST, of the same size, but they are harder to classify.
    """

    files = FASHION_MNIST


def read_pair(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 28, 28) and their labels (n,), both as bytes.

    Raises:
        TaskError: a file is damaged, or the two files do not belong together.
    """
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1)
    if pixels.shape[1:] != SHAPE[1:]:
        raise TaskError(
            f"{images}: holds images of {pixels.shape[1]}x{pixels.shape[2]} pixels, not 28x28; put "
            "the standard file there"
        )
    if len(pixels) != len(numbers) or len(numbers) < VAL_SHARE:
        raise TaskError(
            f"{images} holds {len(pixels)} images, {labels.name} {len(numbers)} labels; put the "
            "standard files there, both"
        )
    if int(numbers.max()) >= N_CLASSES:
        raise TaskError(
            f"{labels}: holds the label {int(numbers.max())}; labels run from 0 to "
            f"{N_CLASSES - 1}: put the standard file there"
        )
    return pixels, numbers


def read_idx(path: Path, n_dimensions: int) -> np.ndarray:
    """Return the content of a gzipped IDX file, in the shape that its header gives.

    Raises:
        TaskError: the file is not of this format, is cut off, or is longer than its header says.
    """
    try:
        with gzip.open(path) as file:
            header = file.read(4 + 4 * n_dimensions)
            if (
                header[:4] != bytes([0, 0, BYTES_TYPE, n_dimensions])
                or len(header) < 4 + 4 * n_dimensions
            ):
                raise _make_damage_error(
                    path,
                    f"starts with {header[:4].hex(' ') or 'nothing'}, not as an IDX file of bytes "
                    f"in {n_dimensions} dimensions",
                )
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
            wanted = math.prod(shape)
            if wanted > LARGEST_BYTES:
                raise _make_damage_error(path, f"its header promises {wanted} bytes")
            # One byte more, to see that the file ends. There gzip also verifies the checksum.
            content = file.read(wanted + 1)
    # gzip's errors: not gzipped or a wrong checksum; cut off; damaged inside.
    except (OSError, EOFError, zlib.error) as error:
        raise _make_damage_error(path, f"cannot be unpacked ({error})") from error
    if len(content) != wanted:
        told = f"only {len(content)}" if len(content) < wanted else "more"
        raise _make_damage_error(
            path,
            f"its header says {'x'.join(map(str, shape))}, {wanted} bytes, and it holds {told}",
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _make_damage_error(path: Path, why: str) -> TaskError:
    return TaskError(
        f"{path}: {why}; remove it, so that it is downloaded again, or put the standard file there"
    )

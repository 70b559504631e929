import gzip

import numpy as np
import pytest
import torch

from common.errors import TaskError
from tests.unit.tasks.made_images import idx, write_mnist
from worker.tasks import load_task
from worker.tasks.mnist import read_idx


@pytest.fixture
def mnist(tmp_path, capsys):
    return load_task("mnist", tmp_path, tmp_path)


def test_the_parts_come_from_the_files_in_their_order(mnist, tmp_path):
    write_mnist(tmp_path / "mnist")
    data = mnist.data()
    content = gzip.decompress((tmp_path / "mnist" / "train-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(content[16:], np.uint8).reshape(60, 784)
    assert [len(part) for part in (data.train, data.val, data.test)] == [50, 10, 20]
    assert data.train.inputs.dtype == torch.float32 and data.n_classes == 10
    assert torch.equal(data.train.inputs, torch.tensor(images[:50]) / 255)
    assert torch.equal(data.val.inputs, torch.tensor(images[50:]) / 255)
    assert data.val.targets.tolist() == list(range(10))
    assert float(data.train.inputs.max()) == 1.0
    assert torch.equal(mnist.data().test.inputs, data.test.inputs)


def test_files_that_are_not_the_published_ones_are_told(mnist, tmp_path, capsys):
    write_mnist(tmp_path / "mnist")
    mnist.data()
    assert capsys.readouterr().err.count("not the published file") == 4


def test_each_of_the_two_has_its_own_folder(tmp_path):
    write_mnist(tmp_path / "fashion_mnist", seed=1)
    write_mnist(tmp_path / "MNIST" / "raw", seed=2)
    fashion, digits = (
        load_task(name, tmp_path, tmp_path).data() for name in ("fashion_mnist", "mnist")
    )
    assert not torch.equal(fashion.train.inputs, digits.train.inputs)


def test_it_has_a_perceptron_and_a_convnet(mnist):
    images = torch.rand(3, 784)
    assert mnist.model({"hidden": 8, "depth": 1})(images).shape == (3, 10)
    assert mnist.model({"model": "convnet", "filters": 2, "hidden": 8})(images).shape == (3, 10)
    for hp, message in (
        ({"model": "lstm"}, "model = 'lstm': use one of perceptron, convnet"),
        (
            {"model": "convnet", "preprocess": "pca"},
            "preprocess = 'pca': its outputs are no images",
        ),
    ):
        with pytest.raises(TaskError, match=message):
            mnist.model(hp)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (
            {"train_images": b""},
            (
                "train-images-idx3-ubyte.gz: starts with nothing, not as an IDX file of "
                "bytes in 3 dimensions"
            ),
        ),
        (
            {"train_images": idx(np.zeros(60))},
            "starts with 00 00 08 01, not as an IDX file of bytes in 3 dimensions",
        ),
        (
            {"train_labels": idx(np.zeros(60), magic=0x0D00)},
            "train-labels-idx1-ubyte.gz: starts with 00 00 0d 01",
        ),
        (
            {"train_images": idx(np.zeros((60, 28, 28)))[:-5]},
            "says 60x28x28, 47040 bytes, and it holds only 47035; remove it",
        ),
        (
            {"t10k_labels": idx(np.zeros(20)) + b"x"},
            "t10k-labels-idx1-ubyte.gz: its header says 20, 20 bytes, and it holds more",
        ),
        (
            {"train_images": idx(np.zeros((60, 8, 8)))},
            "holds images of 8x8 pixels, not 28x28; put the standard file there",
        ),
        (
            {"train_labels": idx(np.zeros(59))},
            "holds 60 images, train-labels-idx1-ubyte.gz 59 labels; put the standard files there",
        ),
        (
            {"train_labels": idx(np.full(60, 11))},
            "train-labels-idx1-ubyte.gz: holds the label 11; labels run from 0 to 9",
        ),
        ({"train_images": b"\0\0\x08\x03" + b"\xff" * 12}, "its header promises"),
    ],
)
def test_what_is_no_such_file_is_told_with_its_name(mnist, tmp_path, replaced, message):
    write_mnist(tmp_path / "mnist", **replaced)
    with pytest.raises(TaskError, match=message):
        mnist.data()


def test_damaged_archives_are_told(tmp_path):
    path = tmp_path / "labels.gz"
    whole = gzip.compress(idx(np.arange(1000) % 256))
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # in the checksum at its end
    for content in (
        whole[:-9],
        bytes(flipped),
        b"no gzip at all",
        whole[:30] + b"\xff\xff\xff" + whole[33:],
    ):
        path.write_bytes(content)
        with pytest.raises(
            TaskError,
            match=(
                r"labels.gz: (cannot be unpacked|its header).*; remove it, so that it is "
                r"downloaded again"
            ),
        ):
            read_idx(path, 1)

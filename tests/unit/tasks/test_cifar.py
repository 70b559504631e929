import numpy as np
import pytest
import torch

from common.errors import TaskError
from tests.unit.tasks.made_images import cifar_batch, cifar_batches, write_cifar
from worker.tasks import load_task
from worker.tasks.cifar import FOLDER, TEST, TRAIN


@pytest.fixture
def cifar(tmp_path):
    return load_task("cifar10", tmp_path, tmp_path)


def test_the_fifth_file_validates(cifar, tmp_path, capsys):
    batches = cifar_batches()
    write_cifar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", batches)
    data = cifar.data()
    assert [len(part) for part in (data.train, data.val, data.test)] == [80, 20, 20]
    for part, names in ((data.train, TRAIN[:4]), (data.val, TRAIN[4:]), (data.test, [TEST])):
        table = np.frombuffer(b"".join(batches[name] for name in names), np.uint8).reshape(-1, 3073)
        assert torch.equal(part.inputs, torch.tensor(table[:, 1:]) / 255)
        assert part.targets.tolist() == table[:, 0].tolist()
    assert data.n_classes == 10 and "not the published file" in capsys.readouterr().err


def test_files_unpacked_by_hand_do_as_well(cifar, tmp_path, capsys):
    batches = cifar_batches()
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name, content in batches.items():
        (folder / name).write_bytes(content)
    unpacked = cifar.data()
    (folder / TEST).unlink()  # no longer all: the archive is asked for
    write_cifar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", batches)
    assert torch.equal(cifar.data().train.inputs, unpacked.train.inputs)


def test_images_keep_their_planes(cifar):
    model = cifar.model({"model": "convnet", "filters": 2, "hidden": 4})
    assert model(torch.rand(2, 3072)).shape == (2, 10)
    assert model[0](torch.arange(3072.0).view(1, -1))[0, 1, 0, 0] == 1024  # red, then green
    assert cifar.model({"hidden": 4})(torch.rand(2, 3072)).shape == (2, 10)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {TRAIN[1]: cifar_batch(3, 0)[:-1]},
            r"data_batch_2.bin: has 9218 bytes, no multiple of 3073; it is cut off or another file",
        ),
        ({TEST: b""}, r"test_batch.bin: has 0 bytes"),
        (
            {TRAIN[0]: b"\x0a" + cifar_batch(1, 0)[1:]},
            r"data_batch_1.bin: holds the label 10; labels run from 0 to 9",
        ),
        (
            {TRAIN[2]: None},
            (
                r"holds no cifar-10-batches-bin/data_batch_3.bin; remove it, so that it is "
                r"downloaded again"
            ),
        ),
    ],
)
def test_what_is_no_such_file_is_told_with_its_name(cifar, tmp_path, changed, message):
    batches = {
        name: content
        for name, content in {**cifar_batches(3), **changed}.items()
        if content is not None
    }
    write_cifar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", batches)
    with pytest.raises(TaskError, match=message):
        cifar.data()


def test_damaged_archives_are_told(cifar, tmp_path):
    path = tmp_path / "cifar10" / "cifar-10-binary.tar.gz"
    write_cifar(path, cifar_batches())
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive at all", b""):
        path.write_bytes(content)
        with pytest.raises(
            TaskError, match=r"cifar-10-binary.tar.gz: cannot be unpacked \(.*\); remove it"
        ):
            cifar.data()

"""A teacher's predictions for the training part.

They are computed once and are the same for all workers. Impossible requests are refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import CheckpointError, DamagedFileError, TaskError
from common.folder.checkpoint_name import CheckpointName
from common.folder.records import SearchFolder
from common.folder.teacher import Member, Taught, Teacher, read_taught, read_teacher
from common.repeats import Repeats
from common.search.search_file import Search, parse_search
from tests.unit.training.helpers import job, outcomes
from worker.run.checkpoint_files import keep
from worker.run.teaching import Teachers
from worker.tasks.base import Data, Part
from worker.tasks.digits import Digits
from worker.training.outcome.evaluate import load

SEARCH = """
id = "0123456789abcdef"
protocol = 2
name = "digits"
task = "digits"
[space]
learning_rate = { log_uniform = [1e-3, 1.0] }
[stages.coarse]
trials = 3
epochs = 1
[stages.small]
kind = "distill"
trials = 1
epochs = 1
"""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Data:
    return Digits().data()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SearchFolder:
    """A search with two kept models."""
    folder = SearchFolder(tmp_path_factory.mktemp("teaching"), "digits")
    folder.path.mkdir()
    folder.search_file.write_text(SEARCH)
    folder.stage("coarse").make()
    found = outcomes(
        [job(i, 1, learning_rate=0.1 + 0.1 * i) for i in range(2)],
        task=Digits(),
        dtype=torch.float32,
    )
    keep(
        folder.stage("coarse"),
        {CheckpointName(o.val_acc or 0, o.trial.id, 1, 1): o for o in found.values()},
        Repeats(print),
    )
    return folder


@pytest.fixture
def folder(made: SearchFolder) -> SearchFolder:
    stage = made.stage("small")
    stage.make()
    for path in stage.path.glob("teacher*"):
        path.unlink()
    stage.teacher.write_bytes(teacher(made).content())
    return made


def teacher(folder: SearchFolder) -> Teacher:
    names = folder.stage("coarse").checkpoints()
    return Teacher(
        "greedy", [Member(f"coarse/{name}", weight) for weight, name in enumerate(names, start=1)]
    )


def teachers(folder: SearchFolder, said: list[str] | None = None) -> Teachers:
    search = folder.search()
    assert isinstance(search, Search)
    return Teachers(folder, search, Digits(), CPU, (said if said is not None else []).append)


def test_it_is_the_logarithm_of_the_weighted_mean_of_the_probabilities(
    folder: SearchFolder, data: Data
) -> None:
    beats: list[int] = []
    found = teachers(folder).of("small", data, lambda: beats.append(1))
    paths = [folder.path / member.checkpoint for member in teacher(folder).members]
    one, two = (
        load(path, Digits(), "digits", CPU).outputs(data.train.inputs).double().softmax(-1)
        for path in paths
    )
    assert found.shape == (len(data.train), 10) and found.dtype == torch.float32
    torch.testing.assert_close(found.double().exp(), (one + 2 * two) / 3, atol=1e-6, rtol=0)
    assert len(beats) == 2


def test_who_comes_second_reads_what_the_first_has_written(
    folder: SearchFolder, data: Data
) -> None:
    teachers(folder).of("small", data, lambda: None)
    stage = folder.stage("small")
    first = read_taught(stage.taught)
    marked = first.log_probabilities[:, ::-1].copy()
    stage.taught.unlink()
    stage.taught.write_bytes(Taught(marked, first.targets, first.digest).content())
    assert torch.equal(teachers(folder).of("small", data, lambda: None), torch.from_numpy(marked))


@pytest.mark.parametrize("content", ["rubbish", "of others"])
def test_what_is_damaged_or_of_other_models_is_set_aside_and_asked_again(
    folder: SearchFolder, data: Data, content: str
) -> None:
    expected = teachers(folder).of("small", data, lambda: None)
    stage, said = folder.stage("small"), list[str]()
    good = read_taught(stage.taught)
    other = Taught(good.log_probabilities[:, ::-1].copy(), good.targets, bytes(32))
    stage.taught.write_bytes(b"PK rubbish" if content == "rubbish" else other.content())
    assert torch.equal(teachers(folder, said).of("small", data, lambda: None), expected)
    assert (
        len(said) == 1
        and "set aside" in said[0]
        and stage.taught.with_name("teacher.npz.damaged").exists()
    )


def test_other_data_are_refused(folder: SearchFolder, data: Data) -> None:
    teachers(folder).of("small", data, lambda: None)
    fewer = Data(Part(data.train.inputs[:100], data.train.targets[:100]), data.val, None, 10)
    with pytest.raises(
        TaskError, match=r"the training part is not the one .* the data have changed"
    ):
        teachers(folder).of("small", fewer, lambda: None)


def test_a_missing_model_and_a_missing_list_are_told(folder: SearchFolder, data: Data) -> None:
    stage = folder.stage("small")
    gone = "coarse/val_acc=0.9999-trial=coarse-0009-epoch=001-try=1.pt"
    stage.teacher.write_bytes(Teacher("top", [Member(gone)]).content())
    with pytest.raises(CheckpointError, match=r"coarse-0009.*no such file"):
        teachers(folder).of("small", data, lambda: None)
    stage.teacher.unlink()
    with pytest.raises(
        CheckpointError, match=r"teacher.json: no such file, .* `master launch` writes it"
    ):
        teachers(folder).of("small", data, lambda: None)


@pytest.mark.parametrize(
    "checkpoint",
    ["../../x.pt", "/etc/passwd", "coarse/../x.pt", "coarse/x.pt", "", "coarse/trials/a.json"],
)
def test_no_model_lies_outside_the_folder(tmp_path: Path, checkpoint: str) -> None:
    path = tmp_path / "teacher.json"
    path.write_bytes(Teacher("top", [Member(checkpoint)]).content())
    with pytest.raises(DamagedFileError, match="is no weights file of a stage"):
        read_teacher(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'{"format": 2, "kind": "top", "members": []}',
        b'{"members": [1]}',
        b"[" * 10**5,
    ],
)
def test_a_list_of_models_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "teacher.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="damaged list of models"):
        read_teacher(path)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    logs, targets = np.log(np.full((3, 4), 0.25, np.float32)), np.arange(3)
    path = tmp_path / "teacher.npz"
    path.write_bytes(Taught(logs, targets, bytes(range(32))).content())
    found = read_taught(path)
    assert (
        np.array_equal(found.log_probabilities, logs)
        and np.array_equal(found.targets, targets)
        and found.digest == bytes(range(32))
    )
    path.write_bytes(Taught(logs + 1, targets, bytes(32)).content())
    with pytest.raises(DamagedFileError, match="no logarithms of probabilities"):
        read_taught(path)


def test_the_stage_that_distills_is_known_to_the_search_file() -> None:
    assert parse_search(SEARCH).stage("small").kind == "distill"

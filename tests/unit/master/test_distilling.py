"""Which models a stage that distills learns from, and what its trials sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError
from common.folder import predictions
from common.folder.checkpoint_name import CheckpointName
from common.folder.records import SearchFolder
from common.folder.teacher import Member, Teacher, read_teacher
from common.search.parameters import Fixed
from common.search.search_file import parse_search
from common.search.space import Space
from common.search.trial import TrialState
from master.stages.distilling import (
    choose_teacher,
    make_distilled_space,
    outcome,
    write_teacher,
)
from tests.unit.master.made import record

SEARCH = parse_search("""
id = "0000000000000000"
protocol = 2
name = "digits"
task = "digits"
[space]
learning_rate = { log_uniform = [1e-3, 1.0] }
[stages.coarse]
trials = 3
epochs = 1
[stages.sure]
kind = "confirm"
best = 1
seeds = 2
epochs = 1
[stages.other]
kind = "distill"
trials = 1
epochs = 1
[stages.small]
kind = "distill"
trials = 2
epochs = 1
""")
SMALL = SEARCH.stage("small")
TARGETS = np.array([0, 1, 1, 0])


@pytest.fixture
def folder(tmp_path: Path) -> SearchFolder:
    found = SearchFolder(tmp_path, "digits")
    for stage in SEARCH.stages:
        found.stage(stage.name).make()
    return found


def kept(
    folder: SearchFolder,
    stage: str,
    index: int,
    value: float,
    right: int = 4,
    weights: bool = True,
    **more: object,
) -> str:
    """A trial with weights whose model has the first ``right`` examples right."""
    name = CheckpointName(value, f"{stage}-{index:04d}", 1, 1)
    own = folder.stage(stage)
    values = {
        "trial": name.trial_id,
        "stage": stage,
        "val_acc": value,
        "checkpoint": str(name),
        **more,
    }
    made = record(index, {}).model_copy(update=values)
    own.write_records([made])
    if weights:
        (own.path / str(name)).write_bytes(b"weights")
    sure = np.where(np.arange(4) < right, 0.9, 0.1)
    of_one = np.where(TARGETS == 1, sure, 1 - sure)
    (own.path / name.predictions).write_bytes(
        predictions.pack({"val": np.stack([1 - of_one, of_one], 1), "val_targets": TARGETS})
    )
    return f"{stage}/{name}"


def test_the_best_of_all_stages_that_have_kept_their_weights_teach(folder: SearchFolder) -> None:
    coarse = [kept(folder, "coarse", i, 0.9 - 0.1 * i) for i in range(3)]
    sure = kept(folder, "sure", 0, 0.85)
    kept(folder, "sure", 1, 0.99, weights=False)  # its weights are gone
    kept(folder, "other", 0, 0.999)  # itself taught
    kept(folder, "coarse", 5, 0.95, state=TrialState.EXPLODED)
    kept(folder, "coarse", 6, 0.95, search_id="f" * 16)  # of a search that was here before
    teacher = choose_teacher(SEARCH, folder, SMALL, print, top=3)
    assert teacher == Teacher("top", [Member(coarse[0]), Member(sure), Member(coarse[1])])


def test_greedy_takes_what_helps_as_often_as_it_helps(folder: SearchFolder) -> None:
    kept(folder, "coarse", 0, 0.9, right=3)
    kept(folder, "coarse", 1, 0.8, right=1)
    best = kept(folder, "coarse", 2, 0.7, right=4)
    teacher = choose_teacher(SEARCH, folder, SMALL, print, kind="greedy")
    assert teacher.kind == "greedy" and [member.checkpoint for member in teacher.members] == [best]


def test_without_any_weights_nobody_can_teach(folder: SearchFolder) -> None:
    kept(folder, "coarse", 0, 0.9, weights=False)
    with pytest.raises(
        CheckpointError,
        match=r"--stage small: no stage before it \(coarse and sure\) keeps weights",
    ):
        choose_teacher(SEARCH, folder, SMALL, print)


def test_the_first_list_of_models_stays(folder: SearchFolder) -> None:
    first = Teacher(
        "top", [Member(kept(folder, "coarse", 0, 0.9)), Member(kept(folder, "coarse", 1, 0.8), 2)]
    )
    write_teacher(folder, SMALL, lambda: first)
    write_teacher(folder, SMALL, lambda: pytest.fail("chosen again"))
    assert read_teacher(folder.stage("small").teacher) == first


def test_temperature_and_mix_are_sampled_beside_the_best_configuration() -> None:
    fixed = Space({"learning_rate": Fixed(0.1), "hidden": Fixed(64)})
    plain = make_distilled_space(Space.parse({"learning_rate": 0.5}), fixed).plain()
    assert plain == {
        "learning_rate": 0.1, "hidden": 64, "distill_temperature": {"log_uniform": [1.0, 10.0]},
        "distill_mix": {"uniform": [0.3, 1.0]},
    }  # fmt: skip


def test_what_the_search_file_says_of_them_counts() -> None:
    given = Space.parse(
        {"learning_rate": 0.5, "distill_mix": 0.7, "distill_temperature": {"choice": [2.0, 4.0]}}
    )
    best = Space(
        {"learning_rate": Fixed(0.1), "distill_mix": Fixed(0.7), "distill_temperature": Fixed(2.0)}
    )
    assert make_distilled_space(given, best).plain() == {
        "learning_rate": 0.1,
        "distill_mix": 0.7,
        "distill_temperature": {"choice": [2.0, 4.0]},
    }


def test_trials_that_distill_share_an_array() -> None:
    space = make_distilled_space(
        Space.parse({"learning_rate": 0.5}),
        Space({"learning_rate": Fixed(0.1), "hidden": Fixed(64)}),
    )
    assert not space.structural and space.n_groups() == 1


def test_what_was_kept_of_the_teacher_is_told(folder: SearchFolder) -> None:
    members = [Member(kept(folder, "coarse", i, 0.9 - 0.1 * i, right=3)) for i in range(2)]
    write_teacher(folder, SMALL, lambda: Teacher("top", members))
    kept(
        folder,
        "small",
        0,
        0.95,
        hyperparameters={"distill_temperature": 3.14159, "distill_mix": 0.5},
    )
    kept(folder, "small", 1, 0.85, hyperparameters={"distill_temperature": 1.0, "distill_mix": 0.5})
    top = folder.stage("coarse").records(print)[0]
    told = outcome(folder, SMALL, folder.stage("small").records(print), top, print)
    assert told is not None
    lines = told.plain.splitlines()
    assert lines[0] == (
        "Distilled: small-0000, val_acc 0.9500 (temperature 3.14, mix 0.5, selected over 2 trials)."
    )
    assert lines[1].startswith(
        "Its accuracy on validation is +0.2500 against its teacher, 2 models together, "
        "0.7500 (95 % interval "
    )
    assert lines[2].startswith(
        "Its accuracy on validation is +0.2500 against coarse-0000, which had the same "
        "configuration"
    )
    assert all(line.endswith("paired on 4 examples).") for line in lines[1:])


def test_without_predictions_nothing_is_told(folder: SearchFolder) -> None:
    top = record(0, {})
    assert outcome(folder, SMALL, [], top, print) is None
    kept(folder, "small", 0, 0.95, hyperparameters={"distill_temperature": 2.0, "distill_mix": 0.5})
    said: list[str] = []
    assert (
        outcome(folder, SMALL, folder.stage("small").records(print), top, said.append) is None
        and said == []
    )
    folder.stage("small").teacher.write_bytes(b"rubbish")
    assert (
        outcome(folder, SMALL, folder.stage("small").records(print), top, said.append) is None
        and "damaged list" in said[0]
    )

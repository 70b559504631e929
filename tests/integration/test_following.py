"""Stages that follow a search, from the command line.

One confirms and one distills, with one worker and with two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from common.folder.teacher import read_taught, read_teacher
from tests.integration.commands import Place, place

SEARCH = """
name = "digits"
task = "digits"
seed = 3
[space]
learning_rate = { log_uniform = [0.01, 0.3] }
hidden = 16
batch_size = 64
distill_mix = 0.7
[stages.coarse]
trials = 6
epochs = 1
[stages.small]
kind = "distill"
trials = 3
epochs = 2
[stages.sure]
kind = "confirm"
best = 2
seeds = 2
epochs = 1
"""


def launched(here: Place, workers: int) -> str:
    (here.path / "search.toml").write_text(SEARCH)
    done = here.run("master", "launch", "--stage", "all", "--workers", str(workers))
    assert done.returncode == 0, done.stderr
    return done.stdout


def outcome(here: Place) -> dict[str, Any]:
    """What each trial came to, whoever trained it."""
    kept = ("hyperparameters", "seed", "parents", "drawn", "val_acc", "val_loss", "state")
    return {
        r["trial"]: {name: r.get(name) for name in kept}
        for stage in ("coarse", "small", "sure")
        for r in here.records(stage=stage)
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, str]]:
    """The search as one worker has trained it, and what launch said."""
    with place(tmp_path_factory.mktemp("one")) as here:
        yield here, launched(here, 1)


def test_the_best_are_trained_again_and_both_numbers_are_told(one: tuple[Place, str]) -> None:
    here, said = one
    ranked = [row["trial"] for row in here.rank("coarse")]
    again = here.records(stage="sure")
    assert [r["parents"] for r in again] == [[ranked[0]], [ranked[0]], [ranked[1]], [ranked[1]]]
    assert len({r["seed"] for r in again}) == 4
    best = {row["trial"]: row["value"] for row in here.rank("coarse")}
    assert (
        "trained again under 2 seeds" in said
        and f"selected {best[ranked[0]]:.4f} over 6 trials" in said.replace("\n", " ")
    )


def test_a_model_learns_from_the_best_ones(one: tuple[Place, str]) -> None:
    here, _ = one
    stage = here.root / "digits" / "small"
    teacher, ranked = read_teacher(stage / "teacher.json"), here.rank("coarse")
    assert [member.checkpoint for member in teacher.members] == [
        f"coarse/{row['checkpoint']}" for row in ranked
    ]
    assert read_taught(stage / "teacher.npz").digest == teacher.digest
    taught = here.records(stage="small")
    assert len(taught) == 3 and all(r["state"] == "completed" for r in taught), json.dumps(taught)[
        :500
    ]
    assert all(
        r["hyperparameters"]["learning_rate"] == ranked[0]["hyperparameters"]["learning_rate"]
        for r in taught
    )
    assert len({r["hyperparameters"]["distill_temperature"] for r in taught}) == 3
    assert {r["hyperparameters"]["distill_mix"] for r in taught} == {0.7}  # as the search file says


def test_the_number_of_workers_changes_nothing(one: tuple[Place, str], here: Place) -> None:
    launched(here, 2)
    alone, together = outcome(one[0]), outcome(here)
    assert alone.keys() == together.keys() and len(alone) == 13
    for trial, found in alone.items():
        assert {**found, "val_loss": None} == {**together[trial], "val_loss": None}
        assert found["val_loss"] == pytest.approx(
            together[trial]["val_loss"], abs=1e-4
        )  # arrays of other widths round otherwise

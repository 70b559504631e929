from __future__ import annotations

import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from common.checkpoint_name import CheckpointName
from common.queue import TrialQueue
from common.records import AttemptFile, StageFolder
from common.trial import TrialState
from master.janitor import ORPHAN_S, ended_states, folder_now_s, orphans, superfluous_weights, sweep

DAY_S = 86400.0


def name(value: float, index: int, attempt: int = 1) -> CheckpointName:
    return CheckpointName(value, f"coarse-{index:04d}", 1, attempt)


def test_the_best_are_kept_and_superseded_attempts_go() -> None:
    names = [name(0.9, 1, 1), name(0.8, 2), name(0.7, 1, 2), name(0.6, 3), name(0.5, 4)]
    accepted = {"coarse-0001": 2, "coarse-0002": 1, "coarse-0003": 1, "coarse-0004": 1}
    assert superfluous_weights(names, 2, accepted, {}) == [names[0], names[3], names[4]]
    assert superfluous_weights(names, 10, accepted, {}) == [names[0]]
    assert superfluous_weights(names, 10, {}, {}) == []  # of what Redis does not know, nothing is superseded


def test_weights_of_a_trial_that_has_not_ended_push_out_nobodys() -> None:
    orphan, again, kept, worse = name(0.9, 1, 1), name(0.9, 1, 2), name(0.8, 2), name(0.7, 3)
    ended = {"coarse-0002": 1, "coarse-0003": 1}
    assert superfluous_weights([orphan, again, kept, worse], 2, ended, {}) == []  # its worker died after the weights; another trains it
    assert superfluous_weights([orphan, again, kept, worse], 2, ended | {"coarse-0001": 2}, {}) == [orphan, worse]


def test_only_states_of_ended_trials_go(tmp_path: Path) -> None:
    states = {"coarse-0001": TrialState.COMPLETED, "coarse-0002": TrialState.RUNNING, "coarse-0003": TrialState.PENDING}
    files = [AttemptFile(trial, 1, tmp_path / trial) for trial in [*states, "coarse-0009"]]
    assert [f.trial_id for f in ended_states(files, states.get)] == ["coarse-0001"]


def test_only_old_temporary_files_are_orphans(tmp_path: Path) -> None:
    fresh, other = tmp_path / ".tmp-1-a", tmp_path / "val_acc=0.9000-trial=coarse-0001-epoch=001-try=1.pt"
    fresh.touch()
    other.touch()
    now = fresh.stat().st_mtime
    assert orphans((tmp_path,), now + ORPHAN_S - 1) == []
    assert orphans((tmp_path,), now + ORPHAN_S + 1) == [fresh]


class KnowsNothing:
    """As much of a queue as the janitor asks, while no trial has ended."""

    search_id = ""

    def lock(self, _name: str, _ttl_s: float) -> Any:
        return nullcontext(True)

    def result(self, _trial_id: str) -> None:
        return None

    def state(self, _trial_id: str) -> TrialState:
        return TrialState.RUNNING


@pytest.mark.parametrize("ahead_s", [-DAY_S, 0.0, 2 * ORPHAN_S, 40 * DAY_S])
def test_a_master_whose_clock_is_wrong_takes_no_living_writers_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    folder = StageFolder(tmp_path)
    folder.make()
    temporary, gone = folder.trials / ".tmp-1-a", folder.trials / ".tmp-1-b"
    predictions = tmp_path / name(0.9, 1).predictions  # their weights are being written
    for path in (temporary, gone, predictions):
        path.touch()
    os.utime(gone, (gone.stat().st_mtime - 2 * ORPHAN_S,) * 2)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead_s)
    queue: TrialQueue = KnowsNothing()  # type: ignore[assignment]
    assert sweep(queue, folder, keep=5) == 1
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {temporary, predictions}


def test_in_a_folder_that_takes_no_file_nothing_is_old(tmp_path: Path) -> None:
    assert folder_now_s(tmp_path / "gone") == -math.inf
    temporary = tmp_path / ".tmp-1-a"
    temporary.touch()
    os.utime(temporary, (0, 0))
    assert orphans((tmp_path,), -math.inf) == []

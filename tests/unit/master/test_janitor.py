from __future__ import annotations

from pathlib import Path

from common.checkpoint_name import CheckpointName
from common.records import AttemptFile
from common.trial import TrialState
from master.janitor import ORPHAN_S, ended_states, orphans, superfluous_weights


def name(value: float, index: int, attempt: int = 1) -> CheckpointName:
    return CheckpointName(value, f"coarse-{index:04d}", 1, attempt)


def test_the_best_are_kept_and_superseded_attempts_go() -> None:
    names = [name(0.9, 1, 1), name(0.8, 2), name(0.7, 1, 2), name(0.6, 3), name(0.5, 4)]
    accepted = {"coarse-0001": 2, "coarse-0002": 1, "coarse-0003": 1, "coarse-0004": 1}
    assert superfluous_weights(names, 2, accepted) == [names[0], names[3], names[4]]
    assert superfluous_weights(names, 10, accepted) == [names[0]]
    assert superfluous_weights(names, 10, {}) == []  # of what Redis does not know, nothing is superseded


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

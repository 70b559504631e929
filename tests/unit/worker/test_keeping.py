"""The files of a trial that keeps its weights, and what is left when it no longer does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.folder.checkpoint_name import CheckpointName
from common.folder.predictions import read
from common.folder.records import StageFolder
from common.queue.trial_queue import TrialQueue
from common.repeats import Repeats
from common.search.trial import Claim, Fence, Trial, TrialState
from master.run import janitor
from worker.run.checkpoint_files import keep, with_weights
from worker.training.types import Outcome, Snapshot

ARRAYS = {
    "val": np.full((4, 2), 0.5),
    "val_targets": np.array([0, 1, 0, 1]),
    "test": np.empty((0, 2)),
    "test_targets": np.empty(0),
}


def outcome(index: int, **more: Any) -> Outcome:
    trial = Trial(f"coarse-{index:04d}", "coarse", index, 1, 4.0, {}, "{}")
    job = Claim(trial, Fence(trial.id, 1, "token"))
    snapshots = tuple(
        Snapshot(epoch, 0.4 + epoch / 10, lambda: b"early", lambda: ARRAYS)
        for epoch in (1.0, 2.0, 3.0)
    )
    values: dict[str, Any] = {
        "checkpoint": lambda: b"weights",
        "predictions": lambda: ARRAYS,
        "snapshots": snapshots,
    }
    return Outcome(job, TrialState.COMPLETED, **{**values, **more})


def name(index: int, value: float = 0.9) -> CheckpointName:
    return CheckpointName(value, f"coarse-{index:04d}", 4, 1)


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    found = StageFolder(tmp_path / "coarse")
    found.make()
    return found


def files(folder: StageFolder) -> list[str]:
    return sorted(
        str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()
    )


def test_weights_predictions_and_snapshots_lie_there_together(folder: StageFolder) -> None:
    moves: list[None] = []
    kept = keep(folder, {name(1): outcome(1)}, Repeats(print), lambda: moves.append(None))[
        "coarse-0001"
    ]
    assert len(moves) == 4  # a heartbeat for each model that predicts: none of them may look stuck
    stem = "trial=coarse-0001-epoch"
    assert kept["snapshots"] == [
        f"val_acc=0.{5 + n}000-{stem}=00{n + 1}-try=1.pt" for n in range(3)
    ]
    assert kept["checkpoint"] == f"val_acc=0.9000-{stem}=004-try=1.pt"
    weights = [kept["checkpoint"], *(f"snapshots/{snapshot}" for snapshot in kept["snapshots"])]
    assert files(folder) == sorted([*weights, *(w.replace(".pt", ".npz") for w in weights)])
    assert (folder.path / kept["checkpoint"]).read_bytes() == b"weights"
    assert read(folder.path / name(1).predictions).val.targets.tolist() == [0, 1, 0, 1]


def test_weights_that_cannot_be_put_together_fail_their_trial_with_the_cause() -> None:
    def raises() -> bytes:
        raise TypeError("view() needs a shape")

    broken = with_weights(outcome(1, checkpoint=raises))
    assert (broken.state, broken.checkpoint) == (TrialState.FAILED, None)
    assert broken.reason == "its checkpoint cannot be put together: TypeError: view() needs a shape"
    assert 'raise TypeError("view() needs a shape")' in str(broken.traceback)
    sound = with_weights(outcome(2))
    assert sound.checkpoint is not None and (sound.state, sound.checkpoint()) == (
        TrialState.COMPLETED,
        b"weights",
    )


def test_a_model_that_cannot_predict_keeps_its_weights(folder: StageFolder) -> None:
    def raises() -> dict[str, Any]:
        raise RuntimeError("the test part does not fit")

    def leaves() -> dict[str, Any]:
        raise SystemExit("the test part is secret")

    said: list[str] = []
    keep(folder, {name(1): outcome(1, predictions=raises, snapshots=())}, Repeats(said.append))
    keep(
        folder,
        {
            name(2): outcome(
                2, predictions=lambda: ARRAYS | {"val": np.full((4, 2), np.nan)}, snapshots=()
            )
        },
        Repeats(said.append),
    )
    keep(
        folder, {name(3): outcome(3, predictions=None, snapshots=())}, Repeats(said.append)
    )  # no classification
    keep(
        folder,
        {name(4): outcome(4, predictions=leaves, portrait=leaves, snapshots=())},
        Repeats(said.append),
    )
    assert files(folder) == [str(name(n)) for n in (1, 2, 3, 4)]
    assert (
        "the test part does not fit" in said[0]
        and "no probabilities" in said[1]
        and "is secret" in said[2] + said[3]
        and len(said) == 4
    )


class FakeQueue:
    """As much of a queue as the janitor asks."""

    search_id = ""

    def __init__(self, accepted: dict[str, int]) -> None:
        self._accepted = accepted

    def lock(self, _name: str, _ttl_s: float) -> Any:
        from contextlib import nullcontext

        return nullcontext(True)

    def result(self, trial_id: str) -> tuple[int, None] | None:
        return (self._accepted[trial_id], None) if trial_id in self._accepted else None

    def state(self, _trial_id: str) -> TrialState:
        return TrialState.COMPLETED

    def trials_of(self, _trial_ids: object) -> list[None]:
        return []


def swept(folder: StageFolder, keep: int, later_s: float = 0.0, **accepted: int) -> list[str]:
    queue: TrialQueue = FakeQueue(  # type: ignore[assignment]
        {n.replace("_", "-"): attempt for n, attempt in accepted.items()},
    )
    newest = max((path.stat().st_mtime for path in folder.path.rglob("*")), default=0.0)
    janitor.sweep(queue, folder, keep, newest + later_s)
    return files(folder)


def test_what_falls_out_of_keep_takes_everything_along(folder: StageFolder) -> None:
    keep(folder, {name(1, 0.9): outcome(1), name(2, 0.8): outcome(2)}, Repeats(print))
    assert len(files(folder)) == 16
    left = swept(folder, keep=1, coarse_0001=1, coarse_0002=1)
    assert len(left) == 8 and all("coarse-0001" in file for file in left)


def test_a_superseded_attempt_takes_everything_along(folder: StageFolder) -> None:
    keep(folder, {name(1, 0.9): outcome(1), name(2, 0.8): outcome(2)}, Repeats(print))
    left = swept(folder, keep=5, coarse_0001=2, coarse_0002=1)
    assert len(left) == 8 and all("coarse-0002" in file for file in left)


def test_what_lost_its_weights_goes_once_nobody_can_be_writing_them(folder: StageFolder) -> None:
    keep(folder, {name(1, 0.9): outcome(1)}, Repeats(print))
    (folder.path / str(name(1, 0.9))).unlink()
    assert len(swept(folder, keep=5)) == 7
    assert swept(folder, keep=5, later_s=janitor.ORPHAN_S + 1) == []

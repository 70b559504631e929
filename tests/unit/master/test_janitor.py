from __future__ import annotations

import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from common.folder.checkpoint_name import CheckpointName
from common.folder.records import AttemptFile, SearchFolder, StageFolder
from common.queue.trial_queue import TrialQueue
from common.search.plan import StagePlan
from common.search.trial import Trial, TrialState
from master.run.janitor import (
    ORPHAN_S,
    Stance,
    find_spent_states,
    folder_now_s,
    orphans,
    superfluous_weights,
    sweep,
    sweep_left_over,
)

DAY_S = 86400.0


def name(value: float, index: int, attempt: int = 1) -> CheckpointName:
    return CheckpointName(value, f"coarse-{index:04d}", 1, attempt)


def test_the_best_are_kept_and_superseded_attempts_go() -> None:
    names = [name(0.9, 1, 1), name(0.8, 2), name(0.7, 1, 2), name(0.6, 3), name(0.5, 4)]
    accepted = {"coarse-0001": 2, "coarse-0002": 1, "coarse-0003": 1, "coarse-0004": 1}
    assert superfluous_weights(names, 2, accepted, {}) == [names[0], names[3], names[4]]
    assert superfluous_weights(names, 10, accepted, {}) == [names[0]]
    assert (
        superfluous_weights(names, 10, {}, {}) == []
    )  # of what Redis does not know, nothing is superseded


def test_weights_of_a_trial_that_has_not_ended_push_out_nobodys() -> None:
    orphan, again, kept, worse = name(0.9, 1, 1), name(0.9, 1, 2), name(0.8, 2), name(0.7, 3)
    ended = {"coarse-0002": 1, "coarse-0003": 1}
    assert (
        superfluous_weights([orphan, again, kept, worse], 2, ended, {}) == []
    )  # its worker died after the weights; another trains it
    assert superfluous_weights([orphan, again, kept, worse], 2, ended | {"coarse-0001": 2}, {}) == [
        orphan,
        worse,
    ]


def state_file(index: int, attempt: int = 1) -> AttemptFile:
    return AttemptFile(f"coarse-{index:04d}", attempt, Path(f"coarse-{index:04d}-try={attempt}.pt"))


def at(index: int, epochs: float, value: float | None) -> Stance:
    return Stance(
        TrialState.COMPLETED,
        Trial(f"coarse-{index:04d}", "coarse", index, 1, epochs, {}, "{}", max_epochs=20.0),
        value,
    )


def test_of_trials_that_have_ended_only_those_keep_a_state_that_may_go_on() -> None:
    ended = {
        "coarse-0001": at(1, 2.0, 0.9),
        "coarse-0002": at(2, 20.0, 0.9),  # its full length
        "coarse-0003": Stance(TrialState.EXPLODED),
        "coarse-0004": Stance(TrialState.COMPLETED),  # Redis has lost what it was
    }
    files = [state_file(index) for index in (1, 2, 3, 4, 5)]  # 5 runs
    assert find_spent_states(files, ended, None, "max") == files[1:4]


def test_a_later_attempt_s_state_overtakes_the_earlier_ones_once_the_trial_stands_at_a_rung() -> (
    None
):
    files = [state_file(1, 1), state_file(1, 2), state_file(2, 1), state_file(2, 2)]
    assert (
        find_spent_states(files, {"coarse-0001": at(1, 7.0, 0.9)}, None, "max") == files[:1]
    )  # 2 runs: whichever can be read


@pytest.mark.parametrize("mode", ["max", "min"])
def test_at_a_rung_as_many_states_stay_as_the_plan_promotes_and_a_few(mode: str) -> None:
    plans = [StagePlan((1.0, 2.0), (60, 20)), StagePlan((1.0, 2.0, 7.0), (30, 10, 3))]
    values = {index: index / 100 for index in range(60)}
    ended = {f"coarse-{index:04d}": at(index, 1.0, value) for index, value in values.items()}
    going = {
        file.trial_id
        for file in find_spent_states(
            [state_file(index) for index in range(60)], ended, plans, mode
        )
    }
    staying = [index for index in values if f"coarse-{index:04d}" not in going]
    assert staying == (list(range(30, 60)) if mode == "max" else list(range(30)))
    on_top = {
        f"coarse-{index:04d}": at(index, 7.0, 0.5) for index in range(5)
    }  # nobody is promoted from there
    assert (
        len(find_spent_states([state_file(index) for index in range(5)], on_top, plans, mode)) == 5
    )


def test_states_of_a_repeated_configuration_stay_together_by_their_mean() -> None:
    plans = [StagePlan((1.0, 2.0), (60, 4), 2)]  # 4 and a margin of 4: 4 configurations
    values = {index: index / 100 for index in range(40)} | {1: 0.99, 38: 0.0}
    ended = {f"coarse-{index:04d}": at(index, 1.0, value) for index, value in values.items()}
    del ended["coarse-0011"]  # it still trains, and may lift the other
    files = [state_file(index) for index in values if index != 11]
    going = {file.trial_id for file in find_spent_states(files, ended, plans, "max")}
    staying = [index for index in values if f"coarse-{index:04d}" not in going]
    assert staying == [0, 1, 10, 11, 32, 33, 34, 35, 36, 37]


def test_only_old_temporary_files_are_orphans(tmp_path: Path) -> None:
    fresh, other = (
        tmp_path / ".tmp-1-a",
        tmp_path / "val_acc=0.9000-trial=coarse-0001-epoch=001-try=1.pt",
    )
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

    def trials_of(self, _trial_ids: object) -> list[None]:
        return []


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


@pytest.mark.parametrize(
    "place", ["", "coarse", "coarse/trials", "coarse/resume", "coarse/promotions", "coarse/asked"]
)
def test_what_a_killed_writer_has_left_goes_wherever_programs_write(
    tmp_path: Path, place: str
) -> None:
    folder = StageFolder(tmp_path / "coarse")
    folder.make()
    left = tmp_path / place / ".tmp-1-a"
    left.parent.mkdir(exist_ok=True)
    left.touch()
    os.utime(left, (left.stat().st_mtime - 2 * ORPHAN_S,) * 2)
    queue: TrialQueue = KnowsNothing()  # type: ignore[assignment]
    assert sweep(queue, folder, keep=5) == 1
    assert not left.exists()


LEFT = (
    ".tmp-1-a", ".redis/.tmp-1-a", ".redis/temp-rewriteaof-bg-7.aof", ".redis/temp-7.rdb",
    ".redis/7.sock", "digits/.tmp-1-a", ".redis-server/.tmp-1-a",
    ".redis-server/data/temp-rewriteaof-7.aof",
    "digits/logs/.tmp-1-stayed.json", "digits/coarse/.tmp-1-a", "digits/coarse/trials/.tmp-1-a",
    "digits/coarse/snapshots/.tmp-1-a",
    "digits/gone/.tmp-1-a",
)  # fmt: skip
STAYING = (
    "notes", "other/.tmp-1-a", ".redis/redis.sock", ".redis/appendonly.aof", ".redis/dump.rdb",
    "digits/search.toml",
    "digits/logs/worker-1.log", "digits/coarse/trials/coarse-0001-try=1.json",
)  # fmt: skip


@pytest.mark.parametrize("age_s", [0.0, 2 * ORPHAN_S])
def test_what_killed_programs_have_left_goes_from_every_folder_once_it_is_old(
    tmp_path: Path, age_s: float
) -> None:
    paths = [tmp_path / name for name in (*LEFT, *STAYING)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    n_removed = sweep_left_over(SearchFolder(tmp_path, "digits"))
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*STAYING, *(() if age_s else LEFT)} and n_removed == (len(LEFT) if age_s else 0)


def test_in_a_folder_that_takes_no_file_nothing_is_old(tmp_path: Path) -> None:
    assert folder_now_s(tmp_path / "gone") == -math.inf
    temporary = tmp_path / ".tmp-1-a"
    temporary.touch()
    os.utime(temporary, (0, 0))
    assert orphans((tmp_path,), -math.inf) == []

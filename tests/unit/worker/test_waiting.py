"""Trials that end at a rung.

The tests cover which states are kept, in which order files are written, and how the trials go on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import redis
import torch

from common.folder.record import Record
from common.folder.records import SearchFolder, StageFolder
from common.queue.answers import Verdict
from common.queue.trial_queue import TrialQueue
from common.search.plan import StagePlan
from common.search.trial import Claim, Fence, Result, Trial, TrialState
from worker.run.heartbeat import Heartbeat
from worker.run.recorder import Recorder
from worker.run.rungs import Waiting, size_of
from worker.run.session import Means, Session
from worker.training.outcome import archive
from worker.training.types import Outcome

PLANS = [StagePlan((1.0, 2.0), (12, 4)), StagePlan((1.0, 2.0, 7.0), (6, 2, 1))]
SEARCH = (
    'id = "0123456789abcdef"\nprotocol = 2\nname = "rungs"\ntask = "digits"\nkeep = 2\n[budget]\n'
    "epochs = 300\n[space]\nlearning_rate = 0.1\n"
)


def trial(index: int, epochs: float = 1.0, passed: tuple[float, ...] = ()) -> Trial:
    return Trial(
        f"coarse-{index:04d}",
        "coarse",
        index,
        index,
        epochs,
        {"learning_rate": 0.1},
        "{}",
        max_epochs=20.0,
        passed=passed,
    )


def ended(index: int, value: float, attempt: int = 1, **more: Any) -> Outcome:
    of = more.pop("trial", trial(index))
    values = {
        "value": value,
        "metrics": {"val_acc": value},
        "best_epoch": 1.0,
        "epochs": of.epochs,
        "checkpoint": lambda: b"weights",
    }
    state = {"trial": of.id, "steps": 5, "row": torch.full((8,), float(index))}
    given = {"resume": lambda: state, "portrait": dict, "picture": lambda: b"png", **values, **more}
    return Outcome(
        Claim(of, Fence(of.id, attempt, "token")),
        given.pop("state", TrialState.COMPLETED),
        **given,
    )


class Queue:
    """A stand-in for Redis as a recorder uses it.

    It notes which files existed when it heard of an end.
    """

    search_id = "0123456789abcdef"

    def __init__(self, stage: StageFolder) -> None:
        self._stage = stage
        self.heard: list[tuple[Fence, Result, list[str]]] = []

    def finish(self, told: Sequence[tuple[Fence, Result]]) -> list[Verdict]:
        self.heard += [(fence, result, files(self._stage)) for fence, result in told]
        return [Verdict.OK for _ in told]


def files(stage: StageFolder) -> list[str]:
    return sorted(
        str(path.relative_to(stage.path)) for path in stage.path.rglob("*") if path.is_file()
    )


class House:
    """A search of rungs, and a worker's recorder for it."""

    def __init__(self, root: Path) -> None:
        folder = SearchFolder(root, "rungs")
        folder.path.mkdir()
        folder.search_file.write_text(SEARCH)
        search = folder.search()
        assert search is not None
        self.said: list[str] = []
        self.stage = folder.stage("coarse")
        self.stage.make()
        self.queue = Queue(self.stage)
        self.session = Session(redis.Redis(), folder, search, Means(torch.device("cpu"), None, 1))
        self.session.queue = cast(TrialQueue, self.queue)
        self.info = SimpleNamespace(worker="w", device_model="cpu", device="cpu")
        nothing = lambda *_: None  # noqa: E731
        beats = SimpleNamespace(
            info=self.info,
            holds=lambda _: True,
            drop=nothing,
            note_written=nothing,
            beat=nothing,
            trials_done=0,
        )
        self.recorder = Recorder(self.session, cast(Heartbeat, beats), self.said.append)

    def claim(self, index: int, epochs: float, passed: tuple[float, ...], attempt: int) -> Claim:
        of = trial(index, epochs, passed)
        (job,) = self.session.load_states(
            [Claim(of, Fence(of.id, attempt, "token"))], self.said.append
        )
        return job


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_whoever_the_stage_promotes_has_a_state_in_whatever_order_the_trials_end(mode: str) -> None:
    values = {index: index / 100 for index in range(12)}
    for seed in range(20):
        order = random.Random(seed).sample(sorted(values), 12)
        halves = [Waiting(), Waiting()]  # two workers
        saved = {
            o.trial.id
            for n, i in enumerate(order)
            for o in halves[n % 2].choose([ended(i, values[i])], PLANS, mode)
        }
        best = sorted(values, key=lambda i: values[i], reverse=mode == "max")[:4]
        assert {f"coarse-{index:04d}" for index in best} <= saved


def test_of_a_whole_rung_no_more_states_are_saved_than_can_be_promoted_and_a_few() -> None:
    outcomes = [ended(index, index / 100) for index in range(60)]
    assert len(Waiting().choose(outcomes, PLANS, "max")) == 4 + 4
    assert (
        Waiting().choose(outcomes, [StagePlan((1.0,), (60,))], "max") == []
    )  # a stage of the user's own promotes nobody


def test_of_a_repeated_configuration_a_state_is_kept_until_its_mean_is_known() -> None:
    waiting, plans = Waiting(), [StagePlan((1.0, 2.0), (60, 2), 2)]  # and a margin of 4
    whole = [ended(index, 0.9) for index in range(6)]
    assert len(waiting.choose(whole, plans, "max")) == 6
    assert len(waiting.choose([ended(6, 0.1)], plans, "max")) == 1  # the other may be on its way
    assert waiting.choose([ended(7, 0.2)], plans, "max") == []


def test_what_goes_on_never_keeps_no_state() -> None:
    full = ended(1, 0.9, trial=trial(1, 20.0))
    others = [
        ended(2, 0.9, state=TrialState.STOPPED),
        ended(3, float("nan")),
        ended(4, 0.9, resume=None),
    ]
    assert Waiting().choose([full, *others], PLANS, "max") == []


def test_memory_is_bounded_and_the_newest_stay() -> None:
    waiting = Waiting(most_bytes=100)
    for index in range(5):
        waiting.put(f"coarse-{index:04d}", 1, {"row": torch.zeros(10)})  # 40 bytes
    assert [waiting.take(f"coarse-{index:04d}", 2) is not None for index in range(5)] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert waiting.take("coarse-0004", 2) is None  # given out once
    waiting.put("coarse-0009", 1, {"row": torch.zeros(1000)})
    assert waiting.take("coarse-0009", 2) is None  # larger than all there is


def test_a_state_of_an_older_attempt_is_not_taken_for_the_last_one() -> None:
    waiting = Waiting()
    waiting.put("coarse-0001", 1, {"row": torch.zeros(1)})
    assert waiting.take("coarse-0001", 3) is None


def test_a_tensor_that_is_in_a_state_twice_weighs_once() -> None:
    row = {"flat": torch.zeros(10)}
    assert (
        size_of(
            {
                "row": row,
                "best": {"row": row},
                "moments": [{"row": {"flat": torch.zeros(5)}}],
                "steps": 3,
            }
        )
        == 60
    )


def test_the_state_is_there_before_the_record_and_the_record_before_redis_hears(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[str]] = []
    write = StageFolder.write_records

    def noted(stage: StageFolder, records: Sequence[Record]) -> list[Record]:
        written.append(files(stage))
        return write(stage, records)

    monkeypatch.setattr(StageFolder, "write_records", noted)
    house.recorder.record([ended(1, 0.9)])
    weights = "val_acc=0.9000-trial=coarse-0001-epoch=001-try=1.pt"
    assert written == [["resume/coarse-0001-try=1.pt", weights]]
    ((_, result, lying),) = house.queue.heard
    assert lying == ["resume/coarse-0001-try=1.pt", "trials/coarse-0001-try=1.json", weights]
    assert result.checkpoint == weights
    assert files(house.stage) == lying  # and nothing of it goes after Redis has heard


def test_a_trial_that_may_go_on_is_not_drawn_and_one_of_full_length_is(house: House) -> None:
    house.recorder.record([ended(1, 0.9), ended(2, 0.95, trial=trial(2, 20.0))])
    assert [file for file in files(house.stage) if file.startswith("pictures/")] == [
        "pictures/coarse-0002-try=1.png"
    ]
    first, second = house.stage.records(print)
    assert first.portrait is None and second.portrait == {}


def test_predictions_are_made_where_nobody_of_the_stage_goes_on_and_of_the_best_ten_alone(
    house: House,
) -> None:
    arrays = {
        "val": np.full((4, 2), 0.5),
        "val_targets": np.array([0, 1, 0, 1]),
        "test": np.empty((0, 2)),
        "test_targets": np.empty(0),
    }
    search = house.session.search
    last = search.stage("coarse").final_epochs
    assert last == 2.0
    house.session.search = search.model_copy(update={"keep": 12})
    house.recorder.record([ended(index, 0.9, predictions=lambda: arrays) for index in range(3)])
    assert not [file for file in files(house.stage) if file.endswith(".npz")]
    again = [trial(index, last, (1.0,)) for index in range(12)]
    house.recorder.record(
        [
            ended(of.index, 0.5 + of.index / 100, 2, trial=of, predictions=lambda: arrays)
            for of in again
        ]
    )
    assert len([file for file in files(house.stage) if file.endswith(".npz")]) == 10


def test_a_task_that_is_said_not_to_resume_leaves_no_states_and_says_nothing(house: House) -> None:
    search = house.session.search
    house.session.search = search.model_copy(
        update={"strategy": search.strategy.model_copy(update={"resumes": False})}
    )
    house.recorder.record([ended(1, 0.9)])
    assert not [file for file in files(house.stage) if file.startswith("resume/")]
    assert house.claim(1, 2.0, (1.0,), 2).resume is None and house.said == []


def test_a_promoted_trial_goes_on_from_memory_where_it_ended_here_and_else_from_its_file(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    load = archive.load
    monkeypatch.setattr(archive, "load", lambda path: read.append(path) or load(path))
    house.recorder.record([ended(1, 0.9), ended(2, 0.8)])
    here = house.claim(1, 2.0, (1.0,), 2)
    assert read == [] and here.resume is not None and here.resume["row"].tolist() == [1.0] * 8
    again = house.claim(1, 2.0, (1.0,), 2)  # it was given back meanwhile
    house.session.waiting = Waiting()  # as on another worker
    there = house.claim(2, 2.0, (1.0,), 2)
    assert [path.name for path in read] == ["coarse-0001-try=1.pt", "coarse-0002-try=1.pt"]
    for job, index in ((again, 1), (there, 2)):
        assert job.resume is not None and job.resume["row"].tolist() == [float(index)] * 8


def test_at_the_next_rung_the_earlier_state_goes_and_at_the_end_all(house: House) -> None:
    house.recorder.record([ended(1, 0.9)])
    house.recorder.record([ended(1, 0.9, attempt=2, trial=trial(1, 2.0, (1.0,)))])
    assert [file for file in files(house.stage) if "resume" in file] == [
        "resume/coarse-0001-try=2.pt"
    ]
    house.recorder.record([ended(1, 0.9, attempt=3, trial=trial(1, 20.0, (1.0, 2.0)))])
    assert [file for file in files(house.stage) if "resume" in file] == []
    assert [record.passed for record in house.stage.records(print)] == [(1.0, 2.0)]


def test_a_promoted_trial_without_a_saved_state_starts_anew_and_that_is_said_once(
    house: House,
) -> None:
    jobs = [house.claim(index, 2.0, (1.0,), 2) for index in (1, 2)]
    assert [job.resume for job in jobs] == [None, None]
    assert (
        len(house.said) == 1
        and "coarse-0001 goes on from 1 to 2 epochs, but has no saved state. It starts anew"
        in house.said[0]
    )
    house.claim(3, 1.0, (), 2)  # given back before it began
    assert len(house.said) == 1


def test_the_state_of_who_satisfies_a_constraint_is_kept_before_those_who_violate_it() -> None:
    plans = [StagePlan((1.0, 20.0), (20, 1))]  # so five states are kept
    why = "violates latency_ms < 20 (latency_ms = 31)"
    outcomes = [ended(0, 0.1), *(ended(n, 0.9, reason=why) for n in range(1, 8))]
    chosen = Waiting().choose(outcomes, plans, "max")
    assert [own.trial.id for own in chosen] == [f"coarse-000{n}" for n in range(5)]

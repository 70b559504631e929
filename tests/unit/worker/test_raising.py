"""What a worker does with trials that raised, as Redis rules."""

from __future__ import annotations

from typing import Any, cast

import pytest

from common.errors import QueueError
from common.folder.record import Record
from common.queue.second_tries import Answer, Raised, Ruling
from common.search.trial import Fence, Result, Trial, TrialState
from worker.run.second_tries import Raising


class Stub:
    """Plays the queue and the heartbeat."""

    def __init__(self, answers: list[Answer] | None) -> None:
        self.answers = answers
        self.dropped: list[str] = []

    def fail(self, raised: list[tuple[Fence, str]]) -> list[Answer]:
        if self.answers is None:
            raise QueueError("Redis at nowhere: refused")
        assert [reason for _, reason in raised] == ["boom"] * len(raised)
        return self.answers

    def drop(self, trial_ids: list[str]) -> None:
        self.dropped += trial_ids


def raising(stub: Stub, n: int) -> tuple[Raising, list[str]]:
    said: list[str] = []
    found = Raising(cast(Any, stub), cast(Any, stub), said.append)
    for index in range(n):
        trial = Trial(f"coarse-{index:04d}", "coarse", index, 1, 1.0, {}, "{}")
        result = Result(TrialState.FAILED, "boom")
        found.add(
            Fence(trial.id, 2, "token"),
            Record.of("0" * 16, trial, 2, result, traceback="Traceback\n  planted\n"),
        )
    return found, said


def test_while_redis_is_away_nothing_is_decided() -> None:
    stub = Stub(None)
    found, said = raising(stub, 2)
    with pytest.raises(QueueError):
        found.ask()
    assert found.trials() == {"coarse-0000", "coarse-0001"} and not said and not stub.dropped
    stub.answers = [Answer(Ruling.FINAL)] * 2
    assert [fence.trial_id for fence, _ in found.ask()] == ["coarse-0000", "coarse-0001"]
    assert found.trials() == set() and found.ask() == [] and not stub.dropped


def test_what_is_passed_on_is_told_once_with_its_traceback_and_forgotten() -> None:
    stub = Stub([Answer(Ruling.PASSED), Answer(Ruling.PASSED), Answer(Ruling.LOST)])
    found, said = raising(stub, 3)
    assert found.ask() == []
    assert stub.dropped == ["coarse-0000", "coarse-0001", "coarse-0002"]
    assert said[0].startswith("coarse-0002 try 2: another worker now holds this trial")
    assert said[1] == (
        "coarse-0000 and 1 more raised here: boom. Another machine will try next\nTraceback\n"
        "  planted"
    )


def test_the_record_of_what_has_failed_names_the_tries_before() -> None:
    found, _ = raising(Stub([Answer(Ruling.FINAL, (Raised("A", 1, "w1", "no sklearn"),))]), 1)
    ((_, record),) = found.ask()
    assert record.reason == "boom; raised before: try 1 on w1: no sklearn"
    assert record.traceback == "Traceback\n  planted\n"

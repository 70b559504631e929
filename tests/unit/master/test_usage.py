"""What records tell of the workers' time: who trained, wrote and waited for how long."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.idle import table
from common.folder.record import Record
from common.search.trial import TrialState
from master.report.stage_report import _use_of_time
from master.results.usage import Attempt, Times, attempt_of, use_of_time


def record(worker: str | None = "w1", *, ended_at: float, seconds: float, **more: Any) -> Record:
    told = {
        "search_id": "0" * 16,
        "trial": "coarse-0000",
        "stage": "coarse",
        "index": 0,
        "seed": 1,
        "budget_epochs": 1.0,
    }
    told |= {"hyperparameters": {}, "attempt": 1, "state": TrialState.COMPLETED}
    return Record.model_validate(
        {**told, "worker": worker, "ended_at": ended_at, "seconds": seconds, **more}
    )


def rounded(times: Times) -> dict[str, float]:
    return {name: round(value, 6) for name, value in vars(times).items() if round(value, 6)}


def test_slots_of_one_array_train_at_the_same_time() -> None:
    usage = use_of_time(
        [
            record(ended_at=110, seconds=10),
            record(ended_at=106, seconds=6),
            record(ended_at=110, seconds=4),
        ]
    )

    assert (usage.began, usage.ended) == (100, 110)
    assert rounded(usage.workers["w1"]) == {"trained": 10}
    assert usage.trained_share == 1


def test_a_worker_waits_between_its_claims_starts_late_and_leaves_early() -> None:
    other = [record("w2", ended_at=103, seconds=1), record("w2", ended_at=107, seconds=2)]
    usage = use_of_time([record(ended_at=110, seconds=10), *other])

    assert rounded(usage.workers["w2"]) == {"started": 2, "trained": 3, "waited": 2, "left": 3}
    assert rounded(usage.all) == {"started": 2, "trained": 13, "waited": 2, "left": 3}
    assert usage.trained_share == pytest.approx(13 / 20)


def test_a_promoted_trial_does_not_count_its_earlier_rungs_again() -> None:
    curves = {"epoch": [1.0, 2.0, 3.0], "seconds": [2.0, 4.0, 7.0]}
    last = record(ended_at=120, seconds=7, passed=(2.0,), curves=curves, attempt=2)

    assert attempt_of(last) == Attempt(117, 117, 120, 120, 3)
    usage = use_of_time([record(ended_at=104, seconds=4), last])
    assert rounded(usage.workers["w1"]) == {"trained": 7, "waited": 13}


def test_records_without_training_or_worker_say_nothing() -> None:
    told = [
        record(ended_at=101, seconds=1),
        record(ended_at=150, seconds=0),
        record(None, ended_at=160, seconds=3),
    ]

    assert rounded(use_of_time(told).all) == {"trained": 1}
    with pytest.raises(ValueError, match="nothing to count"):
        use_of_time(told[1:])


class TestWithItsTimes:
    """Records that say when their attempt was claimed, began and stopped training."""

    def test_preparing_and_writing_are_told_apart_from_waiting(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        attempts = {1.0: Attempt(100, 102, 105, 106, 3), 2.0: Attempt(110, 111, 119, 120, 8)}
        monkeypatch.setattr(
            "master.results.usage.attempt_of", lambda record: attempts[record.seconds]
        )
        usage = use_of_time([record(ended_at=106, seconds=1), record(ended_at=120, seconds=2)])

        assert rounded(usage.workers["w1"]) == {
            "prepared": 3,
            "trained": 11,
            "wrote": 2,
            "waited": 4,
        }

    def test_an_array_stands_while_others_are_written(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ten seconds passed for the slot and it trained for eight.

        For two seconds another trial's files were written.
        """
        attempts = {1.0: Attempt(100, 100, 110, 110, 8), 2.0: Attempt(100, 100, 104, 106, 4)}
        monkeypatch.setattr(
            "master.results.usage.attempt_of", lambda record: attempts[record.seconds]
        )
        usage = use_of_time([record(ended_at=110, seconds=1), record(ended_at=106, seconds=2)])

        assert rounded(usage.workers["w1"]) == {
            "trained": pytest.approx(8.8),
            "wrote": pytest.approx(1.2),
        }


def test_every_part_of_the_window_is_told_once() -> None:
    told = [
        record(f"w{n % 3}", ended_at=100 + n * 1.7 % 11, seconds=0.3 + n % 4 / 2) for n in range(40)
    ]
    usage = use_of_time(told)

    for times in usage.workers.values():
        assert times.total == pytest.approx(usage.ended - usage.began)
        assert min(vars(times).values()) >= -1e-9
    assert "| all |" in table(usage)


def test_the_report_shows_what_workers_waited_for() -> None:
    other = [record("w<2>", ended_at=103, seconds=1), record("w<2>", ended_at=107, seconds=2)]
    shown = _use_of_time([record(ended_at=110, seconds=10), *other])
    assert (
        "The workers trained for 65% of the 10.0 s from the first claim to the last "
        "record, and had nothing to claim for 10%."
    ) in shown
    assert shown.count("<tr>") == 4 and "w&lt;2&gt;" in shown  # a header, two workers, all of them


def test_the_report_says_nothing_of_time_where_no_record_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _use_of_time([record(None, ended_at=110, seconds=10)]) == ""
    monkeypatch.setattr("master.report.stage_report.MOST_COUNTED", 1)
    assert _use_of_time([record(ended_at=110, seconds=10)] * 2) == ""

"""Pace and time left: right, steady where trials end in batches, silent where nothing trains."""

from __future__ import annotations

import pytest

from master.run.estimate import Training, describe_left, estimate, rough
from master.run.progress import describe_pace


def one_after_the_other(until: float, each_s: float = 5.0, workers: int = 1) -> list[Training]:
    """Trainings of one epoch on some workers, those that run included."""
    found = []
    for worker in range(workers):
        began = -worker * each_s / workers
        while began < until:
            ended = began + each_s
            if ended <= until:
                found.append(Training(began, ended, 1.0, 1.0))
            else:
                share = (until - began) / each_s
                found.append(Training(began, until, share, share))
            began = ended
    return found


def test_the_pace_is_that_of_the_workers() -> None:
    found = estimate(one_after_the_other(300.0, workers=4), 100.0, 300.0, True)
    assert found is not None and found.pace == pytest.approx(4 / 5, rel=0.02)
    assert found.left_s == pytest.approx(100 / 0.8, rel=0.02)
    assert found.left_range_s is not None
    low, high = found.left_range_s
    assert low <= found.left_s <= high < 1.2 * low


def test_an_array_whose_trials_end_together_makes_no_jump() -> None:
    """64 trials end each 30 s: a count over the last minute jumps between 64 and 192."""
    seen = []
    for now in range(90, 240, 2):
        trainings, began = [], 0.0
        while began < now:
            ended = min(began + 30.0, float(now))
            share = (ended - began) / 30.0
            trainings += [Training(began, ended, share, share)] * 64
            began = ended
        found = estimate(trainings, 1000.0, float(now), True)
        assert found is not None
        seen.append(found.pace)
    assert max(seen) < 1.02 * min(seen) and seen[0] == pytest.approx(64 / 30, rel=0.02)


def test_time_without_training_does_not_count() -> None:
    before = one_after_the_other(100.0)
    later = [
        Training(one.began + 5000, one.ended + 5000, one.share, one.epochs)
        for one in one_after_the_other(20.0)
    ]
    found = estimate([*before, *later], 10.0, 5020.0, True)
    assert found is not None and found.pace == pytest.approx(0.2, rel=0.05)


def test_a_long_training_has_a_pace_before_it_ends() -> None:
    found = estimate([Training(0.0, 1800.0, 0.25, 5.0)], 15.0, 1800.0, True)
    assert found is not None and found.left_s == pytest.approx(3 * 1800)
    assert found.left_range_s is None, "one training says nothing of the others"
    assert describe_pace(found.pace) == "2 h 00 min a trial"


def test_where_nothing_trains_there_is_no_pace() -> None:
    ended = [Training(0.0, 5.0, 1.0, 1.0)] * 3
    assert estimate([], 10.0, 0.0, False) is None
    assert estimate(ended, 10.0, 6.0, False) is not None, "the next one may be on its way"
    assert estimate(ended, 10.0, 200.0, False) is None
    assert estimate([Training(0.0, 30.0, 0.0, 0.0)], 10.0, 30.0, True) is None, (
        "it has done nothing"
    )


def test_an_uneven_pace_has_a_wide_range() -> None:
    uneven = [Training(10.0 * n, 10.0 * n + 10.0, 1.0, 1.0 if n % 2 else 5.0) for n in range(30)]
    found = estimate(uneven, 100.0, 300.0, True)
    assert found is not None and found.left_range_s is not None
    assert found.left_range_s[1] > 1.5 * found.left_range_s[0]


def test_the_words() -> None:
    assert [rough(s) for s in (0.4, 7.2, 43, 94, 130, 3570, 4300, 7200, 90_000, 172_800)] == [
        "1 s", "8 s", "45 s", "95 s", "2 min", "1 h", "1 h 10 min", "2 h", "1 d 1 h", "2 d",
    ]  # fmt: skip
    assert [describe_pace(p) for p in (3.2, 1.0, 0.3125, 0.04)] == [
        "3.2 trials/s", "1.0 trials/s", "3.2 s a trial", "25 s a trial",
    ]  # fmt: skip
    found = estimate(one_after_the_other(300.0), 100.0, 300.0, True)
    assert found is not None and describe_left(found).startswith("about 8 min left")

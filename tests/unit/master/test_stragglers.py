from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from common.search.stage import Stragglers
from common.search.trial import Fence, Progress, Result, Running, Trial, TrialState
from master.run.stragglers import (
    Decision,
    Kind,
    PaceKey,
    Paces,
    decide,
    pace_key,
    pace_of,
    pace_of_result,
    slow_workers,
)

POLICY = Stragglers()
GROUP = '{"hidden":64}'
KEY = PaceKey(GROUP, "H200", 8)
FIVE = {KEY: [9.0, 10.0, 10.0, 10.0, 11.0]}
MACHINES = {"w1": "m1", "w2": "m2", "beside": "m1"}


def running(
    index: int = 0,
    worker: str = "w1",
    still_s: float = 0.0,
    phase: str = "training",
    phase_limit_s: float | None = None,
    epoch: float = 3.5,
    elapsed_s: float = 0.0,
    last_epoch_s: float | None = None,
    claimed_s: float = 1000.0,
    width: int = 8,
    group: str = GROUP,
    attempt: int = 1,
) -> Running:
    trial = Trial(f"coarse-{index:04d}", "coarse", index, index, 20.0, {"hidden": 64}, group)
    fence = Fence(trial.id, attempt, "token")
    progress = Progress(
        fence, 5, phase, phase_limit_s, epoch, elapsed_s, last_epoch_s, "H200", width
    )
    return Running(trial, fence, worker, claimed_s, still_s, progress)


def known(paces: Mapping[PaceKey, Sequence[float]], worker: str = "w2") -> Paces:
    """What is known of epochs that a worker trained."""
    found = Paces(MACHINES.get)
    for (group, model, width), seconds in paces.items():
        for one in seconds:
            found.add_result(
                group,
                Result(
                    TrialState.COMPLETED,
                    worker=worker,
                    epoch_s=one,
                    device_model=model,
                    array_width=width,
                ),
            )
    return found


def kinds(
    trials: Sequence[Running],
    paces: Mapping[PaceKey, Sequence[float]] = FIVE,
    policy: Stragglers = POLICY,
) -> list[Kind]:
    return [d.kind for d in decide(trials, known(paces), policy)]


def only(trials: Sequence[Running], paces: Mapping[PaceKey, Sequence[float]] = FIVE) -> Decision:
    decisions = decide(trials, known(paces), POLICY)
    assert len(decisions) == 1
    return decisions[0]


# -- stuck


@pytest.mark.parametrize(("still_s", "expected"), [(299.0, []), (300.0, []), (301.0, [Kind.STUCK])])
def test_a_trial_whose_beat_stands_still_is_stuck(still_s: float, expected: list[Kind]) -> None:
    assert kinds([running(still_s=still_s)]) == expected


def test_the_reason_names_the_worker_the_time_the_phase_and_the_limit() -> None:
    assert (
        only([running(still_s=301, phase="evaluating")]).reason
        == "stuck on w1: nothing has moved for 301 s (evaluating, limit 300 s)"
    )


def test_the_policy_sets_the_limit() -> None:
    assert kinds([running(still_s=3)], policy=Stragglers(stuck_s=2)) == [Kind.STUCK]


@pytest.mark.parametrize(("still_s", "expected"), [(899.0, []), (901.0, [Kind.STUCK])])
def test_a_named_phase_has_its_own_limit(still_s: float, expected: list[Kind]) -> None:
    assert kinds([running(still_s=still_s, phase="compiling", phase_limit_s=900)]) == expected


def test_a_named_phase_may_be_stricter_than_the_policy() -> None:
    assert kinds([running(still_s=61, phase="loading", phase_limit_s=60)]) == [Kind.STUCK]


@pytest.mark.parametrize(
    ("limit_s", "still_s", "expected"),
    [(None, 599, []), (None, 601, [Kind.STUCK]), (2000.0, 1999, [])],
)
def test_an_own_loop_has_600_seconds_or_what_its_worker_says(
    limit_s: float | None, still_s: float, expected: list[Kind]
) -> None:
    assert kinds([running(still_s=still_s, phase="own_loop", phase_limit_s=limit_s)]) == expected


def test_a_trial_that_never_beat_is_stuck_after_the_limit() -> None:
    one = running()
    silent = Running(one.trial, one.fence, "w1", 400.0, 400.0, None)
    assert (
        only([silent]).reason == "stuck on w1: nothing has moved for 400 s (starting, limit 300 s)"
    )


def test_a_waiting_trial_follows_its_workers_beat() -> None:
    waiting, training = running(1, still_s=5000, phase="waiting"), running(2, still_s=1)
    assert kinds([waiting, training]) == []
    assert kinds([waiting, running(2, worker="w2", still_s=1)]) == [
        Kind.STUCK
    ]  # another worker's beat is none of its own


def test_waiting_trials_are_stuck_with_all_that_their_worker_trains() -> None:
    trials = [
        running(1, still_s=400, phase="waiting"),
        running(2, still_s=400),
        running(3, still_s=400),
    ]
    assert kinds(trials) == [Kind.STUCK] * 3
    assert "its worker stands still" in decide(trials, known({}), POLICY)[0].reason


def test_waiting_trials_share_a_named_phases_patience() -> None:
    assert (
        kinds(
            [
                running(1, still_s=400, phase="waiting"),
                running(2, still_s=400, phase="compiling", phase_limit_s=900),
            ]
        )
        == []
    )


def test_one_slot_that_moves_keeps_the_waiting_ones() -> None:
    trials = [
        running(1, still_s=400, phase="waiting"),
        running(2, still_s=400),
        running(3, still_s=0),
    ]
    assert [d.running.trial.index for d in decide(trials, known({}), POLICY)] == [2]


# -- slow


@pytest.mark.parametrize(("elapsed_s", "expected"), [(40.0, []), (40.1, [Kind.SLOW])])
def test_an_epoch_of_more_than_four_medians_is_slow(elapsed_s: float, expected: list[Kind]) -> None:
    assert kinds([running(elapsed_s=elapsed_s)]) == expected


def test_the_reason_says_how_slow() -> None:
    reason = only([running(elapsed_s=50)]).reason
    assert reason == "slow on w1: 50 s in this epoch, 5 times the usual 10 s elsewhere"


def test_four_epochs_are_too_few_to_call_one_slow() -> None:
    assert kinds([running(elapsed_s=1000)], {KEY: [10.0] * 4}) == []


@pytest.mark.parametrize(
    "other", [PaceKey("{}", "H200", 8), PaceKey(GROUP, "cpu", 8), PaceKey(GROUP, "H200", 16)]
)
def test_only_epochs_of_its_own_kind_count(other: PaceKey) -> None:
    assert kinds([running(elapsed_s=1000)], {other: [10.0] * 50}) == []


@pytest.mark.parametrize(
    "phase", ["compiling", "loading", "measuring", "waiting", "evaluating", "recording", "own_loop"]
)
def test_phases_that_are_no_training_are_not_slow(phase: str) -> None:
    assert kinds([running(elapsed_s=1000, phase=phase)]) == []


def test_warm_up_is_left_out_of_the_first_epoch() -> None:
    assert kinds([running(epoch=0.5, elapsed_s=49)]) == []
    assert kinds([running(epoch=0.5, elapsed_s=51)]) == [Kind.SLOW]
    resumed = running(epoch=7.5, elapsed_s=49, claimed_s=50)
    assert kinds([resumed]) == []


@pytest.mark.parametrize("times", [10, 1000])
def test_slow_is_only_told_however_slow(times: int) -> None:
    assert kinds([running(elapsed_s=10 * times)]) == [Kind.SLOW]


@pytest.mark.parametrize("elsewhere", ["w1", "beside", "unknown"])
def test_workers_of_one_machine_are_not_compared(elsewhere: str) -> None:
    assert decide([running(elapsed_s=1000)], known(FIVE, elsewhere), POLICY) == []


def test_a_worker_that_nobody_knows_is_compared_with_nobody() -> None:
    assert kinds([running(elapsed_s=1000, worker="unknown")]) == []


@pytest.mark.parametrize(("claimed_s", "expected"), [(60.0, []), (60.1, [Kind.OVERDUE])])
def test_a_limit_is_the_users_own_word(claimed_s: float, expected: list[Kind]) -> None:
    trial = running(claimed_s=claimed_s, phase="own_loop")
    assert kinds([trial], policy=Stragglers(limit_s=60.0)) == expected
    assert kinds([trial]) == []
    assert all(
        "limit_s = 60" in found.reason
        for found in decide([trial], known({}), Stragglers(limit_s=60.0))
    )


def test_the_factor_is_the_policys() -> None:
    assert kinds([running(elapsed_s=30)], policy=Stragglers(slow_factor=2.0)) == [Kind.SLOW]


def test_an_epoch_below_a_second_is_never_slow() -> None:
    assert kinds([running(elapsed_s=0.9)], {KEY: [0.01] * 9}) == []


def test_stuck_comes_before_slow() -> None:
    assert kinds([running(elapsed_s=1000, still_s=1000)]) == [Kind.STUCK]


def test_trials_that_do_well_need_nothing() -> None:
    assert kinds([running(i, elapsed_s=9, still_s=1) for i in range(8)]) == []
    assert kinds([]) == []


# -- paces


@pytest.mark.parametrize(
    ("width", "bucket"), [(1, 1), (2, 2), (3, 2), (8, 8), (15, 8), (16, 16), (0, 1)]
)
def test_widths_fall_into_powers_of_two(width: int, bucket: int) -> None:
    assert pace_key("g", "cpu", width).width_bucket == bucket


def test_paces_of_heartbeats_and_results() -> None:
    assert pace_of(running(last_epoch_s=None)) is None
    assert pace_of(running(last_epoch_s=2.5, width=9)) == (KEY, 2.5)
    assert pace_of_result(
        GROUP, Result(TrialState.COMPLETED, epoch_s=3.0, device_model="H200", array_width=8)
    ) == (KEY, 3.0)
    assert pace_of_result(GROUP, Result(TrialState.COMPLETED)) is None


def test_an_epoch_heard_twice_counts_once() -> None:
    paces = Paces(MACHINES.get)
    for epoch in (1.5, 2.1, 2.6, 2.9, 3.1, 3.2):
        paces.add_running([running(epoch=epoch, last_epoch_s=epoch)])
    assert [sample.seconds for sample in paces.samples[KEY]] == [1.5, 2.1, 3.1]


def test_a_new_attempt_counts_anew() -> None:
    paces = Paces(MACHINES.get)
    paces.add_running([running(epoch=3.5, last_epoch_s=1.0)])
    paces.add_running([])
    paces.add_running([running(epoch=3.1, last_epoch_s=2.0, attempt=2)])
    assert [sample.seconds for sample in paces.samples[KEY]] == [1.0, 2.0]


def test_samples_are_bounded() -> None:
    paces = Paces(MACHINES.get)
    for _ in range(3000):
        paces.add_result(
            GROUP,
            Result(
                TrialState.COMPLETED, worker="w2", epoch_s=1.0, device_model="H200", array_width=8
            ),
        )
    assert len(paces.samples[KEY]) == 1000


def filled() -> Paces:
    return known({KEY: [10.0] * 20})


def test_a_worker_that_is_slow_on_several_trials_is_slow() -> None:
    paces = filled()
    paces.add_running([running(i, elapsed_s=100) for i in range(2)])
    assert slow_workers(paces) == frozenset()
    paces.add_running([running(5, elapsed_s=100), running(6, worker="w2", elapsed_s=5)])
    assert slow_workers(paces) == {"w1"}


def test_a_worker_whose_only_trial_is_slow_again_and_again_is_slow() -> None:
    paces = filled()
    for epoch in (3.5, 4.5):
        paces.add_running([running(epoch=epoch, elapsed_s=100)])
    assert slow_workers(paces) == frozenset()
    paces.add_running([running(epoch=5.5, elapsed_s=100)])
    assert slow_workers(paces) == {"w1"}


def test_one_slow_epoch_seen_often_does_not_make_its_worker_slow() -> None:
    paces = filled()
    for elapsed_s in range(50, 200, 10):
        paces.add_running([running(elapsed_s=elapsed_s)])
    assert slow_workers(paces) == frozenset()


def test_a_worker_that_has_recovered_is_not_slow_for_ever() -> None:
    paces = filled()
    paces.add_running([running(i, elapsed_s=100) for i in range(5)])
    paces.add_running([running(i, elapsed_s=5) for i in range(10, 30)])
    assert slow_workers(paces) == frozenset()


def test_slow_workers_follow_the_policy() -> None:
    paces = filled()
    paces.add_running([running(i, elapsed_s=30) for i in range(3)])
    assert slow_workers(paces) == frozenset()
    assert slow_workers(paces, Stragglers(slow_factor=2.0)) == {"w1"}

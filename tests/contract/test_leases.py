"""Fences, heartbeats, expiry, stragglers, kills and retries: every transition and every refusal."""

from __future__ import annotations

import math
from contextlib import ExitStack

import pytest
import redis

from common.queue import wire
from common.queue.answers import Tick
from common.queue.trial_queue import TrialQueue
from common.search.trial import ENDED, Fence, Progress, Result, TrialState
from tests.contract.trials import (
    DONE,
    SEARCH,
    check_consistent,
    heartbeat,
    ids,
    lose,
    made,
    reap,
    until,
)


def stale(fence: Fence) -> list[Fence]:
    return [
        Fence(fence.trial_id, fence.attempt + 1, fence.token),
        Fence(fence.trial_id, fence.attempt - 1, fence.token),
        Fence(fence.trial_id, fence.attempt, "another"),
        Fence("coarse-9999", fence.attempt, fence.token),
    ]


@pytest.mark.parametrize("state", sorted(ENDED))
def test_a_trial_ends_in_each_ended_state(queue: TrialQueue, state: TrialState) -> None:
    queue.publish(made(1))
    (claim,) = queue.claim("w", 1, "r")
    result = Result(
        state,
        "why, with a / and ünïcode",
        math.nan,
        math.inf,
        0.5,
        "a.pt",
        "w",
        3.25,
        6.5,
        "cpu",
        64,
    )
    assert queue.finish([(claim.fence, result)]) == ["ok"]
    assert queue.state("coarse-0000") is state
    stored = queue.result("coarse-0000")
    assert stored
    assert stored[0] == 1
    assert repr(stored[1]) == repr(result)  # nan differs from itself
    assert queue.claim("w", 1, "s") == []


@pytest.mark.parametrize("state", [TrialState.PENDING, TrialState.RUNNING])
def test_a_trial_cannot_end_in_a_state_that_is_none(queue: TrialQueue, state: TrialState) -> None:
    with pytest.raises(ValueError, match="not an ended state"):
        queue.finish([(Fence("coarse-0000", 1, "t"), Result(state))])
    with pytest.raises(ValueError, match="not an ended state"):
        queue.restore(made(1)[0], 1, Result(state))


def test_the_accepted_fence_may_repeat_its_finish(queue: TrialQueue) -> None:
    queue.publish(made(2))
    claims = queue.claim("w", 2, "r")
    words = [(claim.fence, DONE) for claim in claims]
    assert queue.finish(words + words[:1]) == ["ok", "ok", "ok"]
    assert queue.finish(words) == ["ok", "ok"]
    assert len(queue.read_endings(0)) == 2


def test_curves_are_there_as_long_as_the_lease(queue: TrialQueue) -> None:
    queue.publish(made(2))
    ended, released = queue.claim("w", 2, "r")
    drawn = wire.curves_out({"epoch": [1.0, 2.0], "val_loss": [math.nan, 0.123456]})
    words = [Progress(claim.fence, 1) for claim in (ended, released)]
    queue.renew("w", words, {"coarse-0000": drawn, "coarse-0001": drawn})
    assert repr(queue.curves("coarse-0000")) == repr(
        {"epoch": [1.0, 2.0], "val_loss": [math.nan, 0.12346]}
    )
    queue.renew("w", words)
    assert queue.curves("coarse-0001")["epoch"] == [1.0, 2.0]  # a beat without news leaves them
    queue.finish([(ended.fence, DONE)])
    queue.release([released.fence])
    assert queue.curves("coarse-0000") == queue.curves("coarse-0001") == {}


def test_a_stale_fence_changes_nothing(queue: TrialQueue) -> None:
    queue.publish(made(2))
    (claim,) = queue.claim("w", 1, "r")
    for fence in stale(claim.fence):
        assert queue.finish([(fence, DONE)]) == ["lost"]
        assert queue.release([fence]) == ["lost"]
        assert list(queue.renew("w", [heartbeat(fence)])) == [fence.trial_id]
        assert queue.expire(fence) is None
        assert queue.take(fence, "stuck") is None
        assert queue.kill(fence.trial_id, "slow", fence) is None
    assert [running.fence for running in queue.running()] == [claim.fence]
    assert queue.running()[0].progress is None
    assert queue.finish([(claim.fence, DONE)]) == ["ok"]


def test_one_stale_fence_does_not_spoil_the_batch(queue: TrialQueue) -> None:
    queue.publish(made(3))
    claims = queue.claim("w", 3, "r")
    queue.kill("coarse-0001", "by hand")
    assert queue.renew("w", [heartbeat(claim.fence) for claim in claims]) == {
        "coarse-0001": "killed"
    }
    assert queue.finish([(claim.fence, DONE) for claim in claims]) == ["ok", "lost", "ok"]


def test_a_released_trial_waits_again_and_nothing_is_counted(queue: TrialQueue) -> None:
    queue.publish(made(1))
    for attempt in range(1, 6):
        (claim,) = queue.claim("w", 1, f"r{attempt}")
        assert (claim.fence.attempt, claim.alone) == (attempt, False)
        assert queue.release([claim.fence]) == ["ok"]
        assert queue.release([claim.fence]) == ["ok"]
        assert queue.finish([(claim.fence, DONE)]) == ["lost"]
        assert queue.renew("w", [heartbeat(claim.fence)]) == {"coarse-0000": "released"}
    assert queue.counts()["coarse"]["pending"] == 1


def test_a_released_suspect_stays_a_suspect_and_its_losses_stay(
    queue: TrialQueue, brief: TrialQueue
) -> None:
    queue.publish(made(1))
    lose(queue, brief, "coarse-0000", "w", "1")
    for n in range(3):
        (claim,) = queue.claim("w", 1, f"release {n}")
        assert claim.alone
        queue.release([claim.fence])
    for n in range(2):
        assert lose(queue, brief, "coarse-0000", "w", f"lose {n}").state is TrialState.PENDING
    assert lose(queue, brief, "coarse-0000", "w", "last").state is TrialState.FAILED


def test_the_master_sees_what_a_heartbeat_said(queue: TrialQueue) -> None:
    queue.publish(made(1))
    (claim,) = queue.claim("w", 1, "r")
    before = queue.running()[0]
    assert (before.trial, before.worker, before.progress) == (claim.trial, "w", None)
    assert 0 <= before.claimed_s == before.still_s < 10
    said = heartbeat(
        claim.fence,
        12,
        phase="compiling",
        phase_limit_s=math.inf,
        epoch=0.5,
        last_epoch_s=0.1,
        device_model="a b",
        val_acc=0.4,
    )
    assert queue.renew("w", [said]) == {}
    assert queue.running()[0].progress == said


def test_only_a_growing_beat_is_movement(queue: TrialQueue) -> None:
    queue.publish(made(1))
    (claim,) = queue.claim("w", 1, "r")
    queue.renew("w", [heartbeat(claim.fence, 5)])
    until(lambda: queue.running()[0].still_s > 0.05, "the trial has been still for 50 ms")
    queue.renew("w", [heartbeat(claim.fence, 5, phase="waiting")])
    queue.renew("w", [heartbeat(claim.fence, 4)])
    still = queue.running()[0]
    assert still.still_s > 0.05
    assert still.progress and still.progress.beat == 5
    queue.renew("w", [heartbeat(claim.fence, 6)])
    assert queue.running()[0].still_s < still.still_s


def test_a_new_attempt_starts_without_the_old_ones_progress(queue: TrialQueue) -> None:
    queue.publish(made(1))
    (claim,) = queue.claim("w", 1, "r")
    queue.renew("w", [heartbeat(claim.fence, 99)])
    queue.release([claim.fence])
    queue.claim("w", 1, "s")
    assert queue.running()[0].progress is None


def test_a_renewed_lease_does_not_expire(queue: TrialQueue, brief: TrialQueue) -> None:
    queue.publish(made(1))
    (claim,) = brief.claim("w", 1, "r")
    until(lambda: queue.tick(True).expired, "the lease runs out")
    assert queue.renew("w", [heartbeat(claim.fence)]) == {}
    assert queue.tick(True) == Tick(False, ())
    assert queue.expire(claim.fence) is None


def test_a_tick_names_the_leases_that_ran_out(queue: TrialQueue, brief: TrialQueue) -> None:
    queue.publish(made(2))
    (dead,) = brief.claim("dead", 1, "r")
    queue.claim("alive", 1, "r")
    assert until(lambda: queue.tick(False).expired, "the lease runs out") == ((dead.fence, "dead"),)


def test_an_expired_trial_waits_again_as_a_suspect(queue: TrialQueue, brief: TrialQueue) -> None:
    queue.publish(made(1))
    (claim,) = brief.claim("w", 1, "r")
    taken = reap(queue, claim.fence)
    assert (taken.fence, taken.state, taken.result, taken.worker) == (
        claim.fence,
        TrialState.PENDING,
        None,
        "w",
    )
    assert queue.renew("w", [heartbeat(claim.fence)]) == {"coarse-0000": "expired"}
    assert queue.expire(claim.fence) is None
    assert queue.claim("w", 1, "s")[0].alone
    assert queue.finish([(claim.fence, DONE)]) == ["lost"]


def test_three_losses_while_alone_end_a_trial_and_name_its_workers(
    queue: TrialQueue, brief: TrialQueue
) -> None:
    queue.publish(made(1))
    lose(
        queue, brief, "coarse-0000", "w0", "r"
    )  # beside others, for all that is known: does not count
    for n in (1, 2):
        assert lose(queue, brief, "coarse-0000", f"w{n}", "r").state is TrialState.PENDING
    taken = lose(queue, brief, "coarse-0000", "w/3", "r")
    assert taken.state is TrialState.FAILED
    assert taken.fence.attempt == 5
    assert taken.result == Result(
        TrialState.FAILED,
        "lost 3 attempts while alone: try 2 on w1, try 3 on w2, try 4 on w/3",
        worker="w/3",
    )
    assert queue.result("coarse-0000") == (5, taken.result)
    assert queue.read_endings(0) == [(1, "coarse-0000", 5, taken.result)]
    assert queue.pending_total() == 0


def test_how_the_last_worker_ended_stands_in_the_reason(
    queue: TrialQueue, brief: TrialQueue
) -> None:
    queue.publish(made(1))
    lose(queue, brief, "coarse-0000", "w", "r")
    (claim,) = brief.claim("w", 1, "s")
    taken = until(
        lambda: queue.expire(claim.fence, 1, "its last worker was ended by SIGSEGV"), "it expires"
    )
    assert (
        taken.result.reason
        == "lost 1 attempts while alone: try 2 on w; its last worker was ended by SIGSEGV"
    )


def test_losses_in_company_never_count(queue: TrialQueue, brief: TrialQueue) -> None:
    """A trial that is lost together with others is never blamed: only what it does alone is."""
    queue.publish(made(2))
    pair = brief.claim("w", 2, "r")
    assert {reap(queue, claim.fence, max_lost=1).state for claim in pair} == {TrialState.PENDING}
    assert lose(queue, brief, "coarse-0000", "w", "s", max_lost=1).state is TrialState.FAILED
    (other,) = queue.claim("w", 1, "t")
    assert queue.finish([(other.fence, DONE)]) == ["ok"]


def test_after_an_outage_every_lease_is_extended_once(client: redis.Redis) -> None:
    queue = TrialQueue(client, SEARCH, lease_s=0.4)
    queue.publish(made(1))
    queue.tick(True)
    (claim,) = queue.claim("w", 1, "r")
    start = client.time()[0] + client.time()[1] / 1e6
    until(
        lambda: client.time()[0] + client.time()[1] / 1e6 > start + 0.45,
        "a lease passes without a tick",
    )
    assert queue.expire(claim.fence) is None  # nobody can say whether its holder could be heard
    assert queue.tick(True) == Tick(True, ())
    assert queue.expire(claim.fence) is None
    found = until(lambda: queue.tick(True).expired, "the extended lease runs out")
    assert found == ((claim.fence, "w"),)
    taken = queue.expire(claim.fence)
    assert taken and taken.state is TrialState.PENDING


def test_a_master_lives_while_it_ticks(client: redis.Redis) -> None:
    queue = TrialQueue(client, SEARCH)
    assert not queue.master_alive()
    queue.tick(master=False)
    assert not queue.master_alive()
    queue.tick(master=True)
    assert queue.master_alive()
    queue.tick(master=False)
    assert queue.master_alive()
    until(lambda: not queue.master_alive(within_s=0.05), "the master has been silent for 50 ms")


def test_a_stuck_trial_is_taken_like_a_loss(queue: TrialQueue) -> None:
    queue.publish(made(1))
    for n in range(3):
        (claim,) = queue.claim("w", 1, f"r{n}")
        taken = queue.take(claim.fence)
        assert taken and taken.state is TrialState.PENDING
        assert queue.renew("w", [heartbeat(claim.fence)]) == {"coarse-0000": "stuck"}
    (claim,) = queue.claim("w", 1, "last")
    taken = queue.take(claim.fence)
    assert taken and taken.result and taken.state is TrialState.FAILED
    assert taken.result.reason == "lost 3 attempts while alone: try 2 on w, try 3 on w, try 4 on w"
    assert taken.fence.attempt == claim.fence.attempt + 1


@pytest.mark.parametrize(
    ("epochs", "fails"),
    [((50, 100, 150, 200, 250, 300), False), ((50, 50, 50, 50), True), ((50, 40, 30, 20), True)],
)
def test_a_trial_that_gets_further_each_time_may_be_lost_as_often_as_it_is(
    queue: TrialQueue, epochs: tuple[int, ...], fails: bool
) -> None:
    queue.publish(made(1))
    for n, epoch in enumerate(epochs):
        (claim,) = queue.claim("w", 1, f"r{n}")
        queue.renew("w", [Progress(claim.fence, 1, epoch=float(epoch))])
        taken = queue.take(claim.fence)
        assert taken
    assert taken.state is (TrialState.FAILED if fails else TrialState.PENDING)


def test_a_retry_forgets_how_far_a_trial_had_come(queue: TrialQueue) -> None:
    queue.publish(made(1))
    (claim,) = queue.claim("w", 1, "r")
    queue.renew("w", [Progress(claim.fence, 1, epoch=50.0)])
    queue.take(claim.fence)
    queue.kill("coarse-0000", "by hand")
    queue.retry("coarse-0000")
    for n in range(2):
        (claim,) = queue.claim("w", 1, f"n{n}")
        queue.renew("w", [Progress(claim.fence, 1, epoch=10.0)])
        assert queue.take(claim.fence)
    assert queue.state("coarse-0000") is TrialState.PENDING


def test_who_has_finished_although_it_was_taken_for_stuck_counts_until_another_begins(
    queue: TrialQueue,
) -> None:
    queue.publish(made(2))
    first, second = queue.claim("w", 2, "r")
    for claim in (first, second):
        assert queue.take(claim.fence)
        assert queue.renew("w", [heartbeat(claim.fence)]) == {claim.trial.id: "stuck"}
    assert queue.finish([(first.fence, DONE), (first.fence, DONE)]) == ["ok", "ok"]
    assert (queue.state(first.trial.id), queue.result(first.trial.id)) == (
        TrialState.COMPLETED,
        (1, DONE),
    )
    (again,) = queue.claim("other", 2, "r")
    assert (again.trial.id, again.fence.attempt) == (second.trial.id, 2)
    assert queue.finish([(second.fence, DONE)]) == ["lost"]
    assert queue.finish([(again.fence, DONE)]) == ["ok"]
    check_consistent(queue)
    assert [row[1:3] for row in queue.read_endings(0)] == [
        (first.trial.id, 1),
        (second.trial.id, 2),
    ]


def test_a_killed_trial_ends_once(queue: TrialQueue) -> None:
    queue.publish(made(1))
    (claim,) = queue.claim("w", 1, "r")
    taken = queue.kill("coarse-0000", "twice too slow")
    assert taken
    assert (taken.fence.attempt, taken.state, taken.worker) == (2, TrialState.KILLED, "w")
    assert taken.result == Result(TrialState.KILLED, "twice too slow", worker="w")
    assert queue.kill("coarse-0000", "again") is None
    assert queue.finish([(claim.fence, DONE)]) == ["lost"]
    assert queue.renew("w", [heartbeat(claim.fence)]) == {"coarse-0000": "killed"}
    assert queue.read_endings(0) == [(1, "coarse-0000", 2, taken.result)]


def test_a_waiting_trial_can_be_killed(queue: TrialQueue) -> None:
    queue.publish(made(2))
    taken = queue.kill("coarse-0000", "by hand")
    assert taken and (taken.fence.attempt, taken.worker) == (1, None)
    assert ids(queue.claim("w", 2, "r")) == ["coarse-0001"]


def test_what_has_ended_or_never_was_cannot_be_killed(queue: TrialQueue) -> None:
    queue.publish(made(1))
    (claim,) = queue.claim("w", 1, "r")
    queue.finish([(claim.fence, DONE)])
    assert queue.kill("coarse-0000", "late") is None
    assert queue.kill("coarse-0777", "never") is None
    assert queue.result("coarse-0000") == (1, DONE)


def test_a_judgement_on_an_attempt_kills_that_attempt_alone(queue: TrialQueue) -> None:
    queue.publish(made(1))
    (first,) = queue.claim("w", 1, "r")
    queue.release([first.fence])
    (second,) = queue.claim("w", 1, "s")
    assert queue.kill("coarse-0000", "slow", first.fence) is None
    assert queue.kill("coarse-0000", "slow", second.fence)


@pytest.mark.parametrize("state", sorted(ENDED))
def test_only_failed_and_killed_trials_are_retried(queue: TrialQueue, state: TrialState) -> None:
    queue.publish(made(1))
    (claim,) = queue.claim("w", 1, "r")
    queue.finish([(claim.fence, Result(state))])
    again = state in (TrialState.FAILED, TrialState.KILLED)
    assert queue.retry("coarse-0000") is again
    assert not queue.retry("coarse-0000")
    assert queue.state("coarse-0000") is (TrialState.PENDING if again else state)
    assert [c.fence.attempt for c in queue.claim("w", 1, "s")] == ([2] if again else [])


def test_waiting_running_and_unknown_trials_are_not_retried(queue: TrialQueue) -> None:
    queue.publish(made(2))
    queue.claim("w", 1, "r")
    assert [queue.retry(trial) for trial in ("coarse-0000", "coarse-0001", "coarse-0777")] == [
        False,
        False,
        False,
    ]


def test_a_retry_forgets_losses_but_keeps_the_suspect_alone(
    queue: TrialQueue, brief: TrialQueue
) -> None:
    queue.publish(made(1))
    states = [lose(queue, brief, "coarse-0000", "w", f"r{n}").state for n in range(4)]
    assert states[-1] is TrialState.FAILED
    assert queue.retry("coarse-0000")
    assert queue.result("coarse-0000") is None
    assert [lose(queue, brief, "coarse-0000", "w", f"s{n}").state for n in range(3)] == [
        "pending",
        "pending",
        "failed",
    ]


def test_a_fence_from_before_a_retry_is_stale(queue: TrialQueue) -> None:
    queue.publish(made(1))
    (claim,) = queue.claim("w", 1, "r")
    queue.finish([(claim.fence, Result(TrialState.FAILED, "raised"))])
    queue.retry("coarse-0000")
    assert queue.finish([(claim.fence, DONE)]) == ["lost"]
    assert queue.renew("w", [heartbeat(claim.fence)]) == {"coarse-0000": "retried"}


def test_a_lock_has_one_holder(queue: TrialQueue, client: redis.Redis) -> None:
    other = TrialQueue(client, "f" * 16)
    with queue.lock("janitor", 30) as held:
        with (
            queue.lock("janitor", 30) as second,
            queue.lock("other name", 30) as third,
            other.lock("janitor", 30) as fourth,
        ):
            assert (held, second, third, fourth) == (True, False, True, True)
        with queue.lock("janitor", 30) as second:
            assert not second
    with queue.lock("janitor", 30) as held:
        assert held


def test_a_lock_that_ran_out_is_not_taken_from_its_new_holder(queue: TrialQueue) -> None:
    with ExitStack() as holder:
        with queue.lock("janitor", 0.02) as first:
            assert first
            until(lambda: holder.enter_context(queue.lock("janitor", 30)), "the lock runs out")
        with queue.lock("janitor", 30) as third:
            assert not third

"""Who gets which trials, how many at once, and the same answer to the same request."""

from __future__ import annotations

import secrets

import redis

from common.queue.second_tries import Ruling
from common.queue.trial_queue import TrialQueue
from common.search.trial import TrialState
from tests.contract.trials import DONE, SEARCH, ids, lose, made, until


def strike(queue: TrialQueue, bad: tuple[str, str], good: tuple[str, str]) -> None:
    """Make a machine be set aside.

    Three trials raise with one worker, and complete with a worker on another machine.
    """
    for n in range(3):
        (claim,) = queue.claim(bad[0], 1, f"bad {n}", machine=bad[1])
        assert queue.fail([(claim.fence, "boom")])[0].ruling is Ruling.PASSED
        (claim,) = queue.claim(good[0], 1, f"good {n}", machine=good[1])
        queue.finish([(claim.fence, DONE)])


def test_a_claim_takes_trials_of_one_group_in_order(queue: TrialQueue) -> None:
    queue.publish(made(9, group=lambda i: "ab"[i % 2]))
    assert ids(queue.claim("w", 3, "1")) == ["coarse-0000", "coarse-0002", "coarse-0004"]
    assert queue.state("coarse-0002") is TrialState.RUNNING


def test_the_group_with_most_pending_trials_comes_first(queue: TrialQueue) -> None:
    queue.publish(made(8, group=lambda i: "few" if i < 3 else "many"))
    assert {claim.trial.group for claim in queue.claim("w", 3, "1")} == {"many"}
    assert {claim.trial.group for claim in queue.claim("w", 3, "2")} == {"few"}


def test_two_workers_start_in_different_groups(queue: TrialQueue) -> None:
    queue.publish(made(20, group=lambda i: "ab"[i % 2]))
    one, two = queue.claim("w1", 4, "1"), queue.claim("w2", 4, "1")
    assert {claim.trial.group for claim in one} != {claim.trial.group for claim in two}


def test_the_first_published_stage_comes_first_however_few_it_has_left(queue: TrialQueue) -> None:
    queue.publish(made(2, "zeta"))
    queue.publish(made(50, "alpha"))
    assert ids(queue.claim("w", 4, "1")) == ["zeta-0000", "zeta-0001"]
    assert [claim.trial.stage for claim in queue.claim("w", 4, "2")] == ["alpha"] * 4
    assert list(queue.counts()) == ["zeta", "alpha"]


def test_a_refill_takes_its_group_alone(queue: TrialQueue) -> None:
    queue.publish(made(9, group=lambda i: "ab"[i % 3 == 0]))
    assert ids(queue.claim("w", 9, "1", group="b")) == ["coarse-0000", "coarse-0003", "coarse-0006"]
    assert queue.claim("w", 9, "2", group="b") == []
    assert queue.claim("w", 9, "3", group="never seen") == []


def test_a_refill_goes_on_in_the_next_stage(queue: TrialQueue) -> None:
    queue.publish(made(1, "coarse", "a") + made(2, "fine", "a"))
    assert ids(queue.claim("w", 3, "1", group="a")) == ["coarse-0000"]
    assert ids(queue.claim("w", 3, "2", group="a")) == ["fine-0000", "fine-0001"]


def test_the_same_request_gets_the_same_answer(queue: TrialQueue) -> None:
    queue.publish(made(10))
    first = queue.claim("w", 3, "one")
    assert queue.claim("w", 3, "one") == first
    assert queue.counts()["coarse"]["running"] == 3
    assert not set(ids(queue.claim("w", 3, "two"))) & set(ids(first))


def test_the_same_request_of_another_worker_is_another(queue: TrialQueue) -> None:
    queue.publish(made(4))
    assert not set(ids(queue.claim("w1", 1, "one"))) & set(ids(queue.claim("w2", 1, "one")))


def test_a_repeated_answer_leaves_out_what_was_lost_meanwhile(queue: TrialQueue) -> None:
    queue.publish(made(3))
    first = queue.claim("w", 3, "one")
    queue.kill("coarse-0001", "by hand")
    assert queue.claim("w", 3, "one") == [first[0], first[2]]


def test_a_request_that_found_nothing_may_find_something_when_repeated(queue: TrialQueue) -> None:
    assert queue.claim("w", 3, "one") == []
    queue.publish(made(1))
    assert len(queue.claim("w", 3, "one")) == 1


def test_a_claim_leaves_the_other_workers_their_share(queue: TrialQueue) -> None:
    for worker in ("w1", "w2", "w3"):
        queue.claim(worker, 1, "before there was work")
    queue.publish(made(10))
    assert len(queue.claim("w1", 100, "1")) == 4
    assert len(queue.claim("w2", 100, "1")) == 2
    assert len(queue.claim("w3", 1, "1")) == 1


def test_the_share_counts_all_that_waits_and_not_only_the_group(queue: TrialQueue) -> None:
    queue.renew("other", [])
    queue.publish(made(10, group=lambda i: "ab"[i % 2]))
    assert len(queue.claim("w", 100, "1")) == 5


def test_a_worker_that_left_or_fell_silent_takes_no_share(
    queue: TrialQueue, client: redis.Redis
) -> None:
    queue.publish(made(9))
    queue.claim("gone", 1, "1")
    queue.leave("gone")
    assert len(queue.claim("w", 4, "1")) == 4
    queue.claim("silent", 1, "1")
    watch = TrialQueue(client, SEARCH, live_s=0.05)

    def all_three() -> bool:
        claims = watch.claim("w", 3, secrets.token_hex(4))
        watch.release([claim.fence for claim in claims] if len(claims) < 3 else [])
        return len(claims) == 3

    until(all_three, "the silent worker's share is free")


def test_a_claim_of_nothing_changes_nothing(queue: TrialQueue) -> None:
    queue.publish(made(1))
    assert queue.claim("w", 0, "1") == []
    assert queue.pending_total() == 1


def test_a_suspect_is_claimed_alone_and_after_the_others(
    queue: TrialQueue, brief: TrialQueue
) -> None:
    queue.publish(made(4))
    lose(queue, brief, "coarse-0000", "w", "1")
    lost = queue.claim("w", 2, "2")
    assert ids(lost) == ["coarse-0001", "coarse-0002"]
    assert not any(claim.alone for claim in lost)
    for claim in lost:
        queue.take(claim.fence)
    assert ids(queue.claim("w", 9, "3")) == ["coarse-0003"]
    for n, trial in enumerate(["coarse-0000", "coarse-0001", "coarse-0002"]):
        (claim,) = queue.claim("w", 9, f"suspect {n}")
        assert (claim.trial.id, claim.alone, claim.fence.attempt) == (trial, True, 2)


def test_a_suspect_comes_before_the_next_stage(queue: TrialQueue) -> None:
    queue.publish(made(1, "coarse") + made(9, "fine"))
    queue.take(queue.claim("w", 1, "1")[0].fence)
    assert ids(queue.claim("w", 9, "2")) == ["coarse-0000"]


def test_a_worker_with_other_trials_never_gets_a_suspect(queue: TrialQueue) -> None:
    queue.publish(made(1, "coarse", "a") + made(1, "fine", "b"))
    queue.take(queue.claim("w", 1, "1")[0].fence)
    assert queue.claim("w", 9, "2", group="a", alone=False) == []
    assert queue.claim("w", 9, "3", group="a") == []
    assert ids(queue.claim("w", 9, "4", alone=False)) == ["fine-0000"]
    assert queue.claim("w", 9, "5", alone=False) == []
    (claim,) = queue.claim("w", 9, "6")
    assert claim.alone


def test_a_repeated_claim_of_a_suspect_still_says_alone(queue: TrialQueue) -> None:
    queue.publish(made(1))
    queue.take(queue.claim("w", 1, "1")[0].fence)
    assert queue.claim("w", 9, "2") == queue.claim("w", 9, "2")
    assert [running.fence.attempt for running in queue.running()] == [2]


def test_a_group_of_trials_that_raised_here_does_not_hide_the_next(queue: TrialQueue) -> None:
    for worker, machine in (("here", "A"), ("other", "B")):
        queue.claim(worker, 1, "0", machine=machine)
    queue.publish(made(5, group=lambda i: "a" if i < 2 else "b"))
    for claim in queue.claim("here", 2, "1", "a", machine="A"):
        queue.fail([(claim.fence, "boom")])
    assert {claim.trial.group for claim in queue.claim("here", 4, "3", machine="A")} == {"b"}


def test_three_thousand_trials_go_in_one_claim(queue: TrialQueue) -> None:
    queue.publish(made(3000))
    claims = queue.claim("w", 3000, "1")
    assert len(set(ids(claims))) == 3000
    assert queue.renew("w", []) == {}
    assert set(queue.finish([(claim.fence, DONE) for claim in claims])) == {"ok"}
    assert queue.counts()["coarse"]["completed"] == 3000

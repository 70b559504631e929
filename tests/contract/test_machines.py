"""Trials that raise.

Another machine tries them first, and a machine that fails what others complete is set aside.
"""

from __future__ import annotations

import contextlib

import pytest
import redis

from common.errors import PutAside
from common.queue.second_tries import Ruling
from common.queue.trial_queue import TrialQueue
from common.search.trial import Claim, Result, TrialState
from tests.contract.trials import DONE, SEARCH, heartbeat, ids, made, until

FAILED = Result(TrialState.FAILED, "boom")
PASSED, FINAL, LOST = Ruling.PASSED, Ruling.FINAL, Ruling.LOST


@pytest.fixture
def soon(client: redis.Redis) -> TrialQueue:
    """The same search, for which a worker is gone, and the last alone for long, after a moment."""
    return TrialQueue(client, SEARCH, live_s=0.05)


class Worker:
    """One worker on a machine."""

    def __init__(self, queue: TrialQueue, name: str, machine: str) -> None:
        self.queue, self.name, self.machine, self.requests = queue, name, machine, 0

    def claim(self, n: int = 1) -> list[Claim]:
        self.requests += 1
        return self.queue.claim(self.name, n, f"{self.requests}", machine=self.machine)

    def one(self) -> Claim:
        (claim,) = self.claim()
        return claim

    def raises(self, claim: Claim, why: str = "boom") -> Ruling:
        (answer,) = self.queue.fail([(claim.fence, why)])
        return answer.ruling

    def completes(self, claim: Claim) -> None:
        assert self.queue.finish([(claim.fence, DONE)]) == ["ok"]


def pair(queue: TrialQueue) -> tuple[Worker, Worker]:
    """A worker on each of two machines, both known."""
    one, two = Worker(queue, "w1", "A"), Worker(queue, "w2", "B")
    assert one.claim() == two.claim() == []
    return one, two


def struck(bad: Worker, good: Worker, n: int = 3) -> None:
    """``n`` trials raise on the one and complete on the other."""
    claims = [bad.one() for _ in range(n)]
    assert [bad.raises(claim, "ImportError: no sklearn") for claim in claims] == [PASSED] * n
    for _ in range(n):
        good.completes(good.one())


def test_on_a_single_machine_what_raises_has_failed_at_once(queue: TrialQueue) -> None:
    one, two = Worker(queue, "w1", "A"), Worker(queue, "w2", "A")
    assert one.claim() == two.claim() == []
    queue.renew("nobody knows where", [])
    queue.publish(made(2))
    claim = one.one()
    assert one.raises(claim) is FINAL
    assert queue.state("coarse-0000") is TrialState.RUNNING  # until its record is written
    assert queue.renew("w1", [heartbeat(claim.fence)]) == {}
    assert queue.finish([(claim.fence, FAILED)]) == ["ok"]


def test_a_worker_that_does_not_name_its_machine_is_believed(queue: TrialQueue) -> None:
    queue.publish(made(2))
    Worker(queue, "w2", "B").one()
    (claim,) = queue.claim("w1", 1, "r")
    assert [answer.ruling for answer in queue.fail([(claim.fence, "boom")])] == [FINAL]


def test_another_machine_tries_what_raised(queue: TrialQueue) -> None:
    one, two = pair(queue)
    queue.publish(made(1))
    claim = one.one()
    assert one.raises(claim, "x" * 1000) is PASSED
    assert one.raises(claim) is PASSED  # the answer was lost: the same again
    assert queue.state("coarse-0000") is TrialState.PENDING
    assert queue.renew("w1", [heartbeat(claim.fence)]) == {"coarse-0000": "passed"}
    assert queue.finish([(claim.fence, FAILED)]) == ["lost"]
    assert (
        one.claim() == [] and Worker(queue, "w1b", "A").claim() == []
    )  # nor another worker of that machine
    again = two.one()
    assert again.fence.attempt == 2 and not again.alone
    assert one.raises(claim) is LOST
    two.completes(again)
    assert queue.result("coarse-0000") == (2, DONE)


def test_what_raises_on_two_machines_has_failed_and_names_the_earlier_try(
    queue: TrialQueue,
) -> None:
    one, two = pair(queue)
    Worker(queue, "w3", "C").claim()
    queue.publish(made(1))
    one.raises(one.one(), "first / ünïcode")
    claim = two.one()
    (answer,) = queue.fail([(claim.fence, "second")])
    assert answer.ruling is FINAL and list(map(str, answer.earlier)) == [
        "try 1 on w1: first / ünïcode"
    ]
    assert queue.finish([(claim.fence, FAILED)]) == ["ok"]
    assert queue.retry("coarse-0000")
    assert one.raises(one.one()) is PASSED  # all is forgotten


def test_where_the_other_machine_has_gone_the_first_tries_again_and_its_word_is_final(
    queue: TrialQueue,
) -> None:
    one, two = pair(queue)
    queue.publish(made(1))
    one.raises(one.one())
    assert one.claim() == []
    queue.leave("w2")
    assert one.raises(one.one()) is FINAL
    assert two.machine == "B"


def test_a_trial_is_not_passed_to_and_fro_for_ever(queue: TrialQueue) -> None:
    one, _ = pair(queue)
    queue.publish(made(1))
    rulings = [one.raises(one.one())]
    for n in range(
        2
    ):  # the other leaves before it takes the trial, and is back when the first has it again
        queue.leave("w2")
        claim = one.one()
        queue.claim("w2", 1, f"back {n}", machine="B")
        rulings.append(one.raises(claim))
    assert rulings == [PASSED, PASSED, FINAL]


def test_a_machine_that_fails_what_another_completes_is_put_aside(queue: TrialQueue) -> None:
    bad, good = pair(queue)
    queue.publish(made(9))
    struck(bad, good)
    for worker in (bad, Worker(queue, bad.name, bad.machine)):
        with pytest.raises(PutAside) as told:
            worker.claim()
    assert (
        told.value.for_good
        and "coarse-0000, coarse-0001, coarse-0002" in str(told.value)
        and "no sklearn" in str(told.value)
    )
    with pytest.raises(PutAside):
        bad.queue.claim("w1", 1, "refill", group="any", alone=False, machine="A")
    assert good.raises(good.one()) is FINAL  # nobody is left to ask
    queue.leave("w2")
    with pytest.raises(PutAside):  # it may be back in a moment: rather wait than fail them all
        bad.claim()


def now_s(queue: TrialQueue) -> float:
    seconds, micros = queue.client.time()
    return float(seconds) + micros / 1e6


def alone_for_long(bad: Worker, brief: TrialQueue) -> Claim:
    """What a machine that was put aside is given, once it has been the only one for a while."""
    waiting = Worker(brief, bad.name, bad.machine)
    waiting.requests = 100

    def claimed() -> list[Claim]:
        with contextlib.suppress(PutAside):
            return waiting.claim(9)
        return []

    (claim,) = until(claimed, "the last machine to try again")  # one, however many were asked for
    bad.requests = waiting.requests
    return claim


def test_the_last_machine_tries_one_trial_and_goes_on_where_it_completes(
    queue: TrialQueue, soon: TrialQueue
) -> None:
    bad, good = pair(queue)
    queue.publish(made(12))
    struck(bad, good, 4)
    queue.leave("w2")
    claim = alone_for_long(bad, soon)
    with pytest.raises(PutAside):  # one, until it has ended
        bad.claim()
    bad.completes(claim)
    assert len(bad.claim(5)) == 5


def test_the_last_machine_fails_no_more_than_a_trial_at_a_time(
    queue: TrialQueue, soon: TrialQueue
) -> None:
    bad, good = pair(queue)
    queue.publish(made(12))
    struck(bad, good)
    queue.leave("w2")
    claim = alone_for_long(bad, soon)
    assert bad.raises(claim) is FINAL
    assert queue.finish([(claim.fence, FAILED)]) == ["ok"]
    for _ in range(3):
        with pytest.raises(PutAside):
            bad.claim()
    assert alone_for_long(bad, soon) != claim  # but the search goes on


def test_a_machine_that_is_put_aside_does_not_try_again_while_another_is_able(
    queue: TrialQueue, soon: TrialQueue
) -> None:
    bad, good = pair(queue)
    queue.publish(made(12))
    struck(bad, good)
    queue.leave("w2")
    with pytest.raises(PutAside):
        bad.claim()  # alone from now on
    again = Worker(queue, "w3", "B")
    claim = again.one()
    with pytest.raises(PutAside):
        bad.claim()  # no longer
    again.completes(claim)
    queue.leave("w3")
    began = now_s(soon)
    until(lambda: now_s(soon) > began + 0.1, "more than a moment to pass")
    with pytest.raises(PutAside):  # and it has been alone only since now
        Worker(soon, bad.name, bad.machine).claim()


def test_a_worker_that_is_started_again_clears_its_machine(queue: TrialQueue) -> None:
    bad, good = pair(queue)
    queue.publish(made(9))
    struck(bad, good)
    again = Worker(queue, "w1-again", "A")
    claim = again.one()
    assert bad.claim() != []
    assert again.raises(claim) is PASSED


def test_two_strikes_are_not_enough_and_a_success_takes_one_back(queue: TrialQueue) -> None:
    bad, good = pair(queue)
    queue.publish(made(20))
    for _ in range(3):
        struck(bad, good, 2)
        for _ in range(2):
            bad.completes(bad.one())
    assert bad.one()


def test_while_the_last_trials_all_raised_a_machine_waits_for_another_s_word(
    queue: TrialQueue,
) -> None:
    bad, good = pair(queue)
    queue.publish(made(12))
    claims = bad.claim(3)
    assert {
        answer.ruling for answer in queue.fail([(claim.fence, "boom") for claim in claims])
    } == {PASSED}
    with pytest.raises(PutAside, match="until another machine has tried them") as told:
        bad.claim()
    assert not told.value.for_good
    claim = good.one()
    assert good.raises(claim) is FINAL
    assert queue.finish([(claim.fence, FAILED)]) == ["ok"]
    assert ids(bad.claim()) == ["coarse-0003"]  # it was the trial


def test_trials_that_all_raise_end_on_two_machines_and_stop_nobody(queue: TrialQueue) -> None:
    """A mistake in the task: each trial is tried twice at most, and nobody waits for ever."""
    one, two = pair(queue)
    queue.publish(made(40))
    tries = 0
    for _ in range(100):
        for worker in (one, two):
            try:
                claims = worker.claim(8)
            except PutAside as told:
                assert not told.for_good
                continue
            tries += len(claims)
            for claim in claims:
                if worker.raises(claim) is FINAL:
                    queue.finish([(claim.fence, FAILED)])
    assert queue.counts()["coarse"]["failed"] == 40 and tries == 80


def test_a_machine_waits_no_longer_than_its_trials_do(queue: TrialQueue) -> None:
    bad, _ = pair(queue)
    queue.publish(made(12))
    for claim in bad.claim(3):
        bad.raises(claim)
    with pytest.raises(PutAside):
        bad.claim()
    queue.kill("coarse-0001", "by hand")
    assert ids(bad.claim()) == ["coarse-0003"]


def test_never_are_all_put_aside(queue: TrialQueue) -> None:
    one, two = pair(queue)
    queue.publish(made(20))
    theirs, held = two.claim(3), one.claim(3)
    for claim in theirs:
        two.raises(claim)
    mine = [one.one() for _ in range(3)]  # it takes over what raised on the other
    assert {claim.trial.id for claim in mine} == set(ids(theirs))
    for claim in held:
        one.raises(claim)
    for _ in held:
        two.completes(two.one())
    with pytest.raises(PutAside):
        one.claim()
    for claim in mine:
        one.completes(claim)  # which clears it, and strikes the other
    with pytest.raises(PutAside):
        two.claim()
    assert one.one()


def test_a_lost_answer_and_a_dead_worker_change_nothing(
    queue: TrialQueue, brief: TrialQueue
) -> None:
    """The worker dies between Redis's "final" and the record.

    The lease expires as usual, and the earlier errors are still known.
    """
    pair(queue)
    queue.publish(made(1))
    first, second = Worker(queue, "w1", "A"), Worker(brief, "w2", "B")
    first.requests = second.requests = 10
    first.raises(first.one())
    claim = second.one()
    assert second.raises(claim) is FINAL
    assert until(lambda: queue.expire(claim.fence), "the lease expires").state is TrialState.PENDING
    assert queue.fail([(claim.fence, "late")])[0].ruling is LOST
    assert first.claim() == []
    third = Worker(queue, "w2", "B")
    third.requests = 20
    assert third.raises(third.one()) is FINAL


def test_nothing_of_it_stays_behind(queue: TrialQueue, client: redis.Redis) -> None:
    bad, good = pair(queue)
    queue.publish(made(9))
    struck(bad, good)
    assert client.pttl(queue.keys["doubts"]) > 0 and client.pttl(queue.keys["machines"]) > 0
    queue.leave("w1")
    assert client.hkeys(queue.keys["machines"]) == ["w2"]
    queue.drop()
    assert client.keys(f"*{SEARCH}*") == []
    queue.publish(made(1))

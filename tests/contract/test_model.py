"""Any order of any words, against a model that fits on a page."""

from __future__ import annotations

import math
from dataclasses import dataclass

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from common.queue import Taken, TrialQueue
from common.trial import ENDED, Claim, Fence, Result, Trial, TrialState
from tests.contract.trials import SEARCH, check_consistent, heartbeat, made, until

PENDING, RUNNING, KILLED, FAILED = TrialState.PENDING, TrialState.RUNNING, TrialState.KILLED, TrialState.FAILED
MAX_LOST = 2
WORKERS = st.sampled_from(["w1", "w2", "w3"])
ENDINGS = st.sampled_from(sorted(ENDED))
PICK = st.integers(0, 10**6)


@dataclass
class Known:
    """What a trial should be like."""

    trial: Trial
    state: TrialState = PENDING
    attempt: int = 0
    fence: Fence | None = None  # of the holder, or of the accepted finish
    worker: str = ""
    alone: bool = False
    suspect: bool = False
    lost: int = 0
    avoid: str | None = None
    settled: int = 0
    result: tuple[int, TrialState] | None = None


class QueueMachine(RuleBasedStateMachine):
    """``client`` is set on a subclass by the test."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.queue = TrialQueue(self.client, SEARCH)
        self.brief = TrialQueue(self.client, SEARCH, lease_s=0.001)
        self.queue.tick(True)
        self.known: dict[str, Known] = {}
        self.fences: list[Fence] = []
        self.live: set[str] = set()
        self.endings = 0
        self.requests = 0
        self.last: dict[str, tuple[str, list[Claim]]] = {}

    # --- words ---

    @rule(n=st.integers(1, 5), stage=st.sampled_from(["coarse", "fine"]))
    def publish(self, n: int, stage: str) -> None:
        have = sum(k.trial.stage == stage for k in self.known.values())
        trials = made(have + n, stage, lambda i: "aab"[i % 3])
        assert self.queue.publish(trials) == len([t for t in trials if t.id not in self.known])
        for trial in trials:
            self.known.setdefault(trial.id, Known(trial))

    @rule(worker=WORKERS, n=st.integers(0, 6), alone=st.booleans(), group=st.sampled_from([None, None, "a", "b"]), dies=st.booleans())
    def claim(self, worker: str, n: int, alone: bool, group: str | None, dies: bool) -> None:
        self.requests += 1
        self.live.add(worker)
        waiting = [k for k in self.known.values() if k.state is PENDING]
        claims = (self.brief if dies else self.queue).claim(worker, n, str(self.requests), group, alone)
        self.last[worker] = (str(self.requests), claims) if claims else self.last.get(worker, ("", []))
        fit = [k for k in waiting if not (k.avoid == worker and len(self.live) > 1)]
        plain = [k for k in fit if not k.suspect and group in (None, k.trial.group)]
        allowed = bool(plain) or (alone and group is None and any(k.suspect for k in fit))
        assert bool(claims) == (allowed and n > 0)
        assert len(claims) <= min(n, math.ceil(len(waiting) / len(self.live)))
        assert len({(c.trial.stage, c.trial.group) for c in claims}) <= 1
        for claim in claims:
            self._claimed(claim, worker, len(claims))

    def _claimed(self, claim: Claim, worker: str, n: int) -> None:
        known = self.known[claim.trial.id]
        assert claim.trial == known.trial
        assert known.state is PENDING
        assert claim.alone == known.suspect
        assert n == 1 or not claim.alone
        assert known.avoid != worker or len(self.live) == 1
        known.state, known.attempt, known.fence, known.worker, known.alone = RUNNING, known.attempt + 1, claim.fence, worker, claim.alone
        assert claim.fence.attempt == known.attempt
        assert claim.fence not in self.fences
        self.fences.append(claim.fence)

    @rule(worker=WORKERS)
    def claim_again(self, worker: str) -> None:
        if worker not in self.last or not self.last[worker][1]:
            return
        request, claims = self.last[worker]
        assert self.queue.claim(worker, 9, request) == [c for c in claims if self._holds(c.fence)]

    @rule(pick=PICK, state=ENDINGS)
    def finish(self, pick: int, state: TrialState) -> None:
        for fence in self._some_fence(pick):
            known = self.known[fence.trial_id]
            holds, again = self._holds(fence), known.state in ENDED and known.fence == fence
            assert self.queue.finish([(fence, Result(state))]) == ["ok" if holds or again else "lost"]
            if holds:
                self._end(known, state, fence.attempt, fence)

    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        for fence in self._some_fence(pick):
            known = self.known[fence.trial_id]
            verdict = self.queue.release([fence])
            if self._holds(fence):
                assert verdict == ["ok"]
                known.state = PENDING  # its fence stays known: saying so again is OK
            else:
                assert verdict == ["ok" if known.state is PENDING and known.fence == fence else "lost"]

    @rule(pick=PICK)
    def renew(self, pick: int) -> None:
        for fence in self._some_fence(pick):
            worker = self.known[fence.trial_id].worker
            self.live.add(worker)
            stale = self.queue.renew(worker, [heartbeat(fence, pick)])
            assert bool(stale) != self._holds(fence)

    # --- verdicts ---

    @rule(pick=PICK)
    def reap(self, pick: int) -> None:
        for fence in self._some_fence(pick):
            if not self._holds(fence):
                assert self.queue.expire(fence, MAX_LOST) is None
                continue
            found = {f for f, _ in self.queue.tick(True).expired}
            if fence in found:
                taken = until(lambda f=fence: self.queue.expire(f, MAX_LOST), "the lease is over")  # type: ignore[misc]
                self._lost(fence, taken)

    @rule(pick=PICK)
    def stuck(self, pick: int) -> None:
        for fence in self._some_fence(pick):
            taken = self.queue.take(fence, "stuck", MAX_LOST)
            assert bool(taken) == self._holds(fence)
            if taken:
                self._lost(fence, taken)

    @rule(pick=PICK)
    def slow(self, pick: int) -> None:
        for fence in self._some_fence(pick):
            taken = self.queue.take(fence, "slow", MAX_LOST)
            assert bool(taken) == self._holds(fence)
            if taken:
                known = self.known[fence.trial_id]
                known.state, known.fence, known.avoid = PENDING, None, known.worker

    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        for known in self._some_trial(pick):
            taken = self.queue.kill(known.trial.id, "by hand")
            assert bool(taken) == (known.state not in ENDED)
            if taken:
                self._end(known, KILLED, known.attempt + 1, None)
                assert taken.fence.attempt == known.attempt

    @rule(pick=PICK)
    def retry(self, pick: int) -> None:
        for known in self._some_trial(pick):
            back = known.state in (FAILED, KILLED)
            assert self.queue.retry(known.trial.id) is back
            if back:
                known.state, known.fence, known.lost, known.avoid, known.result = PENDING, None, 0, None, None
                known.settled = known.attempt

    @rule(pick=PICK, by=st.integers(-1, 2), state=ENDINGS)
    def restore(self, pick: int, by: int, state: TrialState) -> None:
        for known in self._some_trial(pick):
            attempt = max(1, known.attempt + by)
            waits = known.state is PENDING and attempt > known.settled
            right = waits or (known.state is RUNNING and attempt >= known.attempt)
            assert self.queue.restore(known.trial, attempt, Result(state)) is right
            if right:
                self._end(known, state, attempt, known.fence if attempt == known.attempt else None)

    # --- what must hold ---

    @invariant()
    def everything_agrees(self) -> None:
        for trial_id, known in self.known.items():
            assert self.queue.state(trial_id) is known.state
            assert self.queue.attempt(trial_id) == known.attempt
            result = self.queue.result(trial_id)
            assert (result and (result[0], result[1].state)) == known.result
        check_consistent(self.queue)
        ended = {i for i, known in self.known.items() if known.state in ENDED}
        assert {row[0] for row in self.queue.ended()} == ended
        assert self.client.llen(self.queue.keys["endings"]) == self.endings
        running = {r.trial.id: r for r in self.queue.running()}
        assert {i: (r.fence, r.worker, r.avoid) for i, r in running.items()} == {
            i: (k.fence, k.worker, k.avoid) for i, k in self.known.items() if k.state is RUNNING
        }

    def _holds(self, fence: Fence) -> bool:
        known = self.known[fence.trial_id]
        return known.state is RUNNING and known.fence == fence

    def _end(self, known: Known, state: TrialState, attempt: int, fence: Fence | None) -> None:
        known.state, known.fence, known.result = state, fence, (attempt, state)
        known.attempt = max(known.attempt, attempt)
        self.endings += 1

    def _lost(self, fence: Fence, taken: Taken) -> None:
        known = self.known[fence.trial_id]
        known.suspect, known.lost = True, known.lost + known.alone
        if known.alone and known.lost >= MAX_LOST:
            assert taken.state is FAILED
            self._end(known, FAILED, known.attempt + 1, None)
        else:
            assert taken.state is PENDING
            known.state, known.fence = PENDING, None

    def _some_fence(self, pick: int) -> list[Fence]:
        """One fence, a recent one more often than not."""
        recent = self.fences[-4:] if pick % 3 else self.fences
        return [recent[pick % len(recent)]] if recent else []

    def _some_trial(self, pick: int) -> list[Known]:
        known = list(self.known.values())
        return [known[pick % len(known)]] if known else []


def test_no_order_of_words_confuses_the_queue(client: redis.Redis) -> None:
    machine = type("Machine", (QueueMachine,), {"client": client})
    profile = settings(max_examples=20, stateful_step_count=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=profile)

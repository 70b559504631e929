"""Any order of any words, against a model that fits on a page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from common.doubts import MAX_RAISED, Ruling
from common.errors import PutAside
from common.queue import TrialQueue
from common.trial import ENDED, Claim, Fence, Result, Trial, TrialState
from common.verdict import Taken, Tick
from tests.contract.trials import SEARCH, check_consistent, heartbeat, made, until

PENDING, RUNNING, KILLED, FAILED = TrialState.PENDING, TrialState.RUNNING, TrialState.KILLED, TrialState.FAILED
MAX_LOST = 2
MACHINES = {"w1": "A", "w2": "A", "w3": "B", "w4": "C"}
STRIKES = 3
WORKERS = st.sampled_from(sorted(MACHINES))
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
    given: str = ""  # "released" or "passed": how its last holder gave it away
    raised: list[str] = field(default_factory=list)  # on which machines
    result: tuple[int, TrialState] | None = None


@dataclass
class Doubt:
    """What is held against a machine."""

    open: int = 0
    row: int = 0
    strikes: int = 0

    @property
    def waits(self) -> bool:
        return min(self.open, self.row) >= STRIKES


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
        self.met: set[str] = set()  # workers that have named their machine
        self.doubts: dict[str, Doubt] = {}

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
        if worker not in self.met:
            self.met.add(worker)
            self.doubts.pop(MACHINES[worker], None)
        waiting = [k for k in self.known.values() if k.state is PENDING]
        queue = self.brief if dies else self.queue
        try:
            with self.lease_from_the_server(queue) as claims:
                claims += queue.claim(worker, n, str(self.requests), group, alone, MACHINES[worker])
        except PutAside as told:
            assert (told.for_good, True) == self._barred(MACHINES[worker])
            return
        assert not self._barred(MACHINES[worker])[1]
        self.last[worker] = (str(self.requests), claims) if claims else self.last.get(worker, ("", []))
        fit = [k for k in waiting if self._may_try(k, worker)]
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
        assert self._may_try(known, worker)
        known.state, known.attempt, known.fence, known.worker, known.alone = RUNNING, known.attempt + 1, claim.fence, worker, claim.alone
        assert claim.fence.attempt == known.attempt
        assert claim.fence not in self.fences
        self.fences.append(claim.fence)

    @rule(worker=WORKERS)
    def claim_again(self, worker: str) -> None:
        if worker not in self.last or not self.last[worker][1]:
            return
        request, claims = self.last[worker]
        assert self.queue.claim(worker, 9, request, machine=MACHINES[worker]) == [c for c in claims if self._holds(c.fence)]

    @rule(pick=PICK, state=ENDINGS)
    def finish(self, pick: int, state: TrialState) -> None:
        for fence in self._some_fence(pick):
            self._finish(fence, state)

    def _finish(self, fence: Fence, state: TrialState) -> None:
        known = self.known[fence.trial_id]
        holds, again = self._holds(fence), known.state in ENDED and known.fence == fence
        assert self.queue.finish([(fence, Result(state))]) == ["ok" if holds or again else "lost"]
        if holds:
            self._judge(known, state)
            self._end(known, state, fence.attempt, fence)

    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        for fence in self._some_fence(pick):
            known = self.known[fence.trial_id]
            verdict = self.queue.release([fence])
            if self._holds(fence):
                assert verdict == ["ok"]
                known.state, known.given = PENDING, "released"  # its fence stays known: saying so again is OK
            else:
                assert verdict == ["ok" if self._gave(known, fence, "released") else "lost"]

    @rule(pick=PICK)
    def fail(self, pick: int) -> None:
        for fence in self._some_fence(pick):
            self._fail(fence)

    @rule(bad=WORKERS, good=WORKERS, n=st.integers(1, 4))
    def differ(self, bad: str, good: str, n: int) -> None:
        """What raises with the one completes with the other."""
        for worker in (bad, good):
            before = len(self.fences)
            self.claim(worker, n, True, None, False)
            for fence in self.fences[before:]:
                if worker == bad:
                    self._fail(fence)
                else:
                    self._finish(fence, TrialState.COMPLETED)

    def _fail(self, fence: Fence) -> None:
        known = self.known[fence.trial_id]
        (answer,) = self.queue.fail([(fence, "boom")])
        if not self._holds(fence):
            assert answer.ruling is (Ruling.PASSED if self._gave(known, fence, "passed") else Ruling.LOST)
        elif self._passes(known):
            assert answer.ruling is Ruling.PASSED
            machine = MACHINES[known.worker]
            known.state, known.given, known.avoid = PENDING, "passed", None
            known.raised.append(machine)
            doubt = self.doubts.setdefault(machine, Doubt())
            doubt.open, doubt.row = doubt.open + 1, doubt.row + 1
        else:
            assert answer.ruling is Ruling.FINAL and [e.machine for e in answer.earlier] == known.raised

    @rule(pick=PICK)
    def renew(self, pick: int) -> None:
        for fence in self._some_fence(pick):
            worker = self.known[fence.trial_id].worker
            self.live.add(worker)
            with self.lease_from_the_server(self.queue) as held:
                stale = self.queue.renew(worker, [heartbeat(fence, pick)])
                held += [] if stale else [Claim(self.known[fence.trial_id].trial, fence)]
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

    @rule()
    def outage(self) -> None:
        """Nobody has ticked for half a lease: nothing expires, and every lease is the holders' for a whole one more."""
        self.client.hset(self.queue.keys["meta"], "tick", self._now_ms() - self.queue.lease_ms)
        for known in self.known.values():
            if known.state is RUNNING and known.fence:
                assert self.queue.expire(known.fence, MAX_LOST) is None
        began = self._now_ms()
        assert self.queue.tick(True) == Tick(True, ())
        deadlines = self.client.zrange(self.queue.keys["leases"], 0, -1, withscores=True)
        assert all(deadline >= began + self.queue.lease_ms for _, deadline in deadlines)

    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        """A kill of this very attempt."""
        for fence in self._some_fence(pick):
            known, holds = self.known[fence.trial_id], self._holds(fence)
            assert bool(self.queue.kill(fence.trial_id, "slow", fence)) is holds
            if holds:
                self._end(known, KILLED, known.attempt + 1, None)

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
                known.settled, known.raised = known.attempt, []

    @rule(pick=PICK, by=st.integers(-1, 2), state=ENDINGS)
    def restore(self, pick: int, by: int, state: TrialState) -> None:
        for known in self._some_trial(pick):
            attempt, above = max(1, known.attempt + by), pick % 3 - 1  # the folder's highest attempt
            if known.state in ENDED:
                told = self.queue.result(known.trial.id)
                right = attempt > known.attempt or (attempt == known.attempt and told != (attempt, Result(state)))
            else:
                settled = known.state is PENDING and (attempt <= known.settled or above > 0)
                right = attempt >= known.attempt and not settled
            assert self.queue.restore(known.trial, attempt, Result(state), attempt + above) is right
            if right and known.state in ENDED:
                if attempt > known.attempt:
                    known.attempt, known.fence = attempt, None
                    self.endings += 1
                known.state, known.result = state, (attempt, state)
            elif right:
                self._end(known, state, attempt, known.fence if attempt == known.attempt else None)

    # --- what must hold ---

    @invariant()
    def everything_agrees(self) -> None:
        states = {i: json.loads(state) for i, state in self.client.hgetall(self.queue.keys["states"]).items()}
        assert {i: (s["s"], s["a"]) for i, s in states.items()} == {i: (k.state, k.attempt) for i, k in self.known.items()}
        results = {row[0]: (row[1], row[2].state) for row in self.queue.ended()}
        assert results == {i: known.result for i, known in self.known.items() if known.state in ENDED}
        check_consistent(self.queue)
        assert self.client.llen(self.queue.keys["endings"]) == self.endings
        running = {r.trial.id: r for r in self.queue.running()}
        assert {i: (r.fence, r.worker, r.avoid) for i, r in running.items()} == {
            i: (k.fence, k.worker, k.avoid) for i, k in self.known.items() if k.state is RUNNING
        }
        stored = {machine: json.loads(doubt) for machine, doubt in self.client.hgetall(self.queue.keys["doubts"]).items()}
        assert {m: Doubt(d["o"], d["f"], d["s"]) for m, d in stored.items()} == self.doubts
        waiting = [k for k in self.known.values() if k.state is PENDING]
        if waiting and not any(k.state is RUNNING for k in self.known.values()):
            assert any(self._may_try(k, w) and not self._barred(m)[1] for k in waiting for w, m in MACHINES.items() if w in self.live) or (
                not self.live - {w for w, m in MACHINES.items() if self._aside(m)}
            )

    @contextmanager
    def lease_from_the_server(self, queue: TrialQueue) -> Iterator[list[Claim]]:
        """What is leased inside the block ends a lease later by the server's clock, whatever the client's says."""
        held: list[Claim] = []
        began = self._now_ms()
        yield held
        ended = self._now_ms()
        for claim in held:
            deadline = self.client.zscore(queue.keys["leases"], claim.trial.id)
            assert deadline and began + queue.lease_ms <= deadline <= ended + queue.lease_ms

    def _now_ms(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    # --- what raises, and where ---

    def _aside(self, machine: str) -> bool:
        return machine in self.doubts and self.doubts[machine].strikes >= STRIKES

    def _able(self) -> set[str]:
        return {MACHINES[worker] for worker in self.live if not self._aside(MACHINES[worker])}

    def _elsewhere(self, known: Known, machine: str) -> bool:
        return bool(self._able() - {machine, *known.raised})

    def _may_try(self, known: Known, worker: str) -> bool:
        if MACHINES[worker] in known.raised and self._elsewhere(known, MACHINES[worker]):
            return False
        others = {MACHINES[other] for other in self.live - {worker}}
        return known.avoid != worker or all(self._aside(machine) or machine in known.raised for machine in others)

    def _passes(self, known: Known) -> bool:
        machine = MACHINES[known.worker]
        return len(known.raised) + 1 < MAX_RAISED and {*known.raised} <= {machine} and self._elsewhere(known, machine)

    def _barred(self, machine: str) -> tuple[bool, bool]:
        """Whether for good, and whether at all."""
        if self._aside(machine):
            return True, True
        others = self._able() - {machine}
        waits = machine in self.doubts and self.doubts[machine].waits
        return False, waits and any(m not in self.doubts or not self.doubts[m].waits for m in others)

    def _gave(self, known: Known, fence: Fence, how: str) -> bool:
        return known.state is PENDING and known.fence == fence and known.given == how

    def _judge(self, known: Known, state: TrialState) -> None:
        here = MACHINES[known.worker]
        if here in self.doubts and state is not FAILED:
            own = self.doubts[here]
            own.row, own.strikes = 0, max(0, own.strikes - 1)
            self._forget()
        for machine in known.raised:
            if machine != here and machine in self.doubts:
                if state is FAILED:
                    self.doubts[machine].row = 0
                elif not self._aside(here):
                    self.doubts[machine].strikes += 1

    def _forget(self) -> None:
        self.doubts = {machine: doubt for machine, doubt in self.doubts.items() if doubt.open or doubt.strikes}

    def _holds(self, fence: Fence) -> bool:
        known = self.known[fence.trial_id]
        return known.state is RUNNING and known.fence == fence

    def _end(self, known: Known, state: TrialState, attempt: int, fence: Fence | None) -> None:
        known.state, known.fence, known.result = state, fence, (attempt, state)
        known.attempt = max(known.attempt, attempt)
        self.endings += 1
        for machine in known.raised:
            if machine in self.doubts:
                self.doubts[machine].open = max(0, self.doubts[machine].open - 1)
                self._forget()

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
    profile = settings(max_examples=30, stateful_step_count=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=profile)

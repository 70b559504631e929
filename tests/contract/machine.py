"""Any order of any words to a queue, and time that passes, each compared with the model."""

from __future__ import annotations

import json
import math

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from common.errors import PutAside
from common.queue.second_tries import Ruling
from common.search.trial import ENDED, Claim, Fence, Result, TrialState
from tests.contract.model import (
    COMPLETED,
    FAILED,
    KILLED,
    MACHINES,
    MAX_LOST,
    PENDING,
    Doubt,
    Known,
)
from tests.contract.passing_time import PICK, WORKERS, TimedMachine
from tests.contract.trials import at_rung, check_consistent, made

ENDINGS = st.sampled_from(sorted(ENDED))
RUNGS = st.sampled_from([0, 0, 0, 1, -1])  # above the one on which a trial stands


class QueueMachine(TimedMachine):
    """All words, and time. ``client`` is set on a subclass by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0
        self.last: dict[str, tuple[str, list[Claim]]] = {}

    # --- words of workers ---

    @initialize(n=st.integers(1, 5), worker=WORKERS)
    def begin(self, n: int, worker: str) -> None:
        """Nothing can happen before."""
        self.publish(n, "coarse")
        self.claim(worker, n, True, None)

    @rule(
        n=st.integers(1, 5),
        stage=st.sampled_from(["coarse", "fine"]),
        rung=st.sampled_from([0, 0, 1]),
    )
    def publish(self, n: int, stage: str, rung: int = 0) -> None:
        """Those that are there stay as they are, whatever their budget."""
        have = sum(k.trial.stage == stage for k in self.model.known.values())
        trials = [at_rung(trial, rung) for trial in made(have + n, stage, lambda i: "aab"[i % 3])]
        self.model.stages += [stage] if stage not in self.model.stages else []
        assert self.queue.publish(trials) == len(
            [t for t in trials if t.id not in self.model.known]
        )
        for trial in trials:
            self.model.known.setdefault(trial.id, Known(trial))

    @rule(
        worker=WORKERS,
        n=st.integers(0, 6),
        alone=st.booleans(),
        group=st.sampled_from([None, None, "a", "b"]),
    )
    def claim(self, worker: str, n: int, alone: bool, group: str | None) -> None:
        self.requests += 1
        model, began = self.model, self._now()
        model.speaks(worker)
        model.comes(worker)
        waiting = model.waiting
        try:
            claims = self.queue.claim(worker, n, str(self.requests), group, alone, MACHINES[worker])
        except PutAside as told:
            assert (told.for_good, True) == model.barred(MACHINES[worker])
            return
        assert not model.barred(MACHINES[worker])[1]
        self.last[worker] = (
            (str(self.requests), claims) if claims else self.last.get(worker, ("", []))
        )
        fit = [k for k in waiting if model.may_try(k, worker)]
        plain = [k for k in fit if not k.suspect and group in (None, k.trial.group)]
        allowed = bool(plain) or (alone and group is None and any(k.suspect for k in fit))
        assert bool(claims) == (allowed and n > 0)
        assert len(claims) <= min(n, math.ceil(len(waiting) / len(model.live)))
        assert len({(c.trial.stage, c.trial.group) for c in claims}) <= 1
        assert group is not None or len({c.trial.rung for c in claims}) <= 1
        found = [model.place(model.known[c.trial.id]) for c in claims if not c.alone]
        places = sorted(map(model.place, plain))
        if group is not None:
            assert found == places[: len(found)]
        assert not found or found[0][:2] == places[0][:2]
        self._now()
        for claim in claims:
            self._claimed(claim, worker, len(claims), began)

    def _claimed(self, claim: Claim, worker: str, n: int, began: int) -> None:
        known = self.model.known[claim.trial.id]
        assert claim.trial == known.trial
        assert known.state is PENDING
        assert claim.alone == known.suspect
        assert n == 1 or not claim.alone
        assert self.model.may_try(known, worker)
        assert claim.fence not in self.model.fences
        self.model.claimed(claim, worker, began)
        assert claim.fence.attempt == known.attempt

    @rule(worker=WORKERS)
    def claim_again(self, worker: str) -> None:
        if worker not in self.last or not self.last[worker][1]:
            return
        request, claims = self.last[worker]
        assert self.queue.claim(worker, 9, request, machine=MACHINES[worker]) == [
            c for c in claims if self.model.holds(c.fence)
        ]
        self.model.speaks(worker)

    @rule(pick=PICK, state=ENDINGS)
    def finish(self, pick: int, state: TrialState) -> None:
        for fence in self._some_fence(pick):
            self._finish(fence, state)

    def _finish(self, fence: Fence, state: TrialState) -> None:
        known = self.model.known[fence.trial_id]
        holds = self.model.holds(fence) or self.model.gave(fence, "lost")
        again = fence in known.accepted or (known.state in ENDED and known.fence == fence)
        assert self.queue.finish([(fence, Result(state))]) == ["ok" if holds or again else "lost"]
        if holds:
            self.model.judge(known, state)
            self.model.ended(known, state, fence.attempt, fence)

    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        for fence in self._some_fence(pick):
            holds = self.model.holds(fence)
            assert self.queue.release([fence]) == [
                "ok" if holds or self.model.gave(fence, "released") else "lost"
            ]
            if holds:
                self.model.given(self.model.known[fence.trial_id], "released")

    @rule(pick=PICK)
    def fail(self, pick: int) -> None:
        for fence in self._some_fence(pick):
            self._fail(fence)

    @rule(bad=WORKERS, good=WORKERS, n=st.integers(1, 4))
    def differ(self, bad: str, good: str, n: int) -> None:
        """What raises with the one completes with the other."""
        for worker in (bad, good):
            before = len(self.model.fences)
            self.claim(worker, n, True, None)
            for fence in self.model.fences[before:]:
                if worker == bad:
                    self._fail(fence)
                else:
                    self._finish(fence, TrialState.COMPLETED)

    def _fail(self, fence: Fence) -> None:
        known = self.model.known[fence.trial_id]
        (answer,) = self.queue.fail([(fence, "boom")])
        if not self.model.holds(fence):
            assert answer.ruling is (
                Ruling.PASSED if self.model.gave(fence, "passed") else Ruling.LOST
            )
        elif self.model.passes(known):
            assert answer.ruling is Ruling.PASSED
            self.model.passed(known)
        else:
            assert (
                answer.ruling is Ruling.FINAL
                and [e.machine for e in answer.earlier] == known.raised
            )

    # --- words of masters ---

    @rule(pick=PICK)
    def stuck(self, pick: int) -> None:
        for fence in self._some_fence(pick):
            taken = self.queue.take(fence, MAX_LOST)
            assert bool(taken) == self.model.holds(fence)
            if taken:
                self._lost(self.model.known[fence.trial_id], taken)

    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        """A kill of this very attempt."""
        for fence in self._some_fence(pick):
            known, holds = self.model.known[fence.trial_id], self.model.holds(fence)
            assert bool(self.queue.kill(fence.trial_id, "slow", fence)) is holds
            if holds:
                self.model.ended(known, KILLED, known.attempt + 1, None)

    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        for known in self._some_trial(pick):
            taken = self.queue.kill(known.trial.id, "by hand")
            assert bool(taken) == (known.state not in ENDED)
            if taken:
                self.model.ended(known, KILLED, known.attempt + 1, None)
                assert taken.fence.attempt == known.attempt

    @rule(pick=PICK)
    def retry(self, pick: int) -> None:
        for known in self._some_trial(pick):
            back = known.state in (FAILED, KILLED)
            assert self.queue.retry(known.trial.id) is back
            if back:
                self.model.retried(known)

    @rule(pick=PICK, by=st.sampled_from([1, 1, 2, 0, -1]), floor=st.integers(0, 3))
    def promote(self, pick: int, by: int, floor: int) -> None:
        for known in self._some_trial(pick):
            self._promote([known], by, floor)

    @rule(by=st.integers(0, 1))
    def promote_all(self, by: int) -> None:
        """Promote all trials, whatever state they are in, and repeat the command.

        Then the workers that know only of the ends report again, one by one, what was accepted, or
        what was read before.
        """
        completed = [known for known in self.model.known.values() if known.state is COMPLETED]
        self._promote(list(self.model.known.values()), by, 0)
        for known in completed[:2]:
            self._restore(known, 0, COMPLETED, 0, 0)
            for fence in known.accepted[-1:]:
                self._finish(fence, COMPLETED)

    def _promote(self, knowns: list[Known], by: int, floor: int) -> None:
        trials = [at_rung(known.trial, known.trial.rung + by) for known in knowns]
        again = [
            t
            for known, t in zip(knowns, trials, strict=True)
            if self.model.promoted(known, t, floor)
        ]
        for _ in range(2):
            assert self.queue.promote(trials, {trial.id: floor for trial in trials}) == again

    @rule(pick=PICK, by=st.integers(-1, 2), state=ENDINGS, rungs=RUNGS)
    def restore(self, pick: int, by: int, state: TrialState, rungs: int) -> None:
        for known in self._some_trial(pick):
            self._restore(known, by, state, rungs, pick % 3 - 1)

    def _restore(self, known: Known, by: int, state: TrialState, rungs: int, above: int) -> None:
        """``above``: by how much the folder's highest attempt is above the record's."""
        attempt, trial = max(1, known.attempt + by), at_rung(known.trial, known.trial.rung + rungs)
        longer, history = trial.rung > known.trial.rung, trial.rung < known.trial.rung
        if known.state in ENDED:
            is_news = longer or self.queue.result(known.trial.id) != (attempt, Result(state))
            right = attempt > known.attempt or (attempt == known.attempt and is_news)
        else:
            settled = known.state is PENDING and (attempt <= known.settled or above > 0)
            right = attempt >= known.attempt and not settled
        right = right and not history
        assert self.queue.restore(trial, attempt, Result(state), attempt + above) is right
        known.trial = trial if right else known.trial
        if right and known.state in ENDED:
            self.model.corrected(known, state, attempt)
        elif right:
            self.model.ended(
                known, state, attempt, known.fence if attempt == known.attempt else None
            )

    # --- what must hold ---

    @invariant()
    def everything_agrees(self) -> None:
        model = self.model
        states = {
            i: json.loads(state)
            for i, state in self.client.hgetall(self.queue.keys["states"]).items()
        }
        assert {i: (s["s"], s["a"], s.get("r", 0)) for i, s in states.items()} == {
            i: (k.state, k.attempt, k.trial.rung) for i, k in model.known.items()
        }
        assert self.queue.trials_of(list(model.known)) == [
            known.trial for known in model.known.values()
        ]
        assert {row[0]: (row[1], row[2].state) for row in self.queue.read_ended()} == model.results
        check_consistent(self.queue)
        assert self.client.llen(self.queue.keys["endings"]) == model.endings
        running = {r.trial.id: r for r in self.queue.running()}
        assert {i: (r.fence, r.worker) for i, r in running.items()} == {
            k.trial.id: (k.fence, k.worker) for k in model.running
        }
        stored = {
            machine: json.loads(doubt)
            for machine, doubt in self.client.hgetall(self.queue.keys["doubts"]).items()
        }
        assert {m: Doubt(d["o"], d["f"], d["s"]) for m, d in stored.items()} == model.doubts
        assert model.somebody_could_go_on

    def _some_trial(self, pick: int) -> list[Known]:
        known = list(self.model.known.values())
        return [known[pick % len(known)]] if known else []

"""A queue beside its model, and time that passes on the server without being waited for."""

from __future__ import annotations

import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from common.queue.answers import Taken, Tick
from common.queue.trial_queue import TrialQueue
from common.search.trial import Fence
from tests.contract.model import (
    GAP_MS,
    LEASE_MS,
    LIVE_MS,
    MACHINES,
    MAX_LOST,
    MOST_STEPS,
    STEP_MS,
    Known,
    Model,
)
from tests.contract.trials import SEARCH, heartbeat

WORKERS = st.sampled_from(sorted(MACHINES))
PICK = st.integers(0, 10**6)
STEPS = st.sampled_from(
    [10, 4, 1, 12]
)  # a lease is over after nine, and four without a tick are no outage yet


class TimedMachine(RuleBasedStateMachine):
    """What has to do with time. ``client`` is set on a subclass by the test."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.queue = TrialQueue(self.client, SEARCH, lease_s=LEASE_MS / 1000, live_s=LIVE_MS / 1000)
        self.model = Model()
        self.steps = 0  # of time that have passed without waiting
        self._tick(True)

    @rule(steps=STEPS)
    def time_passes(self, steps: int) -> None:
        """And nobody says a word."""
        steps = min(steps, MOST_STEPS - self.steps)
        self.steps += steps
        for key in ("leases", "workers"):
            moved = {
                member: at - steps * STEP_MS
                for member, at in self.client.zrange(self.queue.keys[key], 0, -1, withscores=True)
            }
            if moved:
                self.client.zadd(self.queue.keys[key], moved)
        for field, at in self.client.hgetall(self.queue.keys["meta"]).items():
            self.client.hset(self.queue.keys["meta"], field, int(at) - steps * STEP_MS)
        self._now()

    @rule(master=st.booleans())
    def tick(self, master: bool) -> None:
        self._tick(master)

    @rule(steps=STEPS, beats=st.none() | WORKERS, reaps=st.booleans())
    def watch(self, steps: int, beats: str | None, reaps: bool) -> None:
        """Let time pass while a master ticks.

        One worker may send heartbeats; the others count as dead.
        """
        for _ in range(steps):
            self.time_passes(1)
            for known in self.model.running:
                if known.worker == beats and known.fence:
                    self._renew(known.fence, 1)
            for fence, _ in self._tick(True).expired if reaps else ():
                self._expire(fence)

    @rule(steps=st.integers(GAP_MS // STEP_MS + 1, 12))
    def outage(self, steps: int) -> None:
        """Let half a lease pass without a tick.

        Nothing expires, and every holder gets one more whole lease, once.
        """
        self.time_passes(steps)
        for known in self.model.running:
            if known.fence:
                self._expire(known.fence)
        self._tick(True)
        self._tick(True)

    @rule()
    def reap(self) -> None:
        """Whoever thinks so says that leases are over, of those that hold and those that do not."""
        for fence in self.model.fences[-8:]:
            self._expire(fence)

    def _tick(self, master: bool) -> Tick:
        """Check that a tick reports exactly the expired leases.

        After a gap it reports none, and every holder gets one more whole lease.
        """
        model, began = self.model, self._now()
        gap, expired = model.gap, model.expired
        said = self.queue.tick(master)
        assert (said.extended, sorted(map(repr, said.expired))) == (
            gap,
            [] if gap else sorted(map(repr, expired)),
        )
        model.ticked = self._now()
        if master:
            model.mastered = model.ticked
        for known in model.running if gap else ():
            model.lease(known, began)
        return said

    def _expire(self, fence: Fence) -> None:
        """Take a trial only if its lease is over.

        The invariant shows whether a refusal changed anything.
        """
        self._now()
        known, due = (
            self.model.known[fence.trial_id],
            not self.model.gap and fence in {over for over, _ in self.model.expired},
        )
        taken = self.queue.expire(fence, MAX_LOST)
        assert bool(taken) == due
        if taken:
            self._lost(known, taken)

    @rule(pick=PICK)
    def renew(self, pick: int) -> None:
        for fence in self._some_fence(pick):
            self._renew(fence, pick)

    def _renew(self, fence: Fence, beat: int) -> None:
        known, began = self.model.known[fence.trial_id], self._now()
        stale = self.queue.renew(known.worker, [heartbeat(fence, beat)])
        assert bool(stale) != self.model.holds(fence)
        self._now()
        self.model.speaks(known.worker)
        if not stale:
            self.model.lease(known, began)

    def _lost(self, known: Known, taken: Taken) -> None:
        assert (known.trial.id, known.worker) == (taken.fence.trial_id, taken.worker)
        assert self.model.lost(known) is taken.state

    @invariant()
    def times_agree(self) -> None:
        """By the server's clock, whatever the client's says."""
        self._now()
        leases = {
            i: at + self.steps * STEP_MS
            for i, at in self.client.zrange(self.queue.keys["leases"], 0, -1, withscores=True)
        }
        due = {known.trial.id: known.deadline for known in self.model.running}
        assert leases.keys() == due.keys()
        assert all(due[i][0] <= at <= due[i][1] for i, at in leases.items()), (leases, due)
        assert all(
            0 <= r.claimed_s < STEP_MS / 1000 and 0 <= r.still_s < STEP_MS / 1000
            for r in self.queue.running()
        )
        assert self.queue.master_alive(GAP_MS / 1000) == (
            self.model.now - self.model.mastered <= GAP_MS
        )
        assert self.queue.live_workers(LIVE_MS / 1000) == self.model.live

    def _now(self) -> int:
        """The moment, which the model is told as well."""
        seconds, micros = self.client.time()
        self.model.now = int(seconds) * 1000 + int(micros) // 1000 + self.steps * STEP_MS
        return self.model.now

    def _some_fence(self, pick: int) -> list[Fence]:
        """One fence, a recent one more often than not."""
        recent = self.model.fences[-4:] if pick % 3 else self.model.fences
        return [recent[pick % len(recent)]] if recent else []

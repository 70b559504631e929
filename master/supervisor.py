"""The shell around the pure decisions: watches a stage until it has ended, and acts on what it sees."""

from __future__ import annotations

import math
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from common.broker import Broker
from common.errors import HOPELESS, ConfigError, QueueError, SearchError
from common.machines import doubted
from common.queue import TrialQueue
from common.search import Search
from common.trial import TrialState, WorkerInfo
from common.witness import Reaped, finish_from_record, reap, write_verdict
from common.workers import WorkerRegistry
from master.janitor import sweep
from master.launchers.local import LocalWorkers
from master.prepare import Launched, Published
from master.progress import LiveProgress, Pace, Snapshot
from master.stragglers import Decision, Kind, Paces, decide, slow_workers

LOOK_S = 0.2  # between looks at the counts
CARE_S = 1.0  # between looks at leases and stragglers
SWEEP_S = 15.0  # between the janitor's rounds
MAX_BACKOFF_S = 5.0
ABSENT_S = 10.0  # local workers leave when they have heard no master for a little longer
ENDED_WELL = (TrialState.COMPLETED, TrialState.EXPLODED, TrialState.STOPPED)
LACKING_S = 10.0  # Redis knows fewer trials than were queued, and none is left to run: somebody may be recovering it
LONELY_S = 10.0  # trials wait and no worker is connected for so long: said once, or local ones started


class NoWorkersError(SearchError):
    """Every local worker has died too often, and none other is connected."""


@dataclass
class Watched:
    """What the supervisor has gathered of a stage."""

    best: float | None = None
    sequence: int = 0  # of the last ended trial that was read
    paces: Paces = field(default_factory=Paces)
    warned: set[str] = field(default_factory=set)
    ended_well: bool = False  # some trial of the stage, so that training works as such


class Supervisor:
    """Watches one stage. Any number of masters may do so at once: each act is one atomic transition."""

    def __init__(
        self,
        broker: Broker,
        launched: Launched,
        published: Published,
        queue: TrialQueue,
        display: LiveProgress,
        local: LocalWorkers | None,
        start_local: Callable[[], LocalWorkers] | None = None,
    ) -> None:
        """Args: ``local``: the workers to look after; ``start_local`` starts some where none is connected."""
        self.local = local
        self._broker = broker
        self._launched = launched
        self._published = published
        self._queue = queue
        self._display = display
        self._start_local = start_local
        self._registry = WorkerRegistry(broker.client)
        self._pace = Pace()
        self._seen = Watched()
        self._lonely_since: float | None = None
        self._lacking_since: float | None = None
        self._care_at = 0.0
        self._cared_at = time.monotonic()
        self._was_absent = False  # suspended, or cut off from Redis, for longer than local workers wait
        self._sweep_at = time.monotonic() + SWEEP_S
        self._workers: list[WorkerInfo] = []
        self._doubted: dict[str, bool] = {}  # machines: whether put aside for this search
        self._processes: dict[str, int] = {}  # on this host, by worker

    @property
    def _search(self) -> Search:
        return self._launched.search

    @property
    def _stage(self) -> str:
        return self._published.stage.name

    def watch(self) -> dict[str, int]:
        """Returns the counts by state once no trial is pending or running.

        Raises:
            NoWorkersError: nobody is left to train.
            CheckpointError: the folder cannot be written.
            QueueError: Redis does not let this user watch, or holds what nobody of us wrote.
        """
        backoff_s, away = LOOK_S, False
        while True:
            try:
                counts = self._look()
                if away:
                    self._display.say("Redis is back; going on")
                backoff_s, away = LOOK_S, False
                if counts is not None:
                    return counts
            except HOPELESS:
                raise
            except QueueError as error:
                if not away:
                    self._display.say(f"{error}. Workers go on; trying again until Redis is back")
                away = True
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
                self._mend()
            time.sleep(backoff_s * random.uniform(0.5, 1.0))

    def _mend(self) -> None:
        try:
            self._broker.ensure()
        except QueueError:
            return  # told once by watch(); the next round tries again

    def _look(self) -> dict[str, int] | None:
        """One look; the counts if the stage has ended."""
        now = time.monotonic()
        if now >= self._care_at:
            self._care_at = now + min(CARE_S, self._queue.tick_every_s)
            self._care()
            self._was_absent = self._was_absent or now - self._cared_at > ABSENT_S
            self._cared_at = now
        counts = self._queue.counts().get(self._stage)
        if counts is None:
            raise ConfigError(f"stage {self._stage!r} is no longer in Redis (replaced, or Redis was emptied); launch again")
        self._read_ended()
        self._seen.ended_well = self._seen.ended_well or any(counts[state] for state in ENDED_WELL)
        ended = counts[TrialState.PENDING] + counts[TrialState.RUNNING] == 0 and self._all_there(now, sum(counts.values()))
        done = sum(counts.values()) - counts[TrialState.PENDING] - counts[TrialState.RUNNING]
        live = sum(worker.state != "lost" for worker in self._workers)
        snapshot = Snapshot(self._stage, counts, self._seen.best, self._pace.update(now, done), live, self._search.metric)
        self._display.show(snapshot, final=ended)
        if now >= self._sweep_at or ended:
            self._sweep_at = now + SWEEP_S
            sweep(self._queue, self._launched.folder.stage(self._stage), self._search.keep, mode=self._search.mode)
        return counts if ended else None

    def _all_there(self, now: float, n_known: int) -> bool:
        """Whether Redis knows as many trials as were queued; while `master recover` rebuilds it, it knows those that have ended first.

        Raises:
            ConfigError: it has lost some, and nobody brings them back.
        """
        n_missing = len(self._published.trials) - n_known
        self._lacking_since = (self._lacking_since or now) if n_missing > 0 else None
        if self._lacking_since is not None and now - self._lacking_since > LACKING_S:
            raise ConfigError(f"stage {self._stage!r}: Redis has lost {n_missing} of its trials; launch again, which queues them anew")
        return n_missing <= 0

    def _care(self) -> None:
        known = self._registry.list()
        holders = self._holders(known) if self.local is not None else set[int]()  # before the leases of those that died are reaped
        self._tell_reaped(reap(self._queue, self._launched.folder, master=True))
        live = self._queue.live_workers()
        self._workers = [worker for worker in known if worker.worker in live]  # of this search, not of this Redis
        self._doubted = doubted(self._queue)
        if self.local is not None:
            self.local.poll(holders, blameless=self._seen.ended_well)
        self._tell_aside()
        self._see_to_loneliness()
        self._see_to_stragglers()

    def _holders(self, known: list[WorkerInfo]) -> set[int]:
        """Processes on this host with trials under lease: should they die, these trials are tried alone, and fail if they kill again."""
        holders, host = {running.worker for running in self._queue.running()}, socket.gethostname()
        here = {worker.worker: worker.pid for worker in known if worker.host == host}
        # Whom `sys.exit` ends within a step has left the list of workers, but given back nothing.
        gone = {worker: pid for worker, pid in self._processes.items() if worker in holders}
        self._processes = gone | here
        quitting = {worker.worker for worker in known if worker.state == "quitting"}  # by order; Redis was away when it gave back
        return {pid for worker, pid in self._processes.items() if worker in holders - quitting}

    def _able(self, worker: WorkerInfo) -> bool:
        """Whether it may take trials of this search; "aside" alone does not tell of which search."""
        return worker.state not in ("lost", "quitting") and not self._doubted.get(worker.place, False)

    def _tell_reaped(self, reaped: Reaped) -> None:
        for trial_id in reaped.finished:
            self._display.say(f"{trial_id}: its worker is gone, but had written its record; it counts")
        if reaped.returned:
            self._display.say(f"{_listed(reaped.returned)}: no heartbeat for a lease; back to the queue")
        for trial_id in reaped.failed:
            self._display.say(f"{trial_id}: lost too often, each time while training alone; FAILED")

    def _tell_aside(self) -> None:
        for worker in self._workers:
            if worker.state == "aside" and worker.place in self._doubted:
                self._warn_once(f"aside {worker.place} {worker.reason}", f"worker {worker.worker} on {worker.host}: {worker.reason}")

    def _read_ended(self) -> None:
        """What has ended since the last look, page by page, however much it is."""
        while endings := self._queue.ended_since(self._seen.sequence):
            self._seen.sequence = endings[-1][0]
            for _, trial_id, _, result in endings:
                if trial_id.startswith(f"{self._stage}-") and result.state in (TrialState.COMPLETED, TrialState.STOPPED):
                    self._seen.best = better(result.value, self._seen.best, self._search.mode)
            paced = {trial_id: result for _, trial_id, _, result in endings if result.epoch_s is not None}
            for trial in self._queue.trials_of(list(paced)):
                if trial is not None:
                    self._seen.paces.add_result(trial.group, paced[trial.id])

    def _see_to_loneliness(self) -> None:
        """Trials wait, and nobody is there to take them."""
        local = set(self.local.pids) if self.local is not None else set()
        host = socket.gethostname()
        aside = {worker.pid for worker in self._workers if worker.host == host and self._doubted.get(worker.place, False)}
        if local - aside or any(map(self._able, self._workers)):
            self._lonely_since = None
            return
        if self.local is not None and self.local.given_up:
            raise NoWorkersError(
                "the local workers died too often, and no other is connected; the trials wait: mend the cause and launch again"
            )
        now = time.monotonic()
        self._lonely_since = self._lonely_since or now
        if now - self._lonely_since < LONELY_S:
            return
        if self._start_local is not None and self.local is None:
            self._display.say("no worker takes trials of this search; starting local ones")
            self.local = self._start_local()
            return
        if self.local is not None and self._was_absent and not local:  # they left by themselves, as there was no master
            self._was_absent = False
            self.local.start()
        self._warn_once(
            "lonely",
            "no worker takes trials of this search; start one with `worker start` on any machine that sees the same Redis and folder",
        )

    def _see_to_stragglers(self) -> None:
        running = self._queue.running()
        self._seen.paces.add_running(running)
        live = {worker.worker for worker in self._workers if self._able(worker)}
        for decision in decide(running, self._seen.paces.samples, self._search.stragglers, live):
            self._act(decision)
        for worker in slow_workers(self._seen.paces, self._search.stragglers):
            if self._warn_once(f"slow {worker}", f"worker {worker} is slow on several trials"):
                self._registry.mark_slow(worker, True)

    def _act(self, decision: Decision) -> None:
        fence = decision.running.fence
        if decision.kind is Kind.WARN:
            self._warn_once(f"{fence}", f"{fence.trial_id}: {decision.reason}")
            return
        if finish_from_record(self._queue, self._launched.folder, fence):
            return
        if decision.kind is Kind.KILL:
            taken = self._queue.kill(fence.trial_id, decision.reason, fence)
        else:
            taken = self._queue.take(fence, "stuck" if decision.kind is Kind.STUCK else "slow")
        if taken is not None:
            write_verdict(self._queue, self._launched.folder, taken)
            self._display.say(f"{fence.trial_id}: {decision.reason}; {_outcome(decision)}")

    def _warn_once(self, key: str, message: str) -> bool:
        if key in self._seen.warned:
            return False
        self._seen.warned.add(key)
        self._display.say(message)
        return True


def better(value: float | None, best: float | None, mode: str) -> float | None:
    """The better of two values of the metric, of which either may be missing."""
    if value is None or not math.isfinite(value):
        return best
    return value if best is None or (value > best if mode == "max" else value < best) else best


def _outcome(decision: Decision) -> str:
    return {Kind.STUCK: "taken away, back to the queue", Kind.SLOW: "given to another worker", Kind.KILL: "KILLED"}[decision.kind]


def _listed(names: tuple[str, ...], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

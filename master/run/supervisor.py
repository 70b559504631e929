"""The supervisor: it watches a stage until it has ended, and acts on what it sees.

The decisions themselves are pure functions in other modules.
"""

from __future__ import annotations

import math
import random
import socket
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from common.broker.connection import Broker
from common.errors import HOPELESS, ConfigError, QueueError, SearchError
from common.queue import bells
from common.queue.machines import find_doubted
from common.queue.reconcile import Reaped, finish_from_record, reap, write_verdict
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.repeats import list_few
from common.search.search_file import Search
from common.search.trial import Result, Trial, TrialState, WorkerInfo, violates
from master.launchers.workers import Workers
from master.run.janitor import sweep, sweep_left_over
from master.run.progress import LiveProgress, Pace, Snapshot
from master.run.stragglers import Decision, Kind, Paces, decide, slow_workers
from master.stages.prepare import Launched
from master.stages.publishing import Ladders, Published, queue_again

LOOK_S = 0.2  # seconds between looks at the counts while nothing ends
LEAST_PAUSE_S = 0.01  # least seconds between looks, however many trials end
CARE_S = 1.0  # seconds between looks at leases and stragglers
SWEEP_S = 15.0  # seconds between the janitor's rounds
MAX_BACKOFF_S = 5.0
ABSENT_S = 10.0  # local workers exit when they have heard no master for a little longer
ENDED_WELL = (TrialState.COMPLETED, TrialState.EXPLODED, TrialState.STOPPED)
# How long Redis may know fewer trials than were queued while none is left to run. Somebody may be
# recovering it.
LACKING_S = 10.0
# If trials wait and no worker is connected for so long, local workers start, or the user is told
# once.
LONELY_S = 10.0


class NoWorkersError(SearchError):
    """The error raised when every local worker has died too often and no other is connected."""


@dataclass
class Watched:
    """Data that the supervisor has gathered about a stage."""

    best: float | None = None
    sequence: int = 0  # number of the last ending that was read
    machines: dict[str, str] = field(default_factory=dict)  # by worker, also of those that left
    paces: Paces = field(init=False)
    slow: frozenset[str] = frozenset()  # workers that are called slow
    warned: set[str] = field(default_factory=set)
    ended_well: bool = False  # whether some trial of the stage did, so training works in principle

    def __post_init__(self) -> None:
        self.paces = Paces(self.machines.get)


class Supervisor:
    """Supervisor of one stage.

    Any number of masters may watch a stage at once, because each action is one atomic transition.
    """

    def __init__(
        self,
        broker: Broker,
        launched: Launched,
        published: Published,
        queue: TrialQueue,
        display: LiveProgress,
        local: Workers | None,
        start_local: Callable[[], Workers] | None = None,
    ) -> None:
        """Make a supervisor.

        Args:
            broker: the connection to Redis.
            launched: the search.
            published: the stage to watch.
            queue: the search's queue.
            display: shows the progress.
            local: the workers to look after, if any.
            start_local: starts local workers if no worker is connected.
        """
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
        # Suspended, or cut off from Redis, for longer than local workers wait.
        self._was_absent = False
        self._sweep_at = time.monotonic() + SWEEP_S
        self._workers: list[WorkerInfo] = []
        self._doubted: dict[str, bool] = {}  # by machine: whether it is set aside for this search
        self._processes: dict[str, int] = {}  # process ids on this host, by worker
        self._jobs: dict[str, str] = {}  # jobs of a cluster, by worker
        self._bell = bells.Bell(broker.client, bells.ENDED)
        # Promoted trials of which Redis may not have heard yet.
        self._going_on: list[Trial] = []
        # Stages in which a trial has ended since the janitor's last round.
        self._unswept: set[str] = set()
        self._is_first_look = True
        # Trials that have ended in Redis without a result that can be read.
        self._unread: set[str] = set()

    @property
    def _search(self) -> Search:
        return self._launched.search

    @property
    def _start_one(self) -> str:
        resources = self._search.resources
        command = "worker start" if resources.gpus == 1 else resources.start_command
        return f"start one with `{command}` on any machine that sees the same Redis and folder"

    @property
    def _stage(self) -> str:
        return self._published.stage.name

    @property
    def _ladder(self) -> Ladders:
        return self._published.ladder

    def watch(self) -> dict[str, int]:
        """Watch until no trial is pending or running, and return the counts by state.

        Raises:
            NoWorkersError: no worker is left to train.
            CheckpointError: the folder cannot be written.
            QueueError: Redis does not let this user watch, or holds data that coarsefine did not
                write.
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
            if away:
                time.sleep(backoff_s * random.uniform(0.5, 1.0))
            else:
                # Many short trials ring the bell more often than a look is needed.
                time.sleep(LEAST_PAUSE_S)
                self._bell.wait(LOOK_S)

    def _mend(self) -> None:
        try:
            self._broker.ensure()
        except QueueError:
            return  # watch() has reported it once; the next round tries again

    def _look(self) -> dict[str, int] | None:
        """Look once. Return the counts if the stage has ended, else None."""
        now = time.monotonic()
        if now >= self._care_at:
            self._care_at = now + min(CARE_S, self._queue.tick_every_s)
            self._care()
            self._was_absent = self._was_absent or now - self._cared_at > ABSENT_S
            self._cared_at = now
        counts = self._queue.counts()
        if self._stage not in counts and self._published.trials:
            raise ConfigError(
                f"stage {self._stage!r} is no longer in Redis (replaced, or Redis was emptied); "
                "launch again"
            )
        self._read_ended()
        if self._is_first_look and self._published.added:
            self._unswept &= {self._stage}  # the stages before were swept at their end
        self._is_first_look = False
        promoted = self._promote()
        own = counts.get(self._stage, dict.fromkeys(TrialState, 0))
        self._seen.ended_well = self._seen.ended_well or any(own[state] for state in ENDED_WELL)
        n_left = sum(
            known[state]
            for known in counts.values()
            for state in (TrialState.PENDING, TrialState.RUNNING)
        )
        is_quiet = not n_left and not promoted and self._all_there(now, sum(own.values()))
        if is_quiet:
            self._note_unread()
        ended = is_quiet and self._ladder.is_over
        self._show(now, counts, ended)
        if now >= self._sweep_at or ended:
            self._sweep_at = now + SWEEP_S
            self._sweep(self._unswept & counts.keys())
            self._unswept.clear()
        if ended:
            sweep_left_over(self._launched.folder)
        return own if ended else None

    def _sweep(self, stages: Set[str]) -> None:
        """Send the janitor through these stages."""
        # The last rung of the stage before may run beside this stage.
        first = max(0, len(self._search.up_to(self._stage)) - 2)
        plans = [stage.plan for stage in self._search.stages[first:]]
        for name in stages:
            sweep(
                self._queue,
                self._launched.folder.stage(name),
                self._search.keep,
                mode=self._search.mode,
                plans=plans,
            )

    def _promote(self) -> bool:
        """Queue promoted trials again.

        The decisions are durable. While Redis is away, they wait and are sent again.

        Returns:
            Whether there are any, because the counts are old then.
        """
        self._going_on += self._ladder.advance(sum(map(self._able, self._workers)))
        if not self._going_on:
            return False
        self._going_on = queue_again(self._queue, self._launched.folder, self._going_on)
        return True

    def _note_unread(self) -> None:
        """Note as FAILED each trial that has ended in Redis but whose result is damaged or lost.

        This is called when nothing waits or runs. First all endings are read once more, because a
        Redis that lost its data meanwhile has numbered them anew. A trial fails if it is still
        awaited at the next call.
        """
        if self._ladder.standings.find_unfinished():
            self._seen.sequence = 0
            self._read_ended()
        awaited = {trial.id for trial in self._ladder.standings.find_unfinished()}
        for trial_id in awaited & self._unread:
            self._ladder.note(
                trial_id, Result(TrialState.FAILED, "its result in Redis is damaged or lost")
            )
        self._unread = awaited

    def _show(self, now: float, counts: Mapping[str, Mapping[str, int]], ended: bool) -> None:
        """Show the progress of the trials of the awaited rung."""
        awaited = self._ladder.awaited
        states = self._ladder.standings.states(awaited)
        n_left = len(awaited) - states.total()
        shown = {state.value: states[state] for state in TrialState}
        n_running = sum(known[TrialState.RUNNING] for known in counts.values())
        shown[TrialState.RUNNING] = min(n_left, n_running)
        shown[TrialState.PENDING] = n_left - shown[TrialState.RUNNING]
        live = sum(worker.state != "lost" for worker in self._workers)
        label = self._stage
        if len(self._published.stage.plan.rungs) > 1:
            label += (
                f" to {self._ladder.epochs:g} {'epoch' if self._ladder.epochs == 1 else 'epochs'}"
            )
        pace = self._pace.update(now, self._seen.sequence)
        self._display.show(
            Snapshot(label, shown, self._seen.best, pace, live, self._search.metric), final=ended
        )

    def _all_there(self, now: float, n_known: int) -> bool:
        """Return whether Redis knows as many trials as were queued.

        While `master recover` rebuilds Redis, it knows the trials that have ended first.

        Raises:
            ConfigError: Redis has lost trials, and nobody restores them.
        """
        n_missing = len(self._published.trials) - n_known
        self._lacking_since = (self._lacking_since or now) if n_missing > 0 else None
        if self._lacking_since is not None and now - self._lacking_since > LACKING_S:
            raise ConfigError(
                f"stage {self._stage!r}: Redis has lost {n_missing} of its trials; launch again, "
                "which queues them anew"
            )
        return n_missing <= 0

    def _care(self) -> None:
        known = self._registry.list()
        self._jobs |= {worker.worker: worker.job for worker in known if worker.job}
        # Poll first, so that it is known how workers died when their leases are reaped.
        if self.local is not None:
            self.local.poll(self._holders(known), blameless=self._seen.ended_well)
        self._tell_reaped(
            reap(self._queue, self._launched.folder, master=True, endings=self._endings())
        )
        live = self._queue.live_workers()
        # The registry lists all workers of this Redis. Keep those of this search.
        self._workers = [worker for worker in known if worker.worker in live]
        self._doubted = find_doubted(self._queue)
        self._tell_aside()
        self._see_to_loneliness()
        self._see_to_stragglers()

    def _holders(self, known: list[WorkerInfo]) -> set[int]:
        """Return the ids of the processes on this host whose workers hold leases.

        If such a process dies, its trials are tried alone. They fail if they kill a worker again.
        """
        holders, host = {running.worker for running in self._queue.running()}, socket.gethostname()
        here = {worker.worker: worker.pid for worker in known if worker.host == host}
        # A worker that `sys.exit` ended within a step has left the list of workers, but has not
        # given its trials back.
        gone = {worker: pid for worker, pid in self._processes.items() if worker in holders}
        self._processes = gone | here
        # These end by order. Redis was away when they gave their trials back.
        quitting = {worker.worker for worker in known if worker.state == "quitting"}
        return {pid for worker, pid in self._processes.items() if worker in holders - quitting}

    def _endings(self) -> dict[str, str]:
        """Return how workers of this launch died, by worker."""
        if self.local is None:
            return {}
        known = {
            worker: self.local.how_ended(self._processes.get(worker, 0), self._jobs.get(worker, ""))
            for worker in {*self._processes, *self._jobs}
        }
        return {worker: how for worker, how in known.items() if how}

    def _able(self, worker: WorkerInfo) -> bool:
        """Return whether a worker may take trials of this search.

        The state "aside" does not say for which search the worker is set aside.
        """
        return worker.state not in ("lost", "quitting") and not self._doubted.get(
            worker.place, False
        )

    def _tell_reaped(self, reaped: Reaped) -> None:
        one = len(reaped.finished) == 1
        for trials, what in (
            (
                reaped.finished,
                f"{'its worker is' if one else 'their workers are'} gone, but had written "
                f"{'its record; its result is used' if one else 'records; these are used'}",
            ),
            (reaped.returned, "no heartbeat for a lease; back to the queue"),
            (reaped.failed, "lost too often, each time while training alone; FAILED"),
        ):
            if trials:
                self._display.say(f"{list_few(trials)}: {what}")

    def _tell_aside(self) -> None:
        for worker in self._workers:
            if worker.state == "aside" and worker.place in self._doubted:
                self._warn_once(
                    f"aside {worker.place} {worker.reason}",
                    f"worker {worker.worker} on {worker.host}: {worker.reason}",
                )

    def _read_ended(self) -> None:
        """Read all endings since the last look, page by page."""
        while endings := self._queue.read_endings(self._seen.sequence):
            self._seen.sequence = endings[-1][0]
            for _, trial_id, _, result in endings:
                self._ladder.note(trial_id, result)
                self._unswept.add(trial_id.rsplit("-", 1)[0])
                ended_well = result.state in (TrialState.COMPLETED, TrialState.STOPPED)
                if ended_well and not violates(result.state, result.reason):
                    self._seen.best = better(result.value, self._seen.best, self._search.mode)
            paced = {
                trial_id: result for _, trial_id, _, result in endings if result.epoch_s is not None
            }
            for trial in self._queue.trials_of(list(paced)):
                if trial is not None:
                    self._seen.paces.add_result(trial.group, paced[trial.id])

    def _see_to_loneliness(self) -> None:
        """Start local workers, or warn, if trials wait and no worker takes them.

        Raises:
            NoWorkersError: the local workers died too often.
        """
        local = set(self.local.pids) if self.local is not None else set()
        host = socket.gethostname()
        aside = {
            worker.pid
            for worker in self._workers
            if worker.host == host and self._doubted.get(worker.place, False)
        }
        if local - aside or any(map(self._able, self._workers)):
            self._lonely_since = None
            return
        if self.local is not None and self.local.given_up:
            raise NoWorkersError(
                f"the {self.local.noun} died too often, and no other worker is connected; the "
                "trials wait: fix the cause and launch again"
            )
        now = time.monotonic()
        self._lonely_since = self._lonely_since or now
        if now - self._lonely_since < LONELY_S:
            return
        if self._start_local is not None and self.local is None:
            self._display.say("no worker takes trials of this search; starting local ones")
            self.local = self._start_local()
            return
        # Local workers exit by themselves when they hear no master.
        if self.local is not None and self._was_absent and not local:
            self._was_absent = False
            self.local.start()
        absence = self.local.absence if self.local is not None else ""
        self._warn_once(
            f"lonely {absence}",
            f"no worker takes trials of this search; {absence or self._start_one}",
        )

    def _see_to_stragglers(self) -> None:
        running = self._queue.running()
        self._seen.machines |= {worker.worker: worker.place for worker in self._workers}
        self._seen.paces.add_running(running)
        told: dict[str, list[str]] = {}  # the trials by what became of them
        for decision in decide(running, self._seen.paces, self._search.stragglers):
            if (what := self._act(decision)) is not None:
                told.setdefault(what, []).append(
                    f"{decision.running.fence.trial_id}: {decision.reason}"
                )
        for what, reasons in told.items():
            more = f" ({len(reasons)} trials like it)" if len(reasons) > 1 else ""
            self._display.say(f"{reasons[0]}{what}{more}")
        slow = slow_workers(self._seen.paces, self._search.stragglers)
        for worker in slow ^ self._seen.slow:
            self._registry.mark_slow(worker, worker in slow)
        for worker in slow - self._seen.slow:
            self._warn_once(
                f"slow {worker}",
                f"worker {worker} is slow; it hands its trials to another machine that has nothing "
                "to do",
            )
        self._seen.slow = slow

    def _act(self, decision: Decision) -> str | None:
        """Carry out a decision, and return what became of the trial, if that is news."""
        fence = decision.running.fence
        if decision.kind is Kind.SLOW:
            return "" if self._is_new(f"{fence}") else None
        if finish_from_record(self._queue, self._launched.folder, fence):
            return None
        overdue = decision.kind is Kind.OVERDUE
        taken = (
            self._queue.kill(fence.trial_id, decision.reason, fence)
            if overdue
            else self._queue.take(fence)
        )
        if taken is None:
            return None
        write_verdict(self._queue, self._launched.folder, taken)
        return "; KILLED" if overdue else "; taken away, back to the queue"

    def _warn_once(self, key: str, message: str) -> bool:
        is_new = self._is_new(key)
        if is_new:
            self._display.say(message)
        return is_new

    def _is_new(self, key: str) -> bool:
        if key in self._seen.warned:
            return False
        self._seen.warned.add(key)
        return True


def better(value: float | None, best: float | None, mode: str) -> float | None:
    """Return the better of two values of the metric, of which either may be missing."""
    if value is None or not math.isfinite(value):
        return best
    return value if best is None or (value > best if mode == "max" else value < best) else best

"""Workers that the scheduler of a cluster runs as jobs.

A ``Launcher`` submits jobs, says how they are, and cancels them; ``master/launchers/slurm.py`` is
one. ``ClusterWorkers`` submits as many as the waiting trials need. Its jobs outlive the launch:
they leave by themselves when they are idle, and a later launch counts those that it finds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol, Self

from common.errors import ConfigError, SearchError
from common.safe_read import read_end
from master.launchers.endings import MAX_QUICK_DEATHS
from master.launchers.noted import Noted, Notes

POLL_S = 5.0  # between questions to the scheduler
LOG_TAIL_BYTES = 1 << 12
LOG_TAIL_LINES = 8
MOST_WORKERS = 100_000


class ClusterError(SearchError):
    """The scheduler of the cluster refuses, or does not answer."""


class Phase(Enum):
    """Where a job is between its submission and its end."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


class Ending(Enum):
    """What the end of a job says about the next one."""

    LEFT = "it had nothing left to do"
    LOST = "the cluster took its node or its time; another takes its place"
    CANCELLED = "somebody does not want it; no other takes its place"
    FAILED = "it may fail again"


@dataclass(frozen=True)
class Job:
    """A job as the scheduler describes it.

    ``words`` go on with a sentence that begins with the job, such as "ran out of memory". They are
    empty where there is nothing to say. ``moved`` does so for a job that the scheduler begins again
    elsewhere.
    """

    id: str
    phase: Phase
    words: str = ""
    ending: Ending = Ending.LEFT
    log: Path | None = None
    moved: str = ""


class Launcher(Protocol):
    """The scheduler of a cluster. Every method raises ClusterError where it refuses."""

    @property
    def name(self) -> str:
        """The name of the scheduler, as people write it."""

    @property
    def logs(self) -> str:
        """Where the logs of jobs are, as a sentence goes on after "with"."""

    def preview(self, n: int) -> tuple[str, str]:
        """Return what ``start`` would submit, and the command that would submit it."""

    def start(self, n: int) -> list[str]:
        """Submit ``n`` jobs, each a worker, and return their ids."""

    def states(self, jobs: Collection[str]) -> dict[str, Job]:
        """Return those of the jobs that the scheduler still knows."""

    def stop(self, jobs: Collection[str]) -> None:
        """Cancel jobs. Those that have ended are left out."""


@dataclass(frozen=True)
class Bounds:
    """The fewest and the most workers of a launch."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str, launcher: str) -> Bounds:
        """Read ``N``, which means at most N, or ``MIN:MAX``.

        Raises:
            ConfigError: it is neither.
        """
        least, _, most = text.rpartition(":")
        numbers = [least or "0", most]
        if not all(number.isascii() and number.isdigit() for number in numbers):
            raise ConfigError(
                f"--workers {text}: --launcher {launcher} starts no local workers; give the number "
                "of jobs, such as 8, or a range, such as 2:8"
            )
        found = cls(*map(int, numbers))
        if not 1 <= found.most <= MOST_WORKERS or found.least > found.most:
            raise ConfigError(
                f"--workers {text}: not a number of jobs; use N, or MIN:MAX with MIN not above "
                "MAX, and MAX at least 1"
            )
        return found


@dataclass(frozen=True)
class Demand:
    """What the trials of a search ask for, and which jobs' workers are connected."""

    waiting: int  # trials that no worker has
    running: int  # trials that a worker has
    busy: frozenset[str] = frozenset()  # jobs whose worker has trials
    idle: frozenset[str] = frozenset()  # jobs whose worker has none


def count_new(demand: Demand, live: Collection[str], bounds: Bounds) -> int:
    """Return how many jobs to submit now.

    Each job that is queued or starts, and each idle worker, will take at least one waiting trial.
    Jobs are added for the trials that are left, up to the most. While trials wait or run, there are
    no fewer jobs than the least.

    Args:
        demand: The trials, and the connected workers.
        live: The jobs that have not ended.
        bounds: The fewest and the most jobs.
    """
    if not demand.waiting + demand.running:
        return 0
    coming = len(set(live) - demand.busy)
    for_waiting = demand.waiting - coming
    for_least = bounds.least - len(live)
    return max(0, min(bounds.most - len(live), max(for_waiting, for_least)))


class ClusterWorkers:
    """The workers of one search that run as jobs of a cluster."""

    noun = "jobs"

    def __init__(
        self,
        launcher: Launcher,
        bounds: Bounds,
        notes: Notes,
        ask: Callable[[], Demand],
        lock: Callable[[], AbstractContextManager[bool]],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the workers without submitting a job.

        Args:
            launcher: The scheduler.
            bounds: The fewest and the most jobs.
            notes: The file in which the jobs of the search are noted.
            ask: Returns what the trials ask for. It may raise QueueError.
            lock: Opens a lock that one master at a time holds while it submits. It yields whether
                the lock is held.
            say: Prints messages about jobs.
            clock: Returns the time in seconds.
        """
        self._launcher = launcher
        self._bounds = bounds
        self._notes = notes
        self._ask = ask
        self._lock = lock
        self._say = say
        self._clock = clock
        self._jobs: dict[str, Job] = {}  # as of the last question
        self._ended: dict[str, str] = {}  # by job: how it ended
        self._connected: set[str] = set()  # jobs whose worker was connected at some time
        self._n_cancelled = self._n_failed = 0
        self._poll_at = 0.0
        self._has_started = False
        self._trouble = ""
        self.given_up = False

    @property
    def pids(self) -> list[int]:
        """Process ids on this machine: there are none."""
        return []

    @property
    def live(self) -> list[Job]:
        """The jobs that have not ended, as of the last question."""
        return [job for job in self._jobs.values() if job.phase is not Phase.ENDED]

    @property
    def gone(self) -> bool:
        """Whether no job is queued or runs."""
        with suppress(ClusterError):
            self._see()
        return not self.given_up and not self.live

    @property
    def absence(self) -> str:
        """Say why no worker takes trials, and what to do."""
        if self._trouble:
            return self._trouble
        if not self.live and self._n_cancelled:
            return "its jobs were cancelled; launch again for new ones"
        queued = [job for job in self.live if job.phase is Phase.QUEUED]
        if queued:
            reasons = sorted({job.words for job in queued if job.words})
            return f"{_count(queued, 'job')} in the queue of {self._launcher.name}" + "".join(
                f"; {each}" for each in reasons
            )
        if self.live:
            running = f"{_count(self.live, 'job')} running, whose workers are not connected yet"
            log = next((str(job.log) for job in self.live if job.log), self._launcher.logs)
            return f"{running}; see {log}"
        return "no job is queued or running"

    def how_ended(self, pid: int, job: str = "") -> str:
        """Describe how the job of a worker ended. The result is empty if that is not known."""
        words = self._ended.get(job, "")
        return f"its last worker's job, {job}, {words}" if words else ""

    def start(self) -> Self:
        """Find the jobs of an earlier launch, and submit those that are missing.

        Called again, this is a ``poll``: a scheduler that is away for a while ends no launch.

        Raises:
            ClusterError: The scheduler refuses.
            CheckpointError: The jobs cannot be noted.
            QueueError: Redis cannot be reached.
        """
        if self._has_started:
            self.poll()
            return self
        self._poll_at = self._clock() + POLL_S
        self._see(first=True)
        if self.live:
            self._say(f"{_count(self.live, 'job')} of this search found in {self._launcher.name}")
        self._add()
        self._has_started = True
        return self

    def poll(self, holders: Collection[int] = (), blameless: bool = False) -> None:
        """Look how the jobs are, and submit those that the waiting trials need.

        Call this about once a second. The scheduler is asked every few seconds.

        Args:
            holders: Not used: the workers are no processes of this machine.
            blameless: Whether some trial has ended well. Then a job that fails after its worker was
                connected does not count against the next one; its trials are blamed instead.

        Raises:
            CheckpointError: The jobs cannot be noted.
            QueueError: Redis cannot be reached.
        """
        now = self._clock()
        if now < self._poll_at:
            return
        self._poll_at = now + POLL_S
        try:
            self._see(blameless)
            if not self.given_up:
                self._add()
            self._trouble = ""
        except ClusterError as error:
            if not self._trouble:
                self._say(f"{error}; trying again")
            self._trouble = str(error)

    def leave(self) -> None:
        """Stop looking after the jobs, and let them go on.

        Jobs that have not begun are cancelled if no trial is left.
        """
        with suppress(SearchError):
            demand = self._ask()
            queued = [job.id for job in self.live if job.phase is Phase.QUEUED]
            if queued and not demand.waiting + demand.running:
                self._launcher.stop(queued)
                self._say(f"{_count(queued, 'job')} cancelled that had not begun: no trial is left")

    def _see(self, blameless: bool = False, first: bool = False) -> None:
        """Ask the scheduler about the noted jobs, and tell what has changed."""
        noted = self._notes.read()
        open_jobs = {id for id, job in noted.items() if job.phase is not Phase.ENDED.value}
        if not open_jobs:
            self._jobs = {}
            return
        known = self._launcher.states(open_jobs)
        # The scheduler forgets a job some minutes after its end.
        found = {id: known.get(id) or Job(id, Phase.ENDED) for id in sorted(open_jobs)}
        changed = [job for id, job in found.items() if noted[id] != _note(job)]
        before, self._jobs = self._jobs, found
        if changed:
            self._notes.update({job.id: _note(job) for job in changed})
        self._tell_moved(before)
        self._tell(changed, before, blameless, first)

    def _tell_moved(self, before: Mapping[str, Job]) -> None:
        for id, job in self._jobs.items():
            is_new = job.moved and id in before and before[id].moved != job.moved
            if is_new and job.phase is not Phase.ENDED:
                self._say(f"{self._launcher.name} job {id} {job.moved}; it begins again")

    def _tell(
        self, changed: list[Job], before: Mapping[str, Job], blameless: bool, first: bool
    ) -> None:
        told: dict[str, list[Job]] = {}
        for job in changed:
            was = before.get(job.id)
            requeued = job.phase is Phase.QUEUED and was is not None and was.phase is Phase.RUNNING
            if requeued and not job.moved:
                told.setdefault("was put back into the queue", []).append(job)
            if job.phase is Phase.ENDED:
                self._ended[job.id] = job.words or "has ended"
                if job.words:
                    told.setdefault(job.words, []).append(job)
        for words, (one, *others) in told.items():
            likewise = f" (likewise {_list([job.id for job in others])})" if others else ""
            log = f"; its log is {one.log}" if one.ending is Ending.FAILED and one.log else ""
            self._say(f"{self._launcher.name} job {one.id}{likewise} {words}{log}")
        for job in changed:
            if job.phase is Phase.ENDED and not first:
                self._judge(job, blameless)

    def _judge(self, job: Job, blameless: bool) -> None:
        """Count a job that has ended against the next ones, if it says something about them."""
        if job.ending is Ending.CANCELLED:
            self._n_cancelled += 1
        if job.ending is not Ending.FAILED or (blameless and job.id in self._connected):
            self._n_failed = 0 if job.ending is Ending.LEFT else self._n_failed
            return
        self._n_failed += 1
        if self._n_failed >= MAX_QUICK_DEATHS and not self.given_up:
            self.given_up = True
            log = f". The log of {job.id} ends with\n{_tail(job.log)}" if job.log else ""
            self._say(f"{self._n_failed} jobs have failed in a row; submitting no more{log}")

    def _add(self) -> None:
        """Submit the jobs that are missing, unless another master does that now."""
        demand = self._ask()
        self._connected |= demand.busy | demand.idle
        bounds = Bounds(
            min(self._bounds.least, self._bounds.most - self._n_cancelled),
            self._bounds.most - self._n_cancelled,
        )
        if not count_new(demand, [job.id for job in self.live], bounds):
            return
        with self._lock() as held:
            if not held:
                return
            noted = self._notes.read()
            live = [id for id, job in noted.items() if job.phase != Phase.ENDED.value]
            n = count_new(demand, live, bounds)
            if not n:
                return
            ids = self._launcher.start(n)
            self._notes.update({id: Noted(phase=Phase.QUEUED.value) for id in ids})
        self._jobs |= {id: Job(id, Phase.QUEUED) for id in ids}
        self._say(f"{_count(ids, 'job')} submitted to {self._launcher.name}: {_list(ids)}")


def _note(job: Job) -> Noted:
    return Noted(phase=job.phase.value, words=job.words)


def _count(things: Collection[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _list(ids: Collection[str], most: int = 4) -> str:
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(list(ids)[:most]) + more


def _tail(log: Path) -> str:
    """Return the last lines of a job's log, indented."""
    try:
        lines = read_end(log, LOG_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError as error:
        lines = [f"(it cannot be read: {error.strerror})"]
    return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:] or ["(it is empty)"])

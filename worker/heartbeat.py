"""Renews leases, carries progress, hears cancellations: the thread that speaks to Redis while the worker trains.

It never touches the model. What it hears (leases lost, an order to quit) is read by the training loop at its next step.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from common import wire
from common.errors import QueueError, SearchError
from common.queue import TrialQueue
from common.trial import Claim, Fence, Progress, WorkerInfo
from common.workers import QUIT, WorkerRegistry

BEAT_S = 1.0  # how soon a kill is heard; one round trip carries all trials, so it costs Redis nothing
LEASE_SHARE = 5  # at least so many renewals within a lease, so that a lost one or two do no harm
MAX_BACKOFF_S = 5.0  # between tries while Redis is away
STUCK_GRACE_S = 10.0  # a worker told that it is stuck, and that does not move for so long, exits hard
STOP_GRACE_S = 8.0  # after SIGTERM, or the order to quit: the rest of ten seconds is for giving back the leases
LAST_GRACE_S = 9.5  # after either: Redis does not even refuse; the leases run out by themselves
EXIT_STUCK = 70
ORDERED = 0  # it left as its user wants it
STUCK = "stuck"
PREPARING = frozenset({"compiling", "measuring"})  # phases within an epoch that say nothing about its pace


class Position(NamedTuple):
    """Where a trial stands, as the last epoch boundary left it."""

    epoch: float = 0.0
    last_epoch_s: float | None = None
    array_width: int = 1
    val_acc: float | None = None
    value: float | None = None
    curves: Mapping[str, Sequence[float | None]] = MappingProxyType({})  # so far; they may grow
    waiting: bool = True


class Heartbeat:
    """Holds the leases of one worker. Implements the engine's ``Watch``."""

    def __init__(
        self,
        info: WorkerInfo,
        registry: WorkerRegistry,
        say: Callable[[str], None],
        ensure: Callable[[], object] = lambda: None,
        exit_hard: Callable[[int], None] = os._exit,
    ) -> None:
        """Args: ``ensure`` is called when Redis is away (it restarts an embedded server); ``exit_hard`` ends the process."""
        self.info = info
        self.trials_done = 0
        self.backend = ""  # how steps are computed, and why, for `master workers`
        self.aside: dict[str, str] = {}  # search id to why this machine gets no trials of it
        self._registry = registry
        self._say = say
        self._ensure = ensure
        self._exit_hard = exit_hard
        self._queue: TrialQueue | None = None
        self._interval_s = BEAT_S
        self._lease_s = 2 * MAX_BACKOFF_S  # none yet: nothing hurries
        self._held: dict[str, tuple[Fence, Position]] = {}
        self._written: set[str] = set()  # held, but their record is there: not to be given back
        self._told: dict[str, int] = {}  # trial id to the number of points of its curves that Redis has
        self._lost: frozenset[str] = frozenset()
        self._beat = 0
        self._phase: tuple[str, float | None] = ("training", None)
        self._epoch_began = self._phase_began = time.monotonic()
        self._stop_at: float | None = None
        self._stop_code = 143
        self._stuck: tuple[int, float] | None = None  # (beat when told, when)
        self._away = False
        self._closed = threading.Event()
        self._mutex = threading.Lock()  # guards _held and _lost
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    # -- what the training loop calls, each cheap -------------------------------------------------------------------

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        """The work has moved: a step, a validation batch, the begin of a named phase with its own limit."""
        if phase != self._phase[0]:
            self._turn_to(phase)
        self._phase = (phase, limit_s)
        self._beat += 1

    def _turn_to(self, phase: str) -> None:
        """Another phase begins; what goes before the steps is no part of an epoch's pace."""
        now = time.monotonic()
        if self._phase[0] in PREPARING:
            self._epoch_began += now - self._phase_began
        self._phase_began = now

    def lost(self) -> frozenset[str]:
        """The trials whose lease is gone."""
        return self._lost

    def stopping(self) -> bool:
        """Whether the worker has been told to stop."""
        return self._stop_at is not None

    # -- what the worker's loop calls --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to beat."""
        self._thread.start()

    def stop(self, code: int, since_s: float = 0.0) -> None:
        """Notes that the process is to end with ``code``, as it was told up to ``since_s`` ago; safe in a signal handler."""
        if self._stop_at is None:
            self._stop_code = code
            self._stop_at = time.monotonic() - since_s
            last = threading.Timer(LAST_GRACE_S - since_s, self._exit_hard, [code])
            last.daemon = True
            last.start()

    @property
    def exit_code(self) -> int:
        """143 after SIGTERM, 130 after Ctrl-C, 0 otherwise: by order, too, so that nobody who keeps workers alive starts it again."""
        return self._stop_code if self._stop_at is not None else 0

    def serve(self, queue: TrialQueue, lease_s: float) -> None:
        """Which search the leases belong to; nothing is held at this moment."""
        self._queue, self._interval_s = queue, min(BEAT_S, lease_s / LEASE_SHARE)
        self._lease_s = lease_s

    def hold(self, claims: Iterable[Claim]) -> None:
        """Keeps these leases alive from now on."""
        with self._mutex:
            self._held.update({claim.trial.id: (claim.fence, Position()) for claim in claims})
            self._lost -= self._held.keys()
            self._written -= self._held.keys()

    def written(self, trial_ids: Iterable[str]) -> None:
        """The records of these are in the folder: whatever happens here, they have ended."""
        with self._mutex:
            self._written |= set(trial_ids)

    def drop(self, trial_ids: Iterable[str]) -> None:
        """Forgets these leases: they have been answered for."""
        with self._mutex:
            for trial_id in trial_ids:
                self._held.pop(trial_id, None)

    def at_boundary(self, positions: dict[str, Position]) -> None:
        """The epoch has ended and another begins: where each running trial stands."""
        self._epoch_began = time.monotonic()
        with self._mutex:
            for trial_id, position in positions.items():
                if trial_id in self._held:
                    self._held[trial_id] = (self._held[trial_id][0], position)

    def put_aside(self, search_id: str, why: str | None) -> bool:
        """Notes why this machine gets no trials of a search, None if it does; whether that is news."""
        with self._mutex:
            known = self.aside.get(search_id)
            if why is None:
                self.aside.pop(search_id, None)
            else:
                self.aside[search_id] = why
        return why != known

    def holds(self, fence: Fence) -> bool:
        """Whether this lease is still ours, as far as is known."""
        with self._mutex:
            return fence.trial_id not in self._lost and self._held.get(fence.trial_id, (None,))[0] == fence

    def unfinished(self) -> list[Fence]:
        """The leases held now of trials that have no record yet."""
        with self._mutex:
            return [fence for trial_id, (fence, _) in self._held.items() if trial_id not in self._written]

    def close(self) -> None:
        """Stops beating and leaves the list of workers, if Redis can be reached."""
        self._closed.set()
        self._thread.join(timeout=2.0)
        try:
            self._registry.leave(self.info.worker)
            if self._queue is not None:
                self._queue.leave(self.info.worker)
        except QueueError as error:
            self._say(f"left without a word to Redis: {error}")

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff_s = 0.1
        wait_s = 0.0
        while not self._closed.wait(wait_s):
            try:
                self.once()
                backoff_s, wait_s = 0.1, self._interval_s
            except Exception as error:  # without this thread every lease would run out: it outlives even its own faults
                self._tell_away(error)
                # After an outage every lease is extended once: within it, this worker must have been heard again.
                backoff_s = min(backoff_s * 2, BEAT_S if self.stopping() else MAX_BACKOFF_S, self._lease_s / 2)
                wait_s = backoff_s * random.uniform(0.5, 1.0)
            self._check_deadlines()

    def once(self) -> None:
        """One round trip: announces the worker, renews its leases, hears what was lost and what is ordered."""
        orders = self._registry.announce(self._info_now())
        if self._queue is not None and (progress := self._progress()):
            grown = self._grown_curves()
            stale = self._queue.renew(self.info.worker, progress, {trial_id: text for trial_id, (text, _) in grown.items()})
            self._told = {trial_id: n for trial_id, n in self._told.items() if trial_id in self._held}
            self._told |= {trial_id: n for trial_id, (_, n) in grown.items() if trial_id not in stale}
            self._hear(stale, {one.fence.trial_id: one.fence for one in progress})
        if QUIT in (orders or ()):
            self.stop(ORDERED, self._interval_s)
        if self._away:
            self._away = False
            self._say("Redis is back; going on")

    def _tell_away(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            told = str(error) if isinstance(error, SearchError) else f"{type(error).__name__}: {error}"
            self._say(f"{told}. Training goes on; trying again until Redis is back")
        if self.stopping():
            return
        try:
            self._ensure()
        except (SearchError, OSError):
            return  # told once above; the next round tries again

    def _info_now(self) -> WorkerInfo:
        with self._mutex:
            widths = [p.array_width for _, p in self._held.values() if not p.waiting]
            n_held = len(self._held)
            aside = list(self.aside.values())
        state = "quitting" if self.stopping() else "training" if n_held else "aside" if aside else "idle"
        width = max(widths, default=0)
        done, reason = self.trials_done, "; ".join(aside)
        return replace(self.info, state=state, array_width=width, trials=n_held, trials_done=done, backend=self.backend, reason=reason)

    def _progress(self) -> list[Progress]:
        phase, limit_s = self._phase
        elapsed_s = time.monotonic() - self._epoch_began
        with self._mutex:
            held = list(self._held.values())
        return [
            Progress(
                fence,
                self._beat,
                "waiting" if position.waiting and phase == "training" else phase,
                limit_s,
                position.epoch,
                0.0 if position.waiting else elapsed_s,
                position.last_epoch_s,
                self.info.device_model,
                position.array_width,
                position.val_acc,
                position.value,
            )
            for fence, position in held
        ]

    def _grown_curves(self) -> dict[str, tuple[str, int]]:
        """Of each trial whose curves have grown since they were last sent: the curves that people watch, and their length."""
        with self._mutex:
            held = {trial_id: position.curves for trial_id, (_, position) in self._held.items() if position.curves}
        grown = {}
        for trial_id, curves in held.items():
            shown = {name: values for name, values in curves.items() if "." not in name}  # what is measured for each layer stays here
            length = min(map(len, shown.values()))
            if length > self._told.get(trial_id, 0):
                grown[trial_id] = (wire.curves_out(shown), length)
        return grown

    def _hear(self, stale: dict[str, str], sent: dict[str, Fence]) -> None:
        """``stale``: trial id to why its lease is gone; ``sent``: the fences that were asked about, which may have changed since."""
        with self._mutex:
            news = {t: why for t, why in stale.items() if t in self._held and self._held[t][0] == sent[t]}
            for trial_id in news:
                del self._held[trial_id]
            self._lost |= news.keys()
        for trial_id, why in news.items():
            self._say(f"{trial_id}: the lease is gone ({why}); its work here stops and changes nothing")
        if STUCK in news.values():
            self._stuck = (self._beat, time.monotonic())

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if self._stuck and self._beat != self._stuck[0]:
            self._stuck = None
        if self._stuck and now - self._stuck[1] > STUCK_GRACE_S:
            self._leave_hard(
                f"stuck: nothing has moved for {STUCK_GRACE_S:g} s since the master said so; exiting to free the device", EXIT_STUCK
            )
        if self._stop_at is not None and now - self._stop_at > STOP_GRACE_S:
            self._leave_hard("told to stop, but the work does not reach its next step; leaving it", self._stop_code)

    def _leave_hard(self, why: str, code: int) -> None:
        """The main thread cannot move: gives the leases back on its behalf, and ends the process."""
        self._say(why)
        fences = self.unfinished()
        if self._queue is not None and fences:
            try:
                self._queue.release(fences)
            except QueueError as error:
                self._say(f"leases not given back, they run out by themselves: {error}")
        sys.stderr.flush()
        self._exit_hard(code)

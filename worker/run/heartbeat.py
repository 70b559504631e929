"""The thread that talks to Redis while the worker trains.

It renews leases, sends progress, and hears of kills. It never touches the model. The training loop
reads what the thread has heard (lost leases, an order to quit) at its next step.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from common.errors import QueueError, SearchError
from common.queue import wire
from common.queue.trial_queue import TrialQueue
from common.queue.workers import QUIT, WorkerRegistry
from common.repeats import list_few
from common.search.trial import Claim, Fence, Progress, WorkerInfo
from worker.run.request import STOP_GRACE_S
from worker.training.types import View

# How soon a kill is heard. One round trip carries all trials, so it costs Redis next to nothing.
BEAT_S = 1.0
# Curves that one beat sends at most. To encode those of a wide array at once would hold up the
# thread that trains.
CURVES_A_BEAT = 256
LEASE_SHARE = 5  # at least so many renewals within a lease, so that one or two may get lost
MAX_BACKOFF_S = 5.0  # between tries while Redis is away
# A worker that was told that it is stuck, and does not move for so long, exits hard.
STUCK_GRACE_S = 10.0
# After so much more the process ends even if Redis does not answer. The leases then expire.
LAST_GRACE_S = 1.5
# Where nothing has been trained yet, it does not wait so long for an import or a download.
LOADING_GRACE_S = 1.0
EXIT_STUCK = 70
ORDERED = 0  # exit code after an order to quit: the user wanted it
STUCK = "stuck"
LOADING = "loading"  # the phase in which a task is imported and its data read
ENDED = "ended"  # Redis has just accepted the result, and the lease is about to be dropped
PACED = frozenset({"training", "own_loop"})  # phases that count as time of an epoch


class Heartbeat:
    """The leases of one worker, and the thread that renews them.

    Implements the engine's ``Watch``.
    """

    def __init__(
        self,
        info: WorkerInfo,
        registry: WorkerRegistry,
        say: Callable[[str], None],
        ensure: Callable[[], object] = lambda: None,
        exit_hard: Callable[[int], None] = os._exit,
        stop_grace_s: float = STOP_GRACE_S,
        leave_at: float | None = None,
    ) -> None:
        """Initialise, without starting the thread.

        Args:
            info: this worker.
            registry: the list of workers.
            say: called with each message for the log.
            ensure: called when Redis is away. It restarts an embedded server.
            exit_hard: ends the process with an exit code.
            stop_grace_s: how long the worker may take to stop before it exits hard.
            leave_at: when the worker is to stop by itself, as ``time.time``; None: never.
        """
        self.info = info
        self.trials_done = 0
        self.backend = ""  # how steps are computed, and why, for `master workers`
        self.aside: dict[str, str] = {}  # by search id: why this machine gets no trials of it
        self._registry = registry
        self._say = say
        self._ensure = ensure
        self._exit_hard = exit_hard
        self._stop_grace_s = stop_grace_s
        self._leave_at = leave_at
        self._queue: TrialQueue | None = None
        self._interval_s = BEAT_S
        self._lease_s = 2 * MAX_BACKOFF_S  # until `serve` sets it
        # By trial id: the lease, and the trial at the last boundary; None while it waits.
        self._held: dict[str, tuple[Fence, View | None]] = {}
        self._written: set[str] = set()  # held, but recorded: not to be given back
        # By trial id: how many points of its curves Redis has.
        self._told: dict[str, int] = {}
        self._lost: frozenset[str] = frozenset()
        self._beat = 0
        self._phase: tuple[str, float | None] = ("training", None)
        self._epoch_began = self._phase_began = time.monotonic()
        self._stop_at: float | None = None
        self._stop_code = 143
        self._stuck: tuple[int, float] | None = None  # when told: the beat, and the time
        self._away = False
        self._closed = threading.Event()
        self._mutex = threading.Lock()  # guards _held and _lost
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    # -- called by the training loop; each call is cheap ----------------------------------------

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        """Note that the work has moved.

        Call it after a step or a validation batch, or when a named phase with its own limit begins.
        """
        if phase != self._phase[0]:
            self._turn_to(phase)
        self._phase = (phase, limit_s)
        self._beat += 1

    def _turn_to(self, phase: str) -> None:
        """Note that another phase begins.

        The time to compile, evaluate or write does not count as time of an epoch.
        """
        now = time.monotonic()
        if self._phase[0] not in PACED:
            self._epoch_began += now - self._phase_began
        self._phase_began = now

    def lost(self) -> frozenset[str]:
        """Return the ids of the trials whose lease is lost."""
        return self._lost

    def stopping(self) -> bool:
        """Return whether the worker has been told to stop."""
        return self._stop_at is not None

    # -- called by the worker's main loop --------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, code: int, since_s: float = 0.0) -> None:
        """Note that the process is to end with exit code ``code``. Safe in a signal handler.

        Args:
            code: the exit code.
            since_s: how long ago the order may have been given, at most.
        """
        if self._stop_at is None:
            self._stop_code = code
            self._stop_at = time.monotonic() - since_s
            last_s = self._stop_grace_s + LAST_GRACE_S - since_s
            last = threading.Timer(max(last_s, 0.0), self._exit_hard, [code])
            last.daemon = True
            last.start()

    @property
    def exit_code(self) -> int:
        """The exit code: that of a signal, as in a shell (143 for SIGTERM), else 0.

        It is 0 after an order to quit, too, so that no supervisor restarts the worker.
        """
        return self._stop_code if self._stop_at is not None else 0

    def serve(self, queue: TrialQueue, lease_s: float) -> None:
        """Set the search that the leases belong to. No lease may be held now."""
        self._queue, self._interval_s = queue, min(BEAT_S, lease_s / LEASE_SHARE)
        self._lease_s = lease_s

    def hold(self, claims: Iterable[Claim]) -> None:
        """Renew these leases from now on."""
        with self._mutex:
            self._held.update({claim.trial.id: (claim.fence, None) for claim in claims})
            self._lost -= self._held.keys()
            self._written -= self._held.keys()

    def note_written(self, trial_ids: Iterable[str]) -> None:
        """Note that the records of these trials are in the folder.

        From now on these trials count as ended, whatever happens to this worker.
        """
        with self._mutex:
            self._written |= set(trial_ids)

    def drop(self, trial_ids: Iterable[str]) -> None:
        """Forget these leases. Their trials are reported or given back."""
        with self._mutex:
            for trial_id in trial_ids:
                self._held.pop(trial_id, None)

    def give(self, trial_ids: Iterable[str]) -> None:
        """Forget leases of trials that still train here, so that another worker can have them."""
        with self._mutex:
            for trial_id in trial_ids:
                self._held.pop(trial_id, None)
                self._lost |= {trial_id}

    def at_boundary(self, running: Iterable[View]) -> None:
        """Note where each running trial stands at the end of an epoch."""
        self._epoch_began = self._phase_began = time.monotonic()
        with self._mutex:
            for view in running:
                if view.trial.id in self._held:
                    self._held[view.trial.id] = (self._held[view.trial.id][0], view)

    def put_aside(self, search_id: str, why: str | None) -> bool:
        """Note why this machine gets no trials of a search, or with None that it gets some.

        Return whether that is news.
        """
        with self._mutex:
            known = self.aside.get(search_id)
            if why is None:
                self.aside.pop(search_id, None)
            else:
                self.aside[search_id] = why
        return why != known

    def holds(self, fence: Fence) -> bool:
        """Return whether this worker still has the lease, as far as it knows."""
        with self._mutex:
            return (
                fence.trial_id not in self._lost
                and self._held.get(fence.trial_id, (None,))[0] == fence
            )

    def find_unfinished(self) -> list[Fence]:
        """Return the leases of trials that have no record yet."""
        with self._mutex:
            return [
                fence
                for trial_id, (fence, _) in self._held.items()
                if trial_id not in self._written
            ]

    def close(self) -> None:
        """Stop the thread, and leave the list of workers if Redis can be reached."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)
        self._sign_off()

    def _sign_off(self) -> None:
        try:
            self._registry.leave(self.info.worker)
            if self._queue is not None:
                self._queue.leave(self.info.worker)
        except QueueError as error:
            self._say(f"could not sign off from Redis: {error}")

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff_s = 0.1
        wait_s = 0.0
        while not self._closed.wait(wait_s):
            try:
                self.once()
                backoff_s, wait_s = 0.1, self._interval_s
            # Whatever is raised, the thread goes on: without it every lease would expire.
            except Exception as error:
                self._tell_away(error)
                # After an outage every lease is extended once. This worker must renew within it.
                backoff_s = min(
                    backoff_s * 2, BEAT_S if self.stopping() else MAX_BACKOFF_S, self._lease_s / 2
                )
                wait_s = backoff_s * random.uniform(0.5, 1.0)
            self._check_deadlines()

    def once(self) -> None:
        """Do one round trip to Redis.

        It announces the worker, renews its leases, and hears which leases are lost and what is
        ordered.
        """
        orders = self._registry.announce(self._info_now())
        if self._queue is not None and (progress := self._progress()):
            grown = self._find_grown_curves()
            stale = self._queue.renew(
                self.info.worker,
                progress,
                {trial_id: text for trial_id, (text, _) in grown.items()},
            )
            self._told = {
                trial_id: n for trial_id, n in self._told.items() if trial_id in self._held
            }
            self._told |= {
                trial_id: n for trial_id, (_, n) in grown.items() if trial_id not in stale
            }
            self._hear(stale, {one.fence.trial_id: one.fence for one in progress})
        if QUIT in (orders or ()):
            self.stop(ORDERED, self._interval_s)
        if self._away:
            self._away = False
            self._say("Redis is back; going on")

    def _tell_away(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            told = (
                str(error) if isinstance(error, SearchError) else f"{type(error).__name__}: {error}"
            )
            self._say(f"{told}. Training goes on; trying again until Redis is back")
        if self.stopping():
            return
        try:
            self._ensure()
        except (SearchError, OSError):
            return  # printed once above; the next round tries again

    def _info_now(self) -> WorkerInfo:
        with self._mutex:
            widths = [view.array_width for _, view in self._held.values() if view is not None]
            n_held = len(self._held)
            aside = list(self.aside.values())
        state = (
            "quitting"
            if self.stopping()
            else "training"
            if n_held
            else "aside"
            if aside
            else "idle"
        )
        width = max(widths, default=0)
        done, reason = self.trials_done, "; ".join(aside)
        return replace(
            self.info,
            state=state,
            array_width=width,
            trials=n_held,
            trials_done=done,
            backend=self.backend,
            reason=reason,
        )

    def _progress(self) -> list[Progress]:
        phase, limit_s = self._phase
        elapsed_s = time.monotonic() - self._epoch_began
        with self._mutex:
            held = list(self._held.values())
        waiting = "waiting" if phase == "training" else phase
        model = self.info.device_model
        return [
            Progress(fence, self._beat, waiting, limit_s, device_model=model)
            if view is None
            else Progress(
                fence,
                self._beat,
                phase,
                limit_s,
                view.epoch,
                elapsed_s,
                view.last_epoch_s,
                model,
                view.array_width,
                view.metrics.get("val_acc"),
                view.value,
            )
            for fence, view in held
        ]

    def _find_grown_curves(self) -> dict[str, tuple[str, int]]:
        """Return the curves of trials that have new points since the last round.

        Those of which Redis knows least come first, and the others in the next rounds. Each comes
        with its number of points. Curves of single layers are not sent.
        """
        with self._mutex:
            held = {
                trial_id: view.curves
                for trial_id, (_, view) in self._held.items()
                if view is not None
                and view.curves
                and len(next(iter(view.curves.values()))) > self._told.get(trial_id, 0)
            }
        grown = {}
        for trial_id in sorted(held, key=lambda one: self._told.get(one, 0))[:CURVES_A_BEAT]:
            # Curves of single layers stay here.
            shown = {name: values for name, values in held[trial_id].items() if "." not in name}
            length = min(map(len, shown.values()))
            if length > self._told.get(trial_id, 0):
                grown[trial_id] = (wire.curves_out(shown), length)
        return grown

    def _hear(self, stale: dict[str, str], sent: dict[str, Fence]) -> None:
        """Drop the leases that are gone.

        Args:
            stale: why the lease is gone, by trial id.
            sent: the fences that were renewed, by trial id. A trial may have been claimed anew
                since.
        """
        with self._mutex:
            news = {
                t: why
                for t, why in stale.items()
                if why != ENDED and t in self._held and self._held[t][0] == sent[t]
            }
            for trial_id in news:
                del self._held[trial_id]
            self._lost |= news.keys()
        for reason in sorted(set(news.values())):
            trials = list_few([t for t, why in news.items() if why == reason])
            self._say(
                f"{trials}: the lease is gone ({reason}); the work here stops and changes nothing"
            )
        if STUCK in news.values():
            self._stuck = (self._beat, time.monotonic())

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if self._stuck and self._beat != self._stuck[0]:
            self._stuck = None
        if self._stuck and now - self._stuck[1] > STUCK_GRACE_S:
            self.leave_hard(
                f"stuck: nothing has moved for {STUCK_GRACE_S:g} s since the master said so; "
                "exiting to free the device",
                EXIT_STUCK,
            )
        if self._stop_at is None and self._leave_at is not None and time.time() > self._leave_at:
            self._say("its time is nearly over: saving, giving back, leaving")
            self.stop(ORDERED)
        late_s = now - self._stop_at if self._stop_at is not None else 0.0
        if late_s > LOADING_GRACE_S and self._holds_nothing_new():
            self.leave_hard(
                "stop requested while a task is loading; nothing is left to save; exiting",
                self._stop_code,
            )
        elif self._stop_at is not None and late_s > self._stop_grace_s:
            self.leave_hard(
                "stop requested, but the current step does not end; exiting",
                self._stop_code,
            )

    def _holds_nothing_new(self) -> bool:
        """Return whether a task is being loaded and no trial has been trained here.

        Imports and downloads of a task look at no order to stop, and nothing needs to be saved.
        """
        with self._mutex:
            return self._phase[0] == LOADING and all(
                view is None for _, view in self._held.values()
            )

    def leave_hard(self, why: str, code: int) -> None:
        """End the process without its cleanup. Give the leases back first.

        This is for where the main thread does not move, or the device serves the process no more.
        """
        self._say(why)
        fences = self.find_unfinished()
        if self._queue is not None and fences:
            try:
                self._queue.release(fences)
                self._say(f"gave back {len(fences)} unfinished trials")
            except QueueError as error:
                self._say(f"leases not given back, they run out by themselves: {error}")
        self._sign_off()
        sys.stderr.flush()
        self._exit_hard(code)

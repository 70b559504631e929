"""Trains the trials of a task that has a loop of its own, one at a time, behind the engine's interface."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from common.errors import TaskError
from common.search import Search
from common.space import Scalar
from common.trial import TrialState
from worker.own.runner import INTERRUPTED_S, Raised, Returned, Runner
from worker.own.saved import packed, thawed
from worker.own.standing import Standing, Verdict
from worker.own.trial import OwnTrial, Report
from worker.tasks.base import Loop
from worker.training.interface import Boundary, Job, Outcome, View, Watch

PHASE = "own_loop"  # as the master's rules for stragglers know it
LOOK_S = 0.05  # between looks at the watch while a loop computes
STOP_S = 3.0  # of the ten seconds that a worker has from SIGTERM to its end


class OwnLoop:
    """The counterpart of ``Engine``: jobs in, boundaries out; an array of one."""

    backend = "own: the task's loop trains by itself"

    def __init__(self, loop: Loop, device: torch.device, *, search: Search, threads: int = 1, log: Callable[[str], None]) -> None:
        """``threads``: at most so many on the CPU. ``log`` hears what a user should know once."""
        self._loop = loop
        self._device = str(device)
        self._search = search
        self._threads = threads
        self._log = log
        self._said: set[str] = set()

    def width(self, hyperparameters: Mapping[str, Scalar]) -> int:
        """One: a loop trains one trial at a time."""
        return 1

    def train(self, jobs: Sequence[Job], refill: Callable[[int], Sequence[Job]], watch: Watch) -> Iterator[Boundary]:
        """See ``Engine.train``. A boundary follows each report.

        Raises:
            TaskError: a loop does not let go of a trial that is over, so that the worker is of no more use.
        """
        waiting, ended = list(jobs), list[Outcome]()
        while not watch.stopping():
            lost = watch.lost()
            waiting = [job for job in waiting if job.id not in lost]
            if waiting:
                run = _Run(self, waiting.pop(0), waiting, watch)
                yield from run.boundaries()
                ended = [run.outcome] if run.outcome is not None else []
                if run.unfinished:
                    return
            if ended:
                yield Boundary(ended, [], list(waiting))
            else:
                waiting = waiting or list(refill(1))
                if not waiting:
                    return
            ended = []
        yield Boundary([], [], waiting)

    def once(self, message: str) -> None:
        """Logs ``message`` unless it has been."""
        if message not in self._said:
            self._said.add(message)
            self._log(message)


class _Run:
    """One trial, from its start to its end."""

    def __init__(self, owner: OwnLoop, job: Job, waiting: list[Job], watch: Watch) -> None:
        self._owner = owner
        self._job = job
        self._waiting = waiting
        self._watch = watch
        self._search = owner._search
        self.outcome: Outcome | None = None
        self.unfinished = False  # told to stop: its last boundary says where it is
        self._standing, state = self._begun()
        trial = job.claim.trial
        self._runner = Runner(
            owner._loop.train,
            lambda runner: OwnTrial(trial, owner._device, thawed(state), self._standing.epoch, runner.hand_over, self._alive),
            owner._threads,
        )

    def boundaries(self) -> Iterator[Boundary]:
        """Yields one a report. After it there is an outcome, or it is unfinished, or its lease was lost."""
        self._watch.beat(PHASE)
        self._runner.start()
        since_s = time.monotonic()
        try:
            while not self._over:
                message = self._runner.next(LOOK_S)
                if isinstance(message, Returned | Raised):
                    self.outcome = self._returned(message, time.monotonic() - since_s)
                elif message is not None:
                    self.outcome = self._noted(message, since_s)
                    if self.outcome is None:
                        yield self._boundary()
                        since_s = time.monotonic()
                    if not self._over:
                        self._runner.go_on()
            if self._lost:
                self.outcome = None
            elif self.outcome is None:
                self.unfinished = True
                yield self._boundary()
        finally:
            self._let_go()

    @property
    def _over(self) -> bool:
        return self.outcome is not None or self._lost or self._watch.stopping()

    @property
    def _lost(self) -> bool:
        return self._job.id in self._watch.lost()

    def _begun(self) -> tuple[Standing, object]:
        """A new standing and no state, or those that an earlier attempt left."""
        trial, stage = self._job.claim.trial, self._search.stage(self._job.claim.trial.stage)
        fresh, resumed = (Standing(self._search, stage, trial.epochs) for _ in range(2))
        if self._job.resume is None:
            return fresh, None
        try:
            return resumed, resumed.resume(self._job.resume, trial.id)
        except (KeyError, ValueError, TypeError) as error:
            self._owner._log(f"{trial.id}: its saved state does not fit ({type(error).__name__}: {error}); it starts anew")
            return fresh, None

    def _noted(self, report: Report, since_s: float) -> Outcome | None:
        """Takes in a report; the outcome if it was the last."""
        self._watch.beat(PHASE)
        trial = self._runner.trial
        if self._standing.beyond:  # it goes on after its budget: what it did within it counts
            return self._outcome(Verdict(TrialState.COMPLETED, None))
        if self._standing.stage.chance_epochs is not None and (trial.n_classes is None or trial.n_val is None):
            self._owner.once("chance_epochs judges a loop only where it sets trial.n_classes and trial.n_val; this one does not")
        verdict = self._standing.note(report, max(report.at_s - since_s, 0.0), trial.n_classes, trial.n_val)
        return self._outcome(verdict) if verdict else None

    def _returned(self, message: Returned | Raised, seconds: float) -> Outcome:
        self._standing.seconds += max(seconds, 0.0)
        if isinstance(message, Raised):
            return self._outcome(Verdict(TrialState.FAILED, message.reason), message.traceback)
        if not self._standing.curves["epoch"]:
            reason = f"{self._owner._loop.name} returned without a report; call trial.report(epoch, ...) after every epoch"
            return self._outcome(Verdict(TrialState.FAILED, reason))
        for name in self._runner.trial.hp.unread:
            self._owner.once(
                f"hyperparameter {name} is not read by {self._owner._loop.name}; remove it from [space] or read trial.hp[{name!r}]"
            )
        return self._outcome(Verdict(TrialState.COMPLETED, None))

    def _outcome(self, verdict: Verdict, traceback: str | None = None) -> Outcome:
        standing, best, trial = self._standing, self._standing.best, self._runner.trial
        values = best.values if best else {name: series[-1] for name, series in standing.curves.items() if name not in ("epoch", "seconds")}
        if best is not None and best.state is None:
            self._owner.once("the best epoch was reported without a state, so it leaves no checkpoint; pass state= with every report")
        return Outcome(
            self._job,
            verdict.state,
            verdict.reason,
            traceback,
            val_acc=best.values.get("val_acc") if best else None,
            val_loss=best.values.get("val_loss") if best else None,
            epochs=standing.epoch,
            best_epoch=best.epoch if best else None,
            first_loss=standing.firsts.get("train_loss"),
            value=best.value if best else None,
            metrics={name: value for name, value in values.items() if value is not None},
            curves=standing.curves,
            seconds=standing.seconds,
            epoch_s=standing.epoch_s,
            n_classes=trial.n_classes,
            n_val=trial.n_val,
            checkpoint=self._checkpoint if best is not None and best.state is not None else None,
        )

    def _checkpoint(self) -> bytes:
        trial, fence, best = self._job.claim.trial, self._job.claim.fence, self._standing.best
        assert best is not None
        return packed(
            {
                "format": 1,
                "state": best.state,
                "epoch": best.epoch,
                "trial": trial.id,
                "attempt": fence.attempt,
                "seed": trial.seed,
                "hyperparameters": dict(trial.hyperparameters),
                "task": self._search.task,
                "metrics": best.values,
                "curves": self._standing.curves,
            }
        )

    def _boundary(self) -> Boundary:
        standing = self._standing
        if not standing.curves["epoch"]:
            return Boundary([], [], [self._job, *self._waiting])
        best, content = standing.best, standing.content(self._job.id)
        view = View(
            self._job,
            standing.epoch,
            best.values.get("val_acc") if best else None,
            standing.last_epoch_s,
            1,
            lambda: packed(content),
            best.value if best else None,
            standing.curves,
        )
        return Boundary([], [view], list(self._waiting))

    def _alive(self, limit_s: float | None) -> None:
        self._runner.check()
        self._watch.beat(PHASE, limit_s)

    def _let_go(self) -> None:
        """Has the function end, if it has not, and its memory with it.

        Raises:
            TaskError: it does not.
        """
        stopping = self._watch.stopping()
        if not self._runner.end(STOP_S if stopping else INTERRUPTED_S) and not stopping:
            raise TaskError(
                f"{self._job.id} is over, but {self._owner._loop.name} does not return; this worker leaves, and another goes on"
            )
        self._watch.beat()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            gc.collect()  # a fifth of a second, so only where the memory of a device hangs on it
            torch.cuda.empty_cache()

"""Train the trials of a task that has its own loop, one at a time.

The loop runs in a process of its own. The interface here is that of the engine.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from common.errors import TaskError
from common.search.search_file import Search
from common.search.trial import Claim, TrialState
from worker.own.messages import Beat, Message, Raised, Report, Returned
from worker.own.process import LOOK_S
from worker.own.saved import content_of, pack, unpacked
from worker.own.standing import Standing, Verdict
from worker.training.types import Boundary, Outcome, View, Watch

PHASE = "own_loop"  # name of the phase in the master's rules for stragglers
# A scheduler that ends a job signals all its processes. The worker may hear of it so much later
# than the process of the trial, whose end then says nothing about the trial.
LATE_S = 0.2
LOADING_S = 600.0  # a file may load its data when it is imported


class Attempt(Protocol):
    """What runs the user's code for a trial."""

    def begin(self, claim: Claim, epoch: float, state: Any) -> None:
        """Start to train, from a state if there is one."""
        ...

    def next(self, wait_s: float) -> Message | None:
        """Return the next message, or None if none comes within ``wait_s``."""
        ...

    def go_on(self) -> None:
        """Answer a report: the trial goes on."""
        ...

    def end_trial(self, hurry: Callable[[], bool], beat: Callable[[], object]) -> list[str]:
        """End what still runs. Return the names of programs that were left running."""
        ...


@dataclass(frozen=True)
class Manner:
    """How the messages speak of the user's code."""

    backend: str
    no_report: str
    kept: str  # the argument of a report with what a trial resumes from
    whose: str
    shared: str  # what to do about processes that outlive their trial


LOOP = Manner(
    "own: the task's loop trains by itself, in a process of its own",
    "returned without a report; call trial.report(epoch, ...) after every epoch",
    "state",
    "the loop",
    "start shared processes at module level",
)
PROGRAM = Manner(
    "own: a program trains by itself",
    "ended without a report; call coarsefine.report(epoch=..., val_acc=...), or append a line of "
    "JSON to the file that COARSEFINE_REPORTS names",
    "checkpoint",
    "the program",
    "let the program wait for them",
)
Open = Callable[[Callable[[], bool]], Attempt | None]


class OwnLoop:
    """The counterpart of ``Engine`` for code that trains by itself. Its arrays hold one trial."""

    def __init__(
        self,
        name: str,
        open_: Open,
        *,
        search: Search,
        log: Callable[[str], None],
        manner: Manner = LOOP,
    ) -> None:
        """Initialise.

        Args:
            name: of the task, for messages.
            open_: returns what runs the next trial; None if the worker is told to stop meanwhile,
                as its argument says. It may raise TaskError.
            search: the search.
            log: called with each message that a user should see once.
            manner: how the messages speak of it.
        """
        self.name = name
        self.manner = manner
        self.backend = manner.backend
        self._open = open_
        self._search = search
        self._log = log
        self._said: set[str] = set()

    def load(self) -> None:
        """Import the user's code, unless that was done.

        Raises:
            TaskError: it cannot be loaded.
        """
        self._open(lambda: False)

    def width(self, hyperparameters: Mapping[str, Any]) -> int:
        """Return 1: a loop trains one trial at a time."""
        return 1

    def train(
        self, claims: Sequence[Claim], refill: Callable[[int], Sequence[Claim]], watch: Watch
    ) -> Iterator[Boundary]:
        """Train the trials, and yield a boundary after each report. See ``Engine.train``."""
        waiting, ended = list(claims), list[Outcome]()
        while not watch.stopping():
            lost = watch.lost()
            waiting = [claim for claim in waiting if claim.id not in lost]
            if waiting and (why := self._refusal(waiting[0])) is not None:
                ended = [Outcome(waiting.pop(0), TrialState.FAILED, why)]
            elif waiting:
                run = _Run(self, waiting.pop(0), waiting, watch)
                yield from run.boundaries()
                ended = [run.outcome] if run.outcome is not None else []
                run.outcome = None  # they name one another, which would keep files of its states
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

    def _refusal(self, claim: Claim) -> str | None:
        """Return why the task's loop cannot train a trial, or None if it can."""
        stage = self._search.stage(claim.trial.stage)
        if not stage.traits.distills:
            return None
        why = (
            f"stage {stage.name!r} learns from an ensemble's probabilities of classes, and the "
            "task has a loop of its own"
        )
        return f"{why}; remove [stages.{stage.name}]"

    def once(self, message: str) -> None:
        """Log ``message`` unless it has been logged before."""
        if message not in self._said:
            self._said.add(message)
            self._log(message)


def hears_stop(stopping: Callable[[], bool]) -> bool:
    """Return whether the worker is told to stop, now or in a moment."""
    end = time.monotonic() + LATE_S
    while not stopping() and time.monotonic() < end:
        time.sleep(0.01)
    return stopping()


class _Run:
    """One trial, from its start to its end."""

    def __init__(self, owner: OwnLoop, claim: Claim, waiting: list[Claim], watch: Watch) -> None:
        self._owner = owner
        self._claim = claim
        self._waiting = waiting
        self._watch = watch
        self._search = owner._search
        self._name, self._manner = owner.name, owner.manner
        self.outcome: Outcome | None = None
        self._began_at = 0.0
        self.unfinished = False  # the worker was told to stop; the last boundary holds the state
        self._n_classes: int | None = None
        self._n_val: int | None = None
        self._standing, self._state = self._begin()

    def boundaries(self) -> Iterator[Boundary]:
        """Yield a boundary after each report.

        At the end there is an outcome, or the trial is unfinished, or its lease was lost.
        """
        # The previous attempt saved its last state, but was lost before it wrote its record.
        if self._standing.beyond:
            self.outcome = self._outcome(Verdict(TrialState.COMPLETED, None))
            return
        self._watch.beat("loading", LOADING_S)
        try:
            process = self._owner._open(self._watch.stopping)
        except TaskError as error:
            if hears_stop(self._watch.stopping):
                yield self._give_back()
            else:
                self.outcome = self._fail(str(error))
            return
        self._watch.beat(PHASE)
        self._began_at = time.time()
        try:
            if process is not None:
                process.begin(self._claim, self._standing.epoch, self._state)
                yield from self._reports(process)
            else:
                yield self._give_back()
        finally:
            if process is not None:
                self._let_go(process)

    def _reports(self, process: Attempt) -> Iterator[Boundary]:
        since_s = time.monotonic()
        while not self._over:
            message = process.next(LOOK_S)
            if message is None:
                continue
            if isinstance(message, Beat):
                self._watch.beat(PHASE, message.limit_s)
                continue
            if self._ended_early(message) and hears_stop(self._watch.stopping):
                break
            self.outcome = self._deal_with(message, since_s)
            if isinstance(message, Report):
                if self.outcome is None:
                    yield self._boundary()
                    since_s = time.monotonic()
                if not self._over:
                    process.go_on()
        if self._lost:
            self.outcome = None
        elif self.outcome is None:
            yield self._give_back()

    def _ended_early(self, message: Message) -> bool:
        return isinstance(message, Raised) or (
            isinstance(message, Returned) and not self._standing.beyond
        )

    def _give_back(self) -> Boundary:
        """Return the last boundary of a trial that goes on elsewhere, or later."""
        self.unfinished = True
        return self._boundary()

    @property
    def _over(self) -> bool:
        return self.outcome is not None or self._lost or self._watch.stopping()

    @property
    def _lost(self) -> bool:
        return self._claim.id in self._watch.lost()

    def _begin(self) -> tuple[Standing, object]:
        """Return a new standing without state, or the standing and state of an earlier attempt."""
        trial, stage = self._claim.trial, self._search.stage(self._claim.trial.stage)
        fresh, resumed = (
            Standing(self._search, stage, trial.epochs, trial.horizon) for _ in range(2)
        )
        if self._claim.resume is None:
            return fresh, None
        try:
            return resumed, resumed.resume(self._claim.resume, trial.id)
        except (KeyError, ValueError, TypeError) as error:
            self._owner._log(
                f"{trial.id}: its saved state does not fit ({type(error).__name__}: {error}); it "
                "starts anew"
            )
            return fresh, None

    def _deal_with(self, message: Message, since_s: float) -> Outcome | None:
        """Process a message. Return the outcome if it was the last one.

        If processing raises, return a failed outcome.
        """
        try:
            if isinstance(message, Report):
                return self._note(message, since_s)
            if isinstance(message, Returned | Raised):
                return self._end_returned(message, time.monotonic() - since_s)
        except Exception as error:
            told = f"its report cannot be processed: {type(error).__name__}: {error}"
            return self._fail(told, traceback.format_exc())
        return None

    def _fail(self, reason: str, trace: str | None = None) -> Outcome:
        return Outcome(self._claim, TrialState.FAILED, reason, trace)

    def _note(self, report: Report, since_s: float) -> Outcome | None:
        """Add a report. Return the outcome if it was the last one."""
        self._watch.beat(PHASE)
        self._n_classes, self._n_val = report.n_classes, report.n_val
        if self._standing.beyond:  # a report after the end of the budget: it does not count
            return self._outcome(Verdict(TrialState.COMPLETED, None))
        if report.epoch <= self._standing.epoch:
            raise ValueError(
                f"epoch {report.epoch:g} after epoch {self._standing.epoch:g}; count the epochs "
                "that are done"
            )
        if self._standing.stage.chance_epochs is not None and (
            report.n_classes is None or report.n_val is None
        ):
            self._owner.once(
                "chance_epochs judges a loop only where it sets trial.n_classes and trial.n_val; "
                "this one does not"
            )
        verdict = self._standing.note(
            report, max(report.at_s - since_s, 0.0), report.n_classes, report.n_val
        )
        return self._outcome(verdict) if verdict else None

    def _end_returned(self, message: Returned | Raised, seconds: float) -> Outcome:
        self._standing.history.seconds += max(seconds, 0.0)
        if isinstance(message, Raised):
            return self._outcome(Verdict(TrialState.FAILED, message.reason), message.traceback)
        self._n_classes, self._n_val = message.n_classes, message.n_val
        if not self._standing.history.curves["epoch"]:
            reason = f"{self._name} {self._manner.no_report}"
            return self._outcome(Verdict(TrialState.FAILED, reason))
        for name in message.unread:
            self._owner.once(
                f"hyperparameter {name} is not read by {self._name}; remove it from "
                f"[space] or read trial.hp[{name!r}]"
            )
        return self._outcome(Verdict(TrialState.COMPLETED, None))

    def _outcome(self, verdict: Verdict, traceback: str | None = None) -> Outcome:
        standing, trial_id = self._standing, self._claim.id
        history = standing.history
        # If no epoch is the best, the last one says what was measured.
        last = {
            name: series[-1]
            for name, series in history.curves.items()
            if name not in ("epoch", "seconds") and series[-1] is not None
        }
        if history.best_epoch is not None and standing.best_state is None:
            self._owner.once(
                f"the best epoch was reported without a {self._manner.kept}, so it leaves no "
                "checkpoint; pass "
                f"{self._manner.kept}= with every report"
            )
        may_go_on = verdict.state is TrialState.COMPLETED
        if may_go_on and standing.saved is None and standing.horizon > standing.epochs:
            self._owner.once(
                f"{self._manner.whose} reports no {self._manner.kept}, so a trial that is "
                "promoted starts anew; pass "
                f"{self._manner.kept}= with every report"
            )
        return Outcome(
            self._claim,
            verdict.state,
            verdict.reason,
            traceback,
            **history.collect_measurements() | {"metrics": history.metrics or last},
            epochs=standing.epoch,
            first_loss=standing.firsts.get("train_loss"),
            began_at=self._began_at,
            trained_until=time.time(),
            n_classes=self._n_classes,
            n_val=self._n_val,
            guess_acc=None if self._n_classes is None else 1 / self._n_classes,
            checkpoint=self._checkpoint if standing.best_state is not None else None,
            resume=standing.content(trial_id) if may_go_on and standing.saved is not None else None,
            is_reported=True,
        )

    def _checkpoint(self) -> bytes:
        trial, fence, standing = self._claim.trial, self._claim.fence, self._standing
        state = unpacked(standing.best_state)
        if (file := content_of(state)) is not None:
            return file[1]
        return pack(
            {
                "format": 1,
                "state": state,
                "epoch": standing.history.best_epoch,
                "trial": trial.id,
                "attempt": fence.attempt,
                "seed": trial.seed,
                "hyperparameters": dict(trial.hyperparameters),
                "task": self._search.task,
                "metrics": standing.history.metrics,
                "curves": standing.history.curves,
            }
        )

    def _boundary(self) -> Boundary:
        standing = self._standing
        if not standing.history.curves["epoch"]:
            return Boundary([], [], [self._claim, *self._waiting])
        history, content = standing.history, standing.content(self._claim.id)
        view = View(
            self._claim,
            standing.epoch,
            history.last_epoch_s,
            1,
            lambda: pack(content()),
            history.metrics,
            history.value,
            history.curves,
        )
        return Boundary([], [view], list(self._waiting))

    def _let_go(self, process: Attempt) -> None:
        """Make the function end if it still runs, and end what it has started."""
        names = process.end_trial(self._watch.stopping, lambda: self._watch.beat(PHASE))
        if names:
            self._owner.once(
                f"processes that {self._name} had started outlived their trial and were ended "
                f"({', '.join(names)}); {self._manner.shared}"
            )
        self._watch.beat()

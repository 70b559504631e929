"""What a loop of the user's own is handed: ``train(trial)``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import TaskError
from common.search import METRIC_PATTERN
from common.space import Scalar
from common.trial import Trial
from worker.own.saved import frozen

RESERVED = frozenset({"epoch", "seconds"})  # curves that the reports have anyway


class TrialEnded(BaseException):
    """The trial is over: exploded, stopped, killed, or at its budget. Raised by ``report``; let it pass, ``finally`` blocks run."""


@dataclass(frozen=True)
class Report:
    """One call of ``trial.report``."""

    epoch: float
    values: dict[str, float]
    state: Any  # frozen; None where none was given
    at_s: float  # on the monotonic clock


class Read(Mapping[str, Scalar]):
    """A configuration that remembers which of its hyperparameters were read."""

    def __init__(self, hp: Mapping[str, Scalar]) -> None:
        self._hp = dict(hp)
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Scalar:
        self._read.add(name)
        return self._hp[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hp)

    def __len__(self) -> int:
        return len(self._hp)

    def __repr__(self) -> str:
        return repr(self._hp)

    @property
    def unread(self) -> list[str]:
        """Those that nobody has asked for."""
        return sorted(self._hp.keys() - self._read)


class OwnTrial:
    """One trial, as its loop sees it.

    Attributes:
        id: such as ``coarse-0042``.
        hp: the configuration, by name.
        epochs: the budget; may be a fraction.
        seed: for initial weights and noise, different in each trial.
        device: such as ``cpu`` or ``cuda:0``; a string, so that no torch is needed.
        resume: the ``state`` that was given last, None at the beginning. Tensors are on the CPU.
        epoch: how many epochs are done: of the last report, or of the one that ``resume`` came with.
        n_classes, n_val: set both to have the stage's ``chance_epochs`` judge the accuracy: classes, and examples in validation.
    """

    def __init__(
        self,
        trial: Trial,
        device: str,
        resume: Any,
        epoch: float,
        hand_over: Callable[[Report], None],
        alive: Callable[[float | None], None],
    ) -> None:
        """Args: ``hand_over`` blocks until the report was dealt with, ``alive`` says that the work moves; both may raise TrialEnded."""
        self.id = trial.id
        self.hp = Read(trial.hyperparameters)
        self.epochs = trial.epochs
        self.seed = trial.seed
        self.device = device
        self.resume = resume
        self.epoch = epoch
        self.n_classes: int | None = None
        self.n_val: int | None = None
        self._hand_over = hand_over
        self._alive = alive

    def report(
        self,
        epoch: float,
        *,
        train_loss: Any = None,
        val_acc: Any = None,
        val_loss: Any = None,
        state: Any = None,
        **metrics: Any,
    ) -> None:
        """Tells where the trial stands, best after every epoch; returns when that has been dealt with.

        Args:
            epoch: epochs done, more than at the last report: 1 after the first.
            train_loss: watched for explosion. Without it ``val_loss`` is, or the search's metric where that is to be small.
            val_acc: on the validation part.
            val_loss: on the validation part; breaks ties.
            state: all that is needed to go on from here: tensors, numpy arrays, numbers, strings, bytes, lists and dicts. It is copied.
                A later attempt finds it in ``trial.resume``; that of the best epoch becomes the checkpoint.
            metrics: others by name; the search's ``metric`` must be among what is reported.

        Raises:
            TrialEnded: the trial is over.
            TaskError: a value, a name, or the state cannot be used.
        """
        at_s = time.monotonic()
        given = {"train_loss": train_loss, "val_acc": val_acc, "val_loss": val_loss, **metrics}
        values = {_named(name): _number(name, value) for name, value in given.items() if value is not None}
        self._hand_over(Report(self._checked(epoch), values, None if state is None else frozen(state), at_s))
        self.epoch = float(epoch)

    def beat(self, limit_s: float | None = None) -> None:
        """A sign of life within a long epoch, cheap; raises TrialEnded where the trial is over.

        Args:
            limit_s: how long until the next sign of life at most; without it a loop counts as stuck after ten minutes.
        """
        self._alive(limit_s)

    def _checked(self, epoch: Any) -> float:
        number = _number("epoch", epoch)
        if not math.isfinite(number) or number <= self.epoch:
            raise TaskError(
                f"report(epoch={epoch!r}): {self.epoch:g} epochs are done already; count the epochs that are done, 1 after the first "
                "(after a resume go on from trial.epoch)"
            )
        return number


def _named(name: str) -> str:
    if not METRIC_PATTERN.fullmatch(name) or name in RESERVED:
        raise TaskError(f"report({name}=...): not a name for a metric; use small letters, digits and _, such as val_f1")
    return name


def _number(name: str, value: Any) -> float:
    try:
        return float(value)  # a Python number, a numpy scalar, a tensor of one element
    except (TypeError, ValueError, RuntimeError):
        raise TaskError(f"report({name}={_short(value)}): not a number; give one, such as {name}=float(...)") from None


def _short(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"<{type(value).__name__} of shape {tuple(shape)}>" if shape is not None else repr(value)[:60]

"""The object that a user's own loop gets: the ``trial`` in ``train(trial)``."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from common.errors import TaskError
from common.search.values import Value, own_copy
from worker.own.messages import Report, is_metric
from worker.own.saved import Packed, frozen


class TrialEnded(BaseException):
    """The trial is over: exploded, stopped, killed, or at the end of its budget.

    ``report`` and ``beat`` raise it. Do not catch it; ``finally`` blocks run.
    """


class Read(Mapping[str, Value]):
    """A configuration that remembers which of its hyperparameters were read."""

    def __init__(self, hp: Mapping[str, Value]) -> None:
        self._hp = dict(hp)
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Value:
        self._read.add(name)
        return own_copy(self._hp[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._hp)

    def __len__(self) -> int:
        return len(self._hp)

    def __repr__(self) -> str:
        return repr(self._hp)

    @property
    def unread(self) -> list[str]:
        """The hyperparameters that were never read."""
        return sorted(self._hp.keys() - self._read)


class OwnTrial:
    """One trial, as a user's own loop sees it.

    A search trains many trials for a few epochs and the best of them for more. So a loop that
    returned at ``epochs`` may be called again for the same trial with a larger ``epochs``. It then
    finds the state that it reported last in ``resume``, and continues from ``epoch``. A loop that
    reports no state begins at epoch 0 each time.

    Attributes:
        id: id of the trial, such as ``coarse-0042``.
        hp: the configuration: hyperparameters by name.
        epochs: the current budget in epochs. It may be a fraction. A loop that stops there may be
            called again with more.
        max_epochs: the longest budget that the trial may get. Use it as the length of a schedule.
        seed: seed for initial weights and noise, different for each trial.
        device: the device as a string, such as ``cpu`` or ``cuda:0``, so that torch is not needed.
            Of several GPUs it is the first, and ``cuda:1`` is the next.
        gpus: how many GPUs the trial has. On the CPU it is the number that the search asks for, so
            that as many processes can stand in.
        resume: the ``state`` that was reported last, or None at the beginning. Tensors are on the
            CPU.
        epoch: number of epochs done: at the last report, or at the one that ``resume`` was reported
            with.
        n_classes: number of classes. Set it and ``n_val`` to have the accuracy compared with
            guessing, for the stage's ``chance_epochs`` and for the check whether any trial is
            better than guessing.
        n_val: number of examples in the validation part.
    """

    def __init__(
        self,
        *,
        id: str,
        hp: Mapping[str, Value],
        epochs: float,
        max_epochs: float,
        seed: int,
        device: str,
        gpus: int = 1,
        epoch: float,
        resume: Any,
        hand_over: Callable[[Report], None],
        alive: Callable[[float | None], None],
    ) -> None:
        """Initialise.

        Args:
            id: see above, as the others that have the name of an attribute.
            hp: the configuration.
            epochs: the budget now.
            max_epochs: the longest budget.
            seed: the seed.
            device: name of the device.
            gpus: the number of GPUs.
            epoch: the number of epochs done.
            resume: the state to resume from, or None.
            hand_over: hands over a report and blocks until it is processed. May raise TrialEnded.
            alive: notes that the work moves, with a limit in seconds. May raise TrialEnded.
        """
        self.id = id
        self.hp = self._read = Read(hp)
        self.epochs = epochs
        self.max_epochs = max_epochs
        self.seed = seed
        self.device = device
        self.gpus = gpus
        self.resume = resume
        self.epoch = epoch
        self._n_classes: int | None = None
        self._n_val: int | None = None
        self._hand_over = hand_over
        self._alive = alive

    @property
    def n_classes(self) -> int | None:
        """The number of classes, or None if the loop has not set it."""
        return self._n_classes

    @n_classes.setter
    def n_classes(self, value: Any) -> None:
        self._n_classes = _count("n_classes", value, 2)

    @property
    def n_val(self) -> int | None:
        """The number of validation examples, or None if the loop has not set it."""
        return self._n_val

    @n_val.setter
    def n_val(self, value: Any) -> None:
        self._n_val = _count("n_val", value, 1)

    def report(
        self,
        epoch: float | None = None,
        *,
        train_loss: Any = None,
        val_acc: Any = None,
        val_loss: Any = None,
        state: Any = None,
        **metrics: Any,
    ) -> None:
        """Report where the trial stands, ideally after every epoch.

        The call returns when the report has been processed.

        Args:
            epoch: number of epochs done: 1 after the first. It must be larger than at the last
                report. Without it the report counts for the whole budget, so there is only one.
            train_loss: training loss. It is watched for explosion. Without it ``val_loss`` is
                watched, or else the search's metric if that is to be minimised.
            val_acc: accuracy on the validation part.
            val_loss: loss on the validation part. It breaks ties.
            state: all that is needed to continue from here: tensors, arrays that numpy can read,
                numbers, strings, bytes, lists, tuples and dicts. It is copied. A later attempt
                finds it in ``trial.resume``. The state of the best epoch becomes the checkpoint.
            metrics: other metrics by name. The search's ``metric`` must be among the reported
                values.

        Raises:
            TrialEnded: the trial is over.
            TaskError: a value, a name or the state cannot be used.
        """
        at_s = time.monotonic()
        given = {"train_loss": train_loss, "val_acc": val_acc, "val_loss": val_loss, **metrics}
        values = {
            _check_name(name): _number(name, value)
            for name, value in given.items()
            if value is not None
        }
        done = self._check_epoch(self.epochs if epoch is None else epoch)
        packed = None if state is None else Packed.of(frozen(state))
        self._hand_over(Report(done, values, packed, at_s, self._n_classes, self._n_val))
        self.epoch = done

    def beat(self, limit_s: float | None = None) -> None:
        """Give a sign of life within a long epoch. The call is cheap.

        Args:
            limit_s: seconds until the next sign of life, at most. Without it the loop counts as
                stuck after ten minutes.

        Raises:
            TrialEnded: the trial is over.
        """
        self._alive(limit_s)

    def unread(self) -> list[str]:
        """Return the hyperparameters that the loop has not read."""
        return self._read.unread

    def _check_epoch(self, epoch: Any) -> float:
        number = _number("epoch", epoch)
        if not math.isfinite(number) or number <= self.epoch:
            raise TaskError(
                f"report(epoch={epoch!r}): {self.epoch:g} epochs are done already; count the "
                "epochs that are done, 1 after the first (after a resume go on from trial.epoch)"
            )
        return number


def _check_name(name: str) -> str:
    if not is_metric(name):
        raise TaskError(
            f"report({name}=...): not a name for a metric; use small letters, digits and _, such "
            "as val_f1"
        )
    return name


def _number(name: str, value: Any) -> float:
    try:
        return float(value)  # a Python number, a numpy scalar, a tensor of one element
    except (TypeError, ValueError, RuntimeError):
        raise TaskError(
            f"report({name}={_short(value)}): not a number; give one, such as {name}=float(...)"
        ) from None


def _count(name: str, value: Any, least: int) -> int | None:
    try:
        number = None if value is None else operator.index(value)
    except TypeError:
        number = 0
    if number is not None and number < least:
        raise TaskError(
            f"trial.{name} = {_short(value)}: a whole number of at least {least} is needed"
        )
    return number


def _short(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return (
        f"<{type(value).__name__} of shape {tuple(shape)}>"
        if shape is not None
        else repr(value)[:60]
    )

"""What a task is: data, a model for a configuration, and nothing about how it is trained; or a loop of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from common.errors import TaskError
from common.practice import DATA, Kind
from common.search import AVERAGED, METRIC_PATTERN
from common.space import Scalar

Measure = Callable[[Tensor, Tensor], Any]  # (outputs (N, ...), targets (N, ...)) of one trial's whole validation part -> one number
CURVE_NAMES = frozenset({"epoch", "seconds", "train_loss", "train_acc", "val_loss", "val_acc", "learning_rate", "grad_norm", "wiggle"})


@dataclass(frozen=True)
class Part:
    """One part of the data."""

    inputs: Tensor  # (n, ...); floating types take the precision that is trained in
    targets: Tensor  # (n,) int64, class numbers from 0; without classes anything (n, ...) that the task's own loss takes

    def __post_init__(self) -> None:
        """Raises TaskError where inputs and targets do not fit together, or hold what is no number."""
        for name, value in (("inputs", self.inputs), ("targets", self.targets)):
            if not isinstance(value, Tensor):
                raise TaskError(f"a Part's {name} are a {type(value).__name__}, not a torch.Tensor; convert them in data()")
            if not value.ndim:
                raise TaskError(f"a Part's {name} are a single number; (n, ...) is needed, an entry an example")
        if len(self.inputs) != len(self.targets) or not len(self.targets):
            raise TaskError(
                f"a Part has {len(self.inputs)} inputs and {len(self.targets)} targets; as many of each are needed, at least one"
            )
        _check_finite("inputs", self.inputs)
        _check_finite("targets", self.targets)

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Data:
    """All parts. The search looks at ``train`` and ``val`` alone; ``test`` is for the selected model, at the very end.

    ``n_classes`` None: no classification. Such a task has a ``loss`` of its own, and no accuracy.
    """

    train: Part
    val: Part
    test: Part | None
    n_classes: int | None

    def __post_init__(self) -> None:
        """Raises TaskError where the parts differ in shape, or a target is no class."""
        parts = {name: part for name, part in (("train", self.train), ("val", self.val), ("test", self.test)) if part is not None}
        for name, part in parts.items():
            if not isinstance(part, Part):
                raise TaskError(f"{name} is a {type(part).__name__}; wrap it: Part(inputs, targets)")
            _check_alike(name, part, self.train)
            if self.n_classes is not None:
                _check_classes(name, part, self.n_classes)


class Task(Protocol):
    """What is trained. A user's own task is a class with these two methods and no constructor arguments.

    It may have, besides:

    * ``loss(self, outputs, targets, hp)``: the mean loss of one trial's batch, as a 0-d tensor, instead of the engine's; outputs and
      targets as ``model`` and ``data`` make them, in ``hp`` the numbers that the trials of an array differ in are 0-d tensors;
    * ``metrics = {"f1": f1, ...}``: of one trial's outputs and targets of the whole validation part, each gives one number;
    * ``preprocess = "normalise"``: what is done to the inputs unless the search says otherwise;
    * ``image_shape = (8, 8)`` or ``(3, 32, 32)``: of inputs that are images laid flat, so that they can be augmented.
    """

    def data(self) -> Data:
        """The data, the same in every process: splits are fixed, never drawn afresh."""
        ...

    def model(self, hp: Mapping[str, Scalar]) -> nn.Module:
        """A new model with initial weights for the configuration ``hp``: (n, ...) inputs to (n, n_classes) logits.

        The generator that ``torch`` draws initial weights from has been seeded for the trial.
        """
        ...


@dataclass(frozen=True)
class Loop:
    """A task that trains by itself: ``def train(trial)`` in the user's file, with whatever framework it likes."""

    train: Callable[[Any], object]
    name: str  # as in the search file, "my_loop.py:train"


def data_of(task: Task) -> Data:
    """The task's data, checked.

    Raises:
        TaskError: it is no ``Data``, or has no classes although the task has no loss of its own.
        Exception: whatever the task's ``data`` raises.
    """
    with no_exit("data()"):
        data = task.data()
    if not isinstance(data, Data):
        raise TaskError(f"data() returned a {type(data).__name__}; return Data(train=Part(...), val=Part(...), test=None, n_classes=10)")
    if data.n_classes is None and own_loss(task) is None:
        raise TaskError(
            "n_classes is None, so the task needs a loss(outputs, targets, hp) of its own; add one, or name the number of classes"
        )
    return data


def model_of(task: Task, hp: Mapping[str, Scalar]) -> nn.Module:
    """The task's model for one configuration.

    Raises:
        TaskError: it is no module.
        Exception: whatever the task's ``model`` raises.
    """
    with no_exit("model(hp)"):
        module = task.model(hp)
    if not isinstance(module, nn.Module):
        raise TaskError(f"model(hp) returned {module!r}; return a torch.nn.Module")
    return module


@contextmanager
def no_exit(name: str) -> Iterator[None]:
    """A task that exits inside the block ends its trial, not the process that trains others beside it.

    Args:
        name: of what is called.

    Raises:
        TaskError: it called ``exit``.
    """
    try:
        yield
    except SystemExit as error:
        code = "" if error.code is None else repr(error.code)
        raise TaskError(f"{name} called exit({code}); raise an exception that says why instead") from error


def own_loss(task: Task) -> Callable[[Tensor, Tensor, Mapping[str, Scalar | Tensor]], Tensor] | None:
    """The task's ``loss(outputs, targets, hp)``, None where the engine's losses are meant."""
    return getattr(task, "loss", None)


def own_metrics(task: Task) -> dict[str, Measure]:
    """The task's ``metrics`` by name, without those that the engine measures for every task.

    Raises:
        TaskError: it is no dict of functions, or a name cannot be part of a file name or is the engine's own.
    """
    given = getattr(task, "metrics", None)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TaskError(f'metrics is a {type(given).__name__}; write metrics = {{"f1": f1}}, a function (outputs, targets) by its name')
    for name, function in given.items():
        if not isinstance(name, str) or not METRIC_PATTERN.fullmatch(name) or name in CURVE_NAMES or name.startswith(AVERAGED):
            taken = "cannot be part of a file name" if not METRIC_PATTERN.fullmatch(str(name)) else "is measured already"
            raise TaskError(f"metrics: {name!r} {taken}; use a name of small letters, digits and _, such as val_f1")
        if not callable(function):
            raise TaskError(f"metrics: {name} is a {type(function).__name__}; a function of (outputs, targets) is needed")
    return dict(given)


def measured_by(task: Task, n_classes: int | None) -> tuple[str, ...]:
    """The names that a search may rank by."""
    return ("val_loss", *(("val_acc",) if n_classes is not None else ()), *own_metrics(task))


def check_metric(metric: str, measured: tuple[str, ...]) -> None:
    """Raises TaskError where ``metric`` is not among ``measured``; the message lists those there are.

    With the prefix ``ema_`` each is measured of the running average of the parameters too, in trials that keep one.
    """
    if metric.removeprefix(AVERAGED) not in measured:
        raise TaskError(
            f'metric = "{metric}": the task does not measure it; it measures {", ".join(measured)}. Name one of these in the search file, '
            f"or add {metric} to the task's metrics"
        )


def check_attributes(kind: type[Task]) -> None:
    """Raises TaskError where an optional attribute of a task's class cannot be used."""
    preprocess = getattr(kind, "preprocess", None)
    words = DATA["preprocess"]
    if preprocess is not None and isinstance(words, Kind) and (why := words.refusal(preprocess)):
        raise TaskError(f"{kind.__name__}.preprocess = {preprocess!r}: {why}")
    shape = getattr(kind, "image_shape", None)
    if shape is not None and not (isinstance(shape, tuple) and len(shape) in (2, 3) and all(type(n) is int and n > 0 for n in shape)):
        raise TaskError(f"{kind.__name__}.image_shape = {shape!r}: (height, width) or (channels, height, width) is needed")
    loss = getattr(kind, "loss", None)
    if loss is not None and not callable(loss):
        raise TaskError(f"{kind.__name__}.loss is a {type(loss).__name__}; a method loss(self, outputs, targets, hp) is needed")


def _check_finite(name: str, values: Tensor) -> None:
    if not (values.is_floating_point() or values.is_complex()) or bool(torch.isfinite(values.sum())):
        return  # of a sum, which needs no memory: only where it is not finite is each entry looked at
    bad = ~torch.isfinite(values)
    if n_bad := int(bad.sum()):
        first = bad.nonzero()[0].tolist()
        raise TaskError(
            f"{n_bad} of {values.numel()} {name} are not finite, the first in example {first[0]} ({values[tuple(first)].item()}); "
            "drop those examples or fill them in, in data()"
        )


def _check_alike(name: str, part: Part, train: Part) -> None:
    for what, own, other in (("inputs", part.inputs, train.inputs), ("targets", part.targets, train.targets)):
        if own.shape[1:] != other.shape[1:]:
            raise TaskError(
                f"{name} {what} have the shape {tuple(own.shape)}, train {what} {tuple(other.shape)}; all but the first have to be equal"
            )
        if own.dtype != other.dtype:
            raise TaskError(f"{name} {what} are {own.dtype}, train {what} {other.dtype}; convert them to one type in data()")


def _check_classes(name: str, part: Part, n_classes: int) -> None:
    if isinstance(n_classes, bool) or not isinstance(n_classes, int) or n_classes < 2:
        raise TaskError(f"n_classes = {n_classes!r}: a whole number of at least 2 is needed, or None with a loss of the task's own")
    if part.targets.dtype != torch.int64 or part.targets.ndim != 1:
        raise TaskError(
            f"{name} targets are {part.targets.dtype} of shape {tuple(part.targets.shape)}; (n,) class numbers as int64 are needed, "
            "or n_classes=None with a loss of the task's own"
        )
    low, high = int(part.targets.min()), int(part.targets.max())
    if not 0 <= low <= high < n_classes:
        raise TaskError(f"{name} targets run from {low} to {high}; with n_classes = {n_classes} they lie in 0 to {n_classes - 1}")

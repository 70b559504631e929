"""The ``Task`` protocol, the ``Data`` that a task returns, and the checks of both.

A task defines the data and a model for a configuration. The engine does the training. A task that
trains by itself is a function instead; see ``Loop``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from common.errors import TaskError
from common.search.hyperparameters import DATA, Kind
from common.search.search_file import AVERAGED, METRIC_PATTERN
from worker.tasks import trees
from worker.tasks.loading import Loaded, as_loaded
from worker.tasks.trees import Tree

# Takes the outputs (N, ...) and targets (N, ...) of one trial on the whole validation part.
# Returns one number.
Measure = Callable[[Tree, Tree], Any]
PART_PREFIX = "val_"  # of the metric that is a part of the task's own loss
CURVE_NAMES = frozenset(
    {
        "epoch",
        "seconds",
        "train_loss",
        "train_acc",
        "val_loss",
        "val_acc",
        "learning_rate",
        "grad_norm",
        "wiggle",
    }
)


@dataclass(frozen=True)
class Part:
    """One part of the data, such as the training part.

    Inputs and targets are tensors, or dicts, tuples and lists of tensors, nested at will. The first
    dimension of each tensor counts the examples.
    """

    # (n, ...). Floating-point inputs are converted to the precision of the training.
    inputs: Tree
    # Class numbers from 0, (n,) int64. Without classes: any (n, ...) that the task's loss takes.
    targets: Tree

    def __post_init__(self) -> None:
        """Check that inputs and targets fit together and are finite.

        Raises:
            TaskError: they differ in length, are empty, are not tensors, or hold NaN or infinite
                values.
        """
        lengths: dict[str, int] = {}
        for name, value in self._named().items():
            if not isinstance(value, Tensor):
                kind = name.partition(".")[0]
                where = "" if name == kind else f" ({name} is a {type(value).__name__})"
                raise TaskError(
                    f"a Part's {kind} are a {type(getattr(self, kind)).__name__}, not a "
                    f"torch.Tensor{where}; convert them in data(). Tensors may be in dicts, tuples "
                    "and lists"
                )
            if not value.ndim:
                raise TaskError(
                    f"a Part's {name} are a single number; give the shape (n, ...), one entry per "
                    "example"
                )
            lengths[name] = len(value)
        kinds = {name.partition(".")[0] for name in lengths}
        if len(kinds) < 2 or len(set(lengths.values())) != 1 or not min(lengths.values()):
            told = " and ".join(f"{n} {name}" for name, n in lengths.items()) or "no tensor"
            raise TaskError(f"a Part has {told}; they must have equal length, at least 1")
        for name, value in self._named().items():
            _check_finite(name, value)

    def _named(self) -> dict[str, Any]:
        return trees.name_leaves(self.inputs, "inputs") | trees.name_leaves(self.targets, "targets")

    def __len__(self) -> int:
        return trees.count_rows(self.targets)

    def take(self, index: Any) -> Part:
        """Return the examples at an index: a tensor of places, or a slice."""
        return Part(trees.pick(self.inputs, index), trees.pick(self.targets, index))


@dataclass(frozen=True)
class Data:
    """The data of a task, in up to three parts.

    A search uses only ``train`` and ``val``. ``test`` is for the selected model, at the very end;
    it may be None.

    ``n_classes`` is the number of classes. Set it to None if the task is not a classification. Such
    a task needs its own ``loss`` method, and has no accuracy.

    A part may also be given as a ``Loaded``, a ``DataLoader`` or a dataset of torch. It is then
    loaded batch by batch, and kept in ``loaded`` by its name; the field itself is its first batch.
    """

    train: Part
    val: Part
    test: Part | None
    n_classes: int | None
    loaded: dict[str, Loaded] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Check that the parts are alike and that the targets are valid classes.

        Raises:
            TaskError: the parts differ in shape or dtype, or a target is not a class number.
            Exception: whatever a part that is loaded raises at its first batch.
        """
        for name in ("train", "val", "test"):
            part = as_loaded(getattr(self, name))
            if isinstance(part, Loaded):
                self.loaded[name] = part
                object.__setattr__(self, name, Part(*part.first()))
        parts = {
            name: part
            for name, part in (("train", self.train), ("val", self.val), ("test", self.test))
            if part is not None
        }
        for name, part in parts.items():
            if not isinstance(part, Part):
                raise TaskError(
                    f"{name} is a {type(part).__name__}; wrap it: Part(inputs, targets), or "
                    "Loaded(...) for what is loaded batch by batch"
                )
            _check_alike(name, part, self.train)
            if self.n_classes is not None:
                _check_classes(name, part, self.n_classes)

    def count(self, name: str) -> int | None:
        """Return the number of examples of a part, or None if there is no part or it is unknown."""
        if name in self.loaded:
            return self.loaded[name].count()
        part = getattr(self, name)
        return None if part is None else len(part)


class Task(Protocol):
    """What is trained: a class with the methods ``data`` and ``model``.

    Your own task is a class with these two methods. Its constructor takes no arguments. It need not
    inherit from this class. The following attributes are optional:

    * ``loss(self, outputs, targets, hp)`` returns the mean loss of one trial's batch as a 0-d
      tensor. It replaces the engine's loss. ``outputs`` are those of ``model`` and ``targets``
      those of ``data``, in the containers that these chose. Numbers in ``hp`` that differ between
      the trials of an array are 0-d tensors. A dict of 0-d tensors is a loss in parts: their sum
      is trained, or ``"loss"`` if it is among them. Each other part NAME is measured as
      ``train_NAME`` and ``val_NAME``.
    * ``metrics = {"f1": f1, ...}``: functions ``(outputs, targets)`` by name. Each gets the outputs
      and targets of one trial on the whole validation part, and returns one number.
    * ``param_groups(self, model, hp)`` returns groups of parameters as ``torch.optim`` takes them:
      dicts with ``params`` and a ``learning_rate`` or ``weight_decay`` of their own, or with
      ``requires_grad`` False for parameters that keep their initial values.
    * ``preprocess = "normalise"``: how the inputs are preprocessed, unless the search says
      otherwise.
    * ``image_shape = (8, 8)`` or ``(3, 32, 32)``: the shape of one image, if the inputs are
      flattened images. Augmentation needs it.
    """

    def data(self) -> Data:
        """Return the data.

        They must be the same in every process, so split them with a fixed seed.
        """
        ...

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        """Return a new model with initial weights for the configuration ``hp``.

        The model maps inputs (n, ...) to logits (n, n_classes). With ``n_classes=None`` its outputs
        are tensors (n, ...) in any container. ``forward`` gets the inputs as one argument, as
        ``data`` returned them. torch's random generator has been seeded for this trial, so initial
        weights drawn from it can be reproduced.
        """
        ...


@dataclass(frozen=True)
class Loop:
    """A task that trains by itself: a function ``train(trial)`` in the user's file.

    The function may use any framework.
    """

    train: Callable[[Any], object]
    name: str  # as in the search file, "my_loop.py:train"


def data_of(task: Task) -> Data:
    """Return the task's data, checked.

    Raises:
        TaskError: ``data`` did not return a ``Data``, or ``n_classes`` is None and the task has no
            loss.
        Exception: any exception that the task's ``data`` raises.
    """
    with no_exit("data()"):
        data = task.data()
    if not isinstance(data, Data):
        raise TaskError(
            f"data() returned a {type(data).__name__}; return Data(train=Part(...), val=Part(...), "
            "test=None, n_classes=10)"
        )
    if data.n_classes is None and own_loss(task) is None:
        raise TaskError(
            "n_classes is None, so the task needs a loss(outputs, targets, hp) of its own; add "
            "one, or name the number of classes"
        )
    return data


def model_of(task: Task, hp: Mapping[str, Any]) -> nn.Module:
    """Return the task's model for one configuration.

    Of a model that ``torch.compile`` has wrapped, it is the model itself. Its state dict has the
    names of the plain model, and the engine decides what is compiled.

    Raises:
        TaskError: ``model`` did not return an ``nn.Module``.
        Exception: any exception that the task's ``model`` raises.
    """
    with no_exit("model(hp)"):
        module = task.model(hp)
    if not isinstance(module, nn.Module):
        raise TaskError(f"model(hp) returned {module!r}; return a torch.nn.Module")
    plain = getattr(module, "_orig_mod", None)
    return plain if isinstance(plain, nn.Module) else module


@contextmanager
def no_exit(name: str) -> Iterator[None]:
    """Turn ``exit()`` inside the block into a TaskError.

    So a task that calls ``exit`` ends its own trial, not the process that trains other trials too.

    Args:
        name: what is called in the block, for the message.

    Raises:
        TaskError: the block called ``exit``.
    """
    try:
        yield
    except SystemExit as error:
        code = "" if error.code is None else repr(error.code)
        raise TaskError(
            f"{name} called exit({code}); raise an exception that says why instead"
        ) from error


def own_loss(
    task: Task,
) -> Callable[[Tree, Tree, Mapping[str, Any]], Tensor | dict[str, Tensor]] | None:
    """Return the task's ``loss`` method, or None if the engine's losses are used."""
    return getattr(task, "loss", None)


def names(task: Task, hyperparameter: str) -> bool:
    """Return whether the task's source contains the hyperparameter's name in quotes.

    If it does, the task may read it under a condition that does not hold now.
    """
    quoted = {f'"{hyperparameter}"', f"'{hyperparameter}'"}
    return any(word in source for source in map(_source, type(task).__mro__) for word in quoted)


@cache
def _source(kind: type) -> str:
    """Return the source of the module that defines a class, or "" if there is none."""
    module = sys.modules.get(kind.__module__)
    try:
        return inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):  # a built-in class, or its file is gone
        return ""


def own_metrics(task: Task) -> dict[str, Measure]:
    """Return the task's own ``metrics`` by name.

    The metrics that the engine measures for every task are not included.

    Raises:
        TaskError: ``metrics`` is not a dict of functions, or a name cannot be part of a file name
            or is used by the engine.
    """
    given = getattr(task, "metrics", None)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TaskError(
            f'metrics is a {type(given).__name__}; write metrics = {{"f1": f1}}, a function '
            "(outputs, targets) by its name"
        )
    for name, function in given.items():
        if (
            not isinstance(name, str)
            or not METRIC_PATTERN.fullmatch(name)
            or name in CURVE_NAMES
            or name.startswith(AVERAGED)
        ):
            taken = (
                "cannot be part of a file name"
                if not METRIC_PATTERN.fullmatch(str(name))
                else "is measured already"
            )
            raise TaskError(
                f"metrics: {name!r} {taken}; use a name of small letters, digits and _, such as "
                "val_f1"
            )
        if not callable(function):
            raise TaskError(
                f"metrics: {name} is a {type(function).__name__}; a function of (outputs, targets) "
                "is needed"
            )
    return dict(given)


def find_metrics(task: Task, n_classes: int | None) -> tuple[str, ...]:
    """Return the names of the metrics that a search may rank by."""
    return ("val_loss", *(("val_acc",) if n_classes is not None else ()), *own_metrics(task))


def may_be_part(metric: str, task: Task) -> bool:
    """Return whether the metric may be a part of the task's own loss, known once it is called."""
    return own_loss(task) is not None and metric.removeprefix(AVERAGED).startswith(PART_PREFIX)


def check_metric(metric: str, measured: tuple[str, ...]) -> None:
    """Check that the task measures ``metric``.

    The prefix ``ema_`` is allowed. It means the metric of the running average of the parameters, in
    trials that keep one.

    Raises:
        TaskError: ``metric`` is not in ``measured``. The message lists those that are.
    """
    if metric.removeprefix(AVERAGED) not in measured:
        raise TaskError(
            f'metric = "{metric}": the task does not measure it; it measures '
            f"{', '.join(measured)}. Name one of these in the search file, or add {metric} to the "
            "task's metrics"
        )


def check_attributes(kind: type[Task]) -> None:
    """Check the optional attributes of a task's class.

    Raises:
        TaskError: an attribute cannot be used.
    """
    preprocess = getattr(kind, "preprocess", None)
    words = DATA["preprocess"]
    if preprocess is not None and isinstance(words, Kind) and (why := words.refusal(preprocess)):
        raise TaskError(f"{kind.__name__}.preprocess = {preprocess!r}: {why}")
    shape = getattr(kind, "image_shape", None)
    if shape is not None and not (
        isinstance(shape, tuple)
        and len(shape) in (2, 3)
        and all(type(n) is int and n > 0 for n in shape)
    ):
        raise TaskError(
            f"{kind.__name__}.image_shape = {shape!r}: (height, width) or (channels, height, "
            "width) is needed"
        )
    for name, given in (("loss", "outputs, targets, hp"), ("param_groups", "model, hp")):
        method = getattr(kind, name, None)
        if method is not None and not callable(method):
            raise TaskError(
                f"{kind.__name__}.{name} is a {type(method).__name__}; a method "
                f"{name}(self, {given}) is needed"
            )


def _check_finite(name: str, values: Tensor) -> None:
    if not (values.is_floating_point() or values.is_complex()) or bool(
        torch.isfinite(values.sum())
    ):
        # The sum needs no extra memory. Single entries are checked only if it is not finite.
        return
    bad = ~torch.isfinite(values)
    if n_bad := int(bad.sum()):
        first = bad.nonzero()[0].tolist()
        raise TaskError(
            f"{n_bad} of {values.numel()} {name} are not finite, the first in example {first[0]} "
            f"({values[tuple(first)].item()}); drop those examples or fill them in, in data()"
        )


def _check_alike(name: str, part: Part, train: Part) -> None:
    mine, theirs = part._named(), train._named()
    if list(mine) != list(theirs):
        raise TaskError(
            f"{name} has {', '.join(mine)}, train has {', '.join(theirs)}; give all parts the same "
            "names and places, in the same order"
        )
    for what, own in mine.items():
        other = theirs[what]
        if own.shape[1:] != other.shape[1:]:
            raise TaskError(
                f"{name} {what} have the shape {tuple(own.shape)}, train {what} "
                f"{tuple(other.shape)}; all dimensions but the first must match"
            )
        if own.dtype != other.dtype:
            raise TaskError(
                f"{name} {what} are {own.dtype}, train {what} {other.dtype}; convert them to one "
                "type in data()"
            )


def _check_classes(name: str, part: Part, n_classes: int) -> None:
    if isinstance(n_classes, bool) or not isinstance(n_classes, int) or n_classes < 2:
        raise TaskError(
            f"n_classes = {n_classes!r}: a whole number of at least 2 is needed, or None with a "
            "loss of the task's own"
        )
    if not isinstance(part.targets, Tensor):
        raise TaskError(
            f"{name} targets are a {type(part.targets).__name__}; with n_classes they are (n,) "
            "class numbers. Set n_classes=None and write a loss of the task's own"
        )
    if part.targets.dtype != torch.int64 or part.targets.ndim != 1:
        raise TaskError(
            f"{name} targets are {part.targets.dtype} of shape {tuple(part.targets.shape)}; (n,) "
            "class numbers as int64 are needed, or n_classes=None with a loss of the task's own"
        )
    low, high = int(part.targets.min()), int(part.targets.max())
    if not 0 <= low <= high < n_classes:
        raise TaskError(
            f"{name} targets run from {low} to {high}; with n_classes = {n_classes} they lie in 0 "
            f"to {n_classes - 1}"
        )

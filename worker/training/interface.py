"""What goes into the engine and what comes out of it, as values."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from common.trial import Claim, TrialState
from worker import legible

Curves = dict[str, list[float | None]]  # by name, one value an evaluation; "epoch" is their axis


@dataclass(frozen=True)
class Job:
    """A trial to train. ``resume``: a state saved by ``View.state``, as ``torch.load(..., weights_only=True)`` returned it."""

    claim: Claim
    resume: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        """The trial's id."""
        return self.claim.trial.id


class Watch(Protocol):
    """Who is told that the work moves, and who tells it to stop. Every call is cheap."""

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        """The work moved: a step, a validation batch, or a named phase with its own limit began."""
        ...

    def lost(self) -> Collection[str]:
        """Ids of trials whose lease is gone: their slots are dropped at once, without an outcome."""
        ...

    def stopping(self) -> bool:
        """Whether to return at the next step."""
        ...


@dataclass(frozen=True)
class Snapshot:
    """Weights at some epoch of a trial."""

    epoch: float
    value: float  # of the search's metric
    checkpoint: Callable[[], bytes]
    predictions: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. ``checkpoint`` makes the bytes of a weights file, of the best epoch; None if there is nothing to keep.

    Whatever a task's error says, ``reason`` and ``traceback`` are text that a record and Redis take.
    """

    job: Job
    state: TrialState
    reason: str | None = None
    traceback: str | None = None
    val_acc: float | None = None  # of the best epoch
    val_loss: float | None = None  # of the best epoch, nats
    epochs: float = 0.0  # trained
    best_epoch: float | None = None
    first_loss: float | None = None  # data loss plus L2 term before the first update, nats
    value: float | None = None  # of the search's metric, at the best epoch
    metrics: dict[str, float] = field(default_factory=dict)  # all that were measured, at the best epoch
    curves: Curves = field(default_factory=dict)
    seconds: float = 0.0
    epoch_s: float | None = None  # median of whole epochs, the first left out
    array_width: int = 1
    checkpoint: Callable[[], bytes] | None = None
    predictions: Callable[[], dict[str, Any]] | None = None  # numpy arrays: see Predictions in common; of the best epoch, for kept ones
    portrait: Callable[[], dict[str, Any]] | None = None  # histograms of activations and gradients, for kept ones
    picture: Callable[[], bytes | None] | None = None  # PNG of the first layer's weights; makes None where these are no images
    snapshots: tuple[Snapshot, ...] = ()  # over time
    n_classes: int | None = None  # of the task, if it is a classification
    chance_loss: float | None = None  # the loss of guessing, where there is such a value
    n_val: int | None = None  # examples of the validation part

    def __post_init__(self) -> None:
        """Cleans what comes from the task."""
        object.__setattr__(self, "reason", legible.reason(self.reason))
        object.__setattr__(self, "traceback", legible.traceback(self.traceback))


@dataclass(frozen=True)
class View:
    """A trial that is still running. ``state`` makes the bytes to resume from; call it before the engine goes on."""

    job: Job
    epoch: float
    val_acc: float | None  # of the best epoch so far
    last_epoch_s: float | None  # of the last whole epoch, the first left out
    array_width: int
    state: Callable[[], bytes]
    value: float | None = None  # of the search's metric, of the best epoch so far
    curves: Curves = field(default_factory=dict)  # so far; they grow


@dataclass(frozen=True)
class Boundary:
    """Where the engine pauses: what ended since the last one, what runs, what waits."""

    ended: list[Outcome]
    running: list[View]
    waiting: list[Job]

"""Outputs of the engine: outcomes, views, boundaries. Its inputs are claims."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from common import error_text
from common.search.trial import Claim, Fence, Trial, TrialState

# By name, with one value per evaluation; the curve "epoch" is the x axis.
Curves = dict[str, list[float | None]]


class Watch(Protocol):
    """The link between the engine and its caller. All calls are cheap."""

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        """Report progress.

        It is a step, a validation batch, or the start of a phase with its own time limit.
        """
        ...

    def lost(self) -> Collection[str]:
        """Return the ids of trials whose lease is lost.

        Their slots are dropped at once, without an outcome.
        """
        ...

    def stopping(self) -> bool:
        """Return whether the engine must return at the next step."""
        ...


@dataclass(frozen=True)
class Snapshot:
    """The weights of a trial at some epoch."""

    epoch: float
    value: float  # of the search's metric
    checkpoint: Callable[[], bytes]
    predictions: Callable[[], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """The measurements of a trial.

    The fields are named as in ``common.folder.record.Record``, which gets all of them by name. So a
    new number is a field here and a field there. A new metric of the best epoch is neither: it is
    an entry of ``metrics``.
    """

    metrics: dict[str, float] = field(default_factory=dict)  # all of them, at the best epoch
    value: float | None = None  # of the search's metric, at the best epoch
    best_epoch: float | None = None
    epochs: float = 0.0  # trained
    first_loss: float | None = None  # data loss plus L2 term before the first update, nats
    curves: Curves = field(default_factory=dict)
    seconds: float = 0.0
    epoch_s: float | None = None  # median over whole epochs without the first
    array_width: int = 1
    n_val: int | None = None  # examples of the validation part
    # Accuracy on the validation part of always predicting its largest class.
    guess_acc: float | None = None
    guess_loss: float | None = None  # the loss of guessing, if it is known
    epoch_steps: int | None = None  # steps per epoch
    # Where the training batches come from, if not from memory: what a repetition depends on.
    batches: str | None = None
    began_at: float = 0.0  # first step of this attempt, Unix time, s; 0 if there was none
    trained_until: float = 0.0  # last step or validation of this attempt, Unix time, s

    @property
    def val_acc(self) -> float | None:
        """Validation accuracy at the best epoch."""
        return self.metrics.get("val_acc")

    @property
    def val_loss(self) -> float | None:
        """Validation loss at the best epoch, nats."""
        return self.metrics.get("val_loss")

    def collect_measurements(self) -> dict[str, Any]:
        """Return the fields of this class, by name."""
        return {name: getattr(self, name) for name in _MEASURED}


_MEASURED = tuple(one.name for one in fields(Measurements))


class OfClaim:
    """What concerns one claimed trial."""

    claim: Claim

    @property
    def trial(self) -> Trial:
        """The trial, as it was claimed."""
        return self.claim.trial

    @property
    def fence(self) -> Fence:
        """The proof of the lease."""
        return self.claim.fence


@dataclass(frozen=True)
class Outcome(Measurements, OfClaim):
    """The result of a trial that ended.

    ``checkpoint`` returns the bytes of a weights file of the best epoch. It is None if there is
    nothing to keep. ``reason`` and ``traceback`` are cleaned, so that records and Redis accept them
    whatever the task's error says.
    """

    claim: Claim
    state: TrialState
    reason: str | None = None
    traceback: str | None = None
    checkpoint: Callable[[], bytes] | None = None
    # Returns numpy arrays of the best epoch, see ``Predictions`` in common. Called for kept trials.
    predictions: Callable[[], dict[str, Any]] | None = None
    # Returns histograms of activations and gradients. Called for kept trials.
    portrait: Callable[[], dict[str, Any]] | None = None
    # Returns a PNG of the first layer's weights, or None if they are no images.
    picture: Callable[[], bytes | None] | None = None
    snapshots: tuple[Snapshot, ...] = ()  # the weights at several epochs
    # Returns the state after the last step, for ``Claim.resume`` if the trial is promoted.
    resume: Callable[[], dict[str, Any]] | None = None
    n_classes: int | None = None  # of the task, if it is a classification
    # Whether the measurements are those that the task's own loop or program has reported.
    is_reported: bool = False

    def __post_init__(self) -> None:
        """Clean the texts that come from the task."""
        object.__setattr__(self, "reason", error_text.reason(self.reason))
        object.__setattr__(self, "traceback", error_text.traceback(self.traceback))


@dataclass(frozen=True)
class View(OfClaim):
    """A trial that is still running.

    ``state`` returns the bytes to resume from. Call it before the engine goes on.
    """

    claim: Claim
    epoch: float
    last_epoch_s: float | None  # of the last whole epoch; None for the first one
    array_width: int
    state: Callable[[], bytes]
    metrics: dict[str, float] = field(default_factory=dict)  # at the best epoch so far
    value: float | None = None  # of the search's metric, at the best epoch so far
    curves: Curves = field(default_factory=dict)  # so far; the lists grow during training


@dataclass(frozen=True)
class Boundary:
    """A point where the engine pauses: the trials that ended since the last one, run, or wait."""

    ended: list[Outcome]
    running: list[View]
    waiting: list[Claim]
    # Whether it is inside an epoch, only so that states can be saved.
    within: bool = False

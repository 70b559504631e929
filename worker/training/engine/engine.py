"""The training engine. It takes claimed trials, trains them in arrays, and yields boundaries.

A single trial is an array of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from common.search.trial import Claim
from worker.tasks.base import Task
from worker.training.compute.denormals import start_threads
from worker.training.compute.device import use_device
from worker.training.engine.builder import Builder, Teach
from worker.training.engine.session import Session
from worker.training.math.recipe import Recorded
from worker.training.stacked.training_data import TrainingOptions
from worker.training.types import Boundary, Curves, Outcome, View, Watch

__all__ = ["Boundary", "Curves", "Engine", "Outcome", "TrainingOptions", "View", "Watch"]


class Engine:
    """A trainer for the trials of one search on one device."""

    def __init__(self, task: Task, options: TrainingOptions, teach: Teach | None = None) -> None:
        """Create an engine. Data is loaded at the first trial.

        Args:
            task: data, model, and optionally loss and metrics.
            options: device, metric, policies.
            teach: returns the targets for trials of a stage of kind "distill": (n, C) logarithms of
                probabilities.
        """
        start_threads()
        use_device(options.device)
        self.builder = Builder(task, options, teach)

    def train(
        self, claims: Sequence[Claim], refill: Callable[[int], Sequence[Claim]], watch: Watch
    ) -> Iterator[Boundary]:
        """Train the claimed trials, and those that ``refill(n_free)`` adds, until none is left.

        Training ends early when ``watch`` says to stop.

        Yields:
            A boundary whenever a slot reaches the end of an epoch or of its budget. If the engine
                is stopped, a last one follows: its ``running`` trials are unfinished (their states
                hold the exact step), and its ``waiting`` trials never began.
        """
        return Session(self.builder, refill, watch).run(claims)

    def width(self, hyperparameters: Mapping[str, Any]) -> int:
        """Return how many trials like this one to claim.

        The number was measured for the trial's structure if that is known. Else it is a default.
        """
        widths = self.builder.widths
        try:
            return widths.to_claim(self.builder.prepare_model(Recorded(hyperparameters), seed=0))
        # model() may need data(), which has not been called. Any other error is raised again later.
        except Exception:
            return widths.default

    @property
    def backend(self) -> str:
        """How steps are computed now, and why."""
        return self.builder.backends.told

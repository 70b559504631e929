"""Trials that ended at a rung on this worker and wait for the decision on promotion.

This module chooses which of them keep their state, and keeps these states in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from common.folder.promotable import (
    Standing,
    best_standing,
    find_repeats,
    most_promotable,
)
from common.search.plan import StagePlan
from common.search.trial import Trial, TrialState, violates
from worker.training.types import Outcome

# For states in memory: about 1,000 of a small perceptron, or 40 of one with 270,000 parameters.
MOST_BYTES = 256 << 20


class Waiting:
    """The last states of waiting trials, in memory.

    If such a trial continues on this worker, its state need not be read from the file.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        # By trial id: attempt, state and its size in bytes. The newest is last.
        self._held: dict[str, tuple[int, dict[str, Any], int]] = {}
        self._n_bytes = 0
        # By stage and epochs: all trials that ended there.
        self._standing: dict[tuple[str, float], dict[str, Standing]] = {}

    def choose(
        self, outcomes: Sequence[Outcome], plans: Sequence[StagePlan], mode: str
    ) -> list[Outcome]:
        """Return the outcomes whose states are worth keeping: the best of their rung here.

        A trial that is among the best of all workers is among the best of this worker, too. So no
        trial that the plan promotes within its own stage is left out, in whatever order they end.
        Of a repeated configuration, that is known once all its trials have ended here; until then
        their states are kept.
        """
        able = [
            (o, o.trial, o.value) for o in outcomes if o.resume is not None and may_go_on(o.trial)
        ]
        able = [
            (o, trial, value)
            for o, trial, value in able
            if o.state is TrialState.COMPLETED and _is_number(value)
        ]
        for outcome, trial, value in able:
            assert value is not None
            self._standing.setdefault((trial.stage, trial.epochs), {})[trial.id] = Standing(
                trial.id, trial.index, value, violates(outcome.state, outcome.reason)
            )
        best = {
            place: best_standing(
                list(self._standing[place].values()),
                most_promotable(plans, place[1]),
                mode,
                find_repeats(plans),
            )
            for place in {(trial.stage, trial.epochs) for _, trial, _ in able}
        }
        return [
            outcome for outcome, trial, _ in able if trial.id in best[trial.stage, trial.epochs]
        ]

    def put(self, trial_id: str, attempt: int, state: dict[str, Any]) -> None:
        """Keep the state that an attempt ended with.

        The oldest states are dropped if there is no room.
        """
        self._drop(trial_id)
        self._held[trial_id] = (attempt, state, size_of(state))
        self._n_bytes += self._held[trial_id][2]
        while self._n_bytes > self._most_bytes:
            self._drop(next(iter(self._held)))

    def take(self, trial_id: str, attempt: int) -> dict[str, Any] | None:
        """Remove and return the state that the previous attempt ended with.

        Return None if that attempt ended elsewhere, or if its state was dropped.
        """
        ended, state = self._drop(trial_id)
        return state if ended == attempt - 1 else None

    def _drop(self, trial_id: str) -> tuple[int, dict[str, Any] | None]:
        """Forget a trial's state. Return the attempt that it is of, and the state."""
        ended, state, size = self._held.pop(trial_id, (0, None, 0))
        self._n_bytes -= size
        return ended, state


def may_go_on(trial: Trial) -> bool:
    """Return whether the trial's budget may still grow."""
    return trial.epochs < trial.horizon


def size_of(state: object) -> int:
    """Return the size of the tensors in a state, in bytes. Shared memory counts once."""
    tensors: dict[int, int] = {}
    _weigh(
        state,
        lambda tensor: tensors.update(
            {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()}
        ),
    )
    return sum(tensors.values())


def _weigh(state: object, note: Callable[[Tensor], None]) -> None:
    if isinstance(state, Tensor):
        note(state)
    elif isinstance(state, Mapping):
        _weigh_all(state.values(), note)
    elif isinstance(state, list | tuple):
        _weigh_all(state, note)


def _weigh_all(parts: Iterable[object], note: Callable[[Tensor], None]) -> None:
    for part in parts:
        _weigh(part, note)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)

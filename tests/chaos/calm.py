"""The search as it goes without faults.

It is played from functions that give each trial's outcome, without Redis and without training.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.folder.record import Record
from common.search.trial import Result, Trial, TrialState
from tests.unit.master.played import Played, Value

ID = 'id = "0123456789abcdef"\nprotocol = 2\n'
Failing = Callable[[Trial], bool]


class Calm(Played):
    """Everything that faults must not change.

    These are the configurations, what each stage froze, the promotions and the ranking.
    """

    def __init__(self, root: Path, text: str, value: Value, failing: Failing) -> None:
        """Args: ``failing``: trials that end their worker or raise, whatever is tried."""
        super().__init__(root, ID + text, value)
        self.failing = failing
        self.run_all()
        self.trials: list[Trial] = (
            self.before().standings.all_trials()
        )  # with the budgets that they have in the end

    def end(self, trial: Trial) -> Result:
        if not self.failing(trial):
            return super().end(trial)
        result = Result(TrialState.FAILED, "planted", rung=trial.rung)
        self.folder.stage(trial.stage).write_records(
            [Record.of(str(self.search.id), trial, trial.rung + 1, result)]
        )
        return result

    @property
    def n_ends(self) -> int:
        """How often a trial ends, at whatever rung."""
        return sum(trial.rung + 1 for trial in self.trials)

    @property
    def mean_epochs(self) -> float:
        """Of an attempt."""
        return sum(trial.epochs for trial in self.trials) / self.n_ends

    def ranking(self) -> list[str]:
        """The ids of trained trials in final rank order: longest budget first, then best value."""
        trained = [trial for trial in self.trials if not self.failing(trial)]
        return [
            trial.id
            for trial in sorted(
                trained, key=lambda trial: (-trial.epochs, -(self.value(trial) or 0.0))
            )
        ]

    def worst(self, stage: str) -> list[Trial]:
        """The worse half of a stage's trials, of which none is ever promoted, worst first."""
        own = [
            trial
            for trial in self.trials
            if trial.stage == stage and not self.failing(trial) and not trial.rung
        ]
        return sorted(own, key=lambda trial: self.value(trial) or 0.0)[: len(own) // 2]

    def frozen(self, stage: str) -> dict[str, Any]:
        """What a stage has frozen in its two files, but for the search's id."""
        return frozen_in(self.folder.stage(stage).path)


def frozen_in(stage: Path) -> dict[str, Any]:
    """What lies in a stage's folder, read without the program."""
    strategy = json.loads((stage / "strategy.json").read_text())
    return {
        "ranges": tomllib.loads((stage / "ranges.toml").read_text())["ranges"],
        "strategy": {**strategy, "search_id": ""},
    }

"""A search on disk, played without Redis and without training.

A function says how each trial ends.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from common.folder.record import Record
from common.folder.records import SearchFolder
from common.search.search_file import Search, parse_search
from common.search.stage import Stage
from common.search.trial import Result, Trial, TrialState
from master.stages.ladder import Ladder
from master.stages.promotions import Decision, write_part
from master.stages.sampling import configurations
from master.stages.source import Before, StageSource, find_source, read_before, write_source

Value = Callable[[Trial], float | None]  # of a trial after its epochs; None is an explosion

TEXT = """
id = "0123456789abcdef"
protocol = 2
name = "digits"
task = "mine.py:Mine"
seed = 4
[space]
learning_rate = { log_uniform = [1e-4, 1.0] }
dropout = { uniform = [0.0, 0.8] }
hidden = { choice = [64, 128] }
batch_norm = true
[budget]
epochs = 120
max_epochs = 9
"""


def near(trial: Trial) -> float | None:
    """Return an accuracy that is best at learning rate 0.01 without dropout.

    It grows with every epoch. Large learning rates explode.
    """
    rate, dropout = (
        float(trial.hyperparameters["learning_rate"]),
        float(trial.hyperparameters["dropout"]),
    )
    return None if rate > 0.5 else 0.9 - abs(rate - 0.01) - 0.1 * dropout - 0.3 / (1 + trial.epochs)


def result_of(trial: Trial, value: Value = near) -> Result:
    own = value(trial)
    if own is None:
        return Result(TrialState.EXPLODED, "loss above 3 x its first", epochs=0.5, rung=trial.rung)
    return Result(
        TrialState.COMPLETED,
        val_acc=own,
        val_loss=1 - own,
        epochs=trial.epochs,
        value=own,
        rung=trial.rung,
    )


def record_of(search: Search, trial: Trial, value: Value = near) -> Record:
    """The record of its attempt under the budget that it has, with curves from its first epoch."""
    points = [
        (epochs, value(replace(trial, epochs=epochs))) for epochs in (*trial.passed, trial.epochs)
    ]
    curves = {
        "epoch": [epochs for epochs, own in points if own is not None],
        search.metric: [own for _, own in points if own is not None],
    }
    more = {"metric": search.metric, "mode": search.mode, "curves": curves}
    return Record.of(str(search.id), trial, trial.rung + 1, result_of(trial, value), **more)


class Played:
    """A checkpoint root with one search, whose stages are frozen, trained and decided."""

    def __init__(self, root: Path, text: str = TEXT, value: Value = near) -> None:
        self.search, self.value = parse_search(text), value
        self.folder = SearchFolder(root, self.search.name)
        self.told: list[str] = []

    def source(self, name: str, ranges: Path | None = None) -> StageSource:
        """What the stage samples, as a launch finds it now."""
        return find_source(
            self.search, self.folder, self.search.stage(name), ranges, self.told.append
        )

    def begin(self, name: str, ranges: Path | None = None) -> StageSource:
        """Freeze a stage, as its first launch does."""
        source, own = self.source(name, ranges), self.folder.stage(name)
        own.make()
        write_source(own, str(self.search.id), source)
        return source

    def before(self, stages: Sequence[Stage] | None = None) -> Before:
        """What the folder knows of these stages; without any, of all that have begun."""
        begun = [own for own in self.search.stages if self.folder.stage(own.name).ranges.exists()]
        return read_before(
            self.search, self.folder, begun if stages is None else stages, self.told.append
        )

    def ladder(self, name: str, holds_last: bool = False) -> Ladder:
        """The stage's ladder, built from its files alone."""
        stage, before = self.search.stage(name), self.before()
        for trial in configurations(self.search, stage, self.source(name), range(stage.trials)):
            before.standings.add(trial)
        for decision in before.decisions:
            before.standings.promote(decision)
        own = [decision for decision in before.decisions if decision.stage == name]
        return Ladder(stage, before.standings, own, self.write, holds_last)

    def write(self, known: Decision, trials: Sequence[str], complete: bool) -> Decision:
        return write_part(self.folder, str(self.search.id), known, trials, complete)

    def end(self, trial: Trial) -> Result:
        """Its attempt ends, and its record is written."""
        self.folder.stage(trial.stage).write_records([record_of(self.search, trial, self.value)])
        return result_of(trial, self.value)

    def run(
        self, name: str, order: random.Random | None = None, holds_last: bool = False
    ) -> Ladder:
        """Freeze a stage and train it to its end, in any order."""
        self.begin(name)
        ladder = self.ladder(name, holds_last)
        waiting = [*ladder.advance(), *ladder.standings.find_unfinished()]
        waiting = list({trial.id: trial for trial in waiting}.values())
        while waiting:
            trial = waiting.pop(order.randrange(len(waiting)) if order else 0)
            ladder.note(trial.id, self.end(trial))
            waiting += ladder.advance()
        return ladder

    def run_all(self) -> None:
        for stage in self.search.stages:
            self.run(stage.name)

    def promotions(self) -> dict[str, list[str]]:
        """Who went on where, by the files: in the order of the decisions, whatever their parts."""
        found = self.before().decisions
        return {f"{own.stage} {own.epochs:g}": sorted(own.trials) for own in found if own.complete}

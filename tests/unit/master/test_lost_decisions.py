"""Promotion files are lost while a stage runs.

Deciding again gives the same result, and nobody trains in vain.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from common.search.trial import Trial
from tests.unit.master.played import Played

LOSS, NEW_MASTER = 0.15, 0.2  # how likely, after each end


def run_losing_files(played: Played, name: str, draw: random.Random) -> None:
    """Trains a stage, in any order; files are lost, and masters begin anew from what is left."""
    played.begin(name)
    ladder = played.ladder(name)
    told: dict[
        str, Trial
    ] = {}  # what Redis has: each trial with the longest budget that it was ever told of
    waiting: list[str] = []

    def tell(trials: list[Trial]) -> None:
        for trial in trials:
            if trial.id not in told or told[trial.id].rung < trial.rung:
                told[trial.id] = trial
                waiting.append(trial.id)

    tell([*ladder.standings.find_unfinished(), *ladder.advance()])
    while waiting:
        trial = told[waiting.pop(draw.randrange(len(waiting)))]
        ladder.note(trial.id, played.end(trial))
        files = sorted(played.folder.stage(name).promotions.glob("*.json"))
        if files and draw.random() < LOSS:
            draw.choice(files).unlink()
        if draw.random() < NEW_MASTER:
            ladder = played.ladder(name)
        tell(ladder.advance())


def trained(played: Played) -> dict[str, tuple[float, ...]]:
    """The budgets that each trial was trained to."""
    records = [
        record
        for stage in played.search.stages
        for record in played.folder.stage(stage.name).records(print)
    ]
    return {record.trial: (*record.passed, record.budget_epochs) for record in records}


@pytest.mark.parametrize("seed", range(12))
def test_whoever_decides_again_comes_to_the_same(tmp_path: Path, seed: int) -> None:
    calm, losing = Played(tmp_path / "calm"), Played(tmp_path / "losing")
    calm.run_all()
    draw = random.Random(seed)
    for stage in losing.search.stages:
        run_losing_files(losing, stage.name, draw)
        losing.ladder(
            stage.name
        ).advance()  # the next launch, which decides what was lost after the last end
    assert trained(losing) == trained(calm)


def test_a_part_that_is_lost_stays_known_to_the_master_that_wrote_it(tmp_path: Path) -> None:
    played = Played(tmp_path)
    played.begin("coarse")
    ladder = played.ladder("coarse")
    files: list[Path] = []
    for trial in sorted(
        ladder.standings.find_unfinished(), key=lambda own: -(played.value(own) or 0.0)
    ):
        ladder.note(trial.id, played.end(trial))
        ladder.advance()
        new = sorted(played.folder.stage("coarse").promotions.glob("*.json"))
        for file in new:
            file.unlink()
        files += new
    n_promoted = sum(trial.rung > 0 for trial in ladder.standings.all_trials())
    assert len(files) > 1 and n_promoted == played.search.stage("coarse").plan.keep[1]

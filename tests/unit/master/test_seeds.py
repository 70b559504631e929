"""A stage that trains the best configuration of the stage before it again."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from common.errors import CheckpointError, ConfigError
from common.record import Record
from common.records import SearchFolder
from common.search import Search, Stage, parse_search
from common.space import Space
from master.borders import borders
from master.prepare import changed
from master.ranges import read_frozen, write_frozen
from master.sampling import configurations
from master.stage_ranges import stage_ranges
from master.summary import again_line, stage_end
from tests.unit.master.made import record

TEXT = """
name = "digits"
task = "digits"
[space]
learning_rate = { log_uniform = [1e-3, 1.0] }
hidden = { choice = [64, 128] }
depth = { int_uniform = [1, 3] }
batch_norm = true
[stages.coarse]
trials = 12
epochs = 1
[stages.again]
kind = "seeds"
trials = 5
epochs = 2
[stages.fine]
trials = 4
epochs = 8
"""
SEARCH = parse_search(TEXT)
CONFIGURATION = {"learning_rate": 0.12345678901234567, "hidden": 128, "depth": 2, "batch_norm": True}


@pytest.fixture
def folder(tmp_path: Path) -> SearchFolder:
    """A coarse stage that has ended; its best trial is number 7."""
    found = SearchFolder(tmp_path, "digits")
    stage = found.stage("coarse")
    stage.make()
    write_frozen(stage.ranges, SEARCH.space)
    stage.write_records(coarse())
    return found


def coarse(**best: object) -> list[Record]:
    others = [record(i, CONFIGURATION | {"learning_rate": 0.01 * (i + 1)}, val_acc=0.5) for i in range(12) if i != 7]
    return [*others, record(7, CONFIGURATION, **{"val_acc": 0.9, **best})]


def ranges(folder: SearchFolder, name: str, search: Search = SEARCH, file: Path | None = None) -> tuple[Space, str | None]:
    found = stage_ranges(search, folder, search.stage(name), file, print)
    return found.space, found.seeds_of


def frozen(folder: SearchFolder) -> Space:
    space, winner = ranges(folder, "again")
    folder.stage("again").make()
    write_frozen(folder.stage("again").ranges, space, winner)
    return space


def test_every_trial_has_the_best_configuration_and_its_own_seed(folder: SearchFolder) -> None:
    space, winner = ranges(folder, "again")
    assert winner == "coarse-0007"
    trials = configurations(SEARCH.seed, SEARCH.stage("again"), space, "random", range(5))
    assert all(trial.hyperparameters == CONFIGURATION for trial in trials)
    assert len({trial.seed for trial in trials}) == 5 and len({trial.group for trial in trials}) == 1
    assert {trial.epochs for trial in trials} == {2.0}
    assert configurations(SEARCH.seed, SEARCH.stage("again"), space, "sobol", range(2, 4)) == trials[2:4]  # a pure function still


def test_the_winner_is_that_of_the_search_s_metric(folder: SearchFolder) -> None:
    least = [*coarse(), record(12, CONFIGURATION | {"depth": 3}, val_acc=0.1)]
    records = [r.model_copy(update={"metric": "val_loss", "mode": "min", "value": 1 - (r.val_acc or 0)}) for r in least]
    stage = folder.stage("coarse")
    for path in stage.trials.iterdir():
        path.unlink()
    stage.write_records([r.model_copy(update={"value": r.index / 10 if r.index != 3 else -1.0}) for r in records])
    assert ranges(folder, "again")[1] == "coarse-0003"


def test_it_is_frozen_as_plain_values_with_the_winner_s_name(folder: SearchFolder) -> None:
    space = frozen(folder)
    path = folder.stage("again").ranges
    raw = tomllib.loads(path.read_text())
    assert raw == {"seeds_of": "coarse-0007", "ranges": CONFIGURATION}
    assert read_frozen(path, SEARCH.space) == space == ranges(folder, "again")[0]
    folder.stage("coarse").write_records([record(20, CONFIGURATION | {"depth": 3}, val_acc=1.0)])
    assert ranges(folder, "again")[0] == space  # the first launch counts, whatever ends later


def test_frozen_values_that_were_changed_are_told(folder: SearchFolder) -> None:
    frozen(folder)
    path = folder.stage("again").ranges
    text = path.read_text()
    for old, new, told in [("depth = 2\n", "", "has learning_rate"), ("depth = 2", "depth = { choice = [1, 2] }", "write a plain value")]:
        path.write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match=told):
            read_frozen(path, SEARCH.space)


def test_borders_have_nothing_to_say_of_it_and_the_spread_is_told(folder: SearchFolder) -> None:
    space = frozen(folder)
    records = [record(i, CONFIGURATION, trial=f"again-{i:04d}", stage="again", val_acc=0.9 + 0.01 * i) for i in range(5)]
    assert borders(records, space) == []
    text = drawn(stage_end(records, [], space, seeds=True, note=again_line(SEARCH.stage("again"), coarse()[-1])))
    assert "5 seeds of one configuration: val_acc 0.9200 on average, standard deviation 0.0158" in text
    assert "border" not in text
    assert "Stage again trains coarse-0007 again, 5 times from other initial weights." in text
    assert "One seed says nothing" in drawn(stage_end(records[:1], [], space, seeds=True))


def test_a_search_after_it_is_narrowed_by_the_last_stage_that_searched(folder: SearchFolder) -> None:
    frozen(folder)
    with pytest.raises(ConfigError, match="'again', has ended 0 of 5 trials"):
        ranges(folder, "fine")
    folder.stage("again").write_records([record(i, CONFIGURATION, trial=f"again-{i:04d}", stage="again", val_acc=0.9) for i in range(5)])
    space, winner = ranges(folder, "fine")
    assert winner is None and set(space.sampled) == {"learning_rate", "hidden", "depth"}
    assert space.numeric["learning_rate"].low < 0.01  # what coarse proposes for a longer stage, not a point


def test_what_cannot_be_repeated_is_refused(folder: SearchFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="repeats one configuration and samples no ranges"):
        ranges(folder, "again", file=tmp_path / "ranges.toml")
    for path in folder.stage("coarse").trials.iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "exploded"}))
    with pytest.raises(ConfigError, match="no trial of the stage before it, 'coarse', completed"):
        ranges(folder, "again")
    with pytest.raises(ConfigError, match=r"\[stages.again\] kind = \"seeds\".*move it below a stage that searches"):
        parse_search(TEXT.replace("[stages.coarse]\ntrials = 12\nepochs = 1\n", ""))


def test_a_launched_stage_keeps_its_kind(folder: SearchFolder) -> None:
    frozen(folder)
    other = parse_search(TEXT.replace('kind = "seeds"\n', "snapshots = 3\n"))
    lines = changed(SEARCH, other, folder)
    assert any("[stages.again] kind: 'seeds' -> 'search'" in line for line in lines)
    assert any("[stages.again] snapshots: 0 -> 3" in line for line in lines)


def test_stages_know_the_last_that_searched() -> None:
    assert SEARCH.searched_before("fine") == SEARCH.stage("coarse") == SEARCH.searched_before("again")
    assert SEARCH.searched_before("coarse") is None
    assert isinstance(SEARCH.stages[1], Stage)


def drawn(renderable: object) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()

"""Stages of kind "seeds" and "confirm", which train the best earlier configurations again."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from common.errors import CheckpointError, ConfigError
from common.folder.record import Record
from common.folder.records import SearchFolder
from common.search.search_file import Search, parse_search
from common.search.stage import Stage
from common.search.trial import Trial
from master.report.kinds import REPORTS
from master.report.lines import Ended
from master.report.summary import stage_end
from master.stages.prepare import find_changes
from master.stages.sampling import configurations
from master.stages.source import (
    Repeat,
    StageSource,
    find_source,
    first_source,
    read_source,
    write_source,
)
from master.strategy.borders import borders
from master.strategy.ranges import read_frozen, write_frozen
from tests.unit.master.made import ID, record

TEXT = f"""
id = "{ID}"
protocol = 2
name = "digits"
task = "digits"
[space]
learning_rate = {{ log_uniform = [1e-3, 1.0] }}
hidden = {{ choice = [64, 128] }}
depth = {{ int_uniform = [1, 3] }}
batch_norm = true
[stages.coarse]
trials = 12
epochs = 1
[stages.again]
kind = "seeds"
trials = 5
epochs = 2
[stages.sure]
kind = "confirm"
epochs = 2
best = 3
seeds = 2
[stages.fine]
trials = 4
epochs = 8
"""
SEARCH = parse_search(TEXT)
CONFIGURATION = {
    "learning_rate": 0.12345678901234567,
    "hidden": 128,
    "depth": 2,
    "batch_norm": True,
}


@pytest.fixture
def folder(tmp_path: Path) -> SearchFolder:
    """A coarse stage that has ended; its best trial is number 7."""
    found = SearchFolder(tmp_path, "digits")
    stage = found.stage("coarse")
    stage.make()
    write_source(stage, ID, first_source(SEARCH))
    stage.write_records(coarse())
    return found


def coarse(**best: object) -> list[Record]:
    others = [
        record(i, CONFIGURATION | {"learning_rate": 0.01 * (i + 1)}, val_acc=0.5 + 0.01 * i)
        for i in range(12)
        if i != 7
    ]
    return [*others, record(7, CONFIGURATION, **{"val_acc": 0.9, **best})]


def source(
    folder: SearchFolder, name: str, search: Search = SEARCH, file: Path | None = None
) -> StageSource:
    return find_source(search, folder, search.stage(name), file, print)


def trials(found: StageSource, name: str = "again", indices: range = range(5)) -> list[Trial]:
    return configurations(SEARCH, SEARCH.stage(name), found, indices)


def frozen(folder: SearchFolder, name: str = "again") -> StageSource:
    found = source(folder, name)
    folder.stage(name).make()
    write_source(folder.stage(name), ID, found)
    return found


def ended(folder: SearchFolder, name: str) -> list[Record]:
    """Freeze the stage and end all of its trials."""
    made = trials(frozen(folder, name), name, range(SEARCH.stage(name).trials))
    records = [
        record(
            t.index,
            t.hyperparameters,
            trial=t.id,
            stage=name,
            val_acc=0.9 + 0.01 * t.index,
            parents=t.parents,
            budget_epochs=2.0,
        )
        for t in made
    ]
    folder.stage(name).write_records(records)
    return records


def test_every_trial_has_the_best_configuration_and_its_own_seed(folder: SearchFolder) -> None:
    found = source(folder, "again")
    assert found.repeats == (Repeat("coarse-0007", CONFIGURATION),)
    made = trials(found)
    assert all(trial.hyperparameters == CONFIGURATION for trial in made)
    assert len({trial.seed for trial in made}) == 5 and len({trial.group for trial in made}) == 1
    assert {trial.epochs for trial in made} == {2.0}
    assert {(trial.drawn, trial.parents) for trial in made} == {("repeat", ("coarse-0007",))}
    assert trials(found, indices=range(2, 4)) == made[2:4]  # a pure function still


def test_the_winner_is_that_of_the_search_s_metric(folder: SearchFolder) -> None:
    least = [*coarse(), record(12, CONFIGURATION | {"depth": 3}, val_acc=0.1)]
    records = [
        r.model_copy(update={"metric": "val_loss", "mode": "min", "value": 1 - (r.val_acc or 0)})
        for r in least
    ]
    stage = folder.stage("coarse")
    for path in stage.trials.iterdir():
        path.unlink()
    stage.write_records(
        [r.model_copy(update={"value": r.index / 10 if r.index != 3 else -1.0}) for r in records]
    )
    assert [own.trial for own in source(folder, "again").repeats] == ["coarse-0003"]


def test_the_longest_trained_wins_whatever_a_short_training_reached(folder: SearchFolder) -> None:
    promoted = record(
        4, CONFIGURATION | {"depth": 1}, val_acc=0.6, budget_epochs=7.0, passed=(1.0,), attempt=2
    )
    folder.stage("coarse").write_records([promoted])
    assert [own.trial for own in source(folder, "again").repeats] == ["coarse-0004"]


def test_it_is_frozen_as_plain_values_with_the_winner_s_name(folder: SearchFolder) -> None:
    found = frozen(folder)
    path = folder.stage("again").ranges
    raw = tomllib.loads(path.read_text())
    assert raw == {"repeats": ["coarse-0007"], "ranges": CONFIGURATION}
    assert read_frozen(path, SEARCH.space) == found.space == source(folder, "again").space
    assert read_source(SEARCH, folder.stage("again")) == found
    folder.stage("coarse").write_records([record(20, CONFIGURATION | {"depth": 3}, val_acc=1.0)])
    assert source(folder, "again") == found  # the first launch counts, whatever ends later


def test_frozen_values_that_were_changed_are_told(folder: SearchFolder) -> None:
    frozen(folder)
    path = folder.stage("again").ranges
    text = path.read_text()
    for old, new, told in [
        ("depth = 2\n", "", "has learning_rate"),
        ("depth = 2", "depth = { choice = [1, 2] }", "write a plain value"),
    ]:
        path.write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match=told):
            read_frozen(path, SEARCH.space)
        with pytest.raises(CheckpointError, match=told):
            source(folder, "again")


def test_borders_have_nothing_to_say_of_it_and_the_spread_is_told(folder: SearchFolder) -> None:
    found = frozen(folder)
    stage = SEARCH.stage("again")
    records = [
        record(i, CONFIGURATION, trial=f"again-{i:04d}", stage="again", val_acc=0.9 + 0.01 * i)
        for i in range(5)
    ]
    assert borders(records, found.space) == []
    text = drawn(
        stage_end(
            Ended(SEARCH, stage, records, coarse(), [], found.space),
            note=REPORTS[stage.kind].describe_plan(stage, coarse()[-1].trial),
        )
    )
    assert (
        "5 seeds of one configuration: val_acc 0.9200 on average, standard deviation 0.0158" in text
    )
    assert "border" not in text
    assert "Stage again trains coarse-0007 again, 5 times from other initial weights." in text
    assert "One seed does not measure luck; run more." in drawn(
        stage_end(Ended(SEARCH, stage, records[:1], coarse(), [], found.space))
    )


def test_a_stage_that_confirms_trains_each_of_the_best_under_as_many_seeds(
    folder: SearchFolder,
) -> None:
    ended(folder, "again")  # better still, but no configuration of its own
    found = source(folder, "sure")
    assert [own.trial for own in found.repeats] == ["coarse-0007", "coarse-0011", "coarse-0010"]
    made = trials(found, "sure", range(6))
    assert [trial.parents for trial in made] == [
        (name,) for name in ("coarse-0007", "coarse-0011", "coarse-0010") for _ in range(2)
    ]
    assert [trial.hyperparameters["learning_rate"] for trial in made] == pytest.approx(
        [CONFIGURATION["learning_rate"]] * 2 + [0.12] * 2 + [0.11] * 2
    )
    assert len({trial.seed for trial in made}) == 6
    frozen(folder, "sure")
    assert source(folder, "sure") == found
    assert tomllib.loads(folder.stage("sure").ranges.read_text())["repeats"] == [
        "coarse-0007",
        "coarse-0011",
        "coarse-0010",
    ]
    assert (
        str(REPORTS["confirm"].describe_plan(SEARCH.stage("sure"), coarse()[0].trial))
        == "Stage sure trains the best 3 again, under 2 new seeds each."
    )


def test_where_fewer_completed_than_are_to_be_confirmed_their_seeds_are_shared_out(
    folder: SearchFolder,
) -> None:
    for path in folder.stage("coarse").trials.iterdir():
        if "0007" not in path.name and "0011" not in path.name:
            path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "exploded"}))
    ended(folder, "again")
    made = trials(source(folder, "sure"), "sure", range(6))
    assert Counter(trial.parents[0] for trial in made) == {"coarse-0007": 3, "coarse-0011": 3}


def test_a_search_after_it_is_bred_from_the_stages_that_searched(folder: SearchFolder) -> None:
    frozen(folder)
    with pytest.raises(ConfigError, match="'again', has ended 0 of 5 trials"):
        source(folder, "fine")
    ended(folder, "again")
    ended(folder, "sure")
    found = source(folder, "fine")
    assert not found.repeats and set(found.space.sampled) == {"learning_rate", "hidden", "depth"}
    assert found.space == SEARCH.space  # what coarse proposes, not a point
    assert found.frozen is not None
    known = [*found.frozen.parents, *found.frozen.good, *found.frozen.bad]
    assert found.frozen.parents[0].trial == "coarse-0007" and {
        own.trial.partition("-")[0] for own in known
    } == {"coarse"}


@pytest.mark.parametrize("name", ["again", "sure"])
def test_what_cannot_be_repeated_is_refused(
    folder: SearchFolder, tmp_path: Path, name: str
) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            rf"--ranges .*stage '{name}' trains configurations of earlier stages again and "
            r"samples no ranges"
        ),
    ):
        source(folder, name, file=tmp_path / "ranges.toml")
    for path in folder.stage("coarse").trials.iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "exploded"}))
    search = (
        parse_search(
            TEXT.replace("[stages.again]", "[stages.x]").replace("[stages.sure]", "[stages.again]")
        )
        if name == "sure"
        else SEARCH
    )
    with pytest.raises(ConfigError, match="no trial of the stages before it completed"):
        source(folder, search.stages[1].name, search)
    with pytest.raises(
        ConfigError, match=r"\[stages.again\] kind = \"seeds\".*move it below a stage that searches"
    ):
        parse_search(TEXT.replace("[stages.coarse]\ntrials = 12\nepochs = 1\n", ""))


def test_a_launched_stage_keeps_its_kind(folder: SearchFolder) -> None:
    frozen(folder)
    other = parse_search(TEXT.replace('kind = "seeds"\n', "snapshots = 3\n"))
    lines = find_changes(SEARCH, other, folder)
    assert any("[stages.again] kind: 'seeds' -> 'search'" in line for line in lines)
    assert any("[stages.again] snapshots: 0 -> 3" in line for line in lines)


def test_a_launched_stage_keeps_what_it_confirms(folder: SearchFolder) -> None:
    ended(folder, "again")
    frozen(folder, "sure")
    lines = find_changes(
        SEARCH, parse_search(TEXT.replace("best = 3\nseeds = 2", "best = 2\nseeds = 3")), folder
    )
    assert lines == ["[stages.sure] best: 3 -> 2", "[stages.sure] seeds: 2 -> 3"]


def test_stages_know_the_last_that_searched() -> None:
    assert (
        SEARCH.find_searched_before("fine")
        == SEARCH.stage("coarse")
        == SEARCH.find_searched_before("again")
    )
    assert SEARCH.find_searched_before("coarse") is None
    assert isinstance(SEARCH.stages[1], Stage)


def test_ranges_of_a_stage_that_repeats_say_so(tmp_path: Path) -> None:
    write_frozen(
        tmp_path / "ranges.toml", first_source(SEARCH).space, ["coarse-0007", "coarse-0001"]
    )
    assert (
        "This stage trains the configurations of coarse-0007, coarse-0001 again"
        in (tmp_path / "ranges.toml").read_text()
    )


def drawn(renderable: object) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()

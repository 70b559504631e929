"""Options that are lists or tables, and absent values, in all that shows a configuration."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from pathlib import Path

import optuna
import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console

from common.folder.record import Record
from common.folder.records import SearchFolder
from common.search.parameters import Fixed
from common.search.search_file import parse_search
from common.search.space import Space
from common.search.trial import trial_id
from master.cli import cli
from master.dashboard.filtering import select
from master.dashboard.views.trial_page import as_toml
from master.figures.catalogue import Material, draw
from master.figures.names import FIGURES
from master.figures.table import table
from master.results import ranking
from master.stages.asked import read_asked, write_asked
from master.strategy.drawing import Drawn
from master.strategy.ranges import write_frozen
from tests.unit.master.made import record, sampled

LAYERS = [[64, 64], [128], [], {"kind": "deep", "units": [8, 4]}]
TEXT = """
id = "0123456789abcdef"
protocol = 2
name = "made"
task = "mine.py:Mine"
[space]
rate = { uniform = [0.0, 0.8], step = 0.1 }
guess = { normal = [3.0, 0.5] }
layers = { choice = [[64, 64], [128], [], { kind = "deep", units = [8, 4] }] }
kernel = { fixed = [3, 3] }
extra = { uniform = [0.0, 1.0], when = "layers == [128]" }
word = { choice = ["a", "b"], when = "layers == [128] and extra > 0.5" }
[stages.coarse]
trials = 40
epochs = 1
[stages.sure]
kind = "confirm"
best = 1
seeds = 1
epochs = 1
"""
SEARCH = parse_search(TEXT)
RECORDS = sampled(SEARCH.space, lambda h: 0.5 + 0.05 * LAYERS.index(h["layers"]), n=40)
FRAME = ranking.frame(RECORDS)
PLAIN = ranking.rows(FRAME, ())


def test_records_and_what_a_sampler_was_asked_read_back(tmp_path: Path) -> None:
    for one in RECORDS:
        assert Record.model_validate_json(one.model_dump_json()) == one
    folder = SearchFolder(tmp_path, "made").stage("coarse")
    drawn = [Drawn(one.hyperparameters, "suggested") for one in RECORDS[:5]]
    assert write_asked(folder, "0" * 16, 0, drawn) == drawn == read_asked(folder, "0" * 16)


def test_trials_of_equal_lists_are_one_group_whatever_the_order_of_the_keys() -> None:
    groups = {one.group for one in RECORDS}
    assert len(groups) == len(LAYERS) + 2  # of [128]: with either word, and without one
    turned = {"units": [8, 4], "kind": "deep"}
    assert SEARCH.space.group({"layers": turned}) in groups


def test_every_table_shows_them_as_json() -> None:
    rows = list(csv.DictReader(io.StringIO(ranking.csv(FRAME, ()))))
    assert {row["layers"] for row in rows} == {json.dumps(one) for one in LAYERS}
    assert {row["kernel"] for row in rows} == {"[3, 3]"}
    assert all((row["extra"] != "") == (row["layers"] == "[128]") for row in rows)
    assert "| [64, 64] |" in ranking.markdown(FRAME, ())
    assert json.loads(ranking.as_json(FRAME, ()))[0]["hyperparameters"]["layers"] == LAYERS[-1]
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(ranking.table(FRAME, width=100))
    assert '{"kind": "deep", "units": [8, 4]}' in console.export_text().replace("\n", "")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("layers=[64,64]", [64, 64]),
        ("coarse layers=[64, 64] coarse", [64, 64]),
        ('layers={"kind":"deep","units":[8,4]}', LAYERS[3]),
        ('layers={"units": [8, 4], "kind": "deep"}', LAYERS[3]),
    ],
)
def test_the_dashboard_filters_and_sorts_by_them(text: str, wanted: object) -> None:
    found = select(PLAIN, text)
    assert found and all(row["hyperparameters"]["layers"] == wanted for row in found)
    ordered = select(PLAIN, sort="layers")
    assert len(ordered) == len(PLAIN)


def test_a_filter_finds_options_with_spaces_and_stands_what_is_half_typed() -> None:
    rows = [{**row, "hyperparameters": {"optimizer": "adam w"}} for row in PLAIN[:2]]
    assert select(rows, 'optimizer="adam w"') == rows and not select(rows, 'optimizer!="adam w"')
    for text in ('optimizer="adam', "optimizer=[64, ", 'optimizer={"a": ', 'optimizer="', "]"):
        assert select(rows, text) == []


def test_the_dashboard_sorts_trials_that_lack_a_hyperparameter_last() -> None:
    ordered = [row["hyperparameters"].get("extra") for row in select(PLAIN, sort="extra")]
    n = sum(value is not None for value in ordered)
    assert 0 < n < len(ordered) and ordered[n:] == [None] * (len(ordered) - n)
    assert ordered[:n] == sorted(ordered[:n])
    assert len(select(PLAIN, "extra>=0")) == n


def test_a_configuration_is_told_as_a_space_that_can_be_read() -> None:
    for one in RECORDS[:8]:
        space = Space.parse(tomllib.loads(as_toml(one.hyperparameters))["space"])
        assert {n: p.from_unit(0.0) for n, p in space.parameters.items()} == one.hyperparameters


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("some_have_all", [True, False])
def test_every_figure_is_drawn(name: str, some_have_all: bool) -> None:
    records = [r for r in RECORDS if some_have_all or "extra" not in r.hyperparameters]
    trials, spaces = table(records), {"coarse": SEARCH.space}
    figure = draw(name, Material("coarse", trials, trials, trials, spaces, spaces))
    assert figure.to_json()
    if name == "parallel" and some_have_all:
        shown = {str(one.text) for one in figure.layout.annotations}
        assert {json.dumps(one) for one in LAYERS} <= shown


def export(root: Path, form: str, out: str, *more: str) -> None:
    common = ["--checkpoints", str(root), "--redis", "redis://127.0.0.1:1/0", "--search", "made"]
    result = CliRunner().invoke(cli, ["export", *common, "--format", form, "--out", out, *more])
    assert result.exit_code == 0, result.output


def test_every_export_takes_them(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path, "made")
    folder.stage("coarse").make()
    records = [
        record(
            i,
            one.hyperparameters,
            search_id=SEARCH.id,
            trial=trial_id("coarse", i),
            val_acc=one.val_acc,
            value=one.val_acc,
        )
        for i, one in enumerate(RECORDS)
    ]
    folder.stage("coarse").write_records(records)
    write_frozen(folder.stage("coarse").ranges, SEARCH.space)
    again = next(one.hyperparameters for one in RECORDS if "extra" not in one.hyperparameters)
    folder.stage("sure").make()
    own = {"search_id": SEARCH.id, "stage": "sure", "trial": "sure-0000", "val_acc": 0.5}
    folder.stage("sure").write_records([record(0, again, **own)])
    fixed = Space({name: Fixed(value) for name, value in again.items()})
    write_frozen(folder.stage("sure").ranges, fixed, ["coarse-0000"])
    folder.search_file.write_text(TEXT)
    export(tmp_path, "csv", str(tmp_path / "t.csv"))
    export(tmp_path, "parquet", str(tmp_path / "t.parquet"))
    export(tmp_path, "tensorboard", str(tmp_path / "events"))
    texts = {json.dumps(one) for one in LAYERS}
    assert set(pd.read_csv(tmp_path / "t.csv")["layers"]) == texts
    assert set(pd.read_parquet(tmp_path / "t.parquet")["layers"]) == texts
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    export(tmp_path, "optuna", storage, "--stage", "coarse")
    study = optuna.load_study(storage=storage, study_name=None)
    assert {trial.params["layers"] for trial in study.trials} == texts
    assert all({"rate", "guess", "layers"} <= trial.params.keys() for trial in study.trials)
    told = [("extra" in trial.params, trial.params["layers"]) for trial in study.trials]
    assert all(has == (layers == "[128]") for has, layers in told)
    assert study.trials[0].distributions["rate"].step == 0.1

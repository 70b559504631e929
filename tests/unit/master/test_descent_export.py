"""Exports carry budgets, promotions, how a configuration was drawn, and its parents."""

from __future__ import annotations

from pathlib import Path

import optuna
import pandas as pd
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState as State
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from common.folder.record import Record
from master.cli import cli
from master.results import ranking
from tests.unit.master.played import TEXT, Played

TEXT = TEXT.replace('task = "mine.py:Mine"', 'task = "digits"')


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    made = Played(tmp_path_factory.mktemp("checkpoints"), TEXT)
    made.run_all()
    made.folder.search_file.write_text(TEXT)
    return made


def exported(played: Played, form: str, out: Path) -> Path:
    where = ["--checkpoints", str(played.folder.root), "--search", played.search.name]
    done = CliRunner().invoke(cli, ["export", *where, "--format", form, "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


def records(played: Played) -> dict[str, Record]:
    found = [
        own
        for stage in played.search.stages
        for own in played.folder.stage(stage.name).records(pytest.fail)
    ]
    return {own.trial: own for own in found}


@pytest.mark.parametrize(("form", "read"), [("csv", pd.read_csv), ("parquet", pd.read_parquet)])
def test_a_row_has_the_budget_the_promotions_and_the_parents(
    played: Played, tmp_path: Path, form: str, read: object
) -> None:
    rows = read(  # type: ignore[operator]
        exported(played, form, tmp_path / f"t.{form}"),
    ).set_index("trial")
    known = records(played)
    assert set(rows.index) == set(known)  # one row a trial: shorter budgets are its history
    for trial, record in known.items():
        row = rows.loc[trial]
        assert (row["budget_epochs"], row["max_epochs"], row["rung"], row["drawn"]) == (
            record.budget_epochs,
            9.0,
            record.rung,
            record.drawn,
        )
        assert (row["parents"].split() if isinstance(row["parents"], str) else []) == list(
            record.parents
        )
    assert rows["rung"].max() > 0 and rows["parents"].notna().any()


def test_optuna_s_best_is_the_ranking_s_and_what_was_not_promoted_is_pruned(
    played: Played, tmp_path: Path
) -> None:
    path = exported(played, "optuna", tmp_path / "s.db")
    known = records(played)
    for stage in played.search.stages:
        study = optuna.load_study(study_name=f"digits-{stage.name}", storage=f"sqlite:///{path}")
        own = [record for record in known.values() if record.stage == stage.name]
        best = ranking.best(own, 1)[0]
        assert study.best_trial.user_attrs["trial"] == best.trial
        budgets = {
            trial.user_attrs["budget_epochs"]
            for trial in study.trials
            if trial.state is State.COMPLETE
        }
        assert budgets == {best.budget_epochs}
        for trial in study.trials:
            record = known[trial.user_attrs["trial"]]
            assert (trial.user_attrs["rung"], trial.user_attrs.get("parents", [])) == (
                record.rung,
                list(record.parents),
            )
            assert len(trial.intermediate_values) == len(
                record.curves["epoch"]
            )  # a value at each rung


def test_tensorboard_says_it_in_words(played: Played, tmp_path: Path) -> None:
    best = ranking.best([own for own in records(played).values() if own.parents and own.rung], 1)[0]
    events = EventAccumulator(str(exported(played, "tensorboard", tmp_path / "tb") / best.trial))
    events.Reload()
    text = make_ndarray(events.Tensors("trial")[0].tensor_proto)[0].decode()
    assert (
        f"    budget: {best.budget_epochs:g} " in text
        and "promoted" in text
        and ", ".join(best.parents) in text
    )

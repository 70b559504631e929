"""A search's folder as a user of pandas reads it: trials, curves, the best, figures, errors."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

import coarsefine as cf
from common.folder.checkpoint_name import CheckpointName
from common.folder.record import Diagnosis
from master.figures.names import FIGURES
from master.results import ranking
from master.scripting.loaded import Search
from tests.unit.master.made import ID, record
from tests.unit.master.played import TEXT, Played, record_of


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """The first stage has ended: promotions, explosions, curves, and weights of the best."""
    made = Played(tmp_path_factory.mktemp("checkpoints"))
    made.folder.path.mkdir(parents=True)
    made.folder.search_file.write_text(TEXT)
    made.run(made.search.stages[0].name)
    return made


@pytest.fixture
def loaded(played: Played) -> Search:
    return cf.load(played.folder.path)


def test_trials_are_ranked_as_the_command_ranks_them(played: Played, loaded: Search) -> None:
    records = played.folder.stage("coarse").records(pytest.fail)
    trials = loaded.trials()
    assert list(trials["trial"]) == [r.trial for r in ranking.rank(records)]
    assert list(trials["rank"]) == list(range(1, len(records) + 1))
    assert set(trials["state"]) == {"completed", "exploded"}
    assert list(trials.index) == list(range(len(records)))


def test_columns_have_the_dtypes_that_the_page_says(loaded: Search) -> None:
    dtypes = loaded.trials().dtypes
    for name in ("rank", "rung", "attempt", "seed", "array_width", "hidden"):
        assert dtypes[name] == "int64", name
    for name in ("value", "val_acc", "val_loss", "epochs", "seconds", "learning_rate", "dropout"):
        assert dtypes[name] == "float64", name
    assert dtypes["batch_norm"] == "bool"
    assert isinstance(dtypes["ended_at"], pd.DatetimeTZDtype)
    for name in ("trial", "stage", "state", "drawn"):
        assert pd.api.types.is_string_dtype(dtypes[name]), name


def test_configurations_and_outcomes_are_those_of_the_records(
    played: Played, loaded: Search
) -> None:
    known = {r.trial: r for r in played.folder.stage("coarse").records(pytest.fail)}
    for row in loaded.trials().to_dict("records"):
        own = known[row["trial"]]
        assert {name: row[name] for name in own.hyperparameters} == own.hyperparameters
        assert row["value"] == own.value or (math.isnan(row["value"]) and own.value is None)
        assert (row["attempt"], row["rung"]) == (own.attempt, own.rung)


def test_curves_are_a_column_or_a_long_frame(played: Played, loaded: Search) -> None:
    assert "curves" not in loaded.trials().columns
    best = loaded.trials(curves=True).iloc[0]
    own = played.folder.stage("coarse").record(best["trial"], int(best["attempt"]))
    assert own is not None
    assert list(best["curves"].index) == own.curves["epoch"]
    assert list(best["curves"]["val_acc"]) == own.curves["val_acc"]
    long = loaded.curves(best["trial"])
    assert list(long["epoch"]) == own.curves["epoch"]
    assert set(long["trial"]) == {best["trial"]} and list(long["evaluation"]) == list(
        range(1, len(long) + 1)
    )
    assert set(loaded.curves()["trial"]) == {
        r.trial for r in played.folder.stage("coarse").records(pytest.fail) if r.curves["epoch"]
    }


def test_the_best_says_where_its_weights_are(tmp_path: Path) -> None:
    made = Played(tmp_path)
    stage = made.folder.stage("coarse")
    made.begin("coarse")
    made.folder.search_file.write_text(TEXT)
    (trial, *_) = made.ladder("coarse").standings.find_unfinished()
    name = CheckpointName(0.9, trial.id, 1, 1)
    word = Diagnosis(word="good", sentence="It is good.")
    own = record_of(made.search, trial, lambda _: 0.9).model_copy(
        update={"checkpoint": str(name), "diagnosis": word, "metrics": {"val_f1": 0.8}}
    )
    stage.write_records([own])
    loaded = cf.load(tmp_path / "digits")
    assert loaded.best.checkpoint is None  # its file is not there
    (stage.path / str(name)).touch()
    best = loaded.best
    assert best.checkpoint == stage.path / str(name)
    assert (best.trial, best.stage, best.value, best.metric) == (trial.id, "coarse", 0.9, "val_acc")
    assert best.hyperparameters == trial.hyperparameters
    assert best.metrics == {"val_acc": 0.9, "val_loss": pytest.approx(0.1), "val_f1": 0.8}
    assert (best.diagnosis, best.epochs) == ("good", own.epochs)
    row = loaded.trials().iloc[0]
    assert (row["checkpoint"], row["diagnosis"]) == (str(best.checkpoint), "good")
    assert "best val_acc 0.9000" in repr(loaded)


def test_stages_say_what_is_planned_and_what_has_ended(played: Played, loaded: Search) -> None:
    stages = loaded.stages
    assert list(stages.index) == [stage.name for stage in played.search.stages]
    coarse = stages.loc["coarse"]
    records = played.folder.stage("coarse").records(pytest.fail)
    assert coarse["completed"] + coarse["exploded"] == len(records) == coarse["trials"]
    assert coarse["best_trial"] == loaded.best.trial and coarse["best"] == loaded.best.value
    assert bool(coarse["launched"]) and not stages["launched"].iloc[-1]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_plotted(loaded: Search, name: str) -> None:
    assert isinstance(loaded.plot(name), go.Figure)


def test_a_figure_shows_the_chosen_trials(loaded: Search) -> None:
    trial = loaded.best.trial
    assert trial in loaded.plot("accuracies", trial).to_json()
    with pytest.raises(cf.SearchError, match=r"coarse-9999: no trial of stage 'coarse'"):
        loaded.plot("accuracies", "coarse-9999")
    with pytest.raises(cf.SearchError, match=r"shows all trials; leave it out"):
        loaded.plot("rungs", trial)


def test_a_search_that_runs_is_read_anew_at_each_call(tmp_path: Path) -> None:
    made = Played(tmp_path)
    made.folder.path.mkdir(parents=True)
    made.folder.search_file.write_text(TEXT)
    loaded = cf.load(tmp_path / "digits")
    assert len(loaded.trials()) == 0 and "trial" in loaded.trials().columns
    assert len(loaded.curves()) == 0 and "0 trials have ended" in repr(loaded)
    made.begin("coarse")
    assert len(loaded.trials()) == 0 and loaded.stages["completed"].iloc[0] == 0
    made.folder.stage("coarse").write_records([record(0, {"learning_rate": 0.1}, val_acc=0.5)])
    assert list(loaded.trials()["trial"]) == ["coarse-0000"]


def test_no_trial_that_ended_well_is_told(tmp_path: Path) -> None:
    made = Played(tmp_path)
    made.folder.path.mkdir(parents=True)
    made.folder.search_file.write_text(TEXT)
    loaded = cf.load(tmp_path / "digits")
    with pytest.raises(cf.SearchError, match=r"no trial has ended well yet \(0 have ended\)"):
        _ = loaded.best
    with pytest.raises(cf.SearchError, match=r"has not been launched"):
        loaded.plot("rungs")


def test_wrong_names_are_told_with_what_there_is(loaded: Search) -> None:
    with pytest.raises(cf.SearchError, match=r"'pie' is no figure; there are\n  hyperparameters"):
        loaded.plot("pie")
    with pytest.raises(cf.SearchError, match=r"--stage middling: no such stage .* use one of"):
        loaded.trials("middling")
    with pytest.raises(cf.SearchError, match=r"'coarse-9999': no trial of that name has ended"):
        loaded.curves("coarse-9999")


def test_a_folder_without_a_search_is_told(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = played.folder.root
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path))  # of this checkout, it may hold searches
    with pytest.raises(cf.SearchError, match=r"no such folder; give the folder of a search"):
        cf.load(tmp_path / "nowhere")
    with pytest.raises(cf.SearchError, match=rf"holds no search .* load one of {root}/digits"):
        cf.load(root)
    monkeypatch.setenv("CHECKPOINT_DIR", str(root))
    with pytest.raises(cf.SearchError, match=rf"^mnist: no such folder; load one of {root}/digits"):
        cf.load("mnist")
    assert cf.load("digits").path == root / "digits"


def test_a_damaged_record_is_a_warning(tmp_path: Path) -> None:
    made = Played(tmp_path)
    made.begin("coarse")
    made.folder.search_file.write_text(TEXT.replace("0123456789abcdef", ID))
    (made.folder.stage("coarse").trials / "coarse-0000-try=1.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged record"):
        assert len(cf.load(tmp_path / "digits").trials()) == 0

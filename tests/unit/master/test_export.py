from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState as State
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler
from tensorboard.util.tensor_util import make_ndarray

from common.folder.record import Record
from common.folder.records import SearchFolder
from common.search.search_file import Search, parse_search
from common.search.trial import NO_PROGRESS, TrialState, trial_id
from master.cli import cli
from master.results import ranking
from master.strategy.ranges import write_frozen
from tests.unit.master.made import record

SEARCH = """
id = "0123456789abcdef"
protocol = 2
name = "made"
task = "digits"
[space]
learning_rate = { log_uniform = [1e-6, 1e1] }
dropout = { uniform = [0.0, 0.8] }
hidden = { log_int_uniform = [16, 256] }
depth = { int_uniform = [1, 4] }
batch_size = { choice = [16, 64] }
optimizer = { choice = ["sgd", "adam"] }
nesterov = { choice = [true, false] }
momentum = 0.9
[stages.coarse]
trials = 20
epochs = 3
[stages.fine]
trials = 6
epochs = 0.5
"""
OWN = {
    "learning_rate": 0.0123456789012345678,
    "dropout": 0.25,
    "hidden": 64,
    "depth": 2,
    "batch_size": 16,
    "optimizer": "sgd",
}
HYPERPARAMETERS = OWN | {"nesterov": True, "momentum": 0.9}
CURVES = {
    "epoch": [1.0, 2.0, 3.0],
    "train_loss": [2.0, 1.0, 0.5],
    "val_acc": [0.5, 0.9, 0.8],
    "val_loss": [2.1, 0.7, 0.9],
    "dead.1": [0.0, 0.1, 0.2],
}
ODD_CURVES = {"epoch": [1.0], "train_loss": [math.inf], "val_loss": [math.nan], "val_acc": [None]}
REASON = 'said "no", then\nleft; ünïcode, =1+1'
ENDED_AT = 1_700_000_000.25
BEST = 4


def made(index: int, stage: str = "coarse", /, **more: object) -> Record:
    usual: dict[str, object] = {
        "search_id": "0123456789abcdef", "trial": trial_id(stage, index), "stage": stage,
        "budget_epochs": 3.0, "epochs": 3.0,
        "best_epoch": 2.0, "val_acc": 0.9, "val_loss": 0.7, "value": 0.9,
        "metrics": {"val_acc": 0.9, "val_loss": 0.7, "val_f1": 0.85},
        "curves": CURVES, "seconds": 10.0, "ended_at": ENDED_AT, "worker": "w-1", "device": "cpu",
    }  # fmt: skip
    hyperparameters: Any = more.pop("hyperparameters", HYPERPARAMETERS | {"depth": 1 + index % 4})
    return record(index, hyperparameters, **usual | more)


def unmeasured(index: int, state: TrialState, reason: str, **more: object) -> Record:
    nothing: dict[str, object] = {
        "val_acc": None,
        "val_loss": None,
        "value": None,
        "metrics": {},
        "best_epoch": None,
    }
    return made(index, **nothing | {"state": state, "reason": reason, "curves": {}} | more)


RECORDS = [
    made(0, diagnosis={"word": "good", "sentence": 'It is good, "really".'}, checkpoint="gone.pt"),
    unmeasured(1, TrialState.EXPLODED, "loss inf", curves=ODD_CURVES),
    unmeasured(2, TrialState.FAILED, REASON),
    unmeasured(3, TrialState.KILLED, "by the user", ended_at=math.inf, seconds=math.inf),
    made(
        BEST,
        state=TrialState.STOPPED,
        reason=f"{NO_PROGRESS} for 2 epochs",
        val_acc=0.95,
        value=0.95,
        metrics={"val_acc": 0.95},
    ),
    made(
        5,
        state=TrialState.STOPPED,
        reason="no better than chance",
        val_acc=0.1,
        value=0.1,
        val_loss=math.inf,
        metrics={},
    ),
    made(6, val_acc=math.nan, value=math.nan, val_loss=None, metrics={"val_f1": math.inf}),
]
FINE = [
    made(
        0,
        "fine",
        curves={"epoch": [0.25, 0.5], "val_acc": [0.3, 0.4]},
        epochs=0.5,
        best_epoch=0.5,
        budget_epochs=0.5,
    )
]


def place(root: Path, text: str = SEARCH) -> Path:
    """Make a folder as a search leaves it.

    One stage has every kind of end, and one evaluates within its only epoch.
    """
    search, folder = parse_search(text), SearchFolder(root, "made")
    for name, records in (("coarse", RECORDS), ("fine", FINE)):
        add(folder, search, name, records)
    folder.search_file.write_text(text)
    return root


def add(folder: SearchFolder, search: Search, stage: str, records: list[Record]) -> None:
    folder.stage(stage).make()
    folder.stage(stage).write_records(records)
    write_frozen(folder.stage(stage).ranges, search.space)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place(tmp_path_factory.mktemp("checkpoints"))


def run(root: Path, form: str, out: object, *more: str) -> Result:
    common = ["--checkpoints", str(root), "--redis", "redis://127.0.0.1:1/0", "--search", "made"]
    return CliRunner().invoke(cli, ["export", *common, "--format", form, "--out", str(out), *more])


def exported(root: Path, form: str, out: Path, *more: str) -> Path:
    result = run(root, form, out, *more)
    assert result.exit_code == 0, result.output
    assert str(out) in result.stdout and "made" in result.stdout
    return out


# -- csv and parquet -------------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_row_a_trial_in_the_order_of_the_ranking(root: Path, tmp_path: Path) -> None:
    rows = rows_of(exported(root, "csv", tmp_path / "new" / "t.csv"))
    best = [trial_id("coarse", record.index) for record in ranking.rank(RECORDS)]
    assert [row["trial"] for row in rows] == [*best, "fine-0000"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5", "6", "7", "1"]
    first = rows[0]
    assert (first["trial"], first["state"], first["value"], first["seed"]) == (
        "coarse-0004",
        "stopped",
        "0.95",
        "4",
    )
    assert float(first["learning_rate"]) == HYPERPARAMETERS["learning_rate"]
    assert (first["hidden"], first["optimizer"], first["nesterov"], first["momentum"]) == (
        "64",
        "sgd",
        "True",
        "0.9",
    )


def test_csv_says_what_is_not_finite_and_leaves_empty_what_is_not_known(
    root: Path, tmp_path: Path
) -> None:
    rows = {
        row["trial"]: row
        for row in rows_of(exported(root, "csv", tmp_path / "t.csv", "--stage", "coarse"))
    }
    assert (
        rows["coarse-0006"]["val_acc"],
        rows["coarse-0006"]["val_f1"],
        rows["coarse-0006"]["val_loss"],
    ) == ("nan", "inf", "")
    assert rows["coarse-0002"]["reason"] == REASON and rows["coarse-0002"]["val_acc"] == ""
    good = rows["coarse-0000"]
    assert (good["diagnosis"], good["diagnosis_sentence"], good["checkpoint"]) == (
        "good",
        'It is good, "really".',
        "",
    )
    assert pd.Timestamp(good["ended_at"]) == pd.Timestamp(ENDED_AT, unit="s", tz="UTC")


def test_csv_has_the_curves_in_a_second_file(root: Path, tmp_path: Path) -> None:
    exported(root, "csv", tmp_path / "t.csv")
    rows = rows_of(tmp_path / "t.curves.csv")
    points = [
        (row["epoch"], row["value"])
        for row in rows
        if (row["trial"], row["curve"]) == ("coarse-0004", "val_acc")
    ]
    assert points == [("1.0", "0.5"), ("2.0", "0.9"), ("3.0", "0.8")]
    odd = {row["curve"]: row["value"] for row in rows if row["trial"] == "coarse-0001"}
    assert odd == {"train_loss": "inf", "val_loss": "nan"}
    assert [row["evaluation"] for row in rows if row["stage"] == "fine"] == ["1", "2"]


def test_no_text_of_a_csv_is_a_formula_and_numbers_stay_numbers(tmp_path: Path) -> None:
    formula = "=HYPERLINK(A1)"
    root = place(tmp_path)
    name = f"{formula}.0"  # a curve
    odd = made(7, val_loss=-0.25, worker="@w", reason="-1+1", curves={"epoch": [1.0], name: [-3.5]})
    odd = odd.model_copy(
        update={"hyperparameters": {**odd.hyperparameters, formula: formula, "shift": -2}}
    )
    SearchFolder(root, "made").stage("coarse").write_records([odd])
    rows = {row["trial"]: row for row in rows_of(exported(root, "csv", tmp_path / "t.csv"))}
    row = rows["coarse-0007"]
    assert row[f"'{formula}"] == f"'{formula}" and (row["worker"], row["reason"]) == (
        "'@w",
        "'-1+1",
    )
    assert (float(row["shift"]), float(row["val_loss"])) == (-2.0, -0.25)
    assert [r["value"] for r in rows_of(tmp_path / "t.curves.csv") if r["curve"] == f"'{name}"] == [
        "-3.5"
    ]
    table = pd.read_parquet(exported(root, "parquet", tmp_path / "t.parquet")).set_index("trial")
    assert table.loc["coarse-0007", formula] == formula, "Parquet has no formulas"


def test_parquet_has_the_same_with_types(root: Path, tmp_path: Path) -> None:
    path = exported(root, "parquet", tmp_path / "t.parquet")
    exported(root, "csv", tmp_path / "t.csv")
    for name in ("t", "t.curves"):
        ours, theirs = (
            pd.read_csv(tmp_path / f"{name}.csv"),
            pd.read_parquet(tmp_path / f"{name}.parquet"),
        )
        text = theirs.select_dtypes(["datetimetz"]).columns
        pd.testing.assert_frame_equal(
            ours.drop(columns=text), theirs.drop(columns=text), check_dtype=False
        )
    schema = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert [schema[name] for name in ("hidden", "dropout", "nesterov", "optimizer")] == [
        "int64",
        "double",
        "bool",
        "string",
    ]
    assert schema["ended_at"] == "timestamp[us, tz=UTC]" and schema["seed"] == "int64"


def test_parquet_tells_nan_from_unknown(root: Path, tmp_path: Path) -> None:
    table = pq.read_table(exported(root, "parquet", tmp_path / "t.parquet")).to_pylist()
    by_trial = {row["trial"]: row for row in table}
    assert (
        math.isnan(by_trial["coarse-0006"]["val_acc"])
        and by_trial["coarse-0002"]["val_acc"] is None
    )
    assert by_trial["coarse-0006"]["val_f1"] == math.inf


def test_names_that_meet_and_options_of_several_kinds(tmp_path: Path) -> None:
    text = SEARCH.replace('task = "digits"', 'task = "my.py:T"').replace(
        "momentum = 0.9", 'state = { choice = [32, "auto", true] }'
    )
    root = place(tmp_path / "c", text)
    folder = SearchFolder(root, "made")
    others = [
        made(i, hyperparameters={"state": value}) for i, value in ((7, 32), (8, "auto"), (9, True))
    ]
    folder.stage("coarse").write_records(others)
    rows = {
        row["trial"]: row
        for row in pq.read_table(
            exported(root, "parquet", tmp_path / "t.parquet", "--stage", "coarse")
        ).to_pylist()
    }
    assert [rows[f"coarse-000{i}"]["hyperparameter_state"] for i in (7, 8, 9)] == [
        "32",
        "auto",
        "True",
    ]
    assert rows["coarse-0007"]["state"] == "completed"
    found = sessions(exported(root, "tensorboard", tmp_path / "tb"))
    assert [found[f"coarse-000{i}"].hparams["state"].string_value for i in (7, 8, 9)] == [
        "32",
        "auto",
        "True",
    ]
    exported(root, "optuna", tmp_path / "s.db", "--stage", "coarse")
    trials = {t.user_attrs["trial"]: t for t in study(tmp_path / "s.db").trials}
    assert [trials[f"coarse-000{i}"].params["state"] for i in (7, 8, 9)] == [32, "auto", True]


def test_a_later_export_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    root = place(tmp_path / "c")
    for form in ("csv", "parquet"):
        exported(root, form, tmp_path / f"t.{form}")
    SearchFolder(root, "made").stage("coarse").write_records([made(7)])
    for form in ("csv", "parquet"):
        exported(root, form, tmp_path / f"t.{form}")
    assert len(rows_of(tmp_path / "t.csv")) == len(pq.read_table(tmp_path / "t.parquet")) == 9
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "c",
        "t.csv",
        "t.curves.csv",
        "t.curves.parquet",
        "t.parquet",
    ]


# -- tensorboard -----------------------------------------------------------------------------------


def sessions(logdir: Path) -> dict[str, Any]:
    """What TensorBoard's HParams view lists, read by its own back end; by trial."""
    groups = list(listed(logdir).session_groups)
    assert all(
        len(group.sessions) == 1 and group.sessions[0].name == group.name for group in groups
    )
    return {group.name: group for group in groups}


def listed(logdir: Path) -> Any:
    back, experiment = view(logdir)
    shown = [api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos]
    shown += [api_pb2.ColParams(hparam=info.name) for info in experiment.hparam_infos]
    every = [api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_UNKNOWN]
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=every,
        col_params=shown,
        start_index=0,
        slice_size=100,
        include_metrics=True,
    )
    return Handler(RequestContext(), back, "", request).run()


def view(logdir: Path) -> tuple[Context, Any]:
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    back = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(logdir))))
    context = RequestContext()
    return back, back.experiment_from_metadata(
        context, "", True, back.hparams_metadata(context, ""), None
    )


def scalars(run: Path) -> Callable[[str], list[tuple[int, float]]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return lambda tag: [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_shows_the_curves(root: Path, tmp_path: Path) -> None:
    logdir = exported(root, "tensorboard", tmp_path / "tb")
    assert scalars(logdir / "coarse-0004")("val_acc") == [
        (1, 0.5),
        (2, pytest.approx(0.9)),
        (3, pytest.approx(0.8)),
    ]
    assert scalars(logdir / "coarse-0004")("dead/1")[0] == (
        1,
        0.0,
    )  # one group of TensorBoard's for all layers
    assert scalars(logdir / "coarse-0001")("train_loss") == [(1, math.inf)]
    assert math.isnan(scalars(logdir / "coarse-0001")("val_loss")[0][1])
    assert [step for step, _ in scalars(logdir / "fine-0000")("val_acc")] == [
        1,
        2,
    ]  # within an epoch: the evaluations' numbers
    events = EventAccumulator(str(logdir / "coarse-0004"))
    events.Reload()
    assert [event.wall_time for event in events.Scalars("val_acc")] == pytest.approx(
        [ENDED_AT - 10 + s / 3 for s in (10, 20, 30)]
    )


def test_tensorboard_s_hparams_view_lists_each_trial(root: Path, tmp_path: Path) -> None:
    found = sessions(exported(root, "tensorboard", tmp_path / "tb"))
    assert sorted(found) == [*(f"coarse-000{i}" for i in range(7)), "fine-0000"]
    values = found["coarse-0004"].hparams
    assert values["learning_rate"].number_value == HYPERPARAMETERS["learning_rate"]
    assert (
        values["optimizer"].string_value,
        values["nesterov"].bool_value,
        values["hidden"].number_value,
    ) == ("sgd", True, 64)
    metrics = {metric.name.tag: metric.value for metric in found["coarse-0000"].metric_values}
    assert metrics == {
        "best/val_acc": pytest.approx(0.9),
        "best/val_loss": pytest.approx(0.7),
        "best/val_f1": pytest.approx(0.85),
    }
    status = {name: group.sessions[0].status for name, group in found.items()}
    assert [status[f"coarse-000{i}"] for i in (0, 4, 5)] == [api_pb2.STATUS_SUCCESS] * 3
    assert [status[f"coarse-000{i}"] for i in (1, 2, 3)] == [api_pb2.STATUS_FAILURE] * 3
    session = found["coarse-0000"].sessions[0]
    assert (session.start_time_secs, session.end_time_secs) == (ENDED_AT - 10, ENDED_AT)


def test_tensorboard_s_hparams_view_knows_ranges_and_metrics(root: Path, tmp_path: Path) -> None:
    _, experiment = view(exported(root, "tensorboard", tmp_path / "tb", "--stage", "coarse"))
    infos = {info.name: info for info in experiment.hparam_infos}
    assert sorted(infos) == sorted(HYPERPARAMETERS)
    assert {name for name, info in infos.items() if info.differs} == {"depth"}
    interval = infos["learning_rate"].domain_interval
    assert (interval.min_value, interval.max_value) == (1e-6, 10)
    assert sorted(value.string_value for value in infos["optimizer"].domain_discrete.values) == [
        "adam",
        "sgd",
    ]
    shown = [(info.name.tag, info.display_name) for info in experiment.metric_infos]
    assert shown == [
        ("best/val_acc", "val_acc"),
        ("best/val_loss", "val_loss"),
        ("best/val_f1", "val_f1"),
    ]


def test_tensorboard_tells_how_a_trial_ended(root: Path, tmp_path: Path) -> None:
    events = EventAccumulator(str(exported(root, "tensorboard", tmp_path / "tb") / "coarse-0002"))
    events.Reload()
    text = make_ndarray(events.Tensors("trial")[0].tensor_proto)[0].decode()
    assert (
        "    state: failed\n" in text
        and '    reason: said "no", then\n    left; ünïcode, =1+1' in text
    )


def test_tensorboard_s_runs_are_written_anew(tmp_path: Path) -> None:
    root = place(tmp_path / "c")
    exported(root, "tensorboard", tmp_path / "tb", "--stage", "coarse")
    SearchFolder(root, "made").stage("coarse").write_records([made(2, attempt=2)])  # tried again
    exported(root, "tensorboard", tmp_path / "tb")
    assert len(list((tmp_path / "tb" / "coarse-0002").iterdir())) == 1
    assert sessions(tmp_path / "tb")["coarse-0002"].sessions[0].status == api_pb2.STATUS_SUCCESS
    assert scalars(tmp_path / "tb" / "coarse-0004")("val_acc")[0] == (1, 0.5)


# -- optuna ----------------------------------------------------------------------------------------


def study(path: Path, name: str = "made-coarse") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path}")


@pytest.fixture(scope="module")
def database(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(root, "optuna", tmp_path_factory.mktemp("optuna") / "s.db")


def test_optuna_s_best_trial_is_that_of_the_ranking(database: Path) -> None:
    best = study(database).best_trial
    assert (best.user_attrs["trial"], best.value) == ("coarse-0004", 0.95)
    assert best.params == {
        name: value for name, value in HYPERPARAMETERS.items() if name != "momentum"
    } | {"depth": 1}
    assert best.intermediate_values == {1: 0.5, 2: 0.9, 3: 0.8}
    assert (best.datetime_complete.timestamp(), best.duration.total_seconds()) == (ENDED_AT, 10)


def test_optuna_has_every_stage_and_its_ranges(database: Path) -> None:
    names = [
        summary.study_name for summary in optuna.get_all_study_summaries(f"sqlite:///{database}")
    ]
    assert names == ["made-coarse", "made-fine"]
    found = study(database)
    assert (
        found.user_attrs["fixed"] == {"momentum": 0.9}
        and found.user_attrs["search_id"] == "0123456789abcdef"
    )
    assert found.trials[0].distributions == {
        "learning_rate": FloatDistribution(1e-6, 10, log=True),
        "dropout": FloatDistribution(0.0, 0.8),
        "hidden": IntDistribution(16, 256, log=True),
        "depth": IntDistribution(1, 4),
        "batch_size": CategoricalDistribution([16, 64]),
        "optimizer": CategoricalDistribution(["sgd", "adam"]),
        "nesterov": CategoricalDistribution([True, False]),
    }
    assert study(database, "made-fine").trials[0].intermediate_values == {1: 0.3, 2: 0.4}


def test_optuna_s_states_and_what_it_has_no_place_for(database: Path) -> None:
    trials = study(database).trials
    states = [
        State.COMPLETE,
        State.PRUNED,
        State.FAIL,
        State.FAIL,
        State.COMPLETE,
        State.PRUNED,
        State.FAIL,
    ]
    assert [trial.state for trial in trials] == states
    assert [trial.user_attrs["state"] for trial in trials][:4] == [
        "completed",
        "exploded",
        "failed",
        "killed",
    ]
    assert trials[2].user_attrs["reason"] == REASON
    assert (
        trials[0].user_attrs["diagnosis"] == "good"
        and trials[0].user_attrs["metrics"]["val_f1"] == 0.85
    )
    assert trials[6].user_attrs["metrics"] == {"val_f1": "inf"}


def test_optuna_gets_only_what_is_new(tmp_path: Path) -> None:
    root = place(tmp_path / "c")
    exported(root, "optuna", tmp_path / "s.db", "--stage", "coarse")
    study(tmp_path / "s.db").set_user_attr("mine", "kept")
    SearchFolder(root, "made").stage("coarse").write_records([made(7)])
    exported(root, "optuna", tmp_path / "s.db", "--stage", "coarse")
    found = study(tmp_path / "s.db")
    assert [trial.user_attrs["trial"] for trial in found.trials] == [
        f"coarse-000{i}" for i in range(8)
    ]
    assert found.user_attrs["mine"] == "kept"
    SearchFolder(root, "made").stage("coarse").write_records([made(2, attempt=2)])
    result = run(root, "optuna", tmp_path / "s.db")
    assert result.exit_code == 2 and "coarse-0002" in result.stderr
    assert "delete the study in Optuna" in result.stderr


def test_optuna_minimises_what_is_best_small(tmp_path: Path) -> None:
    text = SEARCH.replace('task = "digits"', 'task = "digits"\nmetric = "val_loss"\nmode = "min"')
    search, folder = parse_search(text), SearchFolder(tmp_path / "c", "made")
    add(
        folder,
        search,
        "coarse",
        [made(i, metric="val_loss", mode="min", value=v) for i, v in enumerate((0.5, 0.1, 0.9))],
    )
    folder.search_file.write_text(text)
    exported(tmp_path / "c", "optuna", tmp_path / "s.db")
    assert study(tmp_path / "s.db").best_trial.user_attrs["trial"] == "coarse-0001"


# -- what is refused -------------------------------------------------------------------------------


def refusal(result: Result, code: int) -> str:
    """One message, no traceback."""
    assert result.exit_code == code, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("form", "out", "code", "said"),
    [
        ("excel", "x", 2, "'tensorboard', 'csv', 'parquet', 'optuna'"),
        ("csv", ".", 2, "is a folder; name a file"),
        ("csv", "", 2, "names no file"),
        ("csv", "s3://bucket/t.csv", 2, "only --format optuna takes"),
        ("parquet", ".", 2, "t"),
        ("csv", "file/t.csv", 1, "a file stands where a folder belongs"),
        ("tensorboard", "file", 2, "is a file; name a folder"),
        ("tensorboard", ".", 2, "holds other files"),
        ("optuna", ".", 2, "cannot be an SQLite file"),
        ("optuna", "file", 1, "not a database"),
        ("optuna", "nosuch://host/db", 2, "no such kind of database"),
        ("optuna", "sqlite://x:secret@y:z/", 2, "the URL cannot be read"),
    ],
)
def test_a_place_that_cannot_be_written_gets_one_message(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    out: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text(
        "not a database, but long enough to be taken for the head of one\n" * 20
    )
    before = sorted(Path().rglob("*"))
    message = refusal(run(root.resolve(), form, out), code)
    assert said in message and "secret" not in message
    assert sorted(Path().rglob("*")) == before


def test_the_export_of_another_search_is_not_mixed_with_this_one(
    root: Path, tmp_path: Path
) -> None:
    other = place(tmp_path / "c", SEARCH.replace("0123456789abcdef", "f" * 16))
    for form, out, said in (
        ("tensorboard", "tb", "another search"),
        ("optuna", "s.db", "belongs to another search"),
    ):
        exported(other, form, tmp_path / out, "--stage", "fine")
        assert said in refusal(run(root, form, tmp_path / out), 2)


@pytest.mark.parametrize(
    ("form", "module"),
    [("parquet", "pyarrow"), ("tensorboard", "tensorboard"), ("optuna", "optuna")],
)
def test_a_library_that_is_missing_is_named_with_pip_s_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert refusal(run(root, form, tmp_path / "x"), 2).endswith(
        f"{sys.executable} -m pip install {module}"
    )


def test_a_stage_without_trials_is_told(root: Path, tmp_path: Path) -> None:
    assert "no such stage" in refusal(run(root, "csv", tmp_path / "t.csv", "--stage", "middle"), 2)
    folder = SearchFolder(tmp_path, "made")
    folder.path.mkdir()
    folder.search_file.write_text(SEARCH)
    assert "has not been launched" in refusal(run(tmp_path, "csv", tmp_path / "t.csv"), 2)
    add(folder, parse_search(SEARCH), "coarse", [])
    assert "stage 'fine'" in refusal(run(tmp_path, "csv", tmp_path / "t.csv", "--stage", "fine"), 2)
    assert "no trial has ended yet" in refusal(run(tmp_path, "csv", tmp_path / "t.csv"), 1)


def test_neither_torch_nor_tensorflow_is_loaded(root: Path, tmp_path: Path) -> None:
    """Check from another process, since a test here may have loaded torch.

    Other packages write these two formats.
    """
    code = """
import json, sys
from click.testing import CliRunner
from master.cli import cli
results = [CliRunner().invoke(cli, ["export", "--checkpoints", sys.argv[1], "--format", form, "--out", form, "--stage", "fine"]).exit_code
           for form in ("tensorboard", "optuna")]
print(json.dumps([results, sorted({"torch", "tensorflow"}.intersection(sys.modules))]))
"""  # noqa: E501
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(root)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout) == [[0, 0], []]

"""Trials that violate a constraint: they rank after all others, and are never the best."""

from __future__ import annotations

import io
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner
from rich.console import Console

from common.folder.record import Record
from common.folder.records import AttemptFile, SearchFolder
from common.search.parameters import Uniform
from common.search.plan import StagePlan
from common.search.search_file import parse_search
from common.search.space import Space
from common.search.trial import NO_PROGRESS, Trial, TrialState, trial_id
from master.cli import cli
from master.dashboard.views.stage_view import Ranked
from master.figures.table import best_first, table
from master.report.lines import best_line, counts
from master.results import confirming, ranking
from master.run.janitor import Stance, find_spent_states
from master.strategy.borders import borders
from master.strategy.ranges import write_frozen
from tests.unit.master.made import record

WHY = "violates latency_ms < 20 (latency_ms = 31)"
ABSENT = "violates latency_ms < 20 (latency_ms was not reported)"
LATE = {"latency_ms": 31.0}
RECORDS = [
    record(0, {"x": 1.0}, val_acc=0.99, reason=WHY, metrics=LATE),
    record(1, {"x": 0.4}, val_acc=0.7),
    record(2, {"x": 0.5}, val_acc=0.8),
    record(3, {"x": 0.9}, val_acc=0.95, state=TrialState.STOPPED, reason=f"{NO_PROGRESS}; {WHY}"),
    record(4, {"x": 0.1}, state=TrialState.EXPLODED, reason="loss inf", val_acc=None),
]
SPACE = Space({"x": Uniform(0.0, 1.0)})


def drawn(*parts: object) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


def test_they_rank_after_all_that_satisfy_it_and_before_those_that_did_not_end_well() -> None:
    assert [own.index for own in ranking.rank(RECORDS)] == [2, 1, 0, 3, 4]
    assert [own.index for own in ranking.best(RECORDS)] == [2, 1]
    assert [own.violates for own in RECORDS] == [True, False, False, True, False]


def test_the_ranking_shows_the_reason() -> None:
    shown = drawn(ranking.table(ranking.frame(RECORDS)))
    assert shown.count("violates latency_ms < 20") == 1  # the other begins with why it stopped
    assert WHY in ranking.csv(ranking.frame(RECORDS), ())
    assert WHY in ranking.markdown(ranking.frame(RECORDS), ())


def test_the_dashboard_has_no_best_trial_where_all_violate_it() -> None:
    def best(records: list[Record]) -> object:
        return Ranked(1, tuple(ranking.rows(ranking.frame(records), ()))).best

    assert best(RECORDS[:1]) is None and best(RECORDS[3:]) is None
    assert best(RECORDS) is not None


def test_the_state_of_who_satisfies_it_stays_although_others_have_better_values() -> None:
    plans = [StagePlan((1.0, 3.0), (20, 1))]  # so five states are kept
    files = [AttemptFile(trial_id("coarse", n), 1, Path("x")) for n in range(8)]

    def stance(n: int) -> Stance:
        trial = Trial(trial_id("coarse", n), "coarse", n, n, 1.0, {}, "{}", 3.0)
        return Stance(TrialState.COMPLETED, trial, 0.9 if n else 0.1, violates=n > 0)

    ended = {trial_id("coarse", n): stance(n) for n in range(8)}
    spent = find_spent_states(files, ended, plans, "max")
    assert [file.trial_id for file in spent] == [trial_id("coarse", n) for n in (5, 6, 7)]


def test_no_border_is_theirs_and_no_figure_shows_them_as_best() -> None:
    assert borders(RECORDS, SPACE) == []
    assert list(best_first(table(RECORDS))["index"]) == [2, 1]


def test_the_runs_of_a_confirmed_configuration_that_violate_it_are_not_in_its_mean() -> None:
    runs = [
        record(n, {"x": 0.5}, val_acc=value, reason=why, parents=("coarse-0001",))
        for n, value, why in ((0, 0.9, None), (1, 0.5, WHY), (2, 0.8, None))
    ]
    found = confirming.confirm(runs, [], 9)
    assert found.pick is not None and found.pick.mean == pytest.approx(0.85)


def test_the_end_of_a_stage_tells_how_many_and_what_nobody_reported() -> None:
    told = drawn(counts(RECORDS)).replace("\n", " ")
    assert "2 violate a constraint" in told and "No trial reported" not in told
    missing = [record(n, {"x": 0.5}, val_acc=0.5, reason=ABSENT) for n in range(3)]
    told = drawn(counts(missing), best_line(missing)).replace("\n", " ")
    assert told.count("No trial reported latency_ms: report it as a metric, or correct") == 1
    assert "No trial completed and satisfies all constraints" in told


def test_optuna_names_the_same_best_trial(tmp_path: Path) -> None:
    text = (
        'id = "0123456789abcdef"\nprotocol = 2\nname = "made"\ntask = "mine.py:Mine"\nsubject_to = '
        '"latency_ms < 20"\n[space]\nx = { uniform = [0.0, 1.0] }\n[stages.coarse]\n'
        "trials = 5\nepochs = 1\n"
    )
    search, folder = parse_search(text), SearchFolder(tmp_path, "made")
    folder.stage("coarse").make()
    own = [r.model_copy(update={"search_id": search.id, "value": r.val_acc}) for r in RECORDS]
    folder.stage("coarse").write_records(own)
    write_frozen(folder.stage("coarse").ranges, search.space)
    folder.search_file.write_text(text)
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    common = ["--checkpoints", str(tmp_path), "--redis", "redis://127.0.0.1:1/0"]
    command = ["export", *common, "--search", "made", "--format", "optuna", "--out", storage]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    best = optuna.load_study(storage=storage, study_name=None).best_trial
    assert best.user_attrs["trial"] == trial_id("coarse", 2)

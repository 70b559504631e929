"""Configurations that a stage trains under several seeds: drawn once, ranked by their mean."""

from __future__ import annotations

import io
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from common.errors import ConfigError
from common.folder.record import Record
from common.search.search_file import parse_search
from common.search.space import Space
from common.search.stage import Stage
from common.search.trial import NO_PROGRESS, Trial, TrialState, trial_id
from master.dashboard.filtering import FilterError, select
from master.export.ended import Ended, rank_ended
from master.report.lines import best_line
from master.results import ranking
from master.results.repeats import configuration_of
from master.scripting.frames import trials_frame
from master.stages.standings import make_seen
from master.strategy.freezing import freeze
from tests.unit.master.made import first_trials, record, searching
from tests.unit.master.played import Played

SPACE = Space.parse({"x": {"uniform": [0.0, 1.0]}, "y": {"choice": ["a", "b"]}})
STAGE = Stage.model_validate({"name": "coarse", "trials": 8, "epochs": 1, "repeats": 3})
TEXT = """
id = "0123456789abcdef"
protocol = 2
name = "digits"
task = "mine.py:Mine"
{more}
[space]
learning_rate = {{ log_uniform = [1e-4, 1.0] }}
dropout = {{ uniform = [0.0, 0.8] }}
[stages.coarse]
trials = 8
epochs = 1
repeats = 3
[stages.fine]
trials = 6
epochs = 2
[stages.sure]
kind = "confirm"
best = 3
seeds = 2
epochs = 2
"""


@pytest.mark.parametrize("sampler", ["staged", "random", "sobol", "grid"])
def test_each_configuration_is_drawn_once_and_trained_under_so_many_seeds(sampler: str) -> None:
    assert STAGE.trials == 24
    trials = first_trials(searching(SPACE, STAGE, sampler=sampler), range(24))
    once = Stage(name="coarse", trials=8, epochs=1)
    alone = first_trials(searching(SPACE, once, sampler=sampler), range(8))
    assert len({trial.seed for trial in trials}) == 24
    for n, one in enumerate(alone):
        runs = trials[3 * n : 3 * n + 3]
        assert all(run.hyperparameters == one.hyperparameters for run in runs)
        assert runs[0].drawn == one.drawn and runs[0].parents == one.parents
        assert {run.drawn for run in runs[1:]} == {"repeat"}
        assert {run.parents for run in runs[1:]} == {(runs[0].id,)}


@given(start=st.integers(0, 20), n=st.integers(1, 8), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=30, deadline=None)
def test_a_trial_does_not_depend_on_how_many_are_drawn(start: int, n: int, seed: int) -> None:
    search = searching(SPACE, STAGE, seed=seed)
    alone = first_trials(search, range(start, start + n))
    assert alone == first_trials(search, range(start + n))[start:]


def runs(n: int, values: list[float | None], **more: object) -> list[Record]:
    """The runs of configuration n; None for one that exploded."""
    first, found = n * len(values), []
    for again, value in enumerate(values):
        own: dict[str, object] = {"val_acc": value, "drawn": "sobol"}
        if again:
            own |= {"drawn": "repeat", "parents": (trial_id("coarse", first),)}
        if value is None:
            own |= {"state": TrialState.EXPLODED, "reason": "loss inf"}
        found.append(record(first + again, {"x": n / 10, "y": "a"}, **own | more))
    return found


RECORDS = [
    *runs(0, [0.99, 0.5, 0.55]),  # one lucky seed
    *runs(1, [0.9, 0.88, 0.92]),
    *runs(2, [0.95, 0.96, None]),  # the mean of those that are left is flattered
    *runs(3, [0.7, 0.7, 0.7]),
]


def test_configurations_rank_by_their_mean_and_their_runs_stand_side_by_side() -> None:
    order = [configuration_of(own) for own in ranking.rank(RECORDS)]
    assert order[:9] == [trial_id("coarse", n) for n in (3,) * 3 + (9,) * 3 + (0,) * 3]
    assert order[9:] == ["coarse-0006"] * 3 and ranking.rank(RECORDS)[-1].state == "exploded"
    assert [own.index for own in ranking.best(RECORDS, 2)] == [5, 3]
    assert [own.index for own in ranking.best_configurations(RECORDS)] == [5, 9, 0, 7]


def test_the_mean_and_the_deviation_are_shown() -> None:
    frame = ranking.frame(RECORDS)
    spread = ranking.rows(frame, ())[0]["repeats"]
    assert spread["mean"] == pytest.approx(0.9) and spread["deviation"] == pytest.approx(0.02)
    assert (spread["n"], spread["of"]) == (3, 3)
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(ranking.table(frame, width=100), best_line(RECORDS))
    told = console.export_text()
    assert "0.9000 ± 0.0200" in told and "(0.9000 ± 0.0200 over 3 seeds)" in told
    header = ranking.csv(frame, ()).splitlines()[0].split(",")
    assert {"mean", "deviation"} <= set(header)
    plain = ranking.csv(ranking.frame([record(0, {"x": 1.0}, val_acc=0.5)]), ())
    assert "deviation" not in plain.splitlines()[0]


def test_without_repeats_a_configuration_that_is_confirmed_is_a_trial_of_its_own() -> None:
    own = record(0, {"x": 0.5}, val_acc=0.5, drawn="repeat", parents=("fine-0003",))
    assert configuration_of(own) == "coarse-0000"
    assert ranking.rows(ranking.frame([own]), ())[0]["repeats"] is None


def test_a_later_stage_learns_the_mean_of_a_configuration() -> None:
    found = {one.trial: one for one in make_seen(RECORDS, {"coarse": 0}, 1.0, {})}
    assert list(found) == [trial_id("coarse", n) for n in (0, 3, 6, 9)]
    assert found["coarse-0003"].measured == ((1.0, pytest.approx(0.9)),)
    assert found["coarse-0006"].measured == ((1.0, -math.inf),)
    frozen = freeze(SPACE, SPACE, list(found.values()))
    assert [known.trial for known in frozen.parents] == [
        "coarse-0003",
        "coarse-0009",
        "coarse-0000",
    ]


def noisy(trial: Trial) -> float:
    """A value that depends on the configuration, and a little on the seed."""
    rate = trial.hyperparameters["learning_rate"]
    assert isinstance(rate, float)
    return 0.9 - 0.1 * abs(math.log10(rate) + 2) + 0.001 * (trial.seed % 100)


def test_later_stages_breed_from_and_confirm_distinct_configurations(tmp_path: Path) -> None:
    played = Played(tmp_path, TEXT.format(more=""), noisy)
    for stage in ("coarse", "fine"):
        played.run(stage)
    frozen = played.source("fine").frozen
    assert frozen is not None
    coarse = {own.trial: own for own in played.folder.stage("coarse").records(print)}
    assert len(coarse) == 24 and len(frozen.parents) == 5
    assert {configuration_of(coarse[known.trial]) for known in frozen.parents} == {
        known.trial for known in frozen.parents
    }
    played.run("sure")
    repeated = Counter(own.parents for own in played.folder.stage("sure").records(print))
    assert sorted(repeated.values()) == [2, 2, 2]
    values = [str(own.hyperparameters) for own in played.folder.stage("sure").records(print)]
    assert len(set(values)) == 3


BUDGET = """
id = "0123456789abcdef"
protocol = 2
name = "digits"
task = "mine.py:Mine"
seed = 4
[space]
learning_rate = { log_uniform = [1e-4, 1.0] }
dropout = { uniform = [0.0, 0.8] }
[budget]
epochs = 240
max_epochs = 9
repeats = 2
"""


@pytest.mark.parametrize("more", ["", "[strategy]\noverlap = true\n"])
def test_a_budgeted_search_promotes_and_breeds_whole_configurations_in_any_order(
    tmp_path: Path, more: str
) -> None:
    outcomes = []
    for seed in range(3):
        played = Played(tmp_path / str(seed), BUDGET + more, noisy)
        held = None
        for stage in played.search.stages:
            ladder = played.run(stage.name, random.Random(seed), bool(more))
            for trial in held.release() if held is not None else ():
                played.end(trial)
            held = ladder
        for trial in held.release() if held is not None else ():
            played.end(trial)
        outcomes.append((played.promotions(), played.source("finer").as_json()))
        gone_on = [trial for own in played.promotions().values() for trial in own]
        assert len(gone_on) > 8
        for trial in gone_on:
            stage, _, number = trial.rpartition("-")
            assert trial_id(stage, int(number) ^ 1) in gone_on
        frozen = played.source("finer").frozen
        assert frozen is not None and len(frozen.parents) == 5 and frozen.good
        known = [own.trial for own in (*frozen.parents, *frozen.good, *frozen.bad)]
        assert all(int(trial.rpartition("-")[2]) % 2 == 0 for trial in known)
        records = [
            own
            for stage in played.search.stages
            for own in played.folder.stage(stage.name).records(print)
        ]
        order = [configuration_of(own) for own in ranking.rank(records)]
        assert order[::2] == order[1::2], "the runs of a configuration stand side by side"
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_a_run_that_ended_on_the_way_counts_at_the_rungs_that_the_others_went_on_to() -> None:
    further = {"passed": (1.0,), "budget_epochs": 3.0, "epochs": 3.0, "metric": "val_acc"}

    def went_on(record: Record, first: float) -> Record:
        curves = {"epoch": [1.0, 3.0], "val_acc": [first, record.val_acc]}
        return record.model_copy(update=further | {"curves": curves})

    lucky, exploded = runs(0, [0.9, None])
    steady, stopped = runs(1, [0.8, 0.4])
    stopped = stopped.model_copy(update={"state": TrialState.STOPPED, "reason": NO_PROGRESS})
    both = [went_on(own, 0.5) for own in runs(2, [0.7, 0.5])]
    records = [went_on(lucky, 0.5), exploded, went_on(steady, 0.6), stopped, *both]
    seen = {one.trial: one.measured for one in make_seen(records, {"coarse": 0}, 1.0, {})}
    assert seen == {
        "coarse-0000": ((1.0, -math.inf), (3.0, -math.inf)),
        "coarse-0002": ((1.0, pytest.approx(0.5)), (3.0, pytest.approx(0.6))),
        "coarse-0004": ((1.0, 0.5), (3.0, pytest.approx(0.6))),
    }
    assert [own.index for own in ranking.rank(records)] == [2, 3, 4, 5, 0, 1]
    shown = {row["trial"]: row["repeats"] for row in ranking.rows(ranking.frame(records), ())}
    assert shown["coarse-0003"]["mean"] == pytest.approx(0.6) and shown["coarse-0003"]["n"] == 2
    assert (shown["coarse-0000"]["mean"], shown["coarse-0000"]["of"]) == (0.9, 2)


def test_while_a_run_trains_on_its_shorter_training_is_in_no_mean() -> None:
    first, second = runs(0, [0.9, 0.2])
    first = first.model_copy(update={"passed": (1.0,), "budget_epochs": 3.0})
    (row, _) = ranking.rows(ranking.frame([first, second]), ())
    assert row["repeats"] == {"mean": 0.9, "deviation": None, "n": 1, "of": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BUDGET.replace("seed = 4", 'sampler = "pbt"'), r'^.*\[budget\] repeats = 2: with .*"pbt"'),
        (
            TEXT.format(more='sampler = "tpe"'),
            r'coarse\] repeats = 3: with sampler = "tpe".* "confirm"',
        ),
        (TEXT.format(more='schedule = "async"'), r"repeats = 3: with .*one by one"),
        (TEXT.format(more="") + "repeats = 2\n", r"sure\] repeats = 2: .*write seeds"),
        (TEXT.format(more="").replace("repeats = 3", "repeats = 0"), r"coarse\] repeats = 0"),
        (
            TEXT.format(more="").replace("repeats = 3", "repeats = 1000000"),
            r"8 trials with repeats = 1,000,000 come",
        ),
    ],
)
def test_what_cannot_be_repeated_is_told_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_search(text)


def test_exports_frames_and_filters_have_the_mean_and_the_deviation() -> None:
    records = runs(0, [0.5, 0.7]) + runs(1, [0.8, 0.9])
    trials = rank_ended(records, lambda record: None)
    frame = trials_frame(trials, curves=False)
    assert frame["mean"].tolist() == pytest.approx([0.85, 0.85, 0.6, 0.6])
    assert (frame["deviation"] > 0).all()
    alone = trials_frame([Ended(record(0, {"x": 0.1, "y": "a"}), 1, None)], curves=False)
    assert "mean" not in alone.columns
    rows = ranking.rows(ranking.frame(records), [])
    assert [row["trial"] for row in select(rows, "mean>0.8")] == [
        one.record.trial for one in trials[:2]
    ]
    assert len(select(rows, "deviation<1", sort="mean", descending=True)) == 4
    with pytest.raises(FilterError, match="mean: no such column"):
        select([{**row, "repeats": None} for row in rows], "mean>0.8")

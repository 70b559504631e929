"""The dashboard of a search with rungs.

Progress never falls, a trial has one line of descent, and waiting trials keep their curves.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.folder.chosen import Chosen
from common.queue.trial_queue import TrialQueue
from common.queue.wire import curves_out
from common.search.trial import Progress, Result, Trial, TrialState
from master.report.reading import borders, rank
from master.results import ranking
from master.results.lineage import rung_values
from master.stages.sampling import configurations
from tests.redis_server import RedisServer, start_redis
from tests.unit.master.played import TEXT, Played, record_of
from tests.unit.master.test_serve import Dashboard, dashboard

TEXT = TEXT.replace('task = "mine.py:Mine"', 'task = "digits"')


def began(root: Path) -> Played:
    made = Played(root, TEXT)
    made.folder.path.mkdir(parents=True, exist_ok=True)
    made.folder.search_file.write_text(TEXT)
    return made


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    made = began(tmp_path_factory.mktemp("checkpoints"))
    made.run_all()
    return made


@pytest.fixture(scope="module")
def page(played: Played) -> Iterator[Dashboard]:
    made = dashboard(played.folder.root)
    made.watch.tick()
    yield made
    made.watch.close()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="cf-") as folder, start_redis(Path(folder)) as running:
        yield running


def test_the_overview_names_the_best_of_the_search_by_budget_first(
    played: Played, page: Dashboard
) -> None:
    overview = page.get("/api/searches/digits")
    records = [
        own
        for stage in played.search.stages
        for own in played.folder.stage(stage.name).records(pytest.fail)
    ]
    best = ranking.best(records)
    assert (overview["best"]["trial"], overview["best"]["rank"], overview["measured"]) == (
        best[0].trial,
        1,
        len(best),
    )
    assert overview["best"]["budget_epochs"] == 9.0 and overview["best_drawn"]


def test_the_ranking_of_all_stages_is_that_of_the_command(played: Played, page: Dashboard) -> None:
    chosen = Chosen(played.search, TEXT, Path(), played.folder)
    told = page.get("/api/searches/digits/ranking?limit=1000")
    assert (
        told["rows"] == json.loads(rank(chosen, None, None, "json", print)) and told["stage"] == ""
    )
    for stage in played.search.stages:  # what is best so far may be a trial of an earlier stage
        assert page.get(f"/api/searches/digits/stages/{stage.name}/borders") == json.loads(
            borders(chosen, stage.name, True, print)
        )
    found = page.get("/api/searches/digits/ranking?filter=rung>0 child&sort=rung&order=desc")[
        "rows"
    ]
    assert found and all(row["rung"] > 0 and row["drawn"] == "child" for row in found)
    assert [row["rung"] for row in found] == sorted((row["rung"] for row in found), reverse=True)
    parent = found[0]["parents"][0]
    named = page.get(f"/api/searches/digits/ranking?filter={parent}&limit=1000")["rows"]
    assert any(parent in row["parents"] for row in named)


def test_a_stage_tells_how_far_its_rungs_are(played: Played, page: Dashboard) -> None:
    for stage, told in zip(
        played.search.stages, page.get("/api/searches/digits")["stages"], strict=True
    ):
        plan = stage.plan
        assert [(rung["epochs"], rung["planned"], rung["trained"]) for rung in told["rungs"]] == [
            (epochs, n, n) for epochs, n in zip(plan.rungs, plan.keep, strict=True)
        ]
        assert [rung["promoted"] for rung in told["rungs"]] == [*plan.keep[1:], 0]
        assert (told["trained"], told["trainings"], told["ended"], told["trials"]) == (
            sum(plan.keep),
            sum(plan.keep),
            stage.trials,
            stage.trials,
        )


def test_progress_counts_trainings_and_never_falls_back(tmp_path: Path) -> None:
    made = began(tmp_path)
    first = made.search.stages[0].name
    made.begin(first)
    page, ladder = dashboard(tmp_path), made.ladder(first)
    waiting, seen = list(ladder.standings.find_unfinished()), [0]
    while waiting:
        trial = waiting.pop(0)
        ladder.note(trial.id, made.end(trial))
        waiting += ladder.advance()
        page.watch.tick()
        told = page.get("/api/searches/digits")["stages"][0]
        assert told["trained"] >= seen[-1] and told["trained"] <= told["trainings"]
        seen.append(told["trained"])
    page.watch.close()
    page = dashboard(tmp_path)
    page.watch.tick()
    done = page.get("/api/searches/digits")["stages"][0]
    assert done["trained"] == done["trainings"] == sum(made.search.stages[0].plan.keep)
    page.watch.close()


def test_a_trial_names_its_parents_its_children_and_its_values(
    played: Played, page: Dashboard
) -> None:
    records = {
        own.trial: own
        for stage in played.search.stages
        for own in played.folder.stage(stage.name).records(pytest.fail)
    }
    bred = next(own for own in ranking.best(list(records.values())) if own.parents and own.rung)
    trial = page.get(f"/api/searches/digits/trials/{bred.trial}")
    assert [parent["trial"] for parent in trial["parents"]] == list(bred.parents)
    assert [(rung["epochs"], rung["value"]) for rung in trial["rungs"]] == [
        (e, pytest.approx(v)) for e, v in rung_values(bred)
    ]
    by_stage = [rung["stage"] for rung in trial["rungs"]]
    assert by_stage[0] == bred.stage and all(
        name in {own.name for own in played.search.stages} for name in by_stage
    )
    assert (
        trial["budget"].startswith(f"{bred.budget_epochs:g}")
        and "promoted" in trial["budget"]
        and trial["drawn_words"]
    )
    assert [(own["budget_epochs"], own["rung"]) for own in trial["attempts"]] == [
        (e, n) for n, (e, _) in enumerate(rung_values(bred))
    ]
    parent = page.get(f"/api/searches/digits/trials/{bred.parents[0]}")
    assert {child["trial"] for child in parent["children"]} == {
        own.trial for own in records.values() if bred.parents[0] in own.parents
    }


@pytest.mark.parametrize("name", ["rungs", "progress", "hyperparameters", "importance"])
def test_figures_of_rungs_are_drawn_from_what_the_dashboard_holds(
    played: Played, page: Dashboard, name: str
) -> None:
    last = played.search.stages[-1].name
    figure = page.get(f"/api/searches/digits/stages/{last}/figures/{name}")
    assert figure["data"] and figure["layout"]["title"]["text"]
    if name == "rungs":
        assert any(trace["name"].startswith("on to 9 epochs") for trace in figure["data"])


def test_a_trial_that_goes_on_shows_its_curves_so_far(tmp_path: Path, server: RedisServer) -> None:
    made = began(tmp_path)
    stage = made.search.stages[0]
    trials = configurations(made.search, stage, made.begin(stage.name), range(1))
    page = dashboard(tmp_path, server.url)
    with server.client() as client:
        queue = TrialQueue(client, str(made.search.id))
        queue.publish(trials)
        for claim in queue.claim("w-1", 1, "r1"):
            made.folder.stage(stage.name).write_records(
                [record_of(made.search, claim.trial, lambda trial: 0.4 + 0.1 * trial.epochs)]
            )
            queue.finish(
                [(claim.fence, Result(TrialState.COMPLETED, val_acc=0.5, epochs=1.0, value=0.5))]
            )
        page.watch.tick()
        before = page.get("/api/searches/digits")["stages"][0]["trained"]
        promoted = trials[0].promote(stage.plan.rungs[1])
        assert not queue.promote([promoted])
        page.watch.tick()
        waits = told(page, promoted)
        assert (waits["state"], waits["budget_epochs"], waits["rung"], waits["curves_from"]) == (
            "pending",
            promoted.epochs,
            1,
            "record",
        )
        assert (
            waits["curves"]["val_acc"] == [0.5]
            and waits["value"] == 0.5
            and waits["diagnosis"] is None
        )
        assert page.get("/api/searches/digits")["stages"][0]["trained"] == before == 1
        row = page.get("/api/searches/digits/unfinished?state=pending")["rows"][0]
        assert (row["trial"], row["rung"], row["budget_epochs"]) == (
            promoted.id,
            1,
            promoted.epochs,
        )

        (claim,) = queue.claim("w-1", 1, "r2")
        queue.renew(
            "w-1",
            [Progress(claim.fence, 1, epoch=1.5, value=0.7)],
            {promoted.id: curves_out({"epoch": [1.5], "val_acc": [0.7]})},
        )
        page.watch.tick()
        runs = told(page, promoted)
        assert (runs["state"], runs["curves"]["epoch"], runs["curves"]["val_acc"]) == (
            "running",
            [1.0, 1.5],
            [0.5, 0.7],
        )
        assert [
            (own["attempt"], own["state"], own["budget_epochs"]) for own in runs["attempts"]
        ] == [
            (1, "completed", 1.0),
            (2, "running", promoted.epochs),
        ]
        queue.drop()
    page.watch.close()


def told(page: Dashboard, trial: Trial) -> dict[str, object]:
    found: dict[str, object] = page.get(f"/api/searches/digits/trials/{trial.id}")
    return found

"""The main job, end to end."""

from __future__ import annotations

import csv
import json
import math
import re
import tomllib

import pytest

from common.folder.checkpoint_name import CheckpointName
from tests.integration.commands import Place, wait_for


def test_a_coarse_stage_from_the_command_line(here: Place) -> None:
    here.write_search(
        space="pieces = { int_uniform = [2, 1001] }\n"
    )  # of maxout: here it only divides the trials
    done = here.run("master", "launch", "--stage", "coarse")
    assert done.returncode == 0, done.stderr
    folder = here.root / "digits" / "coarse"

    # progress and warnings on stderr, the outcome on stdout
    assert "24/24 trials done" in done.stderr
    assert "spread over 2,000 combinations" in done.stderr
    assert "master launch --stage fine" in done.stdout
    assert "selected over 24 trials" in done.stdout
    rows = here.rank()
    assert rows[0]["trial"] in done.stdout

    # every trial has one record, the good ones weights whose names sort best first
    assert sorted(r["trial"] for r in rows) == [f"coarse-{i:04d}" for i in range(24)]
    accuracies = [r["val_acc"] for r in rows if r["state"] == "completed"]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] > 0.5
    names = sorted((p.name for p in folder.glob("*.pt")), reverse=True)
    assert names[0] == rows[0]["checkpoint"]
    assert all(CheckpointName.parse(name) for name in names)
    assert [r["rank"] for r in rows] == list(range(1, 25))
    with (folder / "leaderboard.csv").open() as file:
        assert [line["trial"] for line in csv.DictReader(file)] == [r["trial"] for r in rows]
    ranges = tomllib.loads((folder / "ranges.toml").read_text())
    assert ranges["ranges"]["learning_rate"] == {"log_uniform": [1e-3, 1.0]}
    assert "learning_rate" in ranges["next"]["ranges"]
    assert not list((folder / "resume").iterdir())
    wait_for(
        lambda: not list(here.root.rglob(".tmp-*")), "the report, which is drawn in the background"
    )


def test_fractions_of_an_epoch_and_all_stages(here: Place) -> None:
    here.write_search(trials=12, epochs=0.5)
    done = here.run("master", "launch", "--stage", "all", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert {r["epochs"] for r in here.rank("coarse") if r["state"] == "completed"} == {0.5}
    assert {r["epochs"] for r in here.rank("fine") if r["state"] == "completed"} == {3.0}
    status = here.status()
    assert set(status) == {
        *("search", "stages", "rungs", "workers"),
        *("pace", "left_s", "left_range_s", "device_s"),
    }
    assert {s: sum(c.values()) for s, c in status["stages"].items()} == {"coarse": 12, "fine": 8}
    assert [w["state"] for w in status["workers"]] == [
        "idle"
    ]  # the local worker holds nothing, and stays for the next command


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high", "warned"), [(1e-6, 1e-3, True), (1e-4, 1e1, False)])
def test_a_range_that_ends_too_low_warns_and_one_around_the_optimum_does_not(
    here: Place, low: float, high: float, warned: bool
) -> None:
    here.write_search(low=low, high=high, trials=80, epochs=3, space="momentum = 0.9\n")
    assert here.run("master", "launch", "--stage", "coarse").returncode == 0
    done = here.run("master", "borders", "--json")
    found = [b for b in json.loads(done.stdout) if b["hyperparameter"] == "learning_rate"]
    if not warned:
        assert not found
        return
    assert (
        found[0]["side"] == "high" and found[0]["support"] >= 4 and found[0]["range"] == [low, high]
    )
    assert found[0]["best"] > 5e-4 and re.search(r"log_uniform", found[0]["advice"])


@pytest.mark.slow
def test_the_same_search_with_1_2_and_4_workers(here: Place) -> None:
    seen = []
    for n in (1, 2, 4):
        here.write_search(name=f"digits{n}")
        done = here.run("master", "launch", "--stage", "coarse", "--workers", str(n))
        assert done.returncode == 0, done.stderr
        records = here.records(f"digits{n}")
        assert [r["trial"] for r in records] == [
            f"coarse-{i:04d}" for i in range(24)
        ]  # none missing, none double
        assert {r["attempt"] for r in records} == {1}
        seen.append([(r["trial"], r["seed"], r["hyperparameters"]) for r in records])
        by_trial = {r["trial"]: r.get("val_loss") for r in records if r["state"] == "completed"}
        if n == 1:
            reference = by_trial
        assert by_trial.keys() == reference.keys()
        assert all(
            math.isclose(by_trial[t], reference[t], rel_tol=0.05) for t in reference
        )  # the same data order, weights and noise
    assert seen[0] == seen[1] == seen[2]


def test_an_exploding_search_ends_with_3(here: Place) -> None:
    here.write_search(low=1e6, high=1e9, trials=6)
    done = here.run("master", "launch", "--stage", "coarse")
    assert done.returncode == 3, done.stderr
    rows = here.rank()
    assert {r["state"] for r in rows} == {"exploded"}
    assert all("first loss" in r["reason"] or "finite" in r["reason"] for r in rows)
    assert {r["diagnosis"]["word"] for r in rows} == {
        "exploded"
    } and "6 of 6 trials exploded: lower learning_rate" in done.stdout
    assert not list((here.root / "digits" / "coarse").glob("*.pt"))


@pytest.mark.slow
def test_more_trials_may_be_added_and_nothing_else_changed(here: Place) -> None:
    here.write_search(trials=6)
    assert here.run("master", "launch", "--stage", "coarse").returncode == 0
    before = {r["trial"]: r for r in here.records()}
    here.write_search(trials=10)
    assert here.run("master", "launch", "--stage", "coarse").returncode == 0
    after = {r["trial"]: r for r in here.records()}
    assert len(after) == 10 and all(after[t] == before[t] for t in before)

    here.write_search(trials=10, seed=2)
    refused = here.run("master", "launch", "--stage", "coarse")
    assert (
        refused.returncode == 2
        and "seed: 1 -> 2" in refused.stderr
        and "--new-name" in refused.stderr
    )
    renamed = here.run("master", "launch", "--stage", "coarse", "--new-name", "other")
    assert renamed.returncode == 0, renamed.stderr
    assert len(here.records("other")) == 10
    both = here.run(
        "master",
        "launch",
        "--stage",
        "coarse",
        "--new-name",
        "other",
        "--replace",
        "--workers",
        "0",
        "--detach",
    )
    assert (
        both.returncode == 0 and len(here.records()) == 10 and not here.records("other")
    )  # only the one of the new name
    replaced = here.run("master", "launch", "--stage", "coarse", "--replace")
    assert replaced.returncode == 0, replaced.stderr
    assert {r["trial"]: r["seed"] for r in here.records()} != {
        t: r["seed"] for t, r in after.items()
    }
    assert len(list(here.root.glob(".digits-replaced-*/coarse/trials/*.json"))) == 10
    assert len(list(here.root.glob(".other-replaced-*/coarse/trials/*.json"))) == 10


def test_edited_ranges_are_used_and_never_overwritten(here: Place) -> None:
    here.write_search(trials=12)
    assert here.run("master", "launch", "--stage", "coarse").returncode == 0
    proposal = here.root / "digits" / "coarse" / "ranges.toml"
    text = proposal.read_text()
    mine = here.path / "mine.toml"
    mine.write_text(
        re.sub(
            r"(?s)(\[next\.ranges\].*?learning_rate = ).*?\n",
            r"\1{ log_uniform = [0.02, 0.03] }\n",
            text,
        )
    )
    done = here.run("master", "launch", "--stage", "fine", "--ranges", str(mine))
    assert done.returncode == 0, done.stderr
    assert all(0.02 <= r["hyperparameters"]["learning_rate"] <= 0.03 for r in here.rank("fine"))
    proposal.write_text(mine.read_text())
    assert here.run("master", "launch", "--stage", "coarse").returncode == 0
    assert proposal.read_text() == mine.read_text()

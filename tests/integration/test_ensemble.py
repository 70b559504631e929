"""From a search with a stage of seeds to an ensemble, and what it predicts."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest

from tests.integration.commands import Place

SEARCH = """
name = "digits"
task = "digits"
[space]
learning_rate = { log_uniform = [0.05, 0.5] }
hidden = 32
depth = 1
batch_size = 64
[stages.coarse]
trials = 8
epochs = 2
snapshots = 2
[stages.again]
kind = "seeds"
trials = 3
epochs = 2
"""


@pytest.mark.slow
def test_from_a_search_to_an_ensemble_that_predicts(here: Place) -> None:
    (here.path / "search.toml").write_text(SEARCH)
    done = here.run("master", "launch", "--stage", "all", "--workers", "1", "--skip-check")
    assert done.returncode == 0, done.stderr
    best = here.rank("coarse")[0]
    assert (
        f"Stage again trains {best['trial']} again, 3 times from other initial weights."
        in done.stdout
    )
    assert "3 seeds of one configuration: val_acc" in done.stdout

    again = here.root / "digits" / "again"
    assert tomllib.loads((again / "ranges.toml").read_text())["repeats"] == [best["trial"]]
    rows = here.rank("again")
    assert (
        all(row["hyperparameters"] == best["hyperparameters"] for row in rows)
        and len({row["val_loss"] for row in rows}) == 3
    )

    command = (
        "master",
        "ensemble",
        "--of",
        "top",
        "--of",
        "seeds",
        "--of",
        "snapshots",
        "--of",
        "greedy",
        "--test",
        "--json",
    )
    mixed = here.run(*command)
    assert mixed.returncode == 0, mixed.stderr
    found = json.loads(mixed.stdout)
    top, seeds, over_time, greedy = found["ensembles"]
    assert [len(e["members"]) for e in (top, seeds, over_time)] == [8, 3, 2]
    assert greedy["ensemble"]["val"]["accuracy"] >= top["members"][0]["val"]["accuracy"]
    for row, member in zip(
        here.rank("coarse"), top["members"], strict=True
    ):  # what is stored is what the ranking says
        assert (
            member["trial"] == row["trial"]
            and abs(member["val"]["accuracy"] - row["val_acc"]) < 1e-9
        )
        assert abs(member["val"]["log_loss"] - row["val_loss"]) < 1e-3
    assert found["looks"] == [
        1,
        len((here.root / "digits" / "test_looks.jsonl").read_text().splitlines()),
    ]

    np.save(here.path / "new.npy", np.zeros((2, 64)))
    predicted = here.run(
        "worker",
        "predict",
        "--search",
        "digits",
        "--stage",
        "coarse",
        "--top",
        "8",
        "--inputs",
        "new.npy",
    )
    assert predicted.returncode == 0, predicted.stderr
    assert len(predicted.stdout.splitlines()) == 3 and "8 models" in predicted.stderr

"""A search over lists, steps, distributions and conditions, from the command line to the tables."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.folder.record import format_metric
from tests.integration.commands import Place

TASK = Path(__file__).parent / "tasks" / "conditional.py"
SEARCH = """
name = "spaces"
task = "conditional.py:train"
metric = "val_loss"
mode = "min"
subject_to = "latency_ms < 20"
seed = 5
[space]
rate = { log_normal = [-5.0, 1.5], low = 1e-5 }
noise = { uniform = [0.0, 0.5], step = 0.1 }
layers = { choice = [[64, 64], [128], { units = [8, 4] }] }
width = { int_uniform = [32, 256], step = 32 }
optimizer = { choice = ["sgd", "adam"] }
momentum = { uniform = [0.5, 0.99], when = "optimizer == 'sgd'" }
beta2 = { normal = [0.99, 0.002], high = 0.9999, when = "optimizer == 'adam'" }
[budget]
epochs = 90
max_epochs = 9
[stages.sure]
kind = "confirm"
best = 2
seeds = 2
epochs = 3
"""


def check(hp: dict[str, Any]) -> None:
    own = {"rate", "noise", "layers", "width", "optimizer"}
    own |= {"momentum"} if hp["optimizer"] == "sgd" else {"beta2"}
    assert set(hp) == own
    assert hp["layers"] in ([64, 64], [128], {"units": [8, 4]})
    assert hp["width"] in range(32, 257, 32) and hp["noise"] in [k / 10 for k in range(20)]


def recorded(here: Place) -> list[dict[str, Any]]:
    files = sorted((here.root / "spaces").glob("*/trials/*.json"))
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.faults
def test_a_search_finds_what_is_best_and_every_command_shows_it(here: Place) -> None:
    shutil.copy(TASK, here.path)
    (here.path / "search.toml").write_text(SEARCH)
    done = here.run("master", "launch", "--stage", "all", "--workers", "2", checks=True)
    assert done.returncode == 0, done.stderr + done.stdout
    records = recorded(here)
    for record in records:
        check(record["hyperparameters"])
        assert record["state"] == "completed", record
    ranked = here.run("master", "rank", "--format", "json")
    assert ranked.returncode == 0, ranked.stderr
    rows = json.loads(ranked.stdout)
    best = rows[0]["hyperparameters"]
    assert best["optimizer"] == "sgd" and best["layers"] != [128] and best["width"] <= 160
    slow = [row["hyperparameters"]["width"] > 160 for row in rows]
    assert any(slow) and slow == sorted(slow)
    reasons = {row["reason"] for row, late in zip(rows, slow, strict=True) if late}
    assert reasons == {"violates latency_ms < 20 (latency_ms = 50)"}
    assert "violate a constraint" in done.stdout
    shown = re.findall(r"best val_loss (-?[\d.]+)", done.stderr)
    fine = [record["value"] for record in records if record.get("reason") is None]
    assert shown and shown[-1] == format_metric(min(fine))
    sure = [r for r in records if r["stage"] == "sure"]
    assert sure and all(r["hyperparameters"]["width"] <= 160 for r in sure)
    for command in (["rank"], ["borders"], ["status"], ["report"]):
        told = here.run("master", *command)
        assert told.returncode == 0, (command, told.stderr)
    assert here.run("master", "export", "--format", "csv", "--out", "t.csv").returncode == 0
    with (here.path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["layers"] for row in rows} <= {"[64, 64]", "[128]", '{"units": [8, 4]}'}
    assert all((row["momentum"] != "") == (row["optimizer"] == "sgd") for row in rows)
    again = here.run("master", "launch", "--stage", "all", "--workers", "1")
    assert again.returncode == 0, again.stderr
    assert len(recorded(here)) == len(records)

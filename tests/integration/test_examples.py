"""The examples as the README runs them, through `master launch` with real workers, and loops of the user's own in trouble."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split

from common.search import load_search
from common.trial import Claim, Fence, Trial
from tests.integration.commands import DEADLINE_S, Place, wait_for
from worker.own import OwnLoop, load_state
from worker.tasks import load_task
from worker.tasks.base import Loop
from worker.training.interface import Job

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNS = {"class_task": ["--stage", "all"], "torch_loop": ["--stage", "coarse"], "sklearn_loop": ["--stage", "coarse"]}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """All three at once, each with a folder, a Redis and a worker of its own: the processes mostly wait for imports."""
    roots = {name: tmp_path_factory.mktemp(name) for name in RUNS}
    environ = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "CHECKPOINT_DIR")}
    processes = {}
    for name, options in RUNS.items():
        command = [sys.executable, "-P", "-m", "master", "launch", "--config", str(EXAMPLES / name / "search.toml"), *options]
        command += ["--checkpoints", str(roots[name]), "--workers", "1", "--skip-check"]
        processes[name] = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for name, process in processes.items():
            out, err = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0, f"{name}: {out}{err}"
        yield roots
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def master(root: Path, *words: str) -> str:
    command = [sys.executable, "-P", "-m", "master", *words, "--checkpoints", str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def ranking(root: Path, *options: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(master(root, "rank", "--format", "json", *options))
    return rows


def test_the_class_trains_in_arrays_and_its_smallest_error_is_the_best(ran: dict[str, Path]) -> None:
    rows = ranking(ran["class_task"], "--stage", "fine")
    assert [row["state"] for row in rows] == ["completed"] * 6 and {row["metric"] for row in rows} == {"val_mae"}
    values = [row["value"] for row in rows]
    assert values == sorted(values) and 0.4 < values[0] < 0.75 and rows[0]["val_acc"] is None
    folder = ran["class_task"] / "diabetes" / "fine"
    assert min(path.name for path in folder.glob("*.pt")) == rows[0]["checkpoint"]  # what `ls | head -1` shows
    assert rows[0]["checkpoint"].startswith(f"val_mae={values[0]:.4f}-trial=")
    assert f"best of fine so far: val_mae {values[0]:.4f}, {rows[0]['trial']}" in master(ran["class_task"], "status")
    logs = "".join(path.read_text() for path in (ran["class_task"] / "diabetes" / "logs").iterdir())
    assert "left" in logs and "has no" not in logs and "alone" not in logs, logs  # nothing was to be complained of
    records = [json.loads(path.read_text()) for path in (ran["class_task"] / "diabetes" / "coarse" / "trials").glob("*.json")]
    assert len(records) == 16 and max(record["array_width"] for record in records) > 1


def test_the_loop_in_plain_pytorch_learns_and_leaves_its_weights(ran: dict[str, Path]) -> None:
    best = ranking(ran["torch_loop"])[0]
    assert best["state"] == "completed" and best["val_acc"] > 0.8 and best["val_loss"] is not None
    state = load_state(ran["torch_loop"] / "wine" / "coarse" / best["checkpoint"])
    hidden = best["hyperparameters"]["hidden"]
    model = torch.nn.Sequential(torch.nn.Linear(13, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 3))
    model.load_state_dict(state["model"])


def test_the_loop_without_torch_leaves_a_model_that_is_worth_what_its_name_says(ran: dict[str, Path]) -> None:
    rows = ranking(ran["sklearn_loop"])
    best = rows[0]
    assert len(rows) == 8 and best["metric"] == "val_f1" and best["value"] > 0.8
    state = load_state(ran["sklearn_loop"] / "digits-sklearn" / "coarse" / best["checkpoint"])
    model = SGDClassifier()
    model.classes_, model.coef_, model.intercept_ = np.arange(10), state["coef"], state["intercept"]
    images, labels = load_digits(return_X_y=True)
    rest_x, _, rest_y, _ = train_test_split(images / 16, labels, test_size=0.2, stratify=labels, random_state=7)
    _, val_x, _, val_y = train_test_split(rest_x, rest_y, test_size=0.25, stratify=rest_y, random_state=7)
    assert f1_score(val_y, model.predict(val_x), average="macro") == pytest.approx(best["value"])
    assert "torch" not in (EXAMPLES / "sklearn_loop" / "my_loop.py").read_text().split('"""')[2]


class Calm:
    """A watch that nothing disturbs."""

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        return

    def lost(self) -> tuple[str, ...]:
        return ()

    def stopping(self) -> bool:
        return False


@pytest.mark.parametrize("name", ["torch_loop", "sklearn_loop"])
def test_an_example_that_is_resumed_ends_as_if_it_had_not_been_interrupted(name: str, tmp_path: Path) -> None:
    search = load_search(EXAMPLES / name / "search.toml")
    loop = load_task(search.task, EXAMPLES / name)
    assert isinstance(loop, Loop)
    hp = {"learning_rate": 0.01, "hidden": 4, "weight_decay": 1e-4, "penalty": "l2"}
    trial = Trial("fine-0000", "fine", 0, 7, 4, hp, "{}")

    def trained(resume: dict[str, Any] | None) -> tuple[list[bytes], Any]:
        own = OwnLoop(loop, torch.device("cpu"), search=search, log=lambda message: None)
        found = list(own.train([Job(Claim(trial, Fence(trial.id, 1, "t")), resume)], lambda n: [], Calm()))
        return [view.state() for boundary in found for view in boundary.running], found[-1].ended[0]

    states, whole = trained(None)
    path = tmp_path / "state.pt"
    path.write_bytes(states[1])
    _, resumed = trained(torch.load(path, weights_only=True))
    assert resumed.epochs == 4.0 and resumed.value == whole.value
    assert resumed.curves["train_loss"] == whole.curves["train_loss"] and resumed.curves["val_loss"] == whole.curves["val_loss"]


# -- loops in trouble ----------------------------------------------------------------------------------------------------

SEARCH = """
name = "own"
task = "loop.py:train"
[space]
learning_rate = { uniform = [0.0, 1.0] }
[stages.coarse]
trials = 2
epochs = 100
[stragglers]
lease_s = 2.0
"""

LOOP = """
import time
from pathlib import Path

HERE = Path(__file__).parent


def train(trial):
    print("printed by", trial.id)
    (HERE / f"began-{trial.id}-at-{trial.epoch:g}").touch()
    try:
        for epoch in range(round(trial.epoch) + 1, 101):
            (HERE / f"{trial.id}-is-in-{epoch}").touch()
            while epoch > 5 and not (HERE / "go").exists():
                time.sleep(0.01)
                trial.beat()
            trial.report(epoch, train_loss=1.0, val_acc=epoch / 100, state={"epoch": epoch})
    finally:
        (HERE / f"tidied-{trial.id}").touch()
"""


def test_a_loop_survives_its_worker_and_is_killed_between_two_reports(here: Place) -> None:
    (here.path / "loop.py").write_text(LOOP)
    (here.path / "own.toml").write_text(SEARCH)
    launched = here.run("master", "launch", "--config", "own.toml", "--stage", "coarse", "--workers", "0", "--detach")
    assert launched.returncode == 0, launched.stderr
    folder = here.root / "own"
    worker = here.start("worker", "start", "--device", "cpu", log="first.log")
    wait_for(lambda: (folder / "coarse-0000-is-in-6").exists(), "five reports")
    assert not (folder / "began-coarse-0001-at-0").exists()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=DEADLINE_S) == 143
    assert (folder / "tidied-coarse-0000").exists() and list((folder / "coarse" / "resume").glob("coarse-0000-*.pt"))
    assert "printed by coarse-0000" in here.output("first.log")
    again = here.start("worker", "start", "--device", "cpu", "--burst")
    wait_for(lambda: (folder / "began-coarse-0000-at-5").exists(), "the same trial, from where it was")
    assert here.run("master", "kill", "--trial", "coarse-0000", "--yes").returncode == 0
    wait_for(lambda: (folder / "began-coarse-0001-at-0").exists(), "the next trial")
    (folder / "go").touch()
    assert again.wait(timeout=DEADLINE_S) == 0
    rows = ranking(here.root)
    assert [(row["trial"], row["state"], row["val_acc"], row["attempt"]) for row in rows] == [
        ("coarse-0001", "completed", 1.0, 1),
        ("coarse-0000", "killed", None, 3),  # the verdict has a number of its own
    ]

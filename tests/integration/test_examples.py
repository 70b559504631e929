"""The examples as the README runs them, and loops of the user's own in trouble.

`master launch` starts real workers.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split

from common.offspring import Offspring
from common.search.search_file import load_search
from common.search.trial import Claim, Fence, Trial
from tests.integration.commands import DEADLINE_S, Place, wait_for
from worker.own import LoopHost, OwnLoop, Source, load_state
from worker.tasks.loader import place_of, read_code

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNS = {
    "class_task": ["--stage", "all"],
    "torch_loop": ["--stage", "coarse"],
    "sklearn_loop": ["--stage", "coarse"],
    "program": ["--stage", "all"],
    "shell_script": ["--stage", "all"],
}
# With what the best trial reaches. Guessing costs ln 85 = 4.44 nats, and is right in a tenth.
LARGER = [("nanogpt", "val_loss", 3.8), ("resnet", "val_acc", 0.3)]
# `python` of the program's own environment: here the only one with scikit-learn.
PATH = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


def launch(name: str, root: Path, *options: str) -> subprocess.Popen[str]:
    """Begin to run an example, with its own Redis and one worker."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ("REDIS_URL", "CHECKPOINT_DIR")
    }
    command = [sys.executable, "-P", "-m", "master", "launch"]
    command += ["--config", str(EXAMPLES / name / "search.toml"), *options]
    command += ["--checkpoints", str(root), "--workers", "1", "--skip-check"]
    return subprocess.Popen(
        command, env=environ | PATH, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Run all examples at once, each with its own folder, Redis and worker.

    The processes mostly wait for imports.
    """
    roots = {name: tmp_path_factory.mktemp(name) for name in RUNS}
    processes = {name: launch(name, roots[name], *options) for name, options in RUNS.items()}
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


def test_the_class_trains_in_arrays_and_its_smallest_error_is_the_best(
    ran: dict[str, Path],
) -> None:
    rows = ranking(ran["class_task"], "--stage", "fine")
    states = [row["state"] for row in rows]  # a draw from the whole range may explode
    assert (
        len(states) == 6
        and set(states[:4]) == {"completed"}
        and set(states) <= {"completed", "exploded"}
    )
    assert {row["metric"] for row in rows} == {"val_mae"}
    values = [row["value"] for row in rows if row["state"] == "completed"]
    assert values == sorted(values) and 0.4 < values[0] < 0.75 and rows[0]["val_acc"] is None
    folder = ran["class_task"] / "diabetes" / "fine"
    assert (
        min(path.name for path in folder.glob("*.pt")) == rows[0]["checkpoint"]
    )  # what `ls | head -1` shows
    assert rows[0]["checkpoint"].startswith(f"val_mae={values[0]:.4f}-trial=")
    assert f"best of fine so far: val_mae {values[0]:.4f}, {rows[0]['trial']}" in master(
        ran["class_task"], "status"
    )
    logs = "".join(path.read_text() for path in (ran["class_task"] / "diabetes" / "logs").iterdir())
    assert "runs the code in" in logs and "has no" not in logs and "alone" not in logs, (
        logs
    )  # nothing was to be complained of
    records = [
        json.loads(path.read_text())
        for path in (ran["class_task"] / "diabetes" / "coarse" / "trials").glob("*.json")
    ]
    assert len(records) == 16 and max(record["array_width"] for record in records) > 1


def test_the_loop_in_plain_pytorch_learns_and_leaves_its_weights(ran: dict[str, Path]) -> None:
    best = ranking(ran["torch_loop"])[0]
    assert best["state"] == "completed" and best["val_acc"] > 0.8 and best["val_loss"] is not None
    state = load_state(ran["torch_loop"] / "wine" / "coarse" / best["checkpoint"])
    hidden = best["hyperparameters"]["hidden"]
    model = torch.nn.Sequential(
        torch.nn.Linear(13, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 3)
    )
    model.load_state_dict(state["model"])


def test_the_loop_without_torch_leaves_a_model_that_is_worth_what_its_name_says(
    ran: dict[str, Path],
) -> None:
    rows = ranking(ran["sklearn_loop"])
    best = rows[0]
    assert len(rows) == 8 and best["metric"] == "val_f1" and best["value"] > 0.8
    state = load_state(ran["sklearn_loop"] / "digits-sklearn" / "coarse" / best["checkpoint"])
    model = SGDClassifier()
    model.classes_, model.coef_, model.intercept_ = np.arange(10), state["coef"], state["intercept"]
    images, labels = load_digits(return_X_y=True)
    rest_x, _, rest_y, _ = train_test_split(
        images / 16, labels, test_size=0.2, stratify=labels, random_state=7
    )
    _, val_x, _, val_y = train_test_split(
        rest_x, rest_y, test_size=0.25, stratify=rest_y, random_state=7
    )
    assert f1_score(val_y, model.predict(val_x), average="macro") == pytest.approx(best["value"])
    assert "torch" not in (EXAMPLES / "sklearn_loop" / "my_loop.py").read_text().split('"""')[2]


def test_the_program_learns_resumes_and_leaves_its_own_file_under_the_metric_s_name(
    ran: dict[str, Path],
) -> None:
    rows = ranking(ran["program"])
    assert len(rows) == 8 and {row["state"] for row in rows} <= {"completed", "exploded"}
    best = rows[0]
    assert best["stage"] == "fine" and best["val_acc"] > 0.8
    folder = ran["program"] / "digits-program"
    model = np.load(io.BytesIO((folder / "fine" / best["checkpoint"]).read_bytes()))
    assert model["weights"].shape == (64, 10) and 1 <= model["epoch"] <= 4
    told = master(ran["program"], "logs", best["trial"], "--follow")
    assert told.splitlines()[0].startswith("epoch 1: loss ") and "epoch 4: " in told
    left = list((folder / "fine" / "programs").rglob(".coarsefine"))
    assert len(left) <= 1  # of the last trial, until the worker leaves


def test_the_shell_script_is_searched_over_like_any_other_task(ran: dict[str, Path]) -> None:
    rows = ranking(ran["shell_script"])
    assert len(rows) == 8 and {row["state"] for row in rows} <= {"completed", "exploded"}
    folder = ran["shell_script"] / "root-of-two" / rows[0]["stage"]
    assert float((folder / rows[0]["checkpoint"]).read_text()) == pytest.approx(2**0.5, abs=0.1)


@pytest.mark.faults  # not for faults, but for the time that these two take
@pytest.mark.parametrize(("name", "metric", "reached"), LARGER)
def test_a_larger_example_learns_as_it_would_be_published(
    name: str, metric: str, reached: float, tmp_path: Path
) -> None:
    process = launch(name, tmp_path, "--stage", "all")
    try:
        out, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    assert process.returncode == 0, f"{out}{err}"
    best = ranking(tmp_path)[0]
    assert best["state"] == "completed" and best["metric"] == metric
    assert best["value"] < reached if metric == "val_loss" else best["value"] > reached
    logs = "".join(path.read_text() for path in (tmp_path / name / "logs").iterdir())
    assert "runs the code in" in logs and "alone" not in logs, logs


class Calm:
    """A watch that nothing disturbs."""

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        return

    def lost(self) -> tuple[str, ...]:
        return ()

    def stopping(self) -> bool:
        return False


@pytest.mark.parametrize("name", ["torch_loop", "sklearn_loop"])
def test_an_example_that_is_resumed_ends_as_if_it_had_not_been_interrupted(
    name: str, tmp_path: Path
) -> None:
    search = load_search(EXAMPLES / name / "search.toml")
    host = LoopHost(Offspring())
    place = place_of(search.task, read_code(search.task, EXAMPLES / name))
    source = Source(search.task, str(place.folder), place.module, place.attribute)
    hp = {"learning_rate": 0.01, "hidden": 4, "weight_decay": 1e-4, "penalty": "l2"}
    trial = Trial("fine-0000", "fine", 0, 7, 4, hp, "{}")

    def trained(resume: dict[str, Any] | None) -> tuple[list[bytes], Any]:
        own = OwnLoop(search.task, partial(host.open, source), search=search, log=print)
        found = list(
            own.train([Claim(trial, Fence(trial.id, 1, "t"), resume=resume)], lambda n: [], Calm())
        )
        return [view.state() for boundary in found for view in boundary.running], found[-1].ended[0]

    states, whole = trained(None)
    path = tmp_path / "state.pt"
    path.write_bytes(states[1])
    _, resumed = trained(torch.load(path, weights_only=True))
    host.close()
    assert resumed.epochs == 4.0 and resumed.value == whole.value
    assert (
        resumed.curves["train_loss"] == whole.curves["train_loss"]
        and resumed.curves["val_loss"] == whole.curves["val_loss"]
    )


# -- loops in trouble ------------------------------------------------------------------------------

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

HERE = Path("PLACE")


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
    folder = here.path / "signs"
    folder.mkdir()
    (here.path / "loop.py").write_text(LOOP.replace("PLACE", str(folder)))
    (here.path / "own.toml").write_text(SEARCH)
    launched = here.run(
        "master",
        "launch",
        "--config",
        "own.toml",
        "--stage",
        "coarse",
        "--workers",
        "0",
        "--detach",
    )
    assert launched.returncode == 0, launched.stderr
    worker = here.start("worker", "start", "--device", "cpu", log="first.log")
    wait_for(lambda: (folder / "coarse-0000-is-in-6").exists(), "five reports")
    assert not (folder / "began-coarse-0001-at-0").exists()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=DEADLINE_S) == 143
    assert (folder / "tidied-coarse-0000").exists() and list(
        (here.root / "own" / "coarse" / "resume").glob("coarse-0000-*.pt")
    )
    printed = here.run("master", "logs", "coarse-0000", "--search", "own")
    assert printed.stdout == "printed by coarse-0000\n", printed.stderr
    again = here.start("worker", "start", "--device", "cpu", "--burst")
    wait_for(
        lambda: (folder / "began-coarse-0000-at-5").exists(), "the same trial, from where it was"
    )
    assert here.run("master", "kill", "--trial", "coarse-0000", "--yes").returncode == 0
    wait_for(lambda: (folder / "began-coarse-0001-at-0").exists(), "the next trial")
    (folder / "go").touch()
    assert again.wait(timeout=DEADLINE_S) == 0
    rows = ranking(here.root)
    assert [(row["trial"], row["state"], row["val_acc"], row["attempt"]) for row in rows] == [
        ("coarse-0001", "completed", 1.0, 1),
        ("coarse-0000", "killed", None, 3),  # the verdict has a number of its own
    ]

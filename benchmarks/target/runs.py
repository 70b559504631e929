"""Whole searches by one method, run as a user would, and what they had found at which time."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.target.kept import Keeper, make_measure
from benchmarks.target.problems import Problem
from benchmarks.target.task_files import MNIST_FOLDER

OURS = "this program"
PEERS = {
    "random-1": "random search, one process",
    "random": "random search, a process a core",
    "tpe+median": "Optuna TPE, median pruner",
    "tpe+hyperband": "Optuna TPE, Hyperband",
    "asha": "Ray Tune ASHA",
}
MARK = "TIME_TO_TARGET_RUN"  # environment variable that marks a run's processes
GRACE_S = 60.0  # time that a peer may take to end after its limit: Ray stops its servers
OURS_LIMIT_S = 600.0  # this program ends by its budget; if it takes longer than this, it hangs
SAID = 300  # last characters of a failed command's output that are reported
LEAVING_S = 10.0  # time that terminated processes may take to end
TOLERANCE = 1e-9  # accuracies are fractions of some hundred examples

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Point:
    """A new best model: when it was known, and how good it is.

    Attributes:
        at_s: Seconds since the command.
        val_acc: Validation accuracy.
        val_loss: Validation loss.
        test_acc: Test accuracy, or None if the model was not kept.
        epochs: All epochs that had been trained by then.
    """

    at_s: float
    val_acc: float
    val_loss: float
    test_acc: float | None
    epochs: float


@dataclass(frozen=True)
class Run:
    """One search by one method."""

    task: str
    method: str
    seed: int
    first_s: float | None  # seconds until the first result
    end_s: float  # seconds until the command ended
    epochs: float
    points: tuple[Point, ...] = field(repr=False)
    problem: str = ""  # what went wrong, "" for nothing

    def reached_s(self, target: float) -> float | None:
        """Return the seconds until the first result of at least ``target``."""
        return next((p.at_s for p in self.points if p.val_acc >= target - TOLERANCE), None)

    def best_at(self, seconds: float) -> Point | None:
        """Return the model that would have been selected after this many seconds."""
        return next((p for p in reversed(self.points) if p.at_s <= seconds), None)

    def told(self) -> dict[str, Any]:
        """Return the run as plain values for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Run:
        """Build the run from what ``told`` returned."""
        return cls(**{**raw, "points": tuple(Point(**point) for point in raw["points"])})


@dataclass(frozen=True)
class Result:
    """A trained epoch of a peer, or a record of this program."""

    at: float  # Unix time in seconds
    val_acc: float | None
    val_loss: float
    test_acc: float | None
    epochs: float  # epochs that this result adds to those trained before


def improve(results: Sequence[Result], began: float) -> tuple[Point, ...]:
    """Return the results that were better than all before, by accuracy, then by loss."""
    points, spent, best = [], 0.0, (-1.0, 0.0)
    for result in sorted(results, key=lambda result: result.at):
        spent += result.epochs
        if result.val_acc is None or (key := (result.val_acc, -result.val_loss)) <= best:
            continue
        best = key
        points.append(
            Point(result.at - began, result.val_acc, result.val_loss, result.test_acc, spent)
        )
    return tuple(points)


def run_peer(problem: Problem, method: str, seed: int, data: Path) -> Run:
    """Run one peer for the task's time, from a cold command."""
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        began = time.time()
        command = ["benchmarks.target.peer", method, "--data", str(data), "--seed", str(seed)]
        command += ["--problem", problem.told(), "--out", folder]
        command += ["--ends-at", str(began + problem.limit_s)]
        with _cleared({}) as environment:
            wrong = _run(command, Path(folder), REPOSITORY, problem.limit_s + GRACE_S, environment)
            end_s = time.time() - began
        results = list(_peer_results(Path(folder), began + problem.limit_s))
    return _made(problem, method, seed, began, end_s, results, wrong)


def run_ours(
    problem: Problem, seed: int, budget: str | None, tree: Path, mnist: Path | None
) -> Run:
    """Run `master launch --stage all` on a new folder, from a cold command, to its end."""
    with tempfile.TemporaryDirectory(prefix="ours-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        (place / "search.toml").write_text(problem.search_file(seed, budget))
        task_files = Path(__file__).with_name("task_files.py")
        (place / task_files.name).write_text(task_files.read_text())
        more = {MNIST_FOLDER: str(mnist)} if mnist else {}
        command = ["master", "--checkpoints", str(place / "checkpoints"), "launch"]
        command += ["--stage", "all", "--config", "search.toml"]
        began = time.time()
        search, kept = place / "checkpoints" / problem.name, place / "kept"
        with _cleared(more) as environment, Keeper(search, kept):
            wrong = _run(command, place, tree, OURS_LIMIT_S, environment)
            end_s = time.time() - began
        results = list(_our_results(search, kept, make_measure(problem)))
    return _made(problem, OURS, seed, began, end_s, results, wrong)


def _made(
    problem: Problem,
    method: str,
    seed: int,
    began: float,
    end_s: float,
    results: list[Result],
    wrong: str,
) -> Run:
    first = min((result.at for result in results), default=None)
    spent = sum(result.epochs for result in results)
    first_s = None if first is None else first - began
    points = improve(results, began)
    return Run(problem.name, method, seed, first_s, end_s, spent, points, wrong)


def _run(
    module: list[str], folder: Path, tree: Path, limit_s: float, environment: dict[str, str]
) -> str:
    """Run a module to its end. Return what went wrong, or ""."""
    named = {**os.environ, **environment, "PYTHONPATH": str(tree)}
    for name in ("REDIS_URL", "CHECKPOINT_DIR"):
        named.pop(name, None)
    command = [sys.executable, "-P", "-m", *module]
    with (folder / "said.txt").open("w+") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=named, stdout=said, stderr=said, stdin=subprocess.DEVNULL
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"ended after {limit_s:.0f} s by the benchmark"
        if not code:
            return ""
        said.seek(0)
        return f"ended with {code}: {said.read().strip()[-SAID:]}"


@contextmanager
def _cleared(more: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yield an environment that marks the run's processes. Afterwards end those that are left.

    Workers and servers of Redis and Ray may outlive the command. The next run must neither use them
    nor share the cores with them.
    """
    mark = secrets.token_hex(8)
    try:
        yield {**more, MARK: mark}
    finally:
        left = [process for process in psutil.process_iter() if _mark_of(process) == mark]
        for process in left:
            with suppress(psutil.Error):  # it may have ended by now
                process.terminate()
        for process in psutil.wait_procs(left, LEAVING_S)[1]:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, LEAVING_S)


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None  # another user's process, or one that has ended


def _peer_results(folder: Path, until: float) -> Iterator[Result]:
    for path in folder.glob("process-*.jsonl"):
        for line in path.read_text().splitlines():
            told = json.loads(line)
            if told["at"] <= until:
                loss = told["val_loss"] if np.isfinite(told["val_loss"]) else np.inf
                yield Result(told["at"], told["val_acc"], loss, told["test_acc"], 1.0)


def _our_results(search: Path, kept: Path, measure: Callable[[Path], float]) -> Iterator[Result]:
    """Yield the records in the order of their ends, with the test accuracy of each new best model.

    The epochs of a promoted trial up to its last promotion count once.

    Args:
        search: The search's folder.
        kept: The folder where ``Keeper`` put the best checkpoints.
        measure: Returns the test accuracy of a checkpoint.
    """
    records = [json.loads(path.read_text()) for path in search.glob("*/trials/*.json")]
    trained: dict[str, float] = {}
    best = (-1.0, 0.0)
    for record in sorted(records, key=lambda record: record["ended_at"]):
        before = trained.get(record["trial"], 0.0)
        trained[record["trial"]] = max(before, record.get("epochs", 0.0))
        loss, value = record.get("val_loss"), record.get("val_acc")
        loss = float(loss) if loss is not None and np.isfinite(float(loss)) else np.inf
        test = None
        if value is not None and (value, -loss) > best:
            best = (value, -loss)
            path = kept / (record.get("checkpoint") or "none")
            test = measure(path) if path.exists() else None
        yield Result(record["ended_at"], value, loss, test, trained[record["trial"]] - before)

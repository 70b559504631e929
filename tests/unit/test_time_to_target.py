"""`benchmarks/time_to_target.py`: the methods search the same, and its tables are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.target import plain, runs, task_files
from benchmarks.target.kept import Keeper
from benchmarks.target.problems import DIGITS, PROBLEMS, TABLE, Problem, make_task, prepare
from benchmarks.target.runs import OURS, Point, Result, Run, improve
from benchmarks.target.tables import table, targets_of
from common.search.search_file import parse_search

FIXED = {"learning_rate": 0.05, "weight_decay": 1e-5, "dropout": 0.1, "hidden": 64, "filters": 8}


def run_of(
    method: str,
    seed: int,
    *points: tuple[float, float],
    test: float | None = 0.9,
    task: str = "digits",
) -> Run:
    made = tuple(Point(at, value, 0.1, test, 10.0) for at, value in points)
    return Run(task, method, seed, points[0][0] if points else None, 30.0, 100.0, made)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=lambda problem: problem.name)
class TestSameSearchForAll:
    def test_the_search_file_is_one_and_samples_what_the_peers_sample(
        self, problem: Problem
    ) -> None:
        search = parse_search(problem.search_file(7))

        assert (search.seed, search.name) == (7, problem.name)
        assert search.budget is not None and search.budget.max_epochs == 20
        assert set(json.loads(problem.told())["space"]) | set(problem.fixed) == set(
            search.space.plain()
        )

    def test_the_networks_have_the_same_layers(self, problem: Problem) -> None:
        values = {**FIXED, **problem.fixed}
        ours = make_task(problem).model(values)
        shape = {"digits": (64,), "convnet": (1, 8, 8), "mnist_part": (784,), "table": (64,)}[
            problem.name
        ]
        theirs = plain.build(
            values, {"train_x": torch.zeros(1, *shape), "train_y": torch.tensor([9])}
        )

        assert [p.shape for p in theirs.parameters()] == [p.shape for p in ours.parameters()]
        assert theirs(torch.zeros(3, *shape)).shape == (3, 10)


def test_the_made_table_is_the_same_in_every_process_and_can_be_learned() -> None:
    first, second = task_files.Table().data(), task_files.Table().data()

    assert torch.equal(first.train.inputs, second.train.inputs) and torch.equal(
        first.test.targets, second.test.targets
    )
    assert [len(part) for part in (first.train, first.val, first.test)] == [16_000, 2_000, 2_000]
    assert first.train.targets.bincount().min() > 500  # no class is so rare that guessing does well


def test_a_peer_trains_and_writes_a_line_an_epoch(tmp_path: Path) -> None:
    prepare(DIGITS, tmp_path / "data.npz")
    parts, log = plain.load(tmp_path / "data.npz"), plain.Log(tmp_path / "process-1.jsonl")
    torch.manual_seed(1)

    def note(epoch: int, val: tuple[float, float], test: Any) -> bool:
        log.note(1, epoch, val, test)
        return epoch == 3

    best = plain.train({**FIXED, **DIGITS.fixed}, parts, 20, note)
    found = list(runs._peer_results(tmp_path, float("inf")))
    assert len(found) == 3 and max(result.val_acc or 0.0 for result in found) == best > 0.9
    assert found[0].test_acc is not None


def test_a_result_counts_where_it_beats_all_before() -> None:
    results = [
        Result(12, 0.9, 0.5, 0.8, 1),
        Result(11, 0.8, 0.4, 0.7, 1),
        Result(13, 0.9, 0.6, 0.9, 2),
        Result(14, 0.9, 0.3, 0.85, 3),
    ]

    assert improve([*results, Result(15, None, float("inf"), None, 4)], 10) == (
        Point(1, 0.8, 0.4, 0.7, 1),
        Point(2, 0.9, 0.5, 0.8, 2),
        Point(4, 0.9, 0.3, 0.85, 7),
    )


def test_records_of_a_promoted_trial_count_its_epochs_once(tmp_path: Path) -> None:
    trials = tmp_path / "coarse" / "trials"
    trials.mkdir(parents=True)
    name = "val_acc=0.9500-trial=coarse-0001-epoch=002-try=2"
    ended = [(1, 1.0, 0.9, 100.0, None), (2, 2.0, 0.95, 110.0, f"{name}.pt")]
    for attempt, epochs, value, at, checkpoint in ended:
        told = {
            "trial": "coarse-0001",
            "stage": "coarse",
            "epochs": epochs,
            "val_acc": value,
            "ended_at": at,
        }
        told |= {"checkpoint": checkpoint, "val_loss": "NaN" if attempt == 1 else 0.2}
        (trials / f"coarse-0001-try={attempt}.json").write_text(json.dumps(told))
    kept = tmp_path / "kept"
    with Keeper(tmp_path, kept):
        (tmp_path / "coarse" / f"{name}.pt").write_text("0.75")
    (tmp_path / "coarse" / f"{name}.pt").unlink()  # as a later rung does

    found = list(runs._our_results(tmp_path, kept, lambda path: float(path.read_text())))
    assert found == [Result(100, 0.9, float("inf"), None, 1), Result(110, 0.95, 0.2, 0.75, 1)]


class TestTables:
    def test_medians_count_seeds_that_never_got_there(self) -> None:
        ours = [run_of(OURS, seed, (4.0 + seed, 0.98)) for seed in (1, 2, 3)]
        peers = [
            run_of("random", 1, (20, 0.98)),
            run_of("random", 2, (9, 0.97)),
            run_of("random", 3, (10, 0.98)),
        ]
        told = table(DIGITS, [*ours, *peers])

        assert (
            "| this program | 6.0 (5.0-7.0) | 6.0 (5.0-7.0) | 6.0 (5.0-7.0) | never (0 of 3) |"
            in told
        )
        assert "20.0 s (2 of 3)" in told
        assert (
            "0.98: this program 6.0 s, the fastest peer (random search, a process a "
            "core) 20.0 s: ratio 0.30"
        ) in told
        assert "0.985: this program never" in told and "no ratio" in told

    def test_without_targets_the_best_peer_sets_it(self) -> None:
        peers = [
            run_of("random", s, (5, 0.8), (59, 0.9 + s / 100), (61, 0.99), task="table")
            for s in (1, 2, 3)
        ]
        other = [run_of("tpe+median", s, (30, 0.85), task="table") for s in (1, 2, 3)]

        assert targets_of(
            TABLE, {OURS: [run_of(OURS, 1, (1, 1.0))], "random": peers, "tpe+median": other}
        ) == (0.92,)

    def test_test_accuracy_is_compared_seed_by_seed(self) -> None:
        ours = [run_of(OURS, s, (4.0, 0.98), test=0.95 + s / 100) for s in (1, 2)]
        peers = [run_of("random", s, (4.0, 0.98), test=0.94 + s / 100) for s in (1, 2)]

        assert (
            "Test accuracy at 30 s beside random search, a process a core: +0.0100 (95 % "
            "+0.0100 to +0.0100)"
        ) in table(DIGITS, [*ours, *peers])

    def test_runs_survive_json(self) -> None:
        run = run_of("asha", 1, (5, 0.8), test=None)

        assert Run.of(json.loads(json.dumps(run.told()))) == run

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from common.folder.checkpoint_name import CheckpointName
from common.folder.ledger import NAME
from common.folder.predictions import Part, Predictions, pack
from common.folder.records import SearchFolder, StageFolder
from common.search.search_file import parse_search
from common.search.trial import TrialState, trial_id
from master.cli import cli
from master.ensembles.ensemble import Member, gain, greedy, mixture, of_all, score
from master.strategy.ranges import write_frozen
from tests.unit.master.made import record

SEARCH = """
id = "0123456789abcdef"
protocol = 2
name = "made"
task = "digits"
[space]
learning_rate = { log_uniform = [1e-3, 1.0] }
[stages.coarse]
trials = 20
epochs = 1
[stages.fine]
trials = 6
epochs = 4
snapshots = 2
[stages.again]
trials = 3
epochs = 4
kind = "seeds"
[stages.sure]
best = 1
seeds = 2
epochs = 4
kind = "confirm"
"""
N, M, C = 40, 30, 3
TARGETS = np.random.default_rng(0).integers(0, C, N)
TEST_TARGETS = np.random.default_rng(1).integers(0, C, M)


def certain(
    targets: NDArray[np.int64], wrong: Sequence[int], sure: float = 0.8
) -> NDArray[np.float32]:
    """Probabilities that are right but for some examples, which go to the next class."""
    chosen = targets.copy()
    chosen[list(wrong)] = (chosen[list(wrong)] + 1) % C
    probabilities = np.full((len(targets), C), (1 - sure) / (C - 1), dtype=np.float32)
    probabilities[np.arange(len(targets)), chosen] = sure
    return probabilities


def arrays(
    wrong: Sequence[int], wrong_test: Sequence[int] = (), sure: float = 0.8
) -> dict[str, NDArray[Any]]:
    return {
        "val": certain(TARGETS, wrong, sure), "val_targets": TARGETS,
        "test": certain(TEST_TARGETS, wrong_test, sure), "test_targets": TEST_TARGETS,
    }  # fmt: skip


def member(name: str, wrong: Sequence[int], sure: float = 0.8) -> Member:
    return Member(
        name, f"{name}.pt", 1, Predictions(Part(certain(TARGETS, wrong, sure), TARGETS), None)
    )


# -- numbers ---------------------------------------------------------------------------------------


def test_three_models_that_err_on_different_examples_are_right_together() -> None:
    members = [member("a", [0, 1]), member("b", [2, 3, 4]), member("c", [5, 6, 7])]
    together = of_all("top", members)
    assert (
        score(together.val).accuracy == 1.0
        and score(members[0].predictions.val).accuracy == 38 / 40
    )
    found = gain(together.val, members[0].predictions.val)
    assert found.value == pytest.approx(2 / 40) and found.low < 0 < 2 / 40 < found.high


def test_the_mixture_is_the_mean_of_the_probabilities() -> None:
    parts = [
        Part(np.array([[0.9, 0.1]], np.float32), np.array([1])),
        Part(np.array([[0.2, 0.8]], np.float32), np.array([1])),
    ]
    assert mixture(parts, [1, 1]).probabilities[0] == pytest.approx([0.55, 0.45])
    assert mixture(parts, [1, 3]).probabilities[0] == pytest.approx([0.375, 0.625])
    assert score(mixture(parts, [1, 3])).log_loss == pytest.approx(-np.log(0.625))
    assert (
        score(Part(np.array([[1.0, 0.0]], np.float32), np.array([1]))).log_loss < 30
    )  # ruled out, not infinite


def test_greedy_leaves_out_what_harms_and_weighs_what_helps() -> None:
    bad = member("bad", range(0, 30), sure=0.98)
    made = greedy([member("a", [0, 1]), member("b", [2, 3]), member("c", [4, 5]), bad])
    assert {m.trial for m in made.members} == {"a", "b", "c"}
    assert score(made.val).accuracy == 1.0 and made.best.trial == "a"
    again = greedy([member("a", [0, 1], sure=0.6), member("b", [2, 3], sure=0.99), bad])
    assert score(again.val).accuracy >= 38 / 40
    assert list(again.weights) == sorted(again.weights, reverse=True)


def test_greedy_is_never_worse_on_validation_than_the_best_single_model() -> None:
    random = np.random.default_rng(5)
    for _ in range(10):
        pool = [
            member(
                str(i),
                random.choice(N, random.integers(1, 20), replace=False),
                random.uniform(0.4, 0.99),
            )
            for i in range(6)
        ]
        by_accuracy, by_loss = greedy(pool), greedy(pool, by_loss=True)
        assert score(by_accuracy.val).correct >= max(score(m.predictions.val).correct for m in pool)
        assert (
            score(by_loss.val).log_loss
            <= min(score(m.predictions.val).log_loss for m in pool) + 1e-6
        )


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A search whose coarse stage has three kept models, two with different mistakes."""
    folder = SearchFolder(tmp_path / "checkpoints", "made")
    folder.path.mkdir(parents=True)
    folder.search_file.write_text(SEARCH)
    kept(
        folder,
        "coarse",
        {0: arrays([0, 1], [0]), 1: arrays([2, 3, 4], [1, 2]), 2: arrays([5, 6, 7, 8], [3, 4, 5])},
    )
    return folder.root


def kept(
    folder: SearchFolder,
    name: str,
    models: Mapping[int, Mapping[str, NDArray[Any]] | None],
    over_time: Sequence[int] = (),
) -> None:
    """Make a launched stage with a record and weights of each model.

    Some models have predictions beside their weights.
    """
    stage, records = folder.stage(name), []
    stage.make()
    write_frozen(stage.ranges, parse_search(SEARCH).space)
    for index, predictions in models.items():
        value = 0.99 - 0.01 * index
        files = [
            written(stage.path, CheckpointName(value, trial_id(name, index), 4, 1), predictions)
        ]
        if over_time:
            stage.snapshots.mkdir(exist_ok=True)
        snapshots = [
            CheckpointName(0.5 + 0.1 * epoch, trial_id(name, index), epoch, 1)
            for epoch in over_time
        ]
        files += [written(stage.snapshots, snapshot, predictions) for snapshot in snapshots]
        more = {
            "trial": trial_id(name, index),
            "stage": name,
            "val_acc": value,
            "checkpoint": files[0],
            "snapshots": files[1:],
        }
        records.append(record(index, {"learning_rate": 0.1}, **more))
    stage.write_records(records)


def written(
    folder: Path, name: CheckpointName, predictions: Mapping[str, NDArray[Any]] | None
) -> str:
    (folder / str(name)).touch()
    if predictions is not None:
        (folder / name.predictions).write_bytes(pack(predictions))
    return str(name)


def run(root: Path, *options: str, code: int = 0) -> Any:
    done = CliRunner().invoke(
        cli,
        ["--checkpoints", str(root), "ensemble", "--search", "made", *options],
        catch_exceptions=False,
    )
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if "--json" in options and not code else done.output


def test_the_top_models_with_their_gain(root: Path) -> None:
    exploded = record(
        9,
        {"learning_rate": 0.1},
        state=TrialState.EXPLODED,
        reason="loss above 3 x its first",
        val_acc=0.2,
    )
    SearchFolder(root, "made").stage("coarse").write_records(
        [exploded]
    )  # nobody would have chosen it
    text = run(root)
    assert "top, stage coarse" in text and "coarse-0000" in text and "ensemble of 3" in text
    assert (
        "on validation, selected over 3 trials: +0.0500 against the best single model, coarse-0000"
        in text
    )
    assert "paired on 40 examples" in text
    assert "test" not in text and not (root / "made" / NAME).exists()  # nobody looked


def test_json_is_strict_and_has_every_figure(root: Path) -> None:
    found = run(root, "--json", "--top", "2", "--of", "top", "--of", "greedy")
    assert found["search"] == "made" and found["looks"] is None
    top, chosen = found["ensembles"]
    assert (top["kind"], chosen["kind"]) == ("top", "greedy")
    assert [m["trial"] for m in top["members"]] == ["coarse-0000", "coarse-0001"]
    assert top["members"][0]["val"] == {
        "accuracy": 0.95,
        "correct": 38,
        "n": 40,
        "log_loss": pytest.approx(0.3272, abs=1e-3),
    }
    assert top["members"][0]["test"] is None and top["gain"]["test"] is None
    assert (root / "made" / top["members"][0]["checkpoint"]).exists()
    assert top["gain"]["val"]["low"] <= top["gain"]["val"]["value"] <= top["gain"]["val"]["high"]


def test_each_look_at_the_test_part_is_counted_and_told(root: Path) -> None:
    found = run(root, "--test", "--json")
    ensemble = found["ensembles"][0]
    assert found["looks"] == [1, 4]  # three models and what they are together
    assert [m["test"]["correct"] for m in ensemble["members"]] == [29, 28, 27]
    assert ensemble["ensemble"]["test"]["accuracy"] == 1.0
    assert ensemble["gain"]["test"]["value"] == pytest.approx(
        1 / 30
    )  # against the best on validation, not on test
    assert "looks 5 to 8 at the test part of search 'made'; only the first was unbiased" in run(
        root, "--test"
    )
    lines = [json.loads(line) for line in (root / "made" / NAME).read_text().splitlines()]
    assert (
        len(lines) == 8
        and lines[0]["checkpoint"].startswith("coarse/val_acc=0.99")
        and len(lines[3]["ensemble"]) == 3
    )


def test_seeds_and_snapshots_are_taken_from_the_stages_that_have_them(root: Path) -> None:
    folder = SearchFolder(root, "made")
    told = run(root, "--of", "snapshots", code=2)
    assert "no stage that was launched is a stage that keeps weights over time; add" in told
    assert "add snapshots = 5" in told
    assert 'kind = "seeds"' in run(root, "--of", "seeds", code=2)
    kept(folder, "fine", {0: arrays([0]), 1: arrays([1])}, over_time=(2, 4))
    kept(folder, "again", {n: arrays([n]) for n in range(3)})
    over_time, seeds = run(root, "--json", "--of", "snapshots", "--of", "seeds")["ensembles"]
    assert over_time["stage"] == "fine" and [
        (m["trial"], m["epoch"]) for m in over_time["members"]
    ] == [("fine-0000", 4), ("fine-0000", 2)]
    assert over_time["members"][0]["checkpoint"].startswith("fine/snapshots/")
    assert [m["trial"] for m in seeds["members"]] == ["again-0000", "again-0001", "again-0002"]
    assert run(root, "--json")["ensembles"][0]["stage"] == "fine"  # the last stage that searched
    assert len(run(root, "--json", "--stage", "all", "--top", "9")["ensembles"][0]["members"]) == 5
    assert "--stage x: no such stage" in run(root, "--stage", "x", code=2)


def test_a_stage_that_confirms_takes_part_where_it_is_asked_for(root: Path) -> None:
    kept(SearchFolder(root, "made"), "sure", {0: arrays([0]), 1: arrays([1])})
    assert run(root, "--json")["ensembles"][0]["stage"] == "coarse"
    for kind in ("top", "greedy"):
        assert (
            run(root, "--json", "--stage", "sure", "--of", kind)["ensembles"][0]["stage"] == "sure"
        )
    assert len(run(root, "--json", "--stage", "all")["ensembles"][0]["members"]) == 5


def test_what_cannot_be_mixed_is_one_message(root: Path) -> None:
    folder = SearchFolder(root, "made")
    assert "stage 'fine' of search 'made' has not been launched" in run(
        root, "--stage", "fine", code=2
    )
    kept(folder, "fine", {0: None, 1: None})
    told = run(root, "--stage", "fine", code=1)
    assert "none of the 2 kept models has predictions beside it" in told
    assert "name another stage, or --stage all" in told
    assert run(root, "--json")["ensembles"][0]["stage"] == "coarse"  # the last that has them
    told = run(root, "--of", "greedy", "--stage", "fine", code=1)
    assert "without classes" in told and "loops of your own" in told
    other = arrays([0]) | {"val_targets": (TARGETS + 1) % C}
    (
        StageFolder(root / "made" / "fine").path
        / CheckpointName(0.98, "fine-0001", 4, 1).predictions
    ).write_bytes(pack(other))
    assert "the data have changed" in run(root, "--stage", "all", code=1)


def test_a_damaged_file_is_told_and_passed_over(root: Path) -> None:
    path = root / "made" / "coarse" / CheckpointName(0.98, "coarse-0001", 4, 1).predictions
    path.write_bytes(path.read_bytes()[:100])
    text = run(root)
    assert "damaged predictions" in text and "ensemble of 2" in text


def test_without_a_test_part_there_is_nothing_to_look_at(root: Path) -> None:
    folder = SearchFolder(root, "made")
    without = {"test": np.empty((0, C)), "test_targets": np.empty(0)}
    kept(folder, "fine", {0: arrays([0]) | without, 1: arrays([1]) | without})
    assert "--test: the task has no test part" in run(root, "--test", code=2)
    assert "ensemble of 2" in run(root)

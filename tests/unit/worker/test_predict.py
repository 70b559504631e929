"""What a trained model says of new inputs, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from common.folder.checkpoint_name import CheckpointName
from common.folder.predictions import read
from common.folder.records import SearchFolder, StageFolder
from common.repeats import Repeats
from common.search.search_file import parse_search
from common.search.stage import Stage
from master.cli import cli as master
from master.strategy.ranges import write_frozen
from tests.unit.master.made import record
from tests.unit.training.helpers import job, outcomes
from worker.cli import cli
from worker.run.checkpoint_files import keep
from worker.tasks.base import Part
from worker.tasks.digits import Digits

SEARCH = """
id = "0123456789abcdef"
protocol = 2
name = "digits"
task = "digits"
[space]
learning_rate = { log_uniform = [1e-3, 1.0] }
[stages.coarse]
trials = 3
epochs = 2
snapshots = 2
"""
STAGES = {"coarse": Stage(name="coarse", trials=3, epochs=2, snapshots=2)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with three kept models, two of them with a running average."""
    folder = SearchFolder(tmp_path_factory.mktemp("predict"), "digits")
    folder.path.mkdir()
    folder.search_file.write_text(SEARCH)
    stage = folder.stage("coarse")
    stage.make()
    write_frozen(stage.ranges, parse_search(SEARCH).space)
    jobs = [
        job(i, 2, learning_rate=0.1 + 0.1 * i, batch_size=32, **({"ema": 0.9} if i else {}))
        for i in range(3)
    ]
    found = outcomes(jobs, task=Digits(), dtype=torch.float32, stages=STAGES)
    kept = {CheckpointName(o.val_acc or 0, o.trial.id, 2, 1): o for o in found.values()}
    keep(stage, kept, Repeats(print))
    stage.write_records(
        [
            record(o.trial.index, {}, val_acc=o.val_acc, checkpoint=str(name))
            for name, o in kept.items()
        ]
    )
    return folder.root


@pytest.fixture(scope="module")
def test_data() -> Part:
    part = Digits().data().test
    assert part is not None
    return part


def names(root: Path) -> list[CheckpointName]:
    return StageFolder(root / "digits" / "coarse").checkpoints()


def weights(root: Path, place: int = 0) -> Path:
    """The file of the best model, the second best, ..."""
    return root / "digits" / "coarse" / str(names(root)[place])


def run(root: Path, *command: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(
        cli, ["--checkpoints", str(root), *map(str, command)], catch_exceptions=False
    )
    assert done.exit_code == code, done.output
    return done


def saved(path: Path, inputs: np.ndarray) -> Path:
    np.save(path, inputs)
    return path


def table(text: str) -> np.ndarray:
    rows = csv.DictReader(io.StringIO(text))
    return np.array(
        [
            [float(cell) for name, cell in row.items() if name.startswith("probability")]
            for row in rows
        ]
    )


def test_it_gives_what_was_stored_beside_the_checkpoint(
    root: Path, tmp_path: Path, test_data: Part
) -> None:
    stored = read(root / "digits" / "coarse" / names(root)[0].predictions)
    assert stored.test is not None
    inputs = saved(tmp_path / "new.npy", test_data.inputs.numpy())
    done = run(root, "predict", weights(root), "--inputs", inputs, "--device", "cpu")
    np.testing.assert_allclose(table(done.stdout), stored.test.probabilities, atol=1e-5)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [int(row["class"]) for row in rows] == stored.test.probabilities.argmax(1).tolist()
    assert [int(row["example"]) for row in rows] == list(range(360))
    assert "360 examples, 1 model, on cpu" in done.stderr


def test_several_are_averaged_and_one_named_twice_counts_twice(
    root: Path, tmp_path: Path, test_data: Part
) -> None:
    stored = [read(root / "digits" / "coarse" / name.predictions).test for name in names(root)]
    one, two, three = (part.probabilities for part in stored if part)
    inputs, out = saved(tmp_path / "new.npy", test_data.inputs.numpy()), tmp_path / "out.npz"
    run(
        root,
        "predict",
        "--search",
        "digits",
        "--top",
        "3",
        "--inputs",
        inputs,
        "--out",
        out,
        "--device",
        "cpu",
    )
    with np.load(out) as found:
        np.testing.assert_allclose(found["probabilities"], (one + two + three) / 3, atol=1e-5)
        np.testing.assert_array_equal(found["classes"], found["probabilities"].argmax(1))
    run(
        root,
        "predict",
        weights(root),
        weights(root),
        weights(root, 1),
        "--inputs",
        inputs,
        "--out",
        out,
        "--device",
        "cpu",
    )
    with np.load(out) as found:
        np.testing.assert_allclose(found["probabilities"], (2 * one + two) / 3, atol=1e-5)


def test_an_ensemble_as_the_master_prints_it(root: Path, tmp_path: Path, test_data: Part) -> None:
    inputs, file = saved(tmp_path / "new.npy", test_data.inputs.numpy()), tmp_path / "greedy.json"
    done = CliRunner().invoke(
        master,
        ["--checkpoints", str(root), "ensemble", "--search", "digits", "--of", "greedy", "--json"],
    )
    file.write_text(done.stdout)
    members = json.loads(done.stdout)["ensembles"][0]["members"]
    assert sum(member["weight"] for member in members) > 1
    stored = [
        read(root / "digits" / Path(member["checkpoint"]).with_suffix(".npz")).test
        for member in members
    ]
    total = sum(
        part.probabilities * member["weight"]
        for part, member in zip(stored, members, strict=True)
        if part
    )
    text = run(root, "predict", "--ensemble", file, "--inputs", inputs).stdout
    np.testing.assert_allclose(
        table(text), total / sum(member["weight"] for member in members), atol=1e-5
    )
    for content, told in [
        ("[]", "not what `master ensemble --json --checkpoints"),
        ('{"search": "digits", "ensembles": [{"members": []}]}', "no model"),
    ]:
        file.write_text(content)
        assert told in run(root, "predict", "--ensemble", file, "--inputs", inputs, code=2).stderr


def test_the_same_from_every_kind_of_file(root: Path, tmp_path: Path, test_data: Part) -> None:
    inputs = test_data.inputs[:5].numpy()
    flat = inputs.reshape(5, -1)
    np.savez(tmp_path / "a.npz", inputs=inputs, other=np.zeros(3))
    np.savetxt(tmp_path / "plain.csv", flat, delimiter=",")
    header = ",".join(f"pixel {n}" for n in range(flat.shape[1]))
    np.savetxt(tmp_path / "named.csv", flat, delimiter=",", header=header, comments="")
    saved(tmp_path / "flat.npy", flat.astype(np.float64))
    texts = [
        run(root, "predict", weights(root), "--inputs", tmp_path / n).stdout
        for n in ("a.npz", "plain.csv", "named.csv", "flat.npy")
    ]
    for text in texts:
        np.testing.assert_allclose(table(text), table(texts[0]), atol=1e-5)


def test_a_snapshot_predicts_too_and_differs_from_the_end(
    root: Path, tmp_path: Path, test_data: Part
) -> None:
    inputs = saved(tmp_path / "new.npy", test_data.inputs.numpy())
    over_time = sorted(
        (root / "digits" / "coarse" / "snapshots").glob("*.pt"),
        key=lambda path: CheckpointName.parse(path.name).epoch,
    )  # type: ignore[union-attr]
    own = [path for path in over_time if names(root)[0].trial_id in path.name]
    assert len(over_time) == 6 and len(own) == 2
    first, last = (table(run(root, "predict", path, "--inputs", inputs).stdout) for path in own)
    assert np.abs(first - last).max() > 0.05
    np.testing.assert_allclose(
        first, read(own[0].with_suffix(".npz")).test.probabilities, atol=1e-5
    )  # type: ignore[union-attr]


def test_the_running_average_is_used_where_there_is_one(
    root: Path, tmp_path: Path, test_data: Part
) -> None:
    inputs = saved(tmp_path / "new.npy", test_data.inputs.numpy())
    averaged = [place for place, name in enumerate(names(root)) if name.trial_id != "coarse-0000"]
    plain = [place for place, name in enumerate(names(root)) if name.trial_id == "coarse-0000"]
    raw, ema = (
        table(
            run(
                root, "predict", weights(root, averaged[0]), "--inputs", inputs, "--weights", w
            ).stdout
        )
        for w in ("raw", "ema")
    )
    assert np.abs(raw - ema).max() > 1e-4
    told = run(
        root, "predict", weights(root, plain[0]), "--inputs", inputs, "--weights", "ema", code=2
    ).stderr
    assert (
        "holds no running average; train with ema = 0.999 in [space], or use --weights raw" in told
    )
    assert (
        "holds no running average"
        in run(root, "test", weights(root, plain[0]), "--weights", "ema", code=2).stderr
    )


def test_a_search_that_ranks_by_the_average_is_judged_by_it(
    tmp_path: Path, test_data: Part
) -> None:
    folder = SearchFolder(tmp_path, "digits")
    folder.path.mkdir()
    folder.search_file.write_text(
        SEARCH.replace("[space]", 'metric = "ema_val_acc"\n[space]\nema = 0.97')
    )
    stage = folder.stage("coarse")
    stage.make()
    one = job(0, 1, learning_rate=0.1, batch_size=32, ema=0.97)
    found = outcomes([one], task=Digits(), dtype=torch.float32, metric="ema_val_acc")[one.id]
    name = CheckpointName(found.value or 0, one.id, 1, 1, "ema_val_acc")
    keep(stage, {name: found}, Repeats(print))
    val = read(stage.path / name.predictions).val
    assert (
        (val.probabilities.argmax(1) == val.targets).mean()
        == pytest.approx(found.value)
        != found.val_acc
    )
    path, inputs = stage.path / str(name), saved(tmp_path / "new.npy", test_data.inputs.numpy())
    told = [
        run(tmp_path, "predict", path, "--inputs", inputs, *more).stdout
        for more in ((), ("--weights", "ema"), ("--weights", "raw"))
    ]
    assert told[0] == told[1] != told[2]
    right = int((table(told[0]).argmax(1) == test_data.targets.numpy()).sum())
    assert f"test accuracy {right / 360:.4f}" in run(tmp_path, "test", path).stdout


def test_the_test_part_is_measured_with_the_stored_preprocessing_and_counted(root: Path) -> None:
    stored = read(root / "digits" / "coarse" / names(root)[0].predictions).test
    assert stored is not None
    right = int((stored.probabilities.argmax(1) == stored.targets).sum())
    assert (
        f"({right} of 360); look 1 at the test part of search 'digits'"
        in run(root, "test", weights(root)).stdout
    )
    assert (
        "look 2 at the test part of search 'digits'; only the first was unbiased"
        in run(root, "test", weights(root)).stdout
    )
    looks = [
        json.loads(line) for line in (root / "digits" / "test_looks.jsonl").read_text().splitlines()
    ]
    assert [look["correct"] for look in looks] == [right, right] and looks[0][
        "checkpoint"
    ].startswith("coarse/val_acc=")


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (np.zeros((3, 63)), "examples of shape (63,); the model takes"),
        (np.full((3, 64), np.nan), "3 examples hold NaN or infinite values, number 1 first"),
        (np.zeros((0, 64)), "holds no example"),
        (np.array([["a"] * 64]), "not numbers"),
        (np.array([[{}] * 64], dtype=object), "not a readable .npy file"),
    ],
)
def test_inputs_that_do_not_fit_are_one_message(
    root: Path, tmp_path: Path, inputs: np.ndarray, told: str
) -> None:
    path = tmp_path / "new.npy"
    np.save(path, inputs, allow_pickle=True)
    text = run(root, "predict", weights(root), "--inputs", path, code=2).stderr
    assert text.startswith(f"error: --inputs {path}: ") and told in text


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "1,2\n3,x\n", "line 2, column 2: 'x' is not a number"),
        ("a.csv", "", "is empty"),
        ("a.csv", "1,2\n3\n4,5,6,7\n", "not a readable .csv file"),
        ("a.npz", "PK", "not a readable .npz file"),
        ("a.txt", "1", "use .npy, .npz or .csv"),
    ],
)
def test_files_that_cannot_be_read_are_one_message(
    root: Path, tmp_path: Path, name: str, content: str, told: str
) -> None:
    (tmp_path / name).write_text(content)
    text = run(root, "predict", weights(root), "--inputs", tmp_path / name, code=2).stderr
    assert told in text and text.count("\n") == 1


def test_what_is_no_model_of_this_search_is_refused(
    root: Path, tmp_path: Path, test_data: Part
) -> None:
    inputs = saved(tmp_path / "new.npy", test_data.inputs[:2].numpy())
    content = torch.load(weights(root), weights_only=True)
    other = weights(root).with_name("val_acc=0.1000-trial=coarse-0009-epoch=001-try=1.pt")
    try:
        torch.save(content | {"task": "mnist"}, other)
        assert (
            "is a checkpoint of task 'mnist', not of 'digits'"
            in run(root, "predict", other, "--inputs", inputs, code=1).stderr
        )
        assert "is a checkpoint of task 'mnist'" in run(root, "test", other, code=1).stderr
        torch.save(content | {"model": nn.Linear(3, 2).state_dict()}, other)
        assert (
            "does not fit the task's model"
            in run(root, "predict", other, "--inputs", inputs, code=1).stderr
        )
        torch.save(content | {"n_classes": 7}, other)
        assert (
            "make no ensemble"
            in run(root, "predict", weights(root), other, "--inputs", inputs, code=1).stderr
        )
    finally:
        other.unlink()
    stray = tmp_path / weights(root).name
    stray.write_bytes(weights(root).read_bytes())
    assert (
        "not a checkpoint in a search's folder"
        in run(root, "predict", stray, "--inputs", inputs, code=1).stderr
    )
    assert "which model? Give CHECKPOINT" in run(root, "predict", "--inputs", inputs, code=2).stderr
    assert (
        "no such search"
        in run(root, "predict", "--search", "none", "--inputs", inputs, code=2).stderr
    )
    assert (
        "is not a known kind of file; use .csv or .npz"
        in run(root, "predict", weights(root), "--inputs", inputs, "--out", "x.txt", code=2).stderr
    )

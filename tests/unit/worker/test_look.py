"""A task without classes: predicted as it comes, measured by its own metric."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from common.folder.checkpoint_name import CheckpointName
from common.folder.records import SearchFolder
from common.repeats import Repeats
from common.search.search_file import parse_search
from tests.shipped import ship
from tests.unit.training.helpers import job, outcomes
from worker.cli import cli
from worker.run.checkpoint_files import keep
from worker.tasks.loader import load_class

TASK = """
import torch
from torch import nn
from worker.tasks.base import Data, Part

def mae(outputs, targets):
    return (outputs - targets).abs().mean()

class Line:
    metrics = {"mae": mae}
    def data(self):
        x = torch.linspace(-1, 1, 96).unsqueeze(1).repeat(1, 3)
        y = x.sum(1, keepdim=True)
        return Data(Part(x[:64], y[:64]), Part(x[64:80], y[64:80]), Part(x[80:], y[80:]), n_classes=None)
    def model(self, hp):
        return nn.Linear(3, 1)
    def loss(self, outputs, targets, hp):
        return (outputs - targets).square().mean()
"""  # noqa: E501
SEARCH = """
id = "0123456789abcdef"
protocol = 2
name = "line"
task = "line.py:Line"
metric = "mae"
mode = "min"
[space]
learning_rate = { log_uniform = [1e-3, 1.0] }
[stages.coarse]
trials = 2
epochs = 3
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = SearchFolder(tmp_path_factory.mktemp("line"), "line")
    folder.path.mkdir()
    folder.search_file.write_text(SEARCH)
    own = tmp_path_factory.mktemp("own")
    (own / "line.py").write_text(TASK)
    ship(folder, "line.py:Line", own)
    stage = folder.stage("coarse")
    stage.make()
    task = load_class(parse_search(SEARCH), folder)
    options = {
        "task": task,
        "dtype": torch.float32,
        "task_name": "folder/line.py:Line",
        "metric": "mae",
        "mode": "min",
    }
    found = outcomes([job(0, 3, batch_size=16, learning_rate=0.1)], **options)["coarse-0000"]
    name = CheckpointName(found.value or 0.0, "coarse-0000", 3, 1, "mae")
    keep(stage, {name: found}, Repeats(print))
    assert not list(stage.path.glob("*.npz"))  # nothing to put together without classes
    return stage.path / str(name)


def test_what_the_model_gives_is_printed_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "new.npy", np.ones((2, 3)))
    done = CliRunner().invoke(
        cli,
        ["predict", str(checkpoint), "--inputs", str(tmp_path / "new.npy")],
        catch_exceptions=False,
    )
    assert done.exit_code == 0 and done.stdout.startswith("example,output_0\n0,")
    weights = torch.load(checkpoint, weights_only=True)["model"]
    expected = float(weights["weight"].sum() + weights["bias"])
    assert [float(line.split(",")[1]) for line in done.stdout.splitlines()[1:]] == pytest.approx(
        [expected] * 2, abs=1e-5
    )


def test_the_test_part_is_measured_by_the_task_s_own_metric(checkpoint: Path) -> None:
    done = CliRunner().invoke(cli, ["test", str(checkpoint)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (
        "coarse-0000: mae " in done.stdout
        and "on the test part (16 examples); look 1 at the test part of search 'line'"
        in done.stdout
    )
    assert "accuracy" not in done.stdout

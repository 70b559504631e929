"""Classes of the user's own, trained in arrays: their loss and metrics, and one clear message for each thing that can be wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.search import parse_search
from common.trial import TrialState
from tests.unit.training.helpers import FreeWatch, job, load, outcomes
from worker.own import OwnLoop
from worker.tasks import Data, Part, load_task

GENERATOR = torch.Generator().manual_seed(3)
INPUTS = torch.randn(96, 4, generator=GENERATOR, dtype=torch.float64)
VALUES = (INPUTS @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]], dtype=torch.float64)).tanh()
HP: dict[str, Any] = {"learning_rate": 0.1, "batch_size": 16, "delta": 0.3, "dropout": 0.0}


def huber(outputs: torch.Tensor, targets: torch.Tensor, delta: Any) -> torch.Tensor:
    error = (outputs - targets).abs()
    return torch.where(error < delta, 0.5 * error**2, delta * (error - 0.5 * delta)).mean()


class Regression:
    """Of one number, by a linear model."""

    metrics = {"val_mae": lambda outputs, targets: (outputs - targets).abs().mean()}  # noqa: RUF012

    def data(self) -> Data:
        return Data(Part(INPUTS[:64], VALUES[:64]), Part(INPUTS[64:], VALUES[64:]), None, None)

    def model(self, hp: Any) -> nn.Module:
        return nn.Linear(4, 1)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, hp: Any) -> torch.Tensor:
        return huber(outputs, targets, hp["delta"])


def trained(task: Any, *values: dict[str, Any], metric: str = "val_mae", mode: str = "min", epochs: float = 3) -> list[Any]:
    jobs = [job(i, epochs, **{**HP, **more}) for i, more in enumerate(values or ({},))]
    found = outcomes(jobs, task=task, metric=metric, mode=mode)
    return [found[one.id] for one in jobs]


def test_each_trial_of_an_array_minimises_the_task_s_own_loss_with_its_own_numbers() -> None:
    deltas = [0.05, 0.3, 2.0]
    found = trained(Regression(), *({"delta": delta, "learning_rate": rate} for delta, rate in zip(deltas, (0.3, 0.1, 0.05), strict=True)))
    for one, delta in zip(found, deltas, strict=True):
        assert one.state is TrialState.COMPLETED and one.array_width == 3 and one.val_acc is None
        assert one.value == one.metrics["val_mae"] == min(one.curves["val_mae"])
        alone = trained(Regression(), {"delta": delta, "learning_rate": one.job.claim.trial.hyperparameters["learning_rate"]})[0]
        if one is found[0]:  # the first trial has the same seed and so the same weights
            assert one.curves["val_mae"] == pytest.approx(alone.curves["val_mae"], abs=1e-10)
            assert one.curves["train_loss"] == pytest.approx(alone.curves["train_loss"], abs=1e-10)
        assert one.portrait is not None and one.portrait()["gradients"]
    assert found[0].first_loss != pytest.approx(found[2].first_loss)


class Classes(Regression):
    """The same inputs in two classes, with the engine's loss."""

    loss = None
    metrics = {"val_f1": lambda outputs, targets: (outputs.argmax(-1) == targets).double().mean() / 2}  # noqa: RUF012

    def data(self) -> Data:
        labels = (VALUES[:, 0] > 0).long()
        return Data(Part(INPUTS[:64], labels[:64]), Part(INPUTS[64:], labels[64:]), None, 2)

    def model(self, hp: Any) -> nn.Module:
        return nn.Linear(4, 2)


def test_a_classifier_s_own_metric_chooses_the_epoch_beside_its_accuracy() -> None:
    found = trained(Classes(), {}, {"learning_rate": 0.3}, metric="val_f1", mode="max")
    for one in found:
        assert one.value == one.metrics["val_f1"] == pytest.approx(one.val_acc / 2) and one.val_loss is not None


def with_data(data: Callable[[], Any], base: type = Regression) -> Any:
    return type("Odd", (base,), {"data": lambda self: data()})()


def with_model(module: Callable[[], nn.Module], base: type = Classes) -> Any:
    return type("Odd", (base,), {"model": lambda self, hp: module()})()


class Elsewhere(nn.Module):
    """Makes a tensor on a device of its own choice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + torch.ones(2, device="meta", dtype=x.dtype)


LABELS = torch.zeros(64, dtype=torch.int64)


def broken_metric(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    raise ValueError("planted")


@pytest.mark.parametrize(
    ("task", "metric", "reason"),
    [
        (with_data(lambda: Data(Part(INPUTS[:64], LABELS + 5), Part(INPUTS[:64], LABELS), None, 3)), "val_loss",
         "train targets run from 5 to 5; with n_classes = 3 they lie in 0 to 2"),
        (with_data(lambda: Data(Part(INPUTS[:64] / 0, LABELS), Part(INPUTS[:64], LABELS), None, 3)), "val_loss",
         "inputs are not finite, the first in example 0"),
        (with_data(lambda: (INPUTS, VALUES)), "val_loss", "data() returned a tuple; return Data("),
        (with_data(Regression().data, Classes), "val_loss", "n_classes is None, so the task needs a loss(outputs, targets, hp) of its own"),
        (with_model(lambda: nn.Linear(4, 3)), "val_loss", "logits of shape (16, 2) are needed"),
        (with_model(lambda: nn.Linear(5, 2)), "val_loss", "RuntimeError"),
        (with_model(Elsewhere), "val_loss", "(make tensors on the device of the input, and constants with register_buffer)"),
        (with_model(lambda: nn.ReLU()), "val_loss", "model(hp) has no parameter to train"),
        (Regression(), "val_acc", 'metric = "val_acc": the task does not measure it; it measures val_loss, val_mae'),
        (type("Odd", (Regression,), {"metrics": {"val_mae": broken_metric}})(), "val_mae", "ValueError: planted"),
        (type("Odd", (Regression,), {"metrics": {"val_mae": lambda o, t: o}})(), "val_mae", "val_mae gives a tensor of shape (32, 1)"),
        (type("Odd", (Regression,), {"loss": lambda self, o, t, hp: (o - t).abs()})(), "val_mae",
         "loss(outputs, targets, hp) gives (16, 1); the mean over the batch as a 0-d tensor is needed"),
        (type("Odd", (Regression,), {"loss": lambda self, o, t, hp: hp["margn"]})(), "val_mae", "KeyError: 'margn'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_task_is_one_clear_message(task: Any, metric: str, reason: str) -> None:
    found = trained(task, {}, {"learning_rate": 0.2}, metric=metric, mode="max" if metric == "val_acc" else "min")
    assert {one.state for one in found} == {TrialState.FAILED}
    assert reason in found[0].reason, found[0].reason


class Branching(nn.Module):
    """Looks at its data."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.inner(x)
        return 2 * scores if scores.mean() > 0 else scores


@pytest.mark.parametrize("width", [None, 2])
def test_what_cannot_be_stacked_is_told_once_and_trains_alone(width: int | None) -> None:
    said: list[str] = []
    found = outcomes(
        [job(i, 1, learning_rate=0.1) for i in range(3)],
        task=with_model(Branching),
        metric="val_loss",
        mode="min",
        width=width,
        log=said.append,
    )
    assert [(one.state, one.array_width) for one in found.values()] == [(TrialState.COMPLETED, 1)] * 3
    assert len([line for line in said if "its forward branches on data; torch.where chooses without a branch" in line]) == 1


# -- the page about it ---------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[3] / "docs" / "own-tasks.md"


def on_the_page(name: str, folder: Path) -> Any:
    """What the page's code is as a file of that name, loaded."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file, _, kind = name.partition(":")
    (folder / file).write_text(dict(blocks)[file])
    return load_task(f"{file}:{kind}", folder)


def test_the_class_on_the_page_trains_in_an_array(tmp_path: Path) -> None:
    hp = {"hidden": 16, "focus": 1.0, "dropout": 0.1, "learning_rate": 0.5}
    found = trained(on_the_page("my_task.py:MyTask", tmp_path), hp, {**hp, "focus": 0.2}, metric="val_f1", mode="max", epochs=12)
    assert [one.state for one in found] == [TrialState.COMPLETED] * 2 and found[0].array_width == 2
    assert min(one.value for one in found) > 0.7


def test_the_loop_on_the_page_trains_and_resumes(tmp_path: Path) -> None:
    loop = on_the_page("my_loop.py:train", tmp_path)
    text = 'name = "own"\ntask = "my_loop.py:train"\nmetric = "val_rmse"\nmode = "min"\n[space]\nlearning_rate = 0.1\n'
    search = parse_search(f"{text}[stages.coarse]\ntrials = 1\nepochs = 1\n")

    def run(resume: dict[str, Any] | None) -> list[Any]:
        own = OwnLoop(loop, torch.device("cpu"), search=search, log=lambda message: None)
        return list(own.train([job(0, 20, resume=resume, learning_rate=0.3)], lambda n: [], FreeWatch()))

    found = run(None)
    whole = found[-1].ended[0]
    assert whole.state is TrialState.COMPLETED and whole.value < 0.5 < whole.curves["val_rmse"][0]
    assert run(load(found[5].running[0].state()))[-1].ended[0].value == whole.value

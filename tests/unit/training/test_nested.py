"""Inputs, targets and outputs in containers, and losses in parts, on every path of the engine."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import CheckpointError, ConfigError, TaskError
from common.search.search_file import parse_search
from common.search.trial import TrialState
from tests.unit.training.helpers import (
    SEARCH_SEED,
    StopAfter,
    boundaries,
    engine,
    job,
    load,
    outcomes,
    state,
)
from worker.checks.data import of_data, rows
from worker.commands.inputs import read_inputs
from worker.commands.predict import Predicted
from worker.commands.test_look import _own as measure_own
from worker.tasks import Data, Part, trees
from worker.training.outcome.evaluate import load as load_saved
from worker.training.stacked.batches import shuffle

SEARCH = """
name = "nested"
task = "my_task.py:Nested"
metric = "METRIC"
mode = "min"
[space]
learning_rate = { log_uniform = [1e-3, 1.0] }
[stages.coarse]
trials = 3
epochs = 2
"""
N, N_VAL, WORDS = 96, 40, 11
HP: dict[str, Any] = {
    "learning_rate": 0.05,
    "batch_size": 16,
    "hidden": 6,
    "optimizer": "adam",
    "weight": 0.5,
}


def made(n: int, seed: int) -> Part:
    draw = torch.Generator().manual_seed(seed)
    inputs = {
        "words": torch.randint(WORDS, (n, 3), generator=draw),
        "rest": (
            torch.randn(n, 4, generator=draw, dtype=torch.float64),
            [torch.randn(n, 2, generator=draw, dtype=torch.float64)],
        ),
    }
    targets = {
        "sum": inputs["rest"][0].sum(-1),
        "class": (inputs["words"][:, 0] > WORDS // 2).long(),
    }
    return Part(inputs, targets)


class Net(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 4)
        self.body = nn.Sequential(nn.Linear(10, hidden), nn.Tanh(), nn.Dropout(0.0))
        self.value, self.kind = nn.Linear(hidden, 1), nn.Linear(hidden, 2)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        numbers, (more,) = inputs["rest"]
        h = self.body(torch.cat([self.words(inputs["words"]).mean(1), numbers, more], dim=-1))
        return {"value": self.value(h).squeeze(-1), "of": (self.kind(h), inputs["words"][:, 0])}


def right(outputs: Any, targets: Any) -> Tensor:
    return (outputs["of"][0].argmax(-1) == targets["class"]).double().mean()


class Nested:
    metrics = {"val_right": right}  # noqa: RUF012

    def data(self) -> Data:
        return Data(made(N, 1), made(N_VAL, 2), made(8, 3), None)

    def model(self, hp: Any) -> nn.Module:
        return Net(hp["hidden"])

    def loss(self, outputs: Any, targets: Any, hp: Any) -> Any:
        assert all(one.dtype == torch.int64 for one in outputs["of"][1:])
        return {
            "value": (outputs["value"] - targets["sum"]).square().mean(),
            "kind": hp["weight"] * nn.functional.cross_entropy(outputs["of"][0], targets["class"]),
        }


class Total(Nested):
    """The part "loss" is trained, and the others are only measured."""

    def loss(self, outputs: Any, targets: Any, hp: Any) -> Any:
        parts = super().loss(outputs, targets, hp)
        return {"loss": parts["value"] + 2 * parts["kind"], "kind": parts["kind"]}


class Branching(Nested):
    """It cannot be stacked, so it trains alone."""

    def model(self, hp: Any) -> nn.Module:
        class Alone(Net):
            def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
                return super().forward(inputs) if self.value.weight.mean() < 1e9 else {}

        return Alone(hp["hidden"])


class Recurrent(Nested):
    def model(self, hp: Any) -> nn.Module:
        class Reader(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words, self.reader = nn.Embedding(WORDS, 4), nn.GRU(4, 3, batch_first=True)
                self.out = nn.Linear(7, 3)

            def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
                read, _ = self.reader(self.words(inputs["words"]))
                found = self.out(torch.cat([read[:, -1], inputs["rest"][0]], dim=-1))
                return {"value": found[:, 0], "of": (found[:, 1:],)}

        return Reader()


class Gained(Nested):
    """A number in an attribute is each trial's own."""

    def model(self, hp: Any) -> nn.Module:
        class Own(Net):
            gain = 1.0

            def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
                found = super().forward(inputs)
                return {**found, "value": found["value"] * self.gain}

        net = Own(hp["hidden"])
        net.gain = 1 + hp["weight"]
        return net


class Counting(Nested):
    """Its forward depends on a counter, so it trains alone."""

    def model(self, hp: Any) -> nn.Module:
        class Alone(Net):
            count = 0

            def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
                self.count += 1
                found = super().forward(inputs)
                return {**found, "value": found["value"] * (1 + self.count / 50)}

        return Alone(hp["hidden"])


class Checkpointed(Nested):
    """A part of its forward is computed again in the backward, so it trains alone."""

    def model(self, hp: Any) -> nn.Module:
        class Alone(Net):
            def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
                call = super().forward
                numbers = inputs["rest"][0].requires_grad_(torch.is_grad_enabled())

                def both(numbers: Tensor) -> tuple[Tensor, Tensor]:
                    found = call({**inputs, "rest": (numbers, inputs["rest"][1])})
                    return found["value"], found["of"][0]

                value, kind = checkpoint(both, numbers, use_reentrant=True)
                return {"value": value, "of": (kind, inputs["words"][:, 0])}

        return Alone(hp["hidden"])


class CountingLoss(Nested):
    calls = 0

    def loss(self, outputs: Any, targets: Any, hp: Any) -> Any:
        self.calls += 1
        return super().loss(outputs, targets, hp)


class Called(Nested):
    def model(self, hp: Any) -> nn.Module:
        class Noisy(Net):
            def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
                (more,) = inputs["rest"][1]
                more = nn.functional.dropout(more, hp["weight"] / 5, self.training)
                return super().forward({**inputs, "rest": (inputs["rest"][0], [more])})

        return Noisy(hp["hidden"])


def jobs(n: int, epochs: float = 3) -> list[Any]:
    return [
        job(i, epochs, **{**HP, "weight": 0.2 + i, "learning_rate": 0.02 * (i + 1)})
        for i in range(n)
    ]


def plain(of: Any, task: Any, epochs: int = 3) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train one trial by a loop of plain PyTorch. Return its model and the losses of validation."""
    trial, data = of.trial, task.data()
    hp = trial.hyperparameters
    torch.manual_seed(trial.seed)
    module = task.model(hp).double()
    optimizer = torch.optim.Adam(module.parameters(), lr=hp["learning_rate"])
    measured = []
    for epoch in range(epochs):
        for batch in shuffle(N, SEARCH_SEED, epoch).split(hp["batch_size"]):
            part = data.train.take(batch)
            parts = dict(task.loss(module(part.inputs), part.targets, hp))
            optimizer.zero_grad()
            (parts["loss"] if "loss" in parts else sum(parts.values())).backward()
            optimizer.step()
        with torch.no_grad():
            parts = task.loss(module(data.val.inputs), data.val.targets, hp)
        measured.append({name: float(part) for name, part in parts.items()})
    return module, measured


ALONE = (Branching, Counting, Checkpointed, CountingLoss)


@pytest.mark.parametrize("backend", ["eager", "traced"])
@pytest.mark.parametrize("kind", [Nested, Total, Recurrent, Gained, *ALONE])
def test_it_trains_as_a_loop_of_plain_pytorch(kind: type, backend: str) -> None:
    task, ones = kind(), jobs(3)
    found = outcomes(
        ones,
        task=task,
        metric="val_value" if kind is not Total else "val_kind",
        mode="min",
        backend=backend,
        width=4,
    )
    for one in ones:
        outcome, (module, measured) = found[one.id], plain(one, task)
        assert outcome.state is TrialState.COMPLETED, outcome.reason
        assert outcome.array_width == (1 if kind in ALONE else 3)
        for name in measured[0]:
            assert outcome.curves[f"val_{name}"] == pytest.approx(
                [of_epoch[name] for of_epoch in measured], rel=1e-9
            )
        trained = outcome.curves["train_loss"]
        of_parts = [outcome.curves[f"train_{name}"] for name in measured[0] if name != "loss"]
        if kind is not Total:
            assert trained == pytest.approx([sum(parts) for parts in zip(*of_parts, strict=True)])
        assert outcome.resume is not None
        state = outcome.resume()["row"]["flat"]
        layout = engine(task, metric="val_loss").builder.entry(one).model.layout
        for name, weight in layout.views(state).items():
            assert torch.allclose(weight, module.get_parameter(name), atol=1e-8), name


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "traced"])
def test_called_dropout_in_containers_is_stacked_and_does_what_it_does_alone(backend: str) -> None:
    ones = jobs(3)
    how: dict[str, Any] = {"task": Called(), "metric": "val_value", "mode": "min"}
    how["backend"] = backend
    together = outcomes(ones, width=3, **how)
    for one in ones:
        apart = outcomes([one], width=1, **how)[one.id]
        assert together[one.id].array_width == 3
        for name in ("train_loss", "train_kind", "val_value"):
            assert together[one.id].curves[name] == pytest.approx(apart.curves[name]), name
    still = outcomes(ones[:1], **{**how, "task": Nested()})[ones[0].id]
    assert still.curves["train_loss"] != apart.curves["train_loss"]


@pytest.mark.parametrize("kind", [Nested, CountingLoss])
def test_looks_leave_a_task_as_it_was_and_know_the_parts_of_its_loss(kind: type) -> None:
    task, said = kind(), list[str]()
    how: dict[str, Any] = {"task": task, "mode": "min", "log": said.append}
    engine(metric="val_value", **how).builder.entry(jobs(1)[0])
    assert any("its loss changes the attribute `calls`" in line for line in said) == (
        kind is CountingLoss
    )
    assert not vars(task)
    with pytest.raises(TaskError, match="val_nothing"):
        engine(metric="val_nothing", **how).builder.entry(jobs(1)[0])


def test_it_resumes_in_the_middle_of_an_epoch_with_the_sums_of_its_parts() -> None:
    ones = jobs(2, 2)
    how: dict[str, Any] = {"task": Nested(), "metric": "val_loss", "mode": "min", "width": 2}
    whole = outcomes(ones, **how)
    last = list(boundaries(ones, watch=StopAfter(13), **how))
    running = {view.claim.id: state(view) for view in last[-1].running}
    assert any(content["steps"] % 6 for content in running.values())
    again = [job(i, 2, running[one.id], **one.trial.hyperparameters) for i, one in enumerate(ones)]
    resumed = outcomes(again, **how)
    for one in ones:
        for name in ("train_value", "train_kind", "val_kind", "val_right", "val_loss"):
            assert resumed[one.id].curves[name] == pytest.approx(whole[one.id].curves[name])


def test_a_saved_model_predicts_containers_from_a_file(tmp_path: Any) -> None:
    one = jobs(1)[0]
    outcome = outcomes([one], task=Nested(), metric="val_right")[one.id]
    assert outcome.checkpoint is not None and outcome.portrait is not None
    assert set(outcome.portrait()["gradients"]) == {"words", "body.0", "value", "kind"}
    path = tmp_path / "best.pt"
    path.write_bytes(outcome.checkpoint())
    saved = load_saved(path, Nested(), "digits", torch.device("cpu"))
    test = Nested().data().test
    assert test is not None
    arrays = {name: leaf.numpy() for name, leaf in trees.name_leaves(test.inputs).items()}
    assert list(arrays) == ["words", "rest.0", "rest.1.0"]
    np.savez(tmp_path / "new.npz", **arrays)
    inputs = read_inputs(tmp_path / "new.npz", saved.form)
    assert type(inputs["rest"]) is tuple and type(inputs["rest"][1]) is list
    outputs = saved.outputs(inputs)
    assert outputs["value"].shape == (8,) and outputs["of"][0].shape == (8, 2)
    assert torch.equal(outputs["of"][1], test.inputs["words"][:, 0])
    del arrays["rest.0"]
    np.savez(tmp_path / "less.npz", **arrays)
    with pytest.raises(ConfigError, match=r"rest\.0 is not in the file"):
        read_inputs(tmp_path / "less.npz", saved.form)
    (tmp_path / "new.csv").write_text("1,2\n")
    with pytest.raises(ConfigError, match=r"give a \.npz"):
        read_inputs(tmp_path / "new.csv", saved.form)
    with pytest.raises(CheckpointError, match="takes no examples"):
        saved.outputs({"words": inputs["words"]})


@pytest.mark.parametrize(
    ("hp", "told"),
    [
        ({"preprocess": "normalise"}, "preprocess = 'normalise': the inputs are a dict of tensors"),
        ({"augment_noise": 0.1}, "augment_noise: the inputs are a dict of tensors"),
    ],
)
def test_what_acts_on_one_tensor_is_refused(hp: dict[str, Any], told: str) -> None:
    one = job(0, 1, **{**HP, **hp})
    outcome = outcomes([one], task=Nested(), metric="val_right")[one.id]
    assert outcome.state is TrialState.FAILED and told in str(outcome.reason)


def test_a_metric_that_is_no_part_of_the_loss_is_told_before_training() -> None:
    one = job(0, 1, **HP)
    outcome = outcomes([one], task=Nested(), metric="val_nothing")[one.id]
    assert outcome.state is TrialState.FAILED and not outcome.epochs
    assert "it measures val_loss, val_right, val_value, val_kind" in str(outcome.reason)


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ({}, "an empty dict"),
        ({"acc": torch.zeros(())}, "would be measured as val_acc"),
        ({"A b": torch.zeros(())}, "use another name"),
        ({"a": torch.zeros(3)}, r"\['a'\] gives \(3,\); the mean over the batch"),
        ({"a": 1.0}, r"\['a'\] gives float"),
        ({"right": torch.zeros(())}, "val_right is among the task's metrics"),
    ],
)
def test_a_wrong_loss_in_parts_is_told(loss: Any, told: str) -> None:
    class Wrong(Nested):
        def loss(self, outputs: Any, targets: Any, hp: Any) -> Any:
            return loss

    one = job(0, 1, **HP)
    outcome = outcomes([one], task=Wrong(), metric="val_right")[one.id]
    assert outcome.state is TrialState.FAILED
    with pytest.raises(TaskError, match=told):
        raise TaskError(outcome.reason)


@pytest.mark.parametrize(
    ("inputs", "targets", "told"),
    [
        (
            {"a": torch.zeros(2), "b": torch.zeros(3)},
            torch.zeros(2),
            r"2 inputs\.a and 3 inputs\.b",
        ),
        ({"a": [torch.zeros(2), 3]}, torch.zeros(2), r"inputs\.a\.1 is a int"),
        ({}, torch.zeros(2), "2 targets"),
        ((torch.full((2,), torch.nan),), torch.zeros(2), r"2 of 2 inputs\.0 are not finite"),
    ],
)
def test_a_part_with_wrong_containers_is_told(inputs: Any, targets: Any, told: str) -> None:
    with pytest.raises(TaskError, match=told):
        Part(inputs, targets)


def test_parts_must_have_the_same_form() -> None:
    x = torch.zeros(4)
    with pytest.raises(TaskError, match=r"val has inputs\.b, targets, train has inputs\.a"):
        Data(Part({"a": x}, x), Part({"b": x}, x), None, None)
    with pytest.raises(TaskError, match="with n_classes they are"):
        Data(Part(x, (x.long(),)), Part(x, (x.long(),)), None, 2)


def test_the_checks_of_data_look_at_each_tensor() -> None:
    data = Nested().data()
    data.train.inputs["rest"][0].mul_(1e4)
    found = {finding.check: finding for finding in of_data(data, data.train)}
    assert found["data: scaled (rest.0)"].status.value == "failed"
    assert found["data: scaled (rest.1.0)"].status.value == "passed"
    assert "words 96 x 3" in found["data: finite"].found
    assert len(set(rows(data.train.inputs))) == N


def test_a_model_that_returns_something_else_is_told() -> None:
    class Wrong(Nested):
        def model(self, hp: Any) -> nn.Module:
            class Odd(Net):
                def forward(self, inputs: dict[str, Any]) -> Any:
                    return {**super().forward(inputs), "count": 3}

            return Odd(hp["hidden"])

    one = job(0, 1, **HP)
    outcome = outcomes([one], task=Wrong(), metric="val_right")[one.id]
    assert "the model returns a dict with int for 16 examples" in str(outcome.reason)


def test_a_checkpoint_describes_its_inputs_in_plain_values() -> None:
    one = job(0, 1, **HP)
    outcome = outcomes([one], task=Nested(), metric="val_right")[one.id]
    assert outcome.checkpoint is not None
    form = load(outcome.checkpoint())["inputs"]
    assert form["dict"]["rest"]["tuple"][1]["list"] == [{"shape": [2], "floating": True}]
    assert form == trees.describe(Nested().data().train.inputs)


def test_several_outputs_are_written_by_name() -> None:
    values = {"image": np.zeros((2, 3), np.float32), "code.0": np.ones(2, np.float32)}
    found = Predicted(values, None, 1)
    assert len(found) == 2
    assert found.csv().splitlines()[0] == "example,image_0,image_1,image_2,code.0_0"
    with np.load(io.BytesIO(found.npz()), allow_pickle=False) as arrays:
        assert {name: arrays[name].shape for name in arrays} == {"image": (2, 3), "code.0": (2,)}


@pytest.mark.parametrize(
    ("metric", "of"), [("val_loss", "sum"), ("val_kind", "kind"), ("val_value", "value")]
)
def test_a_look_at_the_test_part_measures_a_part_of_the_loss(metric: str, of: str) -> None:
    class Parts(Nested):
        def loss(self, outputs: Any, targets: Any, hp: Any) -> Any:
            return {"kind": torch.tensor(1.0), "value": torch.tensor(2.0)}

    search = parse_search(SEARCH.replace("METRIC", metric))
    saved: Any = SimpleNamespace(dtype=torch.float32, hyperparameters={})
    part = made(4, 1)
    value = measure_own(search, Parts(), saved, torch.zeros(4), part.targets)
    assert value == {"sum": 3.0, "kind": 1.0, "value": 2.0}[of]

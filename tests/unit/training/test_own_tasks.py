"""Classes of the user's own, trained in arrays.

The tests cover their loss and metrics, and one clear message for each possible mistake.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.search.search_file import parse_search
from common.search.trial import TrialState
from tests.unit.training.helpers import (
    FreeWatch,
    SmallDigits,
    engine,
    job,
    load,
    outcomes,
    states_at,
)
from tests.unit.worker.looped import own_of
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


def trained(
    task: Any,
    *values: dict[str, Any],
    metric: str = "val_mae",
    mode: str = "min",
    epochs: float = 3,
) -> list[Any]:
    jobs = [job(i, epochs, **{**HP, **more}) for i, more in enumerate(values or ({},))]
    found = outcomes(jobs, task=task, metric=metric, mode=mode)
    return [found[one.id] for one in jobs]


def test_each_trial_of_an_array_minimises_the_task_s_own_loss_with_its_own_numbers() -> None:
    deltas = [0.05, 0.3, 2.0]
    found = trained(
        Regression(),
        *(
            {"delta": delta, "learning_rate": rate}
            for delta, rate in zip(deltas, (0.3, 0.1, 0.05), strict=True)
        ),
    )
    for one, delta in zip(found, deltas, strict=True):
        assert one.state is TrialState.COMPLETED and one.array_width == 3 and one.val_acc is None
        assert one.value == one.metrics["val_mae"] == min(one.curves["val_mae"])
        alone = trained(
            Regression(),
            {"delta": delta, "learning_rate": one.trial.hyperparameters["learning_rate"]},
        )[0]
        if one is found[0]:  # the first trial has the same seed and so the same weights
            assert one.curves["val_mae"] == pytest.approx(alone.curves["val_mae"], abs=1e-10)
            assert one.curves["train_loss"] == pytest.approx(alone.curves["train_loss"], abs=1e-10)
        assert one.portrait is not None and one.portrait()["gradients"]
    assert found[0].first_loss != pytest.approx(found[2].first_loss)


def test_what_guessing_gives_and_how_many_steps_an_epoch_has_are_told_with_the_outcome() -> None:
    data = SmallDigits().data()
    found = outcomes([job(0, 1)])["coarse-0000"]
    largest = max((data.val.targets == number).sum().item() for number in range(10)) / len(data.val)
    assert (found.n_val, found.guess_acc, found.epoch_steps) == (
        len(data.val),
        largest,
        len(data.train) // 64,
    )
    plain = trained(Regression(), epochs=1)[0]
    assert plain.guess_acc is None and plain.guess_loss is None and plain.epoch_steps is not None


class Classes(Regression):
    """The same inputs in two classes, with the engine's loss."""

    loss = None
    metrics = {  # noqa: RUF012
        "val_f1": lambda outputs, targets: (outputs.argmax(-1) == targets).double().mean() / 2
    }

    def data(self) -> Data:
        labels = (VALUES[:, 0] > 0).long()
        return Data(Part(INPUTS[:64], labels[:64]), Part(INPUTS[64:], labels[64:]), None, 2)

    def model(self, hp: Any) -> nn.Module:
        return nn.Linear(4, 2)


def test_a_classifier_s_own_metric_chooses_the_epoch_beside_its_accuracy() -> None:
    found = trained(Classes(), {}, {"learning_rate": 0.3}, metric="val_f1", mode="max")
    for one in found:
        assert (
            one.value == one.metrics["val_f1"] == pytest.approx(one.val_acc / 2)
            and one.val_loss is not None
        )


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
        (
            with_data(
                lambda: Data(Part(INPUTS[:64], LABELS + 5), Part(INPUTS[:64], LABELS), None, 3)
            ),
            "val_loss",
            "train targets run from 5 to 5; with n_classes = 3 they lie in 0 to 2",
        ),
        (
            with_data(
                lambda: Data(Part(INPUTS[:64] / 0, LABELS), Part(INPUTS[:64], LABELS), None, 3)
            ),
            "val_loss",
            "inputs are not finite, the first in example 0",
        ),
        (with_data(lambda: (INPUTS, VALUES)), "val_loss", "data() returned a tuple; return Data("),
        (
            with_data(Regression().data, Classes),
            "val_loss",
            "n_classes is None, so the task needs a loss(outputs, targets, hp) of its own",
        ),
        (with_model(lambda: nn.Linear(4, 3)), "val_loss", "logits of shape (16, 2) are needed"),
        (with_model(lambda: nn.Linear(5, 2)), "val_loss", "RuntimeError"),
        (
            with_model(Elsewhere),
            "val_loss",
            "(make tensors on the device of the input, and constants with register_buffer)",
        ),
        (with_model(lambda: nn.ReLU()), "val_loss", "model(hp) has no parameter to train"),
        (
            Regression(),
            "val_acc",
            'metric = "val_acc": the task does not measure it; it measures val_loss, val_mae',
        ),
        (
            type("Odd", (Regression,), {"metrics": {"val_mae": broken_metric}})(),
            "val_mae",
            "ValueError: planted",
        ),
        (
            type("Odd", (Regression,), {"metrics": {"val_mae": lambda o, t: o}})(),
            "val_mae",
            "val_mae gives a tensor of shape (32, 1)",
        ),
        (
            type("Odd", (Regression,), {"loss": lambda self, o, t, hp: (o - t).abs()})(),
            "val_mae",
            (
                "loss(outputs, targets, hp) gives (16, 1); the mean over the batch as a 0-d "
                "tensor is needed"
            ),
        ),
        (
            type("Odd", (Regression,), {"loss": lambda self, o, t, hp: hp["margn"]})(),
            "val_mae",
            "KeyError: 'margn'",
        ),
    ],
)
def test_what_is_wrong_with_a_task_is_one_clear_message(
    task: Any, metric: str, reason: str
) -> None:
    found = trained(
        task,
        {},
        {"learning_rate": 0.2},
        metric=metric,
        mode="max" if metric == "val_acc" else "min",
    )
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
    assert [(one.state, one.array_width) for one in found.values()] == [
        (TrialState.COMPLETED, 1)
    ] * 3
    assert (
        len(
            [
                line
                for line in said
                if "its forward branches on data; torch.where chooses without a branch" in line
            ]
        )
        == 1
    )


# -- the page about it -----------------------------------------------------------------------------

PAGE = Path(__file__).parents[3] / "docs" / "own-tasks.md"


def on_the_page(name: str, folder: Path) -> Any:
    """What the page's code is as a file of that name, loaded."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file, _, kind = name.partition(":")
    (folder / file).write_text(dict(blocks)[file])
    return load_task(f"{file}:{kind}", folder)


def test_the_class_on_the_page_trains_in_an_array(tmp_path: Path) -> None:
    hp = {"hidden": 16, "focus": 1.0, "dropout": 0.1, "learning_rate": 0.5}
    found = trained(
        on_the_page("my_task.py:MyTask", tmp_path),
        hp,
        {**hp, "focus": 0.2},
        metric="val_f1",
        mode="max",
        epochs=12,
    )
    assert [one.state for one in found] == [TrialState.COMPLETED] * 2 and found[0].array_width == 2
    assert min(one.value for one in found) > 0.7


def test_the_loop_on_the_page_trains_and_resumes(tmp_path: Path) -> None:
    loop = on_the_page("my_loop.py:train", tmp_path)
    text = (
        'name = "own"\ntask = "my_loop.py:train"\nmetric = "val_rmse"\nmode = "min"\n'
        "[space]\nlearning_rate = 0.1\n"
    )
    search = parse_search(f"{text}[stages.coarse]\ntrials = 1\nepochs = 1\n")

    def run(resume: dict[str, Any] | None) -> list[Any]:
        return list(
            own_of(loop.train, search).train(
                [job(0, 20, resume=resume, learning_rate=0.3)], lambda n: [], FreeWatch()
            )
        )

    found = run(None)
    whole = found[-1].ended[0]
    assert whole.state is TrialState.COMPLETED and whole.value < 0.5 < whole.curves["val_rmse"][0]
    assert run(load(found[5].running[0].state()))[-1].ended[0].value == whole.value


class Scaled(nn.Module):
    """A linear layer beside a tensor of an uncommon kind, which its forward uses."""

    def __init__(self, tensor: torch.Tensor, trained: bool, buffer: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        if buffer:
            self.register_buffer("extra", tensor)
        else:
            self.extra = nn.Parameter(tensor, requires_grad=trained)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * (1 + self.extra.real.to(x.dtype).square().sum())


class Still(nn.Module):
    """Nothing in it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.to(x.dtype).T


UNCOMMON: dict[str, Callable[[], nn.Module]] = {
    "a scalar": lambda: Scaled(torch.tensor(0.5), trained=True),
    "a frozen scalar": lambda: Scaled(torch.tensor(0.5), trained=False),
    "a scalar buffer": lambda: Scaled(torch.tensor(0.5), trained=False, buffer=True),
    "an empty tensor": lambda: Scaled(torch.zeros(0, 3), trained=True),
    "an empty buffer": lambda: Scaled(torch.zeros(0), trained=False, buffer=True),
    "whole numbers": lambda: Scaled(torch.tensor([1, 2]), trained=False),
    "a buffer of truth values": lambda: Scaled(
        torch.tensor([True, False]), trained=False, buffer=True
    ),
}
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "complex": (lambda: Scaled(torch.tensor([1 + 1j]), trained=True), "extra is complex"),
    "complex and frozen": (
        lambda: Scaled(torch.tensor([1 + 1j]), trained=False),
        "extra is complex",
    ),
    "a complex buffer": (
        lambda: Scaled(torch.tensor([1 + 1j]), trained=False, buffer=True),
        "extra is complex",
    ),
    "buffers alone": (Still, "has no parameter to train"),
}


@pytest.mark.parametrize("kind", UNCOMMON)
def test_parameters_of_every_kind_are_trained_saved_and_loaded(kind: str) -> None:
    class Own(Classes):
        def model(self, hp: Any) -> nn.Module:
            return UNCOMMON[kind]()

    found = trained(
        Own(), {"learning_rate": 0.05}, {"learning_rate": 0.1}, metric="val_acc", mode="max"
    )
    for one in found:
        assert one.state is TrialState.COMPLETED, one.reason
        model = UNCOMMON[kind]().double()
        model.load_state_dict(load(one.checkpoint())["model"])
        expected = model(INPUTS[64:]).softmax(-1)
        assert torch.from_numpy(one.predictions()["val"]).double() == pytest.approx(
            expected.detach(), abs=1e-6
        )
        assert one.portrait is not None and one.portrait() and one.resume()


@pytest.mark.parametrize("kind", REFUSED)
def test_parameters_that_cannot_be_trained_are_refused_in_words(kind: str) -> None:
    make, reason = REFUSED[kind]

    class Own(Classes):
        def model(self, hp: Any) -> nn.Module:
            return make()

    (one,) = trained(Own(), metric="val_acc", mode="max")
    assert one.state is TrialState.FAILED and reason in str(one.reason)


class Lazy(Classes):
    """Layers that get their sizes from the first batch.

    One of them draws noise and one has running averages.
    """

    def model(self, hp: Any) -> nn.Module:
        layers = [
            nn.LazyLinear(6),
            nn.LazyBatchNorm1d(),
            nn.ReLU(),
            nn.Dropout(hp["dropout"]),
            nn.LazyLinear(2),
        ]
        return nn.Sequential(*layers)


def sized(task: Any, one: Any, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return the module as a user's own loop makes it.

    It is drawn under the trial's seed, and one batch has passed through it.
    """
    torch.manual_seed(one.trial.seed)
    module = task.model(one.trial.hyperparameters)
    with torch.no_grad():
        module.eval()(task.data().train.inputs[:16].float())
    return module.to(dtype)


def test_lazy_layers_get_sizes_and_weights_under_the_trial_s_seed_and_train_together_as_alone() -> (
    None
):
    values = [{"learning_rate": 0.05, "dropout": 0.2}, {"learning_rate": 0.1, "dropout": 0.4}]
    found = trained(Lazy(), *values, metric="val_acc", mode="max")
    for one in found:
        assert one.state is TrialState.COMPLETED and one.array_width == 2, one.reason
        module = sized(Lazy(), one)
        start = one.trial
        built = (
            engine(task=Lazy(), metric="val_acc", mode="max")
            .builder.entry(job(start.index, 3, **{**HP, **values[start.index]}))
            .model.module
        )
        for name, tensor in module.state_dict().items():
            assert torch.equal(dict(built.state_dict())[name], tensor), name
        module.load_state_dict(load(one.checkpoint())["model"])
        expected = module.eval()(Lazy().data().val.inputs).softmax(-1)
        assert torch.from_numpy(one.predictions()["val"]).double() == pytest.approx(
            expected.detach(), abs=1e-6
        )
        fresh = Lazy().model({**HP, "dropout": 0.0}).double()
        fresh.load_state_dict(
            load(one.checkpoint())["model"]
        )  # as `worker predict` does: sizes are those of the weights
        assert torch.equal(fresh.eval()(Lazy().data().val.inputs), module(Lazy().data().val.inputs))
    alone = trained(Lazy(), values[0], metric="val_acc", mode="max")[0]
    assert alone.curves["val_loss"] == pytest.approx(found[0].curves["val_loss"], rel=1e-9)


def test_a_trial_with_lazy_layers_goes_on_from_its_saved_state() -> None:
    whole = trained(Lazy(), {}, metric="val_acc", mode="max", epochs=4)[0]
    half = states_at([job(0, 4, **HP)], 2, task=Lazy(), metric="val_acc", mode="max")["coarse-0000"]
    state = {name: value for name, value in half.items() if name not in ("model", "optimizer")}
    resumed = outcomes([job(0, 4, resume=state, **HP)], task=Lazy(), metric="val_acc", mode="max")[
        "coarse-0000"
    ]
    assert resumed.curves["val_loss"] == pytest.approx(whole.curves["val_loss"], rel=1e-12)


class Unreached(Classes):
    def model(self, hp: Any) -> nn.Module:
        module = nn.Sequential(nn.Linear(4, 2))
        module[0].spare = nn.LazyLinear(3)
        return module


class Misfit(Classes):
    def model(self, hp: Any) -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(3, 2), nn.Flatten(), nn.LazyLinear(2))


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (
            Unreached(),
            (
                "forward does not reach 0.spare (LazyLinear), so that layer has no size; give "
                "its size in model(hp), or leave the layer out"
            ),
        ),
        (
            Misfit(),
            ("Its inputs have the shape (16, 4), and it raised RuntimeError"),
        ),
    ],
)
def test_a_lazy_layer_that_gets_no_size_is_named_with_the_remedy(task: Any, reason: str) -> None:
    (one,) = trained(task, metric="val_acc", mode="max")
    assert one.state is TrialState.FAILED and reason in str(one.reason)


# -- who reads a hyperparameter --------------------------------------------------------------------


class Smoothing(Classes):
    """What is read is read by the loss, in forward, or under a condition."""

    def model(self, hp: Any) -> nn.Module:
        module = nn.Linear(4, 2)
        if hp["kind"] == "soft":
            torch.nn.init.constant_(module.bias, hp["softness"])
        module.register_forward_pre_hook(lambda module, given: (hp["gain"] * given[0],))
        return module


class SmoothingLoss(Smoothing):
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, hp: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets) * (1 - hp["smoothing"])


def test_nobody_is_advised_to_delete_what_the_loss_the_forward_or_another_trial_reads() -> None:
    read = {
        "softness": 0.1,
        "gain": 1.0,
        "kind": "hard",
        "momentum_start": 0.5,
        "label_smoothing": 0.1,
    }
    for task, more in ((Smoothing(), {}), (SmoothingLoss(), {"smoothing": 0.1})):
        said: list[str] = []
        outcomes(
            [job(0, 1, **{**HP, **read, **more})],
            task=task,
            metric="val_loss",
            mode="min",
            log=said.append,
        )
        told = [
            line
            for line in said
            if "is used by neither" in line and " delta " not in line and " hidden " not in line
        ]
        assert told == [], told


def test_what_nobody_reads_is_told() -> None:
    said: list[str] = []
    values = {"softness": 0.1, "gain": 1.0, "kind": "hard", "".join(("soft", "nes")): 0.1}
    outcomes(
        [job(0, 1, **{**HP, **values})],
        task=Smoothing(),
        metric="val_loss",
        mode="min",
        log=said.append,
    )
    assert [line for line in said if "softnes " in line] == [
        (
            "hyperparameter softnes is used by neither the task nor the training; remove it "
            "from [space] or read it in model()"
        )
    ]

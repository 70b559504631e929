"""Trials of a built-in task that start with a module of the same layers, not with their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import TaskError
from common.search.trial import Claim
from tests.unit.training.helpers import SmallDigits, boundaries, engine, job, outcomes, state
from worker.tasks.spiral import Spiral
from worker.training.engine import array
from worker.training.engine.builder import Builder
from worker.training.model.structure import Model
from worker.training.stacked.rows import fresh_rows

CPU = torch.device("cpu")
CONVNET = {"model": "convnet", "filters": 3, "blocks": 2}
NUMBERS = [
    {"dropout": 0.1, "negative_slope": 0.2, "elu_alpha": 0.7, "init_scale": 0.02},
    {"dropout": 0.4, "negative_slope": 0.05, "elu_alpha": 1.3, "init_scale": 0.3},
    {"dropout": 0.0, "negative_slope": 0.0, "elu_alpha": 0.1, "init_scale": 0.0},
]
KINDS: dict[str, dict[str, Any]] = {
    **{
        activation: {"activation": activation}
        for activation in ("relu", "leaky_relu", "prelu", "elu", "gelu", "sigmoid", "tanh")
    },
    "maxout": {"activation": "maxout", "pieces": 3},
    "xavier": {"init": "xavier", "activation": "tanh"},
    "gaussian": {"init": "gaussian", "activation": "prelu"},
    "batch norm": {"batch_norm": True, "activation": "leaky_relu"},
    "noise on the inputs": {"input_dropout": 0.2, "dropout_kind": "gaussian"},
    "no hidden layer": {"depth": 0},
    "no hidden layer, noise": {"depth": 0, "input_dropout": 0.3},
    "three numbers a layer": {"hidden": 3},
    "running average": {"ema": 0.9},
    "convolutions": CONVNET,
    "convolutions, xavier": {**CONVNET, "init": "xavier", "activation": "elu"},
    "convolutions, batch norm": {**CONVNET, "batch_norm": True, "input_dropout": 0.1},
}


def model(builder: Builder, one: Claim) -> Model:
    return builder.entry(one).model


def rows(models: list[Model], jobs: list[Claim], dtype: torch.dtype) -> dict[str, Tensor]:
    return fresh_rows(models, [one.trial.seed for one in jobs], CPU, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_start_gives_bit_for_bit_what_the_module_itself_begins_with(
    kind: str, dtype: torch.dtype
) -> None:
    jobs = [job(i, 1, **{**numbers, **KINDS[kind]}) for i, numbers in enumerate(NUMBERS)]
    builder = engine(dtype=dtype).builder
    started = [model(builder, one) for one in jobs]
    assert [one.start is None for one in started] == [True, False, False]
    assert len({id(one.module) for one in started}) == 1
    own = [model(engine(dtype=dtype).builder, one) for one in jobs]
    assert all(one.start is None for one in own)
    assert [one.rates for one in started] == [one.rates for one in own]
    found, expected = rows(started, jobs, dtype), rows(own, jobs, dtype)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype and torch.equal(tensor, found[name]), name


def test_the_spiral_starts_so_too() -> None:
    jobs = [job(i, 1, hidden=5) for i in range(2)]
    builder = engine(Spiral(), dtype=torch.float32).builder
    started = [model(builder, one) for one in jobs]
    own = [model(engine(Spiral(), dtype=torch.float32).builder, one) for one in jobs]
    assert started[1].start is not None
    assert torch.equal(
        rows(started, jobs, torch.float32)["flat"], rows(own, jobs, torch.float32)["flat"]
    )


def test_the_weights_are_those_of_the_task_s_own_model() -> None:
    jobs = [job(i, 1, dropout=0.1 * i) for i in range(3)]
    builder = engine(dtype=torch.float32).builder
    models = [model(builder, one) for one in jobs]
    flat = rows(models, jobs, torch.float32)["flat"]
    for one, row in zip(jobs, flat, strict=True):
        torch.manual_seed(one.trial.seed)
        plain = SmallDigits().model(one.trial.hyperparameters)
        assert torch.equal(row, models[0].layout.row(dict(plain.named_parameters())))


def test_training_is_the_same_bit_for_bit_with_modules_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = [
        job(i, 2, learning_rate=0.01 * (i + 1), dropout=0.05 * i, activation="leaky_relu")
        for i in range(5)
    ]
    shared = outcomes(jobs, dtype=torch.float32)
    monkeypatch.setattr(Builder, "_share", lambda *known: None)
    own = outcomes(jobs, dtype=torch.float32)
    for name, one in own.items():
        assert shared[name].first_loss == one.first_loss
        for curve in one.curves.keys() - {"seconds"}:
            assert shared[name].curves[curve] == one.curves[curve]


def test_a_number_out_of_bounds_is_refused_as_by_the_model() -> None:
    builder = engine().builder
    builder.entry(job(0, 1, dropout=0.1))
    with pytest.raises(TaskError, match=r"dropout = 1\.5: a number in"):
        builder.entry(job(1, 1, dropout=1.5))


def test_models_of_other_layers_or_recipes_begin_with_their_own_module() -> None:
    builder = engine().builder
    builder.entry(job(0, 1))
    for other in ({"hidden": 17}, {"optimizer": "adam"}, {"batch_size": 32}, {"init": "xavier"}):
        assert model(builder, job(1, 1, **other)).start is None


class Doubled(SmallDigits):
    def model(self, hp: Any) -> nn.Sequential:
        found = super().model(hp)
        with torch.no_grad():
            found[0].weight.mul_(2)
        return found


class Grouped(SmallDigits):
    def param_groups(self, module: nn.Module, hp: Any) -> list[dict[str, Any]]:
        return [{"params": list(module.parameters())[:1], "learning_rate": hp["learning_rate"] / 2}]


@pytest.mark.parametrize("task", [Doubled, Grouped])
def test_a_task_with_a_model_or_groups_of_its_own_builds_each_module(task: type) -> None:
    builder = engine(task()).builder
    models = [model(builder, job(i, 1)) for i in range(2)]
    assert [one.start for one in models] == [None, None]
    assert models[0].module is not models[1].module


def test_what_an_ended_trial_leaves_holds_its_own_numbers_alone() -> None:
    for ended in outcomes([job(i, 1) for i in range(4)]).values():
        assert ended.resume is not None
        state = ended.resume()
        for tensor in state["row"].values():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_the_states_of_an_array_cost_one_transfer_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: dict[int, int] = {}
    own = array._fetch

    def counted(rows: Any) -> Any:
        fetched[len(rows["flat"])] = fetched.get(len(rows["flat"]), 0) + 1
        return own(rows)

    monkeypatch.setattr(array, "_fetch", counted)
    for width in (2, 6):
        boundary = next(iter(boundaries([job(i, 2) for i in range(width)])))
        states = [state(view) for view in boundary.running]
        assert [one["trial"] for one in states] == [view.trial.id for view in boundary.running]
    assert fetched == {2: 1, 6: 1}

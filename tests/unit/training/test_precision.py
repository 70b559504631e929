"""Products in bfloat16: stacked models and models alone round alike, and all else is float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import ConfigError, TaskError
from common.search.search_file import parse_search
from common.search.trial import TrialState
from tests.unit.training.helpers import (
    PlainRun,
    SmallDigits,
    StopAfter,
    boundaries,
    digits,
    engine,
    job,
    load,
    outcomes,
    state,
)
from tests.unit.training.references import covers
from tests.unit.training.test_backends import Images
from worker.tasks.digits import Digits
from worker.training.engine.array import TrialArray
from worker.training.math import precision
from worker.training.math.recipe import read_recipe
from worker.training.outcome.evaluate import load as load_saved

SINGLE = torch.float32
RATES = (0.02, 0.05, 0.1)
# Differences between two ways of rounding to 8 bits, after 15 steps.
CLOSE = 2e-2


def jobs(**more: Any) -> list[Any]:
    return [job(i, 3, learning_rate=rate, momentum=0.9, **more) for i, rate in enumerate(RATES)]


def weights(content: dict[str, Any]) -> Tensor:
    return torch.cat([one.flatten() for one in content["model"].values()])


@covers(precision=("fp32", "tf32", "bf16"))
@pytest.mark.parametrize(("kind", "close"), [("fp32", 1e-4), ("tf32", 1e-4), ("bf16", CLOSE)])
def test_each_slot_trains_as_a_plain_loop_under_autocast(kind: str, close: float) -> None:
    ones = jobs(precision=kind)
    found = outcomes(ones, dtype=SINGLE, width=3)
    for one in ones:
        # Without its cache, since the loop changes the weights within the block.
        with torch.autocast("cpu", torch.bfloat16, kind == "bf16", cache_enabled=False):
            plain = PlainRun(one, SmallDigits().data(), SINGLE)
        outcome = found[one.id]
        assert outcome.state is TrialState.COMPLETED and outcome.array_width == 3
        losses = torch.tensor(plain.losses).view(3, -1).mean(1).tolist()
        assert outcome.curves["train_loss"] == pytest.approx(losses, abs=close)


class Tokens(SmallDigits):
    """Attention, layer normalisation and dropout over the rows of an image."""

    def model(self, hp: Any) -> nn.Module:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.TransformerEncoderLayer(
                    8, 2, 16, dropout=0.1, batch_first=True, norm_first=True
                )
                self.out = nn.Linear(8, 10)

            def forward(self, inputs: Tensor) -> Tensor:
                return self.out(self.layer(inputs.view(-1, 8, 8)).mean(1))

        return Net()


class Recurrent(SmallDigits):
    def model(self, hp: Any) -> nn.Module:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.rows, self.out = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 10)

            def forward(self, inputs: Tensor) -> Tensor:
                return self.out(self.rows(inputs.view(-1, 8, 8))[0][:, -1])

        return Net()


@pytest.mark.parametrize("task", [SmallDigits, Images, Tokens, Recurrent])
def test_an_array_agrees_with_the_models_alone(task: Any) -> None:
    said: list[str] = []
    stacked = engine(task(), SINGLE, said.append, width=3)
    stacked.builder.widths.choose = lambda *known: 3  # type: ignore[method-assign]
    ones = jobs(precision="bf16", dropout=0.1)
    together = {
        o.trial.id: o
        for boundary in stacked.train(ones, lambda n: [], StopAfter(10**9))
        for o in boundary.ended
    }
    lone = [
        job(i, 3, alone=True, learning_rate=rate, momentum=0.9, precision="bf16", dropout=0.1)
        for i, rate in enumerate(RATES)
    ]
    alone = outcomes(lone, task=task(), dtype=SINGLE)
    assert not [line for line in said if "alone" in line]
    for name, outcome in together.items():
        assert (outcome.array_width, alone[name].array_width) == (3, 1)
        for curve in ("train_loss", "val_loss"):
            assert outcome.curves[curve] == pytest.approx(alone[name].curves[curve], abs=CLOSE)


def test_bfloat16_learns_digits_nearly_as_well() -> None:
    best = {
        kind: max(o.val_acc or 0.0 for o in outcomes(ones, task=Digits(), dtype=SINGLE).values())
        for kind in ("fp32", "bf16")
        for ones in [
            [job(i, 5, learning_rate=r, momentum=0.9, precision=kind) for i, r in enumerate(RATES)]
        ]
    }
    assert best["fp32"] > 0.9
    assert best["bf16"] == pytest.approx(best["fp32"], abs=0.02)


@pytest.mark.parametrize("alone", [False, True])
def test_weights_gradients_and_states_stay_in_float32(alone: bool) -> None:
    ones = [job(i, 2, alone=alone, optimizer="adam", ema=0.9, precision="bf16") for i in range(2)]
    for outcome in outcomes(ones, task=Images(), dtype=SINGLE).values():
        content = load(outcome.checkpoint())  # type: ignore[misc]
        row = outcome.resume()["row"]  # type: ignore[misc]
        assert {"ema", "buffer.2.running_mean", "state.exp_avg"} <= row.keys()
        held = [*row.values(), *content["model"].values(), *content["ema"].values()]
        held += [t for of_one in content["optimizer"]["state"].values() for t in of_one.values()]
        assert {one.dtype for one in held if one.is_floating_point()} == {SINGLE}
    through = engine(dtype=SINGLE)
    entries = [through.builder.entry(one) for one in ones]
    shapes = through.builder.shapes(entries[0].model)
    array = TrialArray(entries, shapes, through.builder.setting())
    assert array.stack._gradients.dtype == SINGLE


SEEN: list[tuple[bool, torch.dtype]] = []


class Watched(SmallDigits):
    """Notes the types of its activations."""

    def model(self, hp: Any) -> nn.Module:
        class Net(nn.Sequential):
            def forward(self, inputs: Tensor) -> Tensor:
                for layer in self:
                    inputs = layer(inputs)
                    SEEN.append((self.training, inputs.dtype))
                return inputs

        return Net(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("fp32", SINGLE)])
def test_activations_are_of_the_precision(alone: bool, kind: str, dtype: torch.dtype) -> None:
    through = engine(Watched(), SINGLE, width=2)
    ones = [job(i, 1, alone=alone, precision=kind) for i in range(2)]
    steps = through.train(ones, lambda n: [], StopAfter(10**9))
    # Looks and checks before the first step are in float32 too.
    original = TrialArray.advance

    def advance(self: TrialArray, watch: Any) -> None:
        SEEN.clear()
        original(self, watch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrialArray, "advance", advance)
        ended = [outcome for boundary in steps for outcome in boundary.ended]
    assert [o.array_width for o in ended] == ([1, 1] if alone else [2, 2])
    assert set(SEEN) == {(True, dtype), (False, dtype)}


@pytest.mark.parametrize("alone", [False, True])
def test_a_penalty_on_activations_is_summed_in_float32(alone: bool) -> None:
    more = {"alone": alone, "activation_l1": 3e-2}
    half, full = (
        outcomes(jobs(precision=kind, **more), task=Watched(), dtype=SINGLE, width=3)
        for kind in ("bf16", "fp32")
    )
    for name, outcome in half.items():
        assert outcome.first_loss == pytest.approx(full[name].first_loss, rel=1e-2)
        assert outcome.val_loss == pytest.approx(full[name].val_loss, rel=5e-2)


class Hidden(SmallDigits):
    """A closure holds a number of the trial, and it hardly matters."""

    def model(self, hp: Any) -> nn.Module:
        factor = 1 + 0.2 * hp["learning_rate"]

        class Net(nn.Sequential):
            def forward(self, inputs: Tensor) -> Tensor:
                return super().forward(inputs) * factor

        return Net(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def test_a_hidden_value_is_found_that_bfloat16_would_hide() -> None:
    said: list[str] = []
    outcomes(jobs(precision="bf16"), task=Hidden(), dtype=SINGLE, log=said.append, width=3)
    assert any("hidden in a closure" in line for line in said)


def test_a_stacked_model_that_rounds_worse_than_the_model_alone_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cast = precision._cast_tensor
    monkeypatch.setattr(
        precision, "_cast_tensor", lambda one, dtype: cast(one, dtype) * (1 + 2**-5)
    )
    said: list[str] = []
    found = outcomes(jobs(precision="bf16"), dtype=SINGLE, log=said.append, width=3)
    assert any("more than its rounding explains" in line for line in said)
    assert {o.array_width for o in found.values()} == {1}


def test_the_check_allows_what_rounding_does_to_a_deep_model() -> None:
    class Deep(Images):
        def model(self, hp: Any) -> nn.Module:
            blocks = [
                layer
                for _ in range(8)
                for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
            ]
            first = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, padding=1)]
            return nn.Sequential(*first, *blocks, nn.Flatten(), nn.Linear(256, 10))

    through = engine(Deep(), SINGLE)
    entries = [through.builder.entry(one) for one in jobs(precision="bf16")]
    array = TrialArray(entries, [], through.builder.setting())
    assert array.strangers(range(3)) == {}


def test_a_model_that_cannot_be_stacked_is_told_with_its_own_line() -> None:
    class Branching(SmallDigits):
        def model(self, hp: Any) -> nn.Module:
            class Net(nn.Linear):
                def forward(self, inputs: Tensor) -> Tensor:
                    found = super().forward(inputs)
                    return found / 2 if found.mean() > 100 else found

            return Net(64, 10)

    said: list[str] = []
    found = outcomes(
        jobs(precision="bf16"), task=Branching(), dtype=SINGLE, log=said.append, width=3
    )
    assert {o.state for o in found.values()} == {TrialState.COMPLETED}
    (line,) = said
    assert "branches on data" in line and "test_precision.py" in line and "found.mean()" in line


def test_a_trial_resumes_exactly() -> None:
    one = job(0, 3, precision="bf16", dropout=0.2)
    whole = outcomes([one], dtype=SINGLE)[one.id]
    stopped = list(boundaries([one], StopAfter(8), dtype=SINGLE))[-1].running[0]
    saved = state(stopped)
    assert 0 < saved["steps"] < 15
    again = job(0, 3, resume=saved, precision="bf16", dropout=0.2)
    resumed = outcomes([again], dtype=SINGLE)[one.id]
    assert resumed.curves["train_loss"] == whole.curves["train_loss"]
    same = [load(o.checkpoint()) for o in (whole, resumed)]  # type: ignore[misc]
    assert torch.equal(weights(same[0]), weights(same[1]))
    assert same[0]["hyperparameters"]["precision"] == "bf16"


def test_a_cpu_says_once_that_it_has_no_tf32() -> None:
    said: list[str] = []
    found = outcomes(jobs(precision="tf32"), dtype=SINGLE, log=said.append)
    plain = outcomes(jobs(), dtype=SINGLE)
    assert said == ['precision = "tf32": a CPU has no TF32; this worker computes in float32']
    for name, outcome in found.items():
        assert outcome.curves["val_loss"] == plain[name].curves["val_loss"]


@pytest.mark.parametrize("value", ["fp16", "bfloat16", 16, True])
def test_another_precision_is_refused(value: Any) -> None:
    with pytest.raises(TaskError, match=r"precision = .*: use one of fp32, tf32, bf16"):
        read_recipe({"learning_rate": 0.1, "precision": value})
    text = f"""
name = "one"
task = "digits"
[space]
learning_rate = 0.1
precision = {value!r}
[budget]
epochs = 100
""".replace("True", "true")
    with pytest.raises(ConfigError, match=r"precision = .*: use one of fp32, tf32, bf16"):
        parse_search(text)


def test_a_saved_model_predicts_in_its_precision_with_float32_weights(tmp_path: Path) -> None:
    one = job(0, 1, precision="bf16")
    path = tmp_path / "one.pt"
    path.write_bytes(outcomes([one], dtype=SINGLE)[one.id].checkpoint())  # type: ignore[misc]
    saved = load_saved(path, SmallDigits(), "digits", torch.device("cpu"))
    assert {p.dtype for p in saved.module.parameters()} == {SINGLE}
    inputs = digits().val.inputs
    found = saved.outputs(inputs)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = saved.module(inputs)
    assert isinstance(found, Tensor) and found.dtype == SINGLE
    assert torch.equal(found, expected.float())
    assert not torch.equal(found, saved.module(inputs))


def test_nothing_is_cast_in_double_precision() -> None:
    one, plain = outcomes(jobs(precision="bf16")), outcomes(jobs())
    for name, outcome in one.items():
        assert outcome.curves["train_loss"] == pytest.approx(
            plain[name].curves["train_loss"], rel=1e-9
        )


def test_traced_steps_round_like_eager_ones() -> None:
    ones = jobs(precision="bf16", dropout=0.2)
    said: list[str] = []
    traced = outcomes(ones, dtype=SINGLE, width=3, backend="traced", log=said.append)
    eager = outcomes(ones, dtype=SINGLE, width=3, backend="eager")
    assert any("traced: " in line for line in said)
    for name, outcome in traced.items():
        assert outcome.curves["train_loss"] == pytest.approx(
            eager[name].curves["train_loss"], abs=1e-5
        )


ONES = torch.ones(2, 2)
SMALL = ONES.bfloat16()


@pytest.mark.parametrize(
    ("call", "dtype"),
    [
        (lambda: ONES @ ONES, torch.bfloat16),
        (lambda: nn.functional.linear(SMALL, ONES, ONES[0]), torch.bfloat16),
        (lambda: torch.einsum("ij,jk->ik", ONES, SMALL), torch.bfloat16),
        (lambda: nn.functional.batch_norm(SMALL, ONES[0], ONES[1]), torch.bfloat16),
        (lambda: SMALL.relu(), torch.bfloat16),
        (lambda: nn.functional.softmax(SMALL, -1), SINGLE),
        (lambda: nn.functional.layer_norm(SMALL, (2,), ONES[0], ONES[0]), SINGLE),
        (lambda: torch.addcmul(ONES, SMALL, SMALL), SINGLE),
        (lambda: torch.addcmul(SMALL, SMALL, SMALL), torch.bfloat16),
        (lambda: ONES.double() @ ONES.double(), torch.float64),
    ],
)
def test_functions_compute_in_the_types_that_autocast_has_for_them(
    call: Any, dtype: torch.dtype
) -> None:
    with precision.StackedCasts():
        assert call().dtype == dtype

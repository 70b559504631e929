"""Why trials train alone: model or loss, what it does there, and the line."""

from __future__ import annotations

import cProfile
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.search.trial import TrialState
from tests.unit.training.helpers import SmallDigits, job, load, outcomes


class Doubling(torch.autograd.Function):
    """As they were written before torch.func."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Halving(torch.autograd.Function):
    """With setup_context, and still without a rule for vmap."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x / 2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is needed."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 2


def written(h: Tensor) -> Tensor:
    out = torch.zeros(h.shape, dtype=h.dtype)
    out[:] = h  # here: writes
    return out


# What the hidden units go through, and what the message says of it.
IN_FORWARD: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "branch": (lambda h: 2 * h if h.sum() > 0 else h, "branches on data"),
    "check": (lambda h: h if not torch.isnan(h).any() else 0 * h, "branches on data"),
    "item": (lambda h: h * h.mean().item(), "reads a number out of a tensor"),
    "float": (lambda h: h * float(h.mean()), "reads a number out of a tensor"),
    "numpy": (
        lambda h: h + torch.from_numpy(np.sign(h.detach().numpy())),
        "hands a tensor to code that reads its memory",
    ),
    "random": (lambda h: h + torch.randn_like(h), "draws random numbers; nn.Dropout"),
    "dropout": (
        lambda h: nn.functional.alpha_dropout(h, 0.2, True),
        "draws random numbers; nn.Dropout",
    ),
    "written": (written, "writes in place into a tensor"),
    "old function": (
        lambda h: Doubling.apply(h),
        "calls a torch.autograd.Function without setup_context",
    ),
    "function": (
        lambda h: Halving.apply(h),
        "calls a torch.autograd.Function without setup_context",
    ),
    "mask": (lambda h: h + h[h > 0].mean(), "picks by a mask"),
    "places": (
        lambda h: h / (1 + len(h.detach().nonzero())),
        "picks by a mask, or otherwise makes sizes depend on data",
    ),
}


class Net(nn.Module):
    def __init__(self, through: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self._through = nn.Linear(64, 16), nn.Linear(16, 10), [through]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self._through[0](self.first(inputs).tanh()))


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets)


def branching(self: Any, outputs: Tensor, targets: Tensor, hp: Any) -> Tensor:
    loss = cross_entropy(outputs, targets)
    return 2 * loss if loss > 1 else loss  # here: branches


def choosing(self: Any, outputs: Tensor, targets: Tensor, hp: Any) -> Tensor:
    return cross_entropy(outputs, targets) * (
        2 if hp["gain"] > 1 else 1  # here: branches by a hyperparameter
    )


def reading(self: Any, outputs: Tensor, targets: Tensor, hp: Any) -> Tensor:
    loss = cross_entropy(outputs, targets)
    return loss / loss.item()  # here: reads


def counting(self: Any, outputs: Tensor, targets: Tensor, hp: Any) -> Tensor:
    return cross_entropy(outputs, targets) + float(np.mean(outputs.detach().numpy()))  # here: numpy


def drawing(self: Any, outputs: Tensor, targets: Tensor, hp: Any) -> Tensor:
    return cross_entropy(outputs + 0.01 * torch.randn_like(outputs), targets)  # here: draws


def doubling(self: Any, outputs: Tensor, targets: Tensor, hp: Any) -> Tensor:
    return Doubling.apply(cross_entropy(outputs, targets))  # here: calls


def masked(self: Any, outputs: Tensor, targets: Tensor, hp: Any) -> Tensor:
    return cross_entropy(outputs, targets) + outputs[outputs > 0].mean()  # here: picks


IN_LOSS: dict[str, tuple[Callable[..., Tensor], str, str]] = {
    "branch": (branching, "branches on data; torch.where", "# here: branches)"),
    "hyperparameter": (
        choosing,
        "branches on data; torch.where",
        "# here: branches by a hyperparameter)",
    ),
    "item": (reading, "reads a number out of a tensor", "# here: reads)"),
    "numpy": (counting, "hands a tensor to code that reads its memory", "# here: numpy)"),
    "random": (drawing, "draws random numbers (test_reasons.py", "# here: draws)"),
    "function": (
        doubling,
        "calls a torch.autograd.Function without setup_context",
        "# here: calls)",
    ),
    "mask": (masked, "picks by a mask", "# here: picks)"),
}


def task_of(
    model: Callable[[Any], nn.Module] | None = None, loss: Callable[..., Tensor] | None = None
) -> Any:
    parts: dict[str, Any] = {"model": lambda self, hp: model(hp)} if model is not None else {}
    return type("Task", (SmallDigits,), parts | ({"loss": loss} if loss is not None else {}))()


def said_of(task: Any, gains: tuple[float, ...] = (0.5, 1.5)) -> tuple[str, list[Any]]:
    """The one thing that is told, and what became of the trials."""
    said: list[str] = []
    found = outcomes(
        [job(i, 1, gain=gain) for i, gain in enumerate(gains)], task=task, log=said.append, width=2
    )
    told = [line for line in said if "is used by neither" not in line]
    assert len(told) == 1, told
    return told[0], list(found.values())


@pytest.mark.parametrize("name", IN_FORWARD)
def test_what_a_forward_does_is_told_with_its_line(name: str) -> None:
    through, what = IN_FORWARD[name]
    told, found = said_of(task_of(lambda hp: Net(through)))
    assert f"trains alone, as will others like it: its forward {what}" in told, told
    is_written = name == "written"
    first = IN_FORWARD[name][0].__code__.co_firstlineno + (2 if is_written else 0)
    text = "out[:] = h  # here: writes)" if is_written else "lambda h: "
    assert f"(test_reasons.py, line {first}: " in told and text in told, told
    assert "vmap: " not in told and {(one.state, one.array_width) for one in found} == {
        (TrialState.COMPLETED, 1)
    }


@pytest.mark.parametrize("name", IN_LOSS)
def test_what_a_loss_does_is_no_fault_of_the_forward_and_trains_alone(name: str) -> None:
    loss, what, line = IN_LOSS[name]
    told, found = said_of(task_of(loss=loss))
    assert (
        f"its loss {what}" in told and "(test_reasons.py, line " in told and told.endswith(line)
    ), told
    assert {(one.state, one.array_width) for one in found} == {(TrialState.COMPLETED, 1)}


def test_an_error_that_nobody_knows_says_where_it_was_raised() -> None:
    def odd(self: Any, outputs: Tensor, targets: Tensor, hp: Any) -> Tensor:
        if torch._C._functorch.is_functorch_wrapped_tensor(outputs):
            raise ArithmeticError("odd")  # here: raises
        return cross_entropy(outputs, targets)

    told, found = said_of(task_of(loss=odd))
    assert "a stacked step raised ArithmeticError: odd, in its loss (test_reasons.py, line" in told
    assert told.endswith("# here: raises)")
    assert {(one.state, one.array_width) for one in found} == {(TrialState.COMPLETED, 1)}


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reader, self.last = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = nn.utils.rnn.pack_padded_sequence(
            inputs.view(-1, 8, 8), torch.full((len(inputs),), 8), batch_first=True
        )
        found, _ = self.reader(rows)  # here: reads them
        return self.last(nn.utils.rnn.pad_packed_sequence(found, batch_first=True)[0][:, -1])


def test_a_packed_sequence_is_told_with_its_line() -> None:
    told, found = said_of(task_of(lambda hp: Packed()))
    assert "its forward hands a tensor to code that reads its memory" in told and told.endswith(
        "# here: reads them)"
    )
    assert {one.state for one in found} == {TrialState.COMPLETED}


def test_a_loss_that_changes_from_call_to_call_is_told_as_the_loss() -> None:
    calls: list[int] = []

    def loss(self: Any, outputs: Tensor, targets: Tensor, hp: Any) -> Tensor:
        calls.append(1)
        return cross_entropy(outputs, targets) * (1 + 1 / len(calls))

    assert "its loss gives other values at each call" in said_of(task_of(loss=loss))[0]


def test_a_number_in_a_closure_is_told_as_the_forward() -> None:
    told, _ = said_of(task_of(lambda hp: Net(lambda h, gain=hp["gain"]: h * gain)))
    assert (
        "coarse-0001 trains alone" in told
        and "its stacked training forward differs" in told
        and "make it a buffer (test_reasons.py, line " in told
        and "def forward(self, inputs: Tensor)" in told
    )


class Attribute(Net):
    def __init__(self, gain: float) -> None:
        super().__init__(lambda h: h * self.gain)
        self.gain = gain


def test_the_attribute_that_keeps_trials_apart_is_named_with_its_values_and_line() -> None:
    class Power(Net):
        def __init__(self, gain: float) -> None:
            super().__init__(lambda h: nn.functional.leaky_relu(h, self.gain))  # here: reads
            self.gain = gain

    told, found = said_of(task_of(lambda hp: Power(hp["gain"])))
    assert told.startswith(
        "attribute `gain` differs between trials (0.5 and 1.5), and the forward reads it "
        "(test_reasons.py, line "
    )
    assert "# here: reads): they train alone" in told and "register_buffer" in told
    assert {one.array_width for one in found} == {1}
    told, _ = said_of(
        task_of(lambda hp: nn.Sequential(nn.LayerNorm(64, eps=hp["gain"]), nn.Linear(64, 10))),
        (0.1, 0.2, 0.3),
    )
    assert told.startswith("attribute `0.eps` differs between trials (0.1 and 0.2), and the forw")


def test_a_buffer_that_a_forward_replaces_is_trained_and_saved_with_its_values() -> None:
    class Following(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(64, 10)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                self.seen = self.seen + 1
            return self.last(inputs)

    (one,) = outcomes([job(0, 2)], task=task_of(lambda hp: Following())).values()
    assert load(one.checkpoint())["model"]["seen"] == 10  # five steps an epoch


def test_a_profiler_changes_nothing_and_goes_on() -> None:
    profile = cProfile.Profile()
    profile.enable()
    try:
        found = outcomes([job(i, 1) for i in range(2)]).values()
        assert isinstance(sys.getprofile(), cProfile.Profile)
    finally:
        profile.disable()
    assert {(one.state, one.array_width) for one in found} == {(TrialState.COMPLETED, 2)}

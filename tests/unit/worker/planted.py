"""Small tasks for the checks before learning: one that is sound, and one for each bug."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from worker.tasks.base import Data, Part

N_CLASSES, N_INPUTS = 4, 12


def blobs(n: int, seed: int) -> Part:
    """Four clouds that overlap a little; the inputs have deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(N_CLASSES, N_INPUTS, generator=torch.Generator().manual_seed(0))
    targets = torch.randperm(n, generator=generator) % N_CLASSES
    return Part(
        (centres[targets] + torch.randn(n, N_INPUTS, generator=generator)) / 2**0.5, targets
    )


class Sound:
    def data(self) -> Data:
        return Data(blobs(300, 1), blobs(200, 2), blobs(100, 3), N_CLASSES)

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        hidden = int(hp.get("hidden", 16))
        return nn.Sequential(
            nn.Linear(N_INPUTS, hidden),
            self.activation(hp),
            nn.Dropout(0.5),
            nn.Linear(hidden, N_CLASSES),
        )

    def activation(self, hp: Mapping[str, Any]) -> nn.Module:
        return nn.Tanh() if hp.get("activation") == "tanh" else nn.ReLU()


class Functional(Sound):
    """Its activation is a function, which is no layer."""

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.hidden, self.out = nn.Linear(N_INPUTS, 12), nn.Linear(12, N_CLASSES)

            def forward(self, inputs: Tensor) -> Tensor:
                return self.out(torch.relu(self.hidden(inputs)))

        return Net()


# -- the data --------------------------------------------------------------------------------------


class ShuffledLabels(Sound):
    def data(self) -> Data:
        sound = super().data()
        order = torch.randperm(300, generator=torch.Generator().manual_seed(9))
        return Data(
            Part(sound.train.inputs, sound.train.targets[order]), sound.val, sound.test, N_CLASSES
        )


class ShuffledValidation(Sound):
    def data(self) -> Data:
        sound = super().data()
        order = torch.randperm(200, generator=torch.Generator().manual_seed(9))
        return Data(
            sound.train, Part(sound.val.inputs, sound.val.targets[order]), sound.test, N_CLASSES
        )


class Leak(Sound):
    def data(self) -> Data:
        sound = super().data()
        inputs, targets = (
            torch.cat([a, b[:1]]) for a, b in zip(_pair(sound.train), _pair(sound.val), strict=True)
        )
        return Data(Part(inputs, targets), sound.val, sound.test, N_CLASSES)


def _pair(part: Part) -> tuple[Tensor, Tensor]:
    return part.inputs, part.targets


class Categories(Sound):
    """Inputs of three values each in two places: rows repeat by themselves."""

    def data(self) -> Data:
        parts = [blobs(n, seed) for n, seed in ((300, 1), (200, 2))]
        coarse = [
            Part(
                torch.cat([p.inputs[:, :2].sign(), torch.zeros(len(p), N_INPUTS - 2)], 1), p.targets
            )
            for p in parts
        ]
        return Data(coarse[0], coarse[1], None, N_CLASSES)


class Pixels(Sound):
    def data(self) -> Data:
        parts = [
            Part((p.inputs * 40 + 128).clamp(0, 255), p.targets)
            for p in (blobs(300, 1), blobs(200, 2))
        ]
        return Data(parts[0], parts[1], None, N_CLASSES)


class HoledData(Sound):
    def data(self) -> Data:
        sound = super().data()
        sound.train.inputs[17, 3] = float("nan")
        return Data(Part(sound.train.inputs, sound.train.targets), sound.val, sound.test, N_CLASSES)


class LabelsFromOne(Sound):
    def data(self) -> Data:
        sound = super().data()
        return Data(
            Part(sound.train.inputs, sound.train.targets + 1), sound.val, sound.test, N_CLASSES
        )


class Unbalanced(Sound):
    def data(self) -> Data:
        rare = [
            torch.cat([(p.targets != 0).nonzero(), (p.targets == 0).nonzero()[:2]]).flatten()
            for p in (blobs(300, 1), blobs(200, 2))
        ]
        train, val = (
            Part(p.inputs[r], p.targets[r])
            for p, r in zip((blobs(300, 1), blobs(200, 2)), rare, strict=True)
        )
        return Data(train, val, None, N_CLASSES)


class UnseenClass(Sound):
    def data(self) -> Data:
        sound = super().data()
        keep = sound.train.targets != 2
        return Data(
            Part(sound.train.inputs[keep], sound.train.targets[keep]),
            sound.val,
            sound.test,
            N_CLASSES,
        )


class BrokenData(Sound):
    def data(self) -> Data:
        raise OSError("no such disk")


# -- the model -------------------------------------------------------------------------------------


class _Square(torch.autograd.Function):
    """The square, with the derivative x instead of 2x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * x


class _WrongSquare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Square.apply(x)  # type: ignore[no-any-return]


class WrongBackward(Sound):
    def activation(self, hp: Mapping[str, Any]) -> nn.Module:
        return _WrongSquare()


class WrongOption(Sound):
    """Wrong with an option of the space alone."""

    def activation(self, hp: Mapping[str, Any]) -> nn.Module:
        return _WrongSquare() if hp["activation"] == "square" else nn.ReLU()


class HugeInit(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        module = super().model(hp)
        with torch.no_grad():
            for p in module.parameters():
                p.mul_(100)
        return module


class Zeros(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        module = super().model(hp)
        for p in module.parameters():
            nn.init.zeros_(p)
        return module


class Equal(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        module = super().model(hp)
        for p in module.parameters():
            nn.init.constant_(p, 0.1)
        return module


class _Faint(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 0.1 * super().forward(input)


class Linear(Sound):
    """Separates twenty examples, but its loss falls slowly."""

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return _Faint(N_INPUTS, N_CLASSES)


class Filled(Sound):
    """Its forward makes a tensor of the default type."""

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return nn.Sequential(
            _Padded(), nn.Linear(N_INPUTS + 1, 16), nn.ReLU(), nn.Linear(16, N_CLASSES)
        )


class _Padded(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        wider = torch.zeros(len(inputs), N_INPUTS + 1)
        wider[:, 1:] = inputs
        return wider @ torch.eye(N_INPUTS + 1)


class ZeroHead(Sound):
    """A model whose last layer alone starts at zero.

    Its classes get different gradients, so nothing is wrong.
    """

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        module = super().model(hp)
        assert isinstance(module, nn.Sequential)
        nn.init.zeros_(module[-1].weight)  # type: ignore[arg-type]
        return module


class Frozen(Sound):
    """A model whose hidden layer passes no gradient.

    Only two units reach the outputs, so it cannot learn twenty examples.
    """

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return nn.Sequential(nn.Linear(N_INPUTS, 1), nn.ReLU(), nn.Linear(1, N_CLASSES))


class TooManyOutputs(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return nn.Linear(N_INPUTS, N_CLASSES + 1)


class RaisingModel(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return nn.Linear(N_INPUTS, hp["width"])


class Normed(Sound):
    """Batch norm, noise of its own, and a smooth activation: sound, and not a chain."""

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return _Noisy()


class _Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Linear(N_INPUTS, 16),
            nn.BatchNorm1d(16),
            nn.Linear(16, N_CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.nn.functional.gelu(self.norm(self.first(x)))
        outputs: Tensor = self.last(torch.nn.functional.dropout(h, 0.1, self.training))
        return outputs


class Single(Sound):
    """Computes in single precision inside."""

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return _Rounded()


class _Rounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(N_INPUTS, 16), nn.Linear(16, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(torch.tanh(self.first(x)).float().to(x.dtype))
        return outputs


# -- losses of their own ---------------------------------------------------------------------------


class OwnLoss(Sound):
    def loss(self, outputs: Tensor, targets: Tensor, hp: Mapping[str, Any]) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets) * hp["sharpness"]


class Gained(nn.Module):
    def __init__(self, layers: nn.Module, hp: Mapping[str, Any]) -> None:
        super().__init__()
        self.layers, self.hp = layers, hp

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs) * self.hp["gain"]


class ReadInForward(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return Gained(super().model(hp), hp)


class ReadWhereDeep(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        layers = super().model(hp)
        return layers if hp["depth"] < 8 else nn.Sequential(layers, nn.Dropout(hp["rest"]))


class Lazy(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return nn.Sequential(
            nn.LazyLinear(16),
            nn.LazyBatchNorm1d(),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.LazyLinear(N_CLASSES),
        )


class DetachedLoss(Sound):
    def loss(self, outputs: Tensor, targets: Tensor, hp: Mapping[str, Any]) -> Tensor:
        scale = outputs.detach().square().mean()
        return torch.nn.functional.cross_entropy(outputs, targets) + scale


class Regression:
    """No classes: a line through noise."""

    def data(self) -> Data:
        def part(n: int, seed: int) -> Part:
            x = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
            return Part(x, x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0], [3.0]]))

        return Data(part(200, 1), part(100, 2), None, None)

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))

    def loss(self, outputs: Tensor, targets: Tensor, hp: Mapping[str, Any]) -> Tensor:
        return (outputs - targets).square().mean()


def train(trial: Any) -> None:
    raise AssertionError("a check trains no loop")


# -- what is saved ---------------------------------------------------------------------------------


class Own(nn.Module):
    """Has a state besides its tensors, which a test gives."""

    def __init__(self, state: Any, hp: Mapping[str, Any]) -> None:
        super().__init__()
        self.chain, self.state = Sound().model(hp), state

    def forward(self, inputs: Tensor) -> Tensor:
        return self.chain(inputs)

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class ExtraState(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return Own({"version": 3, "names": ["a", "b"]}, hp)


class LambdaState(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return Own(lambda: 3, hp)


class ObjectState(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return Own(Sound(), hp)


class Projected(nn.Module):
    """Computes with random numbers that its state dict lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.projection = nn.Linear(16, N_CLASSES), torch.randn(N_INPUTS, 16)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(inputs @ self.projection)


class Unsaved(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return Projected()


class Counted(nn.Module):
    """Scales by the number of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.steps = nn.Linear(N_INPUTS, N_CLASSES), 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.steps += self.training
        return self.last(inputs) * (1 + 0.01 * min(self.steps, 100))


class Counting(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return Counted()


class Skipping(nn.Module):
    """Leaves out a layer at random."""

    def __init__(self) -> None:
        super().__init__()
        self.chain, self.middle = Sound().model({}), nn.Linear(N_INPUTS, N_INPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        skip = self.training and random.uniform(0, 1) < 0.3
        return self.chain(inputs if skip else inputs + self.middle(inputs).tanh())


class LayerDrop(Sound):
    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return Skipping()


# -- the metrics -----------------------------------------------------------------------------------


def _share_of_first(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == 0).double().mean() + 0 * targets.sum()


def _per_example(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).double()


def _of_an_old_name(outputs: Tensor, targets: Tensor) -> float:
    raise AttributeError("no such score")


def _of_none(outputs: Tensor, targets: Tensor) -> float:
    return float("nan")


class Measured(Sound):
    metrics: ClassVar = {"share": _share_of_first}


class MetricOfEach(Sound):
    metrics: ClassVar = {"share": _share_of_first, "right": _per_example}


class MetricRaises(Sound):
    metrics: ClassVar = {"score": _of_an_old_name}


class MetricOfNone(Sound):
    metrics: ClassVar = {"score": _of_none}

"""Sections that compare numbers: those of the device with those of the CPU and of lone trials."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.device.setup import (
    CONVNET,
    CPU,
    Loaded,
    Row,
    Setup,
    Watch,
    at_most,
    distance,
    engine,
    job,
    jobs,
    resumed,
    train,
    weights,
)
from common.search.hyperparameters import Kind, known_entries
from common.search.values import Scalar
from worker.training.engine.engine import Outcome
from worker.training.math.noise import DropoutMasks, hash_counters, noise_keys, position_table

EXACT, LOOSE = 1e-8, 3e-2  # relative distances of weights: float64, and float32
STEPS = 40
PER_EPOCH = 1078 // 64  # of digits
# Numbers that are tried of a hyperparameter: the first that it accepts and that is not its default.
TRIED = (0.1, 0.5, 2, 3, 24)
# They have no reference in one process, or are no part of a plain configuration.
LEFT_OUT = ("learning_rate", "compile", "precision", "distill_temperature", "distill_mix")
NEEDED: dict[str, dict[str, Scalar]] = {  # what another option needs to do anything
    "plateau_momentum_off": {"schedule": "plateau"},
    "final_share": {"schedule": "cosine"},
    "decay_rate": {"schedule": "exponential"},
    "decay_biases": {"weight_decay": 0.01},
    "fade": {"weight_decay": 0.01},
    "margin": {"loss": "hinge"},
    "val_passes": {"dropout": 0.2},
    "dropout_kind": {"dropout": 0.2},
    "negative_slope": {"activation": "leaky_relu"},
    "elu_alpha": {"activation": "elu"},
    "pieces": {"activation": "maxout"},
    "init_scale": {"init": "gaussian"},
    "rho": {"optimizer": "rmsprop"},
    "beta1": {"optimizer": "adam"},
    "beta2": {"optimizer": "adamw"},
}


def configurations() -> Iterator[dict[str, Scalar]]:
    """Yield a configuration for each option of each built-in hyperparameter."""
    for name, entry in known_entries("digits").items():
        if name in LEFT_OUT:
            continue
        options = (
            entry.options
            if isinstance(entry, Kind)
            else [one for one in TRIED if entry.refusal(one) is None and one != entry.default][:1]
        )
        for option in options:
            yield {**NEEDED.get(name, {}), name: option}
    for more in ({"batch_norm": True}, {"dropout": 0.3}, {"optimizer": "adam"}):
        yield {**CONVNET, **more}


def compare_arrays(setup: Setup) -> Iterator[Row]:
    """Compare arrays on the device with arrays on the CPU, and with the same trials alone."""
    chosen = list(configurations())[:: setup.size(1, 24)]
    width, epochs = setup.size(8, 3), setup.size(STEPS, 8) / PER_EPOCH
    task, worst = Loaded(), {"cpu": (0.0, {}), "alone": (0.0, {}), "float32": (0.0, {})}
    for number, hp in enumerate(chosen):
        claims = jobs(width, epochs, **hp)
        lone = claims[number % width]
        double = {"dtype": torch.float64, "width": width}
        own = train(engine(setup.device, task, **double), claims)
        found = {
            "cpu": train(engine(CPU, task, **double), claims),
            "alone": train(
                engine(setup.device, task, **double),
                [job(lone.trial.index, epochs, alone=True, **lone.trial.hyperparameters)],
            ),
            "float32": train(engine(setup.device, task, width=width), claims),
        }
        for kind, ended in found.items():
            for trial, one in ended.items():
                apart = distance(weights(own[trial]), weights(one))
                worst[kind] = max(worst[kind], (apart, hp), key=lambda pair: pair[0])
    yield Row("configurations", str(len(chosen)), "all", len(chosen) > 0)
    for kind, limit in (("cpu", EXACT), ("alone", EXACT), ("float32", LOOSE)):
        apart, hp = worst[kind]
        yield at_most(f"{kind}, worst with {hp}", apart, limit)


def compare_noise(setup: Setup) -> Iterator[Row]:
    """Compare the noise of dropout, bit by bit."""
    seeds, steps = torch.arange(5) * 7919 + 3, torch.tensor([[0], [1], [123456]]).expand(3, 5)
    shapes = [(setup.size(256, 16), 65), (setup.size(256, 16), 3, 9)]

    def fill(device: torch.device, chosen: Tensor) -> list[Tensor]:
        keys = noise_keys(seeds[chosen].to(device), steps[:, chosen].to(device), 2)
        masks = DropoutMasks(len(chosen), shapes, device, torch.float32)
        levels = torch.full((len(chosen), 2), -1000, dtype=torch.int16, device=device)
        scales = torch.full((len(chosen), 2), 1.5, device=device)
        return [mask.cpu().clone() for at in keys for mask in masks.fill(at, levels, scales)]

    def same(one: list[Tensor], other: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    everyone = torch.arange(5)
    table = position_table(10_000, setup.device)
    keys = noise_keys(seeds.to(setup.device), steps.to(setup.device), 1)[2, :, 0]
    hashes = hash_counters(table, keys).cpu()
    expected = hash_counters(position_table(10_000, CPU), noise_keys(seeds, steps, 1)[2, :, 0])
    yield _equal("hashes as on the CPU", torch.equal(hashes, expected))
    own = fill(setup.device, everyone)
    yield _equal("masks as on the CPU", same(own, fill(CPU, everyone)))
    others = torch.tensor([4, 1])  # some have left, and the others have moved
    moved = fill(setup.device, others)
    yield _equal("masks of a slot wherever it is", same([mask[others] for mask in own], moved))
    left, joined = jobs(4, 1, dropout=0.3), jobs(7, 2, dropout=0.3)[4:]
    waiting = [joined]
    trainer = engine(setup.device, dtype=torch.float64, width=4)
    ended = {
        one.trial.id: one
        for boundary in trainer.train(left, lambda n: waiting.pop() if waiting else [], Watch())
        for one in boundary.ended
    }
    together = train(engine(setup.device, dtype=torch.float64, width=4), joined)
    apart = max(distance(weights(ended[name]), weights(one)) for name, one in together.items())
    yield at_most("trials that joined where others had left", apart, EXACT)


def _equal(what: str, same: bool) -> Row:
    return Row(what, "bit-equal" if same else "different", "bit-equal", same)


class OwnNoise(Loaded):
    """A model that draws noise itself, so that it trains alone."""

    def model(self, hp: Any) -> nn.Module:
        """Return a perceptron with noise of its own."""

        class Noisy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.out = nn.Linear(64, 32), nn.Linear(32, 10)

            def forward(self, inputs: Tensor) -> Tensor:
                h = torch.relu(self.first(inputs.flatten(1)))
                return self.out(h + 0.1 * torch.randn_like(h) if self.training else h)

        return Noisy()


def compare_resumed(setup: Setup) -> Iterator[Row]:
    """Go on from states of another device, and repeat a lone model's own noise."""
    claims = jobs(setup.size(8, 3), 3, dropout=0.2)
    double = {"dtype": torch.float64, "width": len(claims)}
    whole = train(engine(CPU, **double), claims)
    states = _stop(engine(CPU, **double), claims, PER_EPOCH + 3)
    onwards = [resumed(claim, states[claim.id]) for claim in claims]
    states = _stop(engine(setup.device, **double), onwards, PER_EPOCH)
    back = [resumed(claim, states[claim.id]) for claim in claims]
    ended = train(engine(CPU, **double), back)
    apart = max(distance(weights(ended[name]), weights(one)) for name, one in whole.items())
    yield at_most("from the CPU to the device and back", apart, EXACT)
    runs = [
        weights(train(engine(setup.device, OwnNoise()), [job(0, 2)])["bench-0000"])
        for _ in range(2)
    ]
    yield _equal("a lone model's own noise, twice", torch.equal(*runs))


def _stop(of: Any, claims: Any, steps: int) -> dict[str, Any]:
    """Train some steps. Return the states of all trials."""
    for last in of.train(claims, lambda n: [], Watch(steps)):
        views = last.running
    return {
        view.trial.id: torch.load(io.BytesIO(view.state()), weights_only=True) for view in views
    }


class Deep(Loaded):
    """A perceptron whose middle is checkpointed, or not."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self._reentrant = reentrant

    def model(self, hp: Any) -> nn.Module:
        """Return the model."""
        reentrant = self._reentrant

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.out = nn.Linear(64, 32), nn.Linear(32, 10)
                self.middle = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))

            def forward(self, inputs: Tensor) -> Tensor:
                h = torch.tanh(self.first(inputs.flatten(1)))
                if reentrant is None:
                    return self.out(self.middle(h))
                return self.out(checkpoint(self.middle, h, use_reentrant=reentrant))

        return Net()


def compare_checkpoints(setup: Setup) -> Iterator[Row]:
    """Compare models that checkpoint activations with the same models that do not."""
    claims = jobs(setup.size(8, 2), setup.size(3, 1))

    def ended(reentrant: bool | None) -> dict[str, Outcome]:
        return train(engine(setup.device, Deep(reentrant), dtype=torch.float64), claims)

    plain = ended(None)
    for reentrant in (False, True):
        found = ended(reentrant)
        apart = max(distance(weights(found[name]), weights(one)) for name, one in plain.items())
        yield at_most(f"checkpointed, use_reentrant={reentrant}", apart, EXACT)


RUNS = {
    "parity": compare_arrays,
    "noise": compare_noise,
    "resume": compare_resumed,
    "checkpoints": compare_checkpoints,
}

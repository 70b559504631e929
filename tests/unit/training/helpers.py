"""Jobs, a watch, tasks and a plain PyTorch loop for the tests of the engine."""

import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.search.trial import Claim, Fence, Trial, trial_id, trial_seed
from common.search.values import Scalar
from worker.tasks.base import Data, Part
from worker.tasks.digits import Digits
from worker.training.engine.engine import Boundary, Engine, Outcome, TrainingOptions, View
from worker.training.math.preprocess import fit
from worker.training.stacked.batches import shuffle
from worker.training.stacked.rows import name_tensors

SEARCH_SEED = 7
PERCEPTRON: dict[str, Scalar] = {
    "hidden": 16,
    "depth": 2,
    "dropout": 0.0,
    "optimizer": "sgd",
    "batch_size": 64,
    "learning_rate": 0.05,
}


class FreeWatch:
    """Never stops anything, and remembers the phases it was told."""

    def __init__(self) -> None:
        self.beats = 0
        self.phases: set[str] = set()

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        self.beats += 1
        self.phases.add(phase)

    def lost(self) -> Collection[str]:
        return ()

    def stopping(self) -> bool:
        return False


class StopAfter(FreeWatch):
    """Says to stop after so many beats."""

    def __init__(self, beats: int) -> None:
        super().__init__()
        self.limit = beats

    def stopping(self) -> bool:
        return self.beats >= self.limit


class LostAfter(FreeWatch):
    """Some leases are gone after so many beats."""

    def __init__(self, beats: int, ids: Collection[str]) -> None:
        super().__init__()
        self.limit, self.ids = beats, ids

    def lost(self) -> Collection[str]:
        return self.ids if self.beats >= self.limit else ()


class SmallDigits(Digits):
    """Digits with a third of the training images.

    All images are used to normalise. An epoch has 5 quick steps.
    """

    preprocess = "none"

    def data(self) -> Data:
        data = digits()
        return Data(
            Part(data.train.inputs[:320], data.train.targets[:320]),
            data.val,
            data.test,
            data.n_classes,
        )


@lru_cache
def digits() -> Data:
    """As the engine sees them."""
    data = Digits().data()
    fitted = fit(Digits.preprocess, data.train.inputs)
    train, val, test = (
        Part(fitted.apply(part.inputs), part.targets) for part in (data.train, data.val, data.test)
    )
    return Data(train, val, test, data.n_classes)


def job(
    index: int,
    epochs: float = 3,
    resume: dict[str, Any] | None = None,
    alone: bool = False,
    **hp: Scalar,
) -> Claim:
    trial = Trial(
        trial_id("coarse", index),
        "coarse",
        index,
        trial_seed(3, "coarse", index),
        epochs,
        {**PERCEPTRON, **hp},
        "{}",
    )
    return Claim(trial, Fence(trial.id, 1, "token"), alone, resume=resume)


def engine(
    task: Any = None,
    dtype: torch.dtype = torch.float64,
    log: Callable[[str], None] | None = None,
    teach: Any = None,
    **more: Any,
) -> Engine:
    options = {
        "search_seed": SEARCH_SEED,
        "task_name": "digits",
        "log": log or (lambda message: None),
        **more,
    }
    return Engine(
        task or SmallDigits(), TrainingOptions(torch.device("cpu"), dtype=dtype, **options), teach
    )


def boundaries(
    jobs: Sequence[Claim], watch: Any = None, refill: Any = None, **more: Any
) -> Iterable[Boundary]:
    return engine(**more).train(jobs, refill or (lambda n: []), watch or FreeWatch())


def outcomes(jobs: Sequence[Claim], **more: Any) -> dict[str, Outcome]:
    found = [outcome for boundary in boundaries(jobs, **more) for outcome in boundary.ended]
    assert len({o.trial.id for o in found}) == len(found), "a trial ended twice"
    return {o.trial.id: o for o in found}


def states_at(jobs: Sequence[Claim], epoch: float, **more: Any) -> dict[str, dict[str, Any]]:
    """Return the resume states of all running trials at an epoch's boundary.

    Their contents have the names of the plain models.
    """
    found, watch, one = {}, more.pop("watch", None) or FreeWatch(), engine(**more)
    for boundary in one.train(jobs, lambda n: [], watch):
        found.update(
            {
                view.trial.id: named_state(one, view)
                for view in boundary.running
                if view.epoch == epoch
            }
        )
    return found


def states_of_one_array(
    of: Engine, jobs: Sequence[Claim], epoch: float
) -> dict[str, dict[str, Any]]:
    """Like ``states_at``, of trials that have to train in one array."""
    found = {}
    # Convolutions are timed, and beside a busy neighbour they may train alone.
    of.builder.widths.choose = lambda *known: len(jobs)  # type: ignore[method-assign]
    for boundary in of.train(jobs, lambda n: [], FreeWatch()):
        for view in boundary.running:
            if view.epoch == epoch:
                assert view.array_width == len(jobs), "not in one array"
                found[view.trial.id] = named_state(of, view)
    assert len(found) == len(jobs)
    return found


def named_state(of: Engine, view: View) -> dict[str, Any]:
    content = state(view)
    return {**content, **name_tensors(of.builder.entry(view.claim).model, content["row"])}


def state(view: View) -> dict[str, Any]:
    return load(view.state())


def load(content: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(content), weights_only=True)


def weights(content: Mapping[str, Any]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in content["model"].values()])


class PlainRun:
    """One trial by plain PyTorch.

    It uses ``nn.Module``, ``torch.optim``, the same batches, and dropout masks computed here.
    """

    def __init__(
        self, of: Claim, data: Data, dtype: torch.dtype = torch.float64, epochs: int = 3
    ) -> None:
        trial, hp = of.trial, of.trial.hyperparameters
        torch.manual_seed(trial.seed)
        self.module = Digits().model(hp).to(dtype)
        self.losses: list[float] = []
        masks = (
            [
                MaskedDropout(trial.seed, layer, float(hp["dropout"]))
                for layer in range(int(hp["depth"]))
            ]
            if hp["dropout"]
            else []
        )
        layers = [
            m if not isinstance(m, nn.Dropout) else masks.pop(0) if masks else nn.Identity()
            for m in self.module
        ]
        model = nn.Sequential(*layers)
        optimizer = plain_optimizer(model, hp)
        inputs, targets, size = (
            data.train.inputs.to(dtype),
            data.train.targets,
            int(hp["batch_size"]),
        )
        step = 0
        for epoch in range(epochs):
            order = shuffle(len(targets), SEARCH_SEED, epoch)
            for rows in order[: len(order) // size * size].split(size):
                for layer in layers:
                    if isinstance(layer, MaskedDropout):
                        layer.step = step
                loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                self.losses.append(float(loss.detach()))
                step += 1

    def weights(self) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in self.module.state_dict().values()])


def plain_optimizer(model: nn.Module, hp: Mapping[str, Any]) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": hp.get("weight_decay", 0.0)},
        {"params": others, "weight_decay": 0.0},
    ]
    if hp["optimizer"] == "adam":
        return torch.optim.Adam(groups, lr=hp["learning_rate"])
    return torch.optim.SGD(
        groups,
        lr=hp["learning_rate"],
        momentum=hp.get("momentum", 0.0),
        nesterov=hp.get("nesterov", False),
    )


class MaskedDropout(nn.Module):
    def __init__(self, seed: int, layer: int, rate: float) -> None:
        super().__init__()
        self.seed, self.layer, self.rate, self.step = seed, layer, rate, 0

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * torch.from_numpy(
            dropout_mask(self.seed, self.step, self.layer, self.rate, inputs.numel())
        ).view_as(inputs).to(inputs)


def dropout_mask(seed: int, step: int, layer: int, rate: float, n: int) -> np.ndarray:
    """The engine's noise, worked out a second time in unsigned numpy arithmetic."""
    golden, stir = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x2545F4914F6CDD1D)
    with np.errstate(over="ignore"):
        slot_step = _scrambled(
            _scrambled(np.array([seed], np.uint64)) + golden * np.uint64((step + 1) % 2**64)
        )
        keys = _scrambled(
            slot_step ^ _scrambled(np.array([2 * layer + 1, 2 * layer + 2], np.uint64))
        )
        table = _scrambled(np.arange(-(-n // 4), dtype=np.uint64) + np.uint64(65536))
        x = (table * (keys[0] | np.uint64(1)) + keys[1]).astype(np.int64)
        x = ((x ^ (x >> 29)).astype(np.uint64) * stir).astype(np.uint64)
        x ^= x >> np.uint64(32)
    level = round(rate * 65536)
    lanes = x.view(np.int16)[:n]
    return np.where(lanes >= level - 32768, 65536 / (65536 - level), 0.0)


def _scrambled(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

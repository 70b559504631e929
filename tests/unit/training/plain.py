"""A trial of the whole practice by plain PyTorch: nn.Module, torch.optim, torch's schedulers, clipping, renorm and averages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from common.practice import ENGINE
from tests.unit.training.helpers import SEARCH_SEED
from worker.training.batches import shuffled
from worker.training.engine import Job

OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


class PlainLoop:
    """One trial, for ``n_steps`` of its budget.

    Clipping sees the gradient of the data loss: ``weight_decay`` is the optimizer's, and ``l1`` is added to the gradient after clipping.
    """

    def __init__(self, of: Job, task: Any, n_steps: int) -> None:
        trial = of.claim.trial
        self.hp: dict[str, Any] = {name: entry.default for name, entry in ENGINE.items()} | dict(trial.hyperparameters)
        if self.hp["optimizer"] == "adagrad" and "eps" not in trial.hyperparameters:
            self.hp["eps"] = 1e-10
        self.data = task.data()
        torch.manual_seed(trial.seed)
        self.module = task.model(trial.hyperparameters).double()
        self.decayed = [p for p in self.module.parameters() if p.ndim > 1 or self.hp["decay_biases"]]
        self.batch_size = int(self.hp["batch_size"])
        self.per_epoch = len(self.data.train) // self.batch_size
        self.total = max(1, round(trial.epochs * self.per_epoch))
        self.optimizer = optimizer_of(self.decayed, [p for p in self.module.parameters() if p.ndim <= 1], self.hp)
        self.rates = Rates(self.hp, self.per_epoch, self.total)
        self.average = AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(float(self.hp["ema"]))) if self.hp["ema"] else None
        self.losses: list[float] = []
        self.used_rates: list[float] = []
        self.run(n_steps)

    def run(self, n_steps: int) -> None:
        inputs, targets = self.data.train.inputs.double(), self.data.train.targets
        order = targets
        for step in range(n_steps):
            epoch, place = divmod(step, self.per_epoch)
            order = order if place else shuffled(len(targets), SEARCH_SEED, epoch)
            rows = order[place * self.batch_size : (place + 1) * self.batch_size]
            self.module.train()
            loss = nn.functional.cross_entropy(self.module(inputs[rows]), targets[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.losses.append(float(loss.detach()))
            self.move(step)
            if place == self.per_epoch - 1:
                self.rates.note(self.validation_loss())

    def move(self, step: int) -> None:
        hp, parameters = self.hp, list(self.module.parameters())
        if hp["clip_value"]:
            nn.utils.clip_grad_value_(parameters, hp["clip_value"])
        if hp["clip_norm"]:
            nn.utils.clip_grad_norm_(parameters, hp["clip_norm"])
        left = faded(step, self.total, hp["fade"])
        for parameter in self.decayed:
            parameter.grad += left * hp["l1"] * parameter.detach().sign()
        self.optimizer.param_groups[0]["weight_decay"] = left * hp["weight_decay"]
        for group in self.optimizer.param_groups:
            group["lr"] = hp["learning_rate"] * self.rates.factor()
            if "momentum" in group:
                group["momentum"] = max(self.rates.momentum(step), 1e-300)  # torch forgets its buffer at exactly 0
        self.used_rates.append(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.rates.step()
        if hp["max_norm"]:
            for parameter in (p for p in parameters if p.ndim > 1):
                parameter.data = torch.renorm(parameter.data, p=2, dim=0, maxnorm=hp["max_norm"])
        if self.average:
            self.average.update_parameters(self.module)

    def validation_loss(self) -> float:
        self.module.eval()
        with torch.no_grad():
            return float(nn.functional.cross_entropy(self.module(self.data.val.inputs.double()), self.data.val.targets))

    def weights(self) -> dict[str, Tensor]:
        """With the running statistics."""
        return dict(self.module.state_dict())

    def averaged(self) -> dict[str, Tensor]:
        """The same of the running average."""
        return dict((self.average.module if self.average else self.module).state_dict())


class Rates:
    """What schedulers of torch make of a learning rate of 1, and the momentum."""

    def __init__(self, hp: Mapping[str, Any], per_epoch: int, total: int) -> None:
        self.hp, self.per_epoch = hp, per_epoch
        self.plain = hp["schedule"] == "constant" and not hp["warmup_epochs"]
        self.optimizers = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(3)]
        warmup = hp["warmup_epochs"] * per_epoch
        self.schedulers = [
            scheduler_of(self.optimizers[0], hp, per_epoch, total),
            schedulers.LambdaLR(self.optimizers[1], lambda step: min(1.0, (step + 1) / warmup) if warmup else 1.0),
        ]
        patience = math.ceil(hp["plateau_epochs"]) - 1
        drop = min(hp["drop"], 0.999)  # torch refuses 1
        self.plateau = schedulers.ReduceLROnPlateau(self.optimizers[2], factor=drop, patience=patience, threshold=0, eps=0)

    def factor(self) -> float:
        parts = self.optimizers if self.hp["schedule"] == "plateau" else self.optimizers[:2]
        return math.prod(optimizer.param_groups[0]["lr"] for optimizer in parts)

    def step(self) -> None:
        if self.plain:
            return
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=False):
            optimizer.step()
            scheduler.step()

    def note(self, val_loss: float) -> None:
        self.plateau.step(val_loss)

    @property
    def dropped(self) -> bool:
        """Whether there has been a plateau."""
        return bool(self.optimizers[2].param_groups[0]["lr"] < 1)

    def momentum(self, step: int) -> float:
        end, start, length = self.hp["momentum"], self.hp["momentum_start"], self.hp["momentum_epochs"] * self.per_epoch
        if self.hp["plateau_momentum_off"] and self.dropped:
            return 0.0
        return end if start < 0 or step >= length else start + (end - start) * step / length


def scheduler_of(optimizer: torch.optim.Optimizer, hp: Mapping[str, Any], per_epoch: int, total: int) -> schedulers.LRScheduler:
    """Torch's own where it has one; all are stepped once a step."""
    kind = hp["schedule"]
    if kind == "step":
        length = hp["step_epochs"] * per_epoch
        if length == round(length):
            return schedulers.StepLR(optimizer, round(length), gamma=hp["drop"])
        return schedulers.LambdaLR(optimizer, lambda step: hp["drop"] ** math.floor(step / length + 1e-9))
    if kind == "exponential":
        return schedulers.ExponentialLR(optimizer, gamma=math.exp(-hp["decay_rate"] / per_epoch))
    if kind == "inverse":
        return schedulers.LambdaLR(optimizer, lambda step: 1 / (1 + hp["decay_rate"] * step / per_epoch))
    if kind == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, T_max=total, eta_min=hp["final_share"])
    return schedulers.ConstantLR(optimizer, factor=1.0)


def faded(step: int, total: int, share: float) -> float:
    """Left of the penalties at that step."""
    return min(1.0, (total - step) / (share * total)) if share else 1.0


def optimizer_of(decayed: list[nn.Parameter], others: list[nn.Parameter], hp: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of torch with the same numbers; ``decayed`` is its first group."""
    taken = {id(p) for p in decayed}
    groups = [{"params": decayed}, {"params": [p for p in others if id(p) not in taken], "weight_decay": 0.0}]
    numbers: dict[str, Any] = {"lr": hp["learning_rate"], "eps": hp["eps"]}
    if hp["optimizer"] == "sgd":
        numbers = {"lr": hp["learning_rate"], "momentum": hp["momentum"], "nesterov": hp["nesterov"]}
    elif hp["optimizer"] == "rmsprop":
        numbers |= {"momentum": hp["momentum"], "alpha": hp["rho"]}
    elif hp["optimizer"] in ("adam", "adamw"):
        numbers |= {"betas": (hp["beta1"], hp["beta2"])}
    return OPTIMIZERS[hp["optimizer"]]([group for group in groups if group["params"]], weight_decay=0.0, **numbers)

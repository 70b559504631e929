"""A trial of the whole practice by plain PyTorch.

It uses nn.Module, torch.optim, torch's schedulers, clipping, renorm and averages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from common.search.hyperparameters import ENGINE
from common.search.trial import Claim
from tests.unit.training.helpers import SEARCH_SEED, MaskedDropout
from worker.tasks import trees
from worker.tasks.layers import Maxout
from worker.training.stacked.batches import shuffle

OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
# The defaults of a rule that are not those of the others.
OTHER_DEFAULTS = {"adagrad": {"eps": 1e-10}}
ACTIVATIONS = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.Sigmoid, nn.Tanh),
    Maxout,
)


class PlainLoop:
    """One trial, for ``n_steps`` of its budget.

    Clipping sees the gradient of the data loss and of ``activation_l1``. ``weight_decay`` is the
    optimizer's, and ``l1`` is added to the gradient after clipping. The task's own ``loss`` and
    ``param_groups`` are used where it has them.
    """

    def __init__(
        self,
        of: Claim,
        task: Any,
        n_steps: int,
        batches: Callable[[int], Iterable[Any]] | None = None,
    ) -> None:
        """Run the trial.

        Args:
            of: the trial.
            task: its parts are as the model sees them; nothing is preprocessed here.
            n_steps: of the whole budget.
            batches: (inputs, targets) in the order of an epoch. By default the order is the
                engine's, and the training part is in memory.
        """
        trial = of.trial
        self.trial, self.task = trial, task
        self.hp: dict[str, Any] = {name: entry.default for name, entry in ENGINE.items()} | dict(
            trial.hyperparameters
        )
        own = OTHER_DEFAULTS.get(self.hp["optimizer"], {})
        self.hp |= {name: own[name] for name in own if name not in trial.hyperparameters}
        self.data = task.data()
        self.batches = batches or self.in_memory
        torch.manual_seed(trial.seed)
        self.module = task.model(trial.hyperparameters).double()
        self.per_epoch = sum(1 for _ in self.batches(0))
        self.total = max(1, round(trial.epochs * self.per_epoch))
        grouped = self.own_groups()
        taken = {id(p) for group in grouped for p in group["params"]}
        free = [p for p in self.module.parameters() if id(p) not in taken]
        self.decayed = [p for p in free if p.ndim > 1 or self.hp["decay_biases"]]
        others = [p for p in free if p.ndim <= 1]
        self.optimizer = optimizer_of(self.decayed, others, self.hp, grouped)
        self.rates = Rates(self.hp, self.per_epoch, self.total)
        self.average = (
            AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(float(self.hp["ema"])))
            if self.hp["ema"]
            else None
        )
        self.activations: list[Tensor] = []  # of the last forward
        for layer in self.module.modules() if self.hp["activation_l1"] else ():
            if isinstance(layer, ACTIVATIONS):
                layer.register_forward_hook(self.keep)
        self.losses: list[float] = []
        self.used_rates: list[float] = []
        self.run(n_steps)

    def own_groups(self) -> list[dict[str, Any]]:
        """The groups of the task's ``param_groups``, with the names that torch has for them."""
        if not hasattr(self.task, "param_groups"):
            return []
        return [
            {
                "params": list(group["params"]),
                "rate": group.get("learning_rate", self.hp["learning_rate"]),
                "decay": group.get("weight_decay", self.hp["weight_decay"]),
            }
            for group in self.task.param_groups(self.module, self.hp)
        ]

    def in_memory(self, epoch: int) -> Iterator[Any]:
        train, size = self.data.train, int(self.hp["batch_size"])
        order = shuffle(len(train), SEARCH_SEED, epoch)
        for rows in order[: len(train) // size * size].split(size):
            yield trees.pick(train.inputs, rows), trees.pick(train.targets, rows)

    def loss(self, inputs: Any, targets: Any) -> Tensor:
        outputs = self.module(trees.map_leaves(double, inputs))
        if not hasattr(self.task, "loss"):
            return nn.functional.cross_entropy(outputs, targets)
        found = self.task.loss(outputs, trees.map_leaves(double, targets), self.hp)
        return sum(found.values()) if isinstance(found, dict) else found

    def run(self, n_steps: int) -> None:
        step = 0
        for epoch in count():
            for inputs, targets in self.batches(epoch):
                if step == n_steps:
                    return
                self.module.train()
                self.before(step)
                loss = self.loss(inputs, targets)
                left = faded(step, self.total, self.hp["fade"])
                sizes = sum(output.abs().sum() for output in self.activations)
                sizes /= trees.count_rows(targets)
                self.optimizer.zero_grad()
                (loss + left * self.hp["activation_l1"] * sizes).backward()
                self.losses.append(float(loss.detach()))
                self.move(step)
                step += 1
            if "plateau_epochs" in self.trial.hyperparameters:
                self.rates.note(self.validation_loss())

    def before(self, step: int) -> None:
        """Called before each forward."""
        self.activations.clear()

    def keep(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        """Keep the output of a hidden layer, before the next layer overwrites it."""
        self.activations.append(output.clone())

    def move(self, step: int) -> None:
        hp, parameters = self.hp, list(self.module.parameters())
        if hp["clip_value"]:
            nn.utils.clip_grad_value_(parameters, hp["clip_value"])
        if hp["clip_norm"]:
            nn.utils.clip_grad_norm_(parameters, hp["clip_norm"])
        left = faded(step, self.total, hp["fade"])
        for parameter in self.decayed:
            parameter.grad += left * hp["l1"] * parameter.detach().sign()
        for group in self.optimizer.param_groups:
            group["weight_decay"] = left * group["decay"]
            group["lr"] = group["rate"] * self.rates.factor()
            if "momentum" in group:
                group["momentum"] = max(
                    self.rates.momentum(step), 1e-300
                )  # torch forgets its buffer at exactly 0
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
            return float(
                nn.functional.cross_entropy(
                    self.module(self.data.val.inputs.double()), self.data.val.targets
                )
            )

    def weights(self) -> dict[str, Tensor]:
        """With the running statistics."""
        return dict(self.module.state_dict())

    def averaged(self) -> dict[str, Tensor]:
        """The same of the running average."""
        return dict((self.average.module if self.average else self.module).state_dict())


class NoisyLoop(PlainLoop):
    """A plain loop whose dropout takes the masks of the engine.

    The layers of the module come first, then the calls of attention.
    """

    def run(self, n_steps: int) -> None:
        self.masked: list[MaskedDropout] = []
        for name, layer in list(self.module.named_modules()):
            if isinstance(layer, nn.Dropout):
                self.module.set_submodule(name, self.mask(layer.p))
        self.n_layers = len(self.masked)
        plain = nn.functional.scaled_dot_product_attention
        nn.functional.scaled_dot_product_attention = self.attention
        try:
            super().run(n_steps)
        finally:
            nn.functional.scaled_dot_product_attention = plain

    def before(self, step: int) -> None:
        super().before(step)
        del self.masked[self.n_layers :]
        self.step = step
        for layer in self.masked:
            layer.step = step

    def mask(self, rate: float) -> MaskedDropout:
        self.masked.append(MaskedDropout(self.trial.seed, len(self.masked), rate))
        return self.masked[-1]

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float, is_causal: bool
    ) -> Tensor:
        """Attention as torch's documentation writes it."""
        assert is_causal
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        noise = self.mask(dropout_p)
        noise.step = self.step
        return noise(scores.masked_fill(later, -math.inf).softmax(-1)) @ value


class Rates:
    """What schedulers of torch make of a learning rate of 1, and the momentum."""

    def __init__(self, hp: Mapping[str, Any], per_epoch: int, total: int) -> None:
        self.hp, self.per_epoch = hp, per_epoch
        self.plain = hp["schedule"] == "constant" and not hp["warmup_epochs"]
        self.optimizers = [
            torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(3)
        ]
        warmup = hp["warmup_epochs"] * per_epoch
        self.schedulers = [
            scheduler_of(self.optimizers[0], hp, per_epoch, total),
            schedulers.LambdaLR(
                self.optimizers[1], lambda step: min(1.0, (step + 1) / warmup) if warmup else 1.0
            ),
        ]
        patience = math.ceil(hp["plateau_epochs"]) - 1
        drop = min(hp["drop"], 0.999)  # torch refuses 1
        self.plateau = schedulers.ReduceLROnPlateau(
            self.optimizers[2], factor=drop, patience=patience, threshold=0, eps=0
        )

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
        end, start, length = (
            self.hp["momentum"],
            self.hp["momentum_start"],
            self.hp["momentum_epochs"] * self.per_epoch,
        )
        if self.hp["plateau_momentum_off"] and self.dropped:
            return 0.0
        return end if start < 0 or step >= length else start + (end - start) * step / length


def scheduler_of(
    optimizer: torch.optim.Optimizer, hp: Mapping[str, Any], per_epoch: int, total: int
) -> schedulers.LRScheduler:
    """Torch's own where it has one; all are stepped once a step."""
    kind = hp["schedule"]
    if kind == "step":
        length = hp["step_epochs"] * per_epoch
        if length == round(length):
            return schedulers.StepLR(optimizer, round(length), gamma=hp["drop"])
        return schedulers.LambdaLR(
            optimizer, lambda step: hp["drop"] ** math.floor(step / length + 1e-9)
        )
    if kind == "exponential":
        return schedulers.ExponentialLR(optimizer, gamma=math.exp(-hp["decay_rate"] / per_epoch))
    if kind == "inverse":
        return schedulers.LambdaLR(
            optimizer, lambda step: 1 / (1 + hp["decay_rate"] * step / per_epoch)
        )
    if kind == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, T_max=total, eta_min=hp["final_share"])
    return schedulers.ConstantLR(optimizer, factor=1.0)


def faded(step: int, total: int, share: float) -> float:
    """Left of the penalties at that step."""
    return min(1.0, (total - step) / (share * total)) if share else 1.0


def double(tensor: Tensor) -> Tensor:
    """Whole numbers stay whole."""
    return tensor.double() if tensor.is_floating_point() else tensor


def optimizer_of(
    decayed: list[nn.Parameter],
    others: list[nn.Parameter],
    hp: Mapping[str, Any],
    more: Iterable[dict[str, Any]] = (),
) -> torch.optim.Optimizer:
    """The optimizer of torch with the same numbers.

    The "rate" and the "decay" of a group are those without schedules.
    """
    taken = {id(p) for p in decayed}
    rate = {"rate": hp["learning_rate"]}
    groups = [
        {"params": decayed, "decay": hp["weight_decay"], **rate},
        {"params": [p for p in others if id(p) not in taken], "decay": 0.0, **rate},
        *more,
    ]
    numbers: dict[str, Any] = {"lr": hp["learning_rate"]}
    if hp["optimizer"] == "sgd":
        numbers |= {"momentum": hp["momentum"], "nesterov": hp["nesterov"]}
    elif hp["optimizer"] == "adagrad":
        numbers |= {"eps": hp["eps"]}
    elif hp["optimizer"] == "rmsprop":
        numbers |= {"eps": hp["eps"], "momentum": hp["momentum"], "alpha": hp["rho"]}
    elif hp["optimizer"] in ("adam", "adamw"):
        numbers |= {"eps": hp["eps"], "betas": (hp["beta1"], hp["beta2"])}
    return OPTIMIZERS[hp["optimizer"]](
        [group for group in groups if group["params"]], weight_decay=0.0, **numbers
    )

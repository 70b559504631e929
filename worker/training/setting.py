"""What all arrays of an engine share: where, on what data, by which rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.search import Stage
from worker.tasks.base import Data, Part, Task, own_metrics
from worker.training.batches import Batches
from worker.training.losses import OBJECTIVES, Objective, Own
from worker.training.metrics import Metric, stacking
from worker.training.preprocess import Preprocessing, fit
from worker.training.recipe import Recipe
from worker.training.step import Frame

if TYPE_CHECKING:
    from worker.training.structure import Model


@dataclass(frozen=True)
class Options:
    """How a search is trained, whatever the data."""

    device: torch.device
    dtype: torch.dtype
    search_seed: int
    task_name: str
    explosion_factor: float
    log: Callable[[str], None]
    metric: str = "val_acc"
    mode: str = "max"
    stages: Mapping[str, Stage] = field(default_factory=dict)
    watching: bool = True  # whether ratios, dead units and the like are measured

    @property
    def sign(self) -> int:
        """The metric times it grows with quality."""
        return 1 if self.mode == "max" else -1


@dataclass(frozen=True)
class Parts:
    """The data as a model sees it: preprocessed, on the device."""

    train: Part
    val: Part
    preprocessing: Preprocessing


class Setting:
    """The data on the device, and the search's options."""

    def __init__(self, task: Task, data: Data, options: Options) -> None:
        self.options = options
        self.task = task
        self.data = data
        self.device, self.dtype, self.log = options.device, options.dtype, options.log
        self.n_classes = data.n_classes
        self.n_train = len(data.train)
        self.metrics: dict[str, Metric] = stacking(own_metrics(task))
        self._batches: dict[int, Batches] = {}
        self._parts: dict[str, Parts] = {}

    @property
    def own_loss(self) -> bool:
        """Whether the task brings its own."""
        return callable(getattr(self.task, "loss", None))

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(H, W) or (C, H, W) of an input; None where it is no image."""
        shape = getattr(self.task, "image_shape", None)
        if shape is not None:
            return tuple(shape)
        own = tuple(self.data.train.inputs.shape[1:])
        return own if len(own) in (2, 3) else None

    def batches(self, batch_size: int) -> Batches:
        """The order of examples for batches of that size."""
        if batch_size not in self._batches:
            self._batches[batch_size] = Batches(self.n_train, batch_size, self.options.search_seed, self.device)
        return self._batches[batch_size]

    def parts(self, recipe: Recipe) -> Parts:
        """The training and validation parts for the recipe's preprocessing; the test part stays where it is."""
        kind = recipe.kind("preprocess")
        if kind not in self._parts:
            preprocessing = fit(kind, self.data.train.inputs)
            train, val = (self.moved(Part(preprocessing.apply(p.inputs), p.targets)) for p in (self.data.train, self.data.val))
            self._parts[kind] = Parts(train, val, preprocessing)
        return self._parts[kind]

    def test(self, recipe: Recipe) -> Part | None:
        """The test part for the recipe's preprocessing, where the task has one: for what is stored of kept models, never to choose by."""
        if self.data.test is None:
            return None
        return self.moved(Part(self.parts(recipe).preprocessing.apply(self.data.test.inputs), self.data.test.targets))

    def moved(self, part: Part) -> Part:
        """A part on the device; floating types take the precision that is trained in."""
        inputs, targets = (t.to(self.device, self.dtype if t.is_floating_point() else t.dtype) for t in (part.inputs, part.targets))
        return Part(inputs, targets)

    def objective(self, recipe: Recipe) -> Objective:
        """What trials of this recipe minimise."""
        if self.own_loss:
            loss = getattr(self.task, "loss")  # noqa: B009  a task need not have one
            return Own(loss, recipe.plain, self.n_classes is not None, self.data.train.targets.ndim)
        return OBJECTIVES[recipe.kind("loss")](self.n_classes)

    def sample(self, model: Model) -> tuple[Tensor, Tensor]:
        """The first training examples, a batch of them: to look at shapes and to compare with."""
        train, size = self.parts(model.recipe).train, self.batches(model.recipe.batch_size).batch_size
        return train.inputs[:size], train.targets[:size]

    def frame(self, model: Model) -> Frame:
        """What the steps of such models have to know of the data."""
        images = self.image_shape if self.parts(model.recipe).preprocessing.keeps_shape else None  # principal components are no pixels
        return Frame(self.batches(model.recipe.batch_size).per_epoch, tuple(self.sample(model)[0].shape), images)

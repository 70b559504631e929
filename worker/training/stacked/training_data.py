"""What all arrays of an engine share: the options, and the data on the device."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.errors import TaskError
from common.search.stage import Explosion, Stage
from worker.tasks import trees
from worker.tasks.base import Data, Part, Task, own_metrics
from worker.tasks.trees import Tree
from worker.training.math.augment import STRENGTHS
from worker.training.math.distilling import Distilling, pack_targets
from worker.training.math.losses import OBJECTIVES, Objective, Own
from worker.training.math.metrics import Metric, stacking
from worker.training.math.preprocess import NONE, Preprocessing, fit
from worker.training.math.recipe import Recipe
from worker.training.stacked.batches import Batches, LoadedBatches
from worker.training.stacked.feed import Feed
from worker.training.stacked.step import Frame

if TYPE_CHECKING:
    from worker.training.model.structure import Model

# On a CPU, activations of small models then take at most tens of megabytes. A GPU is bound by
# kernel launches, and has memory for more.
EVALUATED_AT_ONCE = {"cpu": 1 << 16, "gpu": 1 << 20}
LOADED_AT_ONCE = 256  # most examples of a batch that is loaded for evaluation


@dataclass(frozen=True)
class TrainingOptions:
    """The options for the training of one search's trials, whatever the task.

    Args:
        device: of all tensors.
        search_seed: determines the order of the examples.
        task_name: is written to checkpoints.
        log: receives messages for the user.
        explosion_factor: multiple of its first loss above which a trial ends as EXPLODED.
        explosion: whether that ends a trial; "nan" if only a loss that is not finite does. A stage
            may say otherwise.
        dtype: of parameters and floating-point inputs.
        metric: compares epochs: val_acc, val_loss, or one of the task's own.
        mode: "max" or "min".
        stages: by name, for their policies (patience, chance_epochs, snapshots).
        watching: whether update ratios, silent units and the like are measured.
        width: of the arrays; None measures it.
        threads: the most threads to use on the CPU.
        backend: how steps are computed: "auto", or one way for all (see ``compute/backends.py``).
    """

    device: torch.device
    search_seed: int
    task_name: str
    log: Callable[[str], None]
    explosion_factor: float = 3.0
    explosion: Explosion = True
    dtype: torch.dtype = torch.float32
    metric: str = "val_acc"
    mode: str = "max"
    stages: Mapping[str, Stage] = field(default_factory=dict)
    watching: bool = True
    width: int | None = None
    threads: int = 1
    backend: str = "auto"


@dataclass(frozen=True)
class Parts:
    """The parts of the data as a model sees them: preprocessed, on the device."""

    train: Part
    val: Part
    preprocessing: Preprocessing


class Setting:
    """The data on the device, and the search's options."""

    def __init__(self, task: Task, data: Data, options: TrainingOptions) -> None:
        self.options = options
        self.task = task
        self.data = data
        self.device, self.dtype, self.log = options.device, options.dtype, options.log
        self.n_classes = data.n_classes
        self.loaded = data.loaded
        self.n_train = data.count("train") or len(data.train)
        self.n_val = data.count("val")  # None if it is unknown
        self.metrics: dict[str, Metric] = stacking(own_metrics(task))
        self._batches: dict[int, Batches] = {}
        self._parts: dict[tuple[str, str | None], Parts] = {}
        self._tests: dict[str, Part] = {}
        self._taught: dict[str, Tensor] = {}
        # Structures whose slots were seen to agree with the module that they share.
        self.agreed: set[Hashable] = set()
        # Examples times slots in one pass of an evaluation. It shrinks where memory runs out.
        self.evaluated_at_once = EVALUATED_AT_ONCE["cpu" if self.device.type == "cpu" else "gpu"]

    @cached_property
    def largest_share(self) -> float | None:
        """The share of the largest class in the validation part, or None without classes.

        It is the accuracy of always predicting that class. It is not known of a part that is
        loaded.
        """
        targets = self.data.val.targets
        if self.n_classes is None or "val" in self.loaded:
            return None
        return int(targets.bincount().max()) / len(targets)

    @property
    def own_loss(self) -> bool:
        """Whether the task has its own loss."""
        return callable(getattr(self.task, "loss", None))

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(H, W) or (C, H, W) of an input, or None if inputs are no images."""
        shape = getattr(self.task, "image_shape", None)
        if shape is not None:
            return tuple(shape)
        inputs = self.data.train.inputs
        own = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()
        return own if len(own) in (2, 3) else None

    def check(self, recipe: Recipe, sized: bool) -> None:
        """Check that the data can be trained on by this recipe.

        Args:
            recipe: of a trial.
            sized: whether the trial's configuration has a batch size.

        Raises:
            TaskError: it preprocesses or augments inputs that are not one tensor, preprocesses what
                is loaded, or asks for another batch size than a loader has.
        """
        if self.loaded and recipe.kind("preprocess") != NONE:
            raise TaskError(
                f"preprocess = {recipe.kind('preprocess')!r}: a part is loaded batch by batch, so "
                "its statistics are unknown; transform the examples in the dataset, and remove it"
            )
        fixed = self.loaded["train"].fixed_size if "train" in self.loaded else None
        if sized and fixed not in (None, recipe.batch_size):
            raise TaskError(
                f"batch_size = {recipe.batch_size}: the loader of data() has batches of {fixed}; "
                "remove batch_size from [space], or return a dataset instead of a DataLoader"
            )
        if isinstance(self.data.train.inputs, Tensor):
            return
        changed = [name for name in STRENGTHS if recipe.values[name]]
        if recipe.kind("preprocess") != NONE:
            changed.insert(0, f"preprocess = {recipe.kind('preprocess')!r}")
        if changed:
            raise TaskError(
                f"{changed[0]}: the inputs are a {type(self.data.train.inputs).__name__} of "
                "tensors, and only a single tensor is preprocessed or augmented; do it in data() "
                "or in the model, and remove it here"
            )

    def batches(self, batch_size: int) -> Batches:
        """Return the batches of that size."""
        if batch_size not in self._batches:
            self._batches[batch_size] = (
                LoadedBatches(self.loaded["train"], batch_size, self.device)
                if "train" in self.loaded
                else Batches(self.n_train, batch_size, self.options.search_seed, self.device)
            )
        return self._batches[batch_size]

    def feed(self, recipe: Recipe) -> Feed | None:
        """Return a new feed of the training part, or None if it is in memory."""
        if "train" not in self.loaded:
            return None
        return Feed(
            self.loaded["train"],
            recipe.batch_size,
            self.options.search_seed,
            self.device,
            self.dtype,
        )

    @property
    def told_batches(self) -> str | None:
        """What the order of the training batches depends on, if they are loaded; else None."""
        if "train" not in self.loaded:
            return None
        told = "one loaded batch serves all trials of an array"
        if self.loaded["train"].ordered:
            return f"{told}; their order is a function of the search's seed and the epoch"
        return f"{told}; their order is that of the task's loader, seeded for each epoch"

    def pieces(self, name: str, part: Part, size: int) -> Iterator[tuple[Tree, Tree]]:
        """Yield the inputs and targets of a whole part on the device, some at a time.

        Args:
            name: "val" or "test".
            part: as ``parts`` or ``test`` returned it.
            size: the most examples at a time.
        """
        if name not in self.loaded:
            yield from trees.split((part.inputs, part.targets), size)
            return
        for batch in self.loaded[name].iterate(min(size, LOADED_AT_ONCE), 0):
            yield trees.move(batch, self.device, self.dtype)

    def parts(self, recipe: Recipe) -> Parts:
        """Return the training and validation parts with the recipe's preprocessing, on the device.

        The test part is not moved. Of a training part that is loaded it is the first batch, in the
        batch size of the recipe.
        """
        if "train" in self.loaded:
            return self._first_batches(recipe.batch_size)
        kind, teacher = recipe.kind("preprocess"), recipe.teacher
        if (kind, None) not in self._parts:
            preprocessing = fit(kind, self.data.train.inputs)
            train, val = (
                self.move(Part(preprocessing.apply(p.inputs), p.targets))
                for p in (self.data.train, self.data.val)
            )
            self._parts[kind, None] = Parts(train, val, preprocessing)
        if (kind, teacher) not in self._parts and teacher is not None:
            plain = self._parts[kind, None]
            targets = pack_targets(
                self._taught[teacher].to(self.device), plain.train.targets, self.dtype
            )
            self._parts[kind, teacher] = replace(plain, train=Part(plain.train.inputs, targets))
        return self._parts[kind, teacher]

    def _first_batches(self, batch_size: int) -> Parts:
        key = NONE, str(batch_size)
        if key not in self._parts:
            size = self.batches(batch_size).batch_size
            train = Part(*self.loaded["train"].first(size)).take(slice(size))
            self._parts[key] = Parts(
                self.move(train), self.move(self.data.val), Preprocessing(NONE, {})
            )
        return self._parts[key]

    def taught(self, stage: str) -> bool:
        """Return whether the teacher's targets for that stage are known."""
        return stage in self._taught

    def teach(self, stage: str, log_probabilities: Tensor) -> None:
        """Store the teacher's targets for a stage: (n, C) logarithms of probabilities."""
        self._taught[stage] = log_probabilities

    def test(self, recipe: Recipe) -> Part | None:
        """Return the test part with the recipe's preprocessing, or None if the task has none.

        It is used for the stored predictions of kept models, and never to choose a model. It is
        moved once.
        """
        kind, test = recipe.kind("preprocess"), self.data.test
        if test is not None and kind not in self._tests:
            inputs = self.parts(recipe).preprocessing.apply(test.inputs)
            self._tests[kind] = self.move(Part(inputs, test.targets))
        return self._tests.get(kind)

    def move(self, part: Part) -> Part:
        """Return the part on the device. Floating-point tensors get the dtype of the training."""
        inputs, targets = (
            trees.move(tree, self.device, self.dtype) for tree in (part.inputs, part.targets)
        )
        return Part(inputs, targets)

    def objective(self, recipe: Recipe) -> Objective:
        """Return the objective that trials of this recipe minimise."""
        if self.own_loss:
            loss = getattr(self.task, "loss")  # noqa: B009  a task need not have one
            dims = trees.first_leaf(self.data.train.targets).ndim
            return Own(loss, recipe.plain, self.n_classes is not None, dims)
        objective = OBJECTIVES[recipe.kind("loss")](self.n_classes)
        return objective if recipe.teacher is None else Distilling(objective)

    def columns(self, recipe: Recipe, objective: Objective) -> dict[str, Tensor]:
        """Return what the objective of one trial reads, as columns (1, 1) by hyperparameter."""
        read = recipe.own | {
            name: recipe.values[name]
            for name in (*recipe.reads, *objective.reads)
            if name in recipe.values
        }
        return {
            name: torch.tensor([[value]], device=self.device, dtype=self.dtype)
            for name, value in read.items()
        }

    def sample(self, model: Model) -> tuple[Tree, Tree]:
        """Return the inputs and targets of the first training examples, one batch of them.

        They show the shapes, and stacked models are compared on them.
        """
        train, size = (
            self.parts(model.recipe).train,
            self.batches(model.recipe.batch_size).batch_size,
        )
        first = slice(size)
        return trees.pick(train.inputs, first), trees.pick(train.targets, first)

    def first_inputs(self, recipe: Recipe) -> Tree:
        """Return the inputs of the first training examples, one batch of them."""
        first = slice(self.batches(recipe.batch_size).batch_size)
        return trees.pick(self.parts(recipe).train.inputs, first)

    def frame(self, model: Model) -> Frame:
        """Return the facts about the data that steps of such models need."""
        # Principal components are not pixels.
        images = self.image_shape if self.parts(model.recipe).preprocessing.keeps_shape else None
        return Frame(
            self.batches(model.recipe.batch_size).per_epoch,
            tuple(trees.first_leaf(self.sample(model)[0]).shape),
            images,
        )

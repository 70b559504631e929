"""Builder of the parts of an array: data on the device, models, and measurements per structure."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from common.errors import TaskError
from common.search.hyperparameters import BUILT_IN_TASKS
from common.search.search_file import AVERAGED
from common.search.trial import Claim
from worker.tasks import trees
from worker.tasks.base import (
    PART_PREFIX,
    Data,
    Task,
    check_metric,
    data_of,
    find_metrics,
    may_be_part,
    model_of,
    names,
    no_exit,
    own_loss,
)
from worker.tasks.models import Layers, is_built_in, key_of_layers
from worker.tasks.trees import Tree
from worker.training.compute.backends import Backends
from worker.training.compute.width import Threads, Widths, slot_step_s
from worker.training.engine.array import Entry
from worker.training.engine.variants import Variant, Variants
from worker.training.math.losses import LossParts
from worker.training.math.precision import explain_missing
from worker.training.math.recipe import Recipe, Recorded, read_recipe
from worker.training.model.attributes import Path
from worker.training.model.groups import read_groups
from worker.training.model.lazy import give_sizes, lazy_layers
from worker.training.model.look import (
    Look,
    called_rates,
    find_ids,
    list_embeddings,
    look,
    reads,
    takes_tensors,
)
from worker.training.model.network import find_activation_kind
from worker.training.model.python_state import untouched
from worker.training.model.structure import Model, Structure, prepare
from worker.training.stacked.rows import fresh_rows
from worker.training.stacked.training_data import Setting, TrainingOptions

USED = "the model, the loss or a metric"
NOT_BY_EXAMPLE = (
    "dropout acts on a tensor whose first dimension is not the examples, and accumulate and "
    "val_passes need the noise of some of them; apply it where the examples come first"
)
# (stage, data, beat) -> the teacher's logarithms of probabilities for the training examples (n, C)
Teach = Callable[[str, Data, Callable[[], None]], Tensor]


class Builder:
    """A builder of the models of one search. It keeps the measurements of their structures."""

    def __init__(self, task: Task, options: TrainingOptions, teach: Teach | None) -> None:
        self.options = options
        self.widths = Widths(options.device, options.width)
        self.backends = Backends(options.device, options.log, options.backend)
        self._task = task
        self._teach = teach
        self._threads = Threads(options.threads)
        self._setting: Setting | None = None
        self._variants = Variants(lambda message, key: self.once(message, key))
        # The first models of their layers and recipe, if all others may start with their modules.
        self._shared: dict[Hashable, Model] = {}
        self._shares = is_built_in(task) and not hasattr(task, "param_groups")
        self._looks: dict[Structure, Look | None] = {}
        self._blind: dict[Structure, str] = {}  # why a structure could not be looked at
        self._said: set[Hashable] = set()
        self._checked: set[Hashable] = set()  # models whose embeddings have rows for all inputs
        self._read: set[str] = set()  # hyperparameters that the task has read for any trial

    def setting(self) -> Setting:
        """Return the data on the device. It is loaded at the first call.

        Raises:
            TaskError: the data cannot be trained on, or the search's metric is not measured.
            Exception: whatever the task's ``data`` raises.
        """
        if self._setting is None:
            data = data_of(self._task)
            if not may_be_part(self.options.metric, self._task):
                check_metric(self.options.metric, find_metrics(self._task, data.n_classes))
            self._setting = Setting(self._task, data, self.options)
        return self._setting

    def teach(self, claim: Claim, beat: Callable[[], None]) -> None:
        """Compute the teacher's targets for the trial's stage, if it distills and they are missing.

        Args:
            claim: the trial's claim.
            beat: called from time to time.

        Raises:
            TaskError: the task cannot be distilled.
            Exception: whatever ``teach`` raises.
        """
        stage, setting = self._teacher(claim), self.setting()
        if stage is None or setting.taught(stage):
            return
        refused = f"stage {stage!r} learns from an ensemble's probabilities of classes"
        if setting.n_classes is None or setting.own_loss or setting.loaded:
            what = (
                "a loss of its own"
                if setting.own_loss
                else "a part that is loaded batch by batch"
                if setting.loaded
                else "no classes"
            )
            raise TaskError(f"{refused}, and the task has {what}; remove [stages.{stage}]")
        if self._teach is None:
            raise TaskError(f"{refused}, and no ensemble is available here")
        setting.teach(stage, self._teach(stage, setting.data, beat))

    def _teacher(self, claim: Claim) -> str | None:
        """Return the trial's stage if it learns from a teacher, else None."""
        stage = self.options.stages.get(claim.trial.stage)
        return stage.name if stage is not None and stage.traits.distills else None

    def entry(self, claim: Claim) -> Entry:
        """Build the trial's model.

        Raises:
            TaskError: a hyperparameter is out of bounds, or the model has no activations to
                penalise.
            Exception: whatever the task's ``model`` raises.
        """
        trial = claim.trial
        hp = Recorded(trial.hyperparameters)
        model = self.prepare_model(hp, trial.seed, self._teacher(claim))
        self.setting().check(model.recipe, "batch_size" in trial.hyperparameters)
        entry = Entry(claim, model, claim.resume)
        if model.start is not None:  # all that follows is known from the first of its layers
            _check_activations(model, None)
            return entry
        if lacking := explain_missing(model.recipe.kind("precision"), self.options.device):
            self.once(lacking)
        self._check_ids(model)
        self._settle(model)
        look = self.look(model)
        if look is not None:
            model.give_back(look.unlifted)
            model.checkpoints = look.checkpoints is not None
        if look is not None and look.stateful is not None:
            model.stateful, model.changing = look.stateful, look.changing
        if look is None:
            self._lone(model, self._blind[model.structure])
        elif look.stateful is not None:
            entry = self.alone(entry, look.stateful)
        elif model.checkpoints:
            why = "its forward checkpoints activations, which torch.vmap cannot"
            entry = self.alone(entry, f"{why}{look.checkpoints}")
        elif model.obstacle is not None:
            entry = self.alone(entry, model.obstacle)
        elif look.calls:
            self._take_calls(entry, look)
        _check_activations(model, look)
        if self._noise_is_cut_wrongly(model):
            self._lone(model, NOT_BY_EXAMPLE)
        self._tell_unread(hp)
        if look is not None and not model.structure.alone and not look.unlifted:
            self._share(model, hp, trial.seed)
        return entry

    def _share(self, model: Model, hp: Recorded, seed: int) -> None:
        """Let further trials of these layers start with this module, if it can be started again.

        The module's own tensors have to be those that a start gives for its seed.
        """
        if model.layers is None:
            return
        again = replace(model, start=model.layers.start(hp.given, seed))
        device, dtype = self.options.device, self.options.dtype
        own, started = (fresh_rows([one], [seed], device, dtype) for one in (model, again))
        same = all(torch.equal(started[name], tensor) for name, tensor in own.items())
        if same and again.start is not None and again.start.rates == model.rates:
            self._shared[self._key(hp, model.recipe)] = replace(model)

    def _key(self, hp: Recorded, recipe: Recipe) -> Hashable:
        """Return what trials have in common that may start with one module."""
        return key_of_layers(hp.given), recipe.key

    def _noise_is_cut_wrongly(self, model: Model) -> bool:
        """Return whether a step takes the noise of some examples, and noise has no row for each."""
        if model.recipe.accumulate == 1 and not model.recipe.val_passes:
            return False
        n = trees.count_rows(self._sample(model))
        return any(shape[:1] != (n,) for shape in self.shapes(model))

    def _settle(self, model: Model) -> None:
        """Decide which models this one may share an array with, as far as can be seen."""
        variant = self._variants.of(model.structure.signature)
        if variant is None:
            with no_exit(USED):
                variant = self._variants.settle(
                    model.frame,
                    model.attributes,
                    lambda: self._reads(model),
                    lambda paths, others: takes_tensors(model, self._sample(model), paths, others),
                )
        self._number(model, variant)

    def _reads(self, model: Model) -> dict[Path, str]:
        """Return what a forward reads. If it raises, that may be anything."""
        try:
            return reads(model, self._sample(model))
        except Exception:
            return dict.fromkeys(model.attributes.values, "")

    def _number(self, model: Model, variant: Variant) -> None:
        model.structure = replace(model.structure, signature=variant.number)
        model.lifted = variant.lifted

    def renew(self, model: Model) -> None:
        """Let a waiting model join those that came after it, where numbers were lifted since."""
        old = model.structure
        variant = self._variants.of(old.signature)
        if variant is None or old.alone or variant.number == old.signature:
            return
        self._number(model, variant)
        if old in self._looks:
            self._looks.setdefault(model.structure, self._looks[old])

    def _take_calls(self, entry: Entry, look: Look) -> None:
        """Let the engine draw the noise of dropout functions, at the rates of this trial."""
        model = entry.model
        with no_exit(USED):
            calls = called_rates(model, self._sample(model))
        if [call.shape for call in calls] == [call.shape for call in look.calls]:
            model.take_calls(calls)
        else:
            self.alone(entry, "its forward calls dropout as often as its own numbers say")

    def _sample(self, model: Model) -> Tree:
        return self.setting().sample(model)[0]

    def _tell_unread(self, hp: Recorded) -> None:
        """Log the hyperparameters that neither the task nor the engine reads.

        Nothing is logged for a task with its own loss, because the loss has not been called yet. A
        name that occurs in the task's source is not logged, because another branch may read it.
        """
        self._read |= hp.read
        # Read by other models of the same task.
        others = BUILT_IN_TASKS.get(self.options.task_name, {})
        unread = hp.unread() - self._read - others.keys()
        for name in sorted(unread) if own_loss(self._task) is None else ():
            if not names(self._task, name):
                self.once(
                    f"hyperparameter {name} is used by neither the task nor the training; remove "
                    "it from [space] or read it in model()"
                )

    def look(self, model: Model) -> Look | None:
        """Return what the first forwards of a model of this structure told.

        Returns:
            The look, or None if the forward raised.

        Raises:
            TaskError: the model's output is not one score per class, or the search's metric is not
                measured.
        """
        if model.structure not in self._looks:
            setting = self.setting()
            inputs, targets = setting.sample(model)
            objective = setting.objective(model.recipe)
            columns = setting.columns(model.recipe, objective)

            def loss(outputs: Tree) -> tuple[Tensor, LossParts]:
                one = trees.map_leaves(lambda output: output.unsqueeze(0), outputs)
                losses = objective(one, targets, columns)
                return losses.mean, losses.parts

            own = loss if setting.own_loss else None
            try:
                with no_exit(USED):
                    found = look(model, inputs, setting.n_classes, own, self._task)
                self._look_for_metric(found)
                self._looks[model.structure] = found
            except TaskError:
                raise
            except Exception as error:
                self._blind[model.structure] = (
                    f"a forward of the model on one batch raised {type(error).__name__}: {error}"
                )
                self._looks[model.structure] = None
        return self._looks[model.structure]

    def shapes(self, model: Model) -> list[tuple[int, ...]]:
        """Return the shapes of the inputs of the model's dropout layers."""
        found = self._looks.get(replace(model.structure, alone=False))
        shapes = found.shapes if found is not None and model.dropouts else []
        return [*shapes, *(call.shape for call in model.calls)]

    def _check_ids(self, model: Model) -> None:
        """Check the numbers that embeddings take, in all parts that are in memory.

        A GPU would take no further work of this process, and would not say which number it was.

        Raises:
            TaskError: an embedding has no row for one of them.
        """
        rows = type(model.module), list_embeddings(model.module)
        if not rows[1] or rows in self._checked:
            return
        try:
            with no_exit(USED):
                found = find_ids(model, self._sample(model))
        except TaskError:
            raise
        except Exception:
            return  # whatever the forward raises is met again where it is looked at
        data = self.setting().data
        for ids in found:
            for name, part in (("train", data.train), ("val", data.val), ("test", data.test)):
                if part is not None:
                    ids.check(name, part.inputs)
        self._checked.add(rows)

    def _look_for_metric(self, look: Look) -> None:
        """Check that the search's metric is measured, if it may be a part of the task's own loss.

        Of a loss that raised, nothing is known; it raises again in the training.

        Raises:
            TaskError: it is not.
        """
        metric = self.options.metric
        measured = find_metrics(self._task, self.setting().n_classes)
        if metric.removeprefix(AVERAGED) not in measured and look.parts is not None:
            check_metric(metric, (*measured, *(f"{PART_PREFIX}{name}" for name in look.parts)))

    def slot_step_s(self, model: Model, width: int) -> float:
        """Measure the seconds of one step per slot, in an array of ``width`` slots."""
        with no_exit(USED), untouched(model.module) if model.stateful else nullcontext():
            return slot_step_s(model, self.shapes(model), width, self.setting())

    def share_cores(self, structure: Structure, step_s: Callable[[], float]) -> None:
        """Set the number of threads for the next array.

        Args:
            structure: of the array.
            step_s: measures the seconds of one of its steps.
        """
        if self.options.device.type == "cpu":
            torch.set_num_threads(self._threads.choose(structure, step_s))

    def alone(self, entry: Entry, why: str) -> Entry:
        """Return the entry, changed so that it trains without stacking."""
        model = entry.model
        model.lifted = ()
        model.take_calls(())  # it may call dropout more often than before
        structure = model.structure = replace(model.structure, alone=True)
        self.once(f"{entry.claim.id} trains alone, as will others like it: {why}", key=structure)
        return entry

    def once(self, message: str, key: Hashable = None) -> None:
        """Log ``message`` unless it, or another with the same ``key``, was logged before."""
        if (key or message) not in self._said:
            self._said.add(key or message)
            self.options.log(message)

    def prepare_model(self, hp: Recorded, seed: int, teacher: str | None = None) -> Model:
        """Return the model of a configuration, on the device, ready to be stacked.

        Args:
            hp: the configuration.
            seed: of the weights.
            teacher: the stage whose teacher the model learns from, None for the targets alone.

        Raises:
            TaskError: a hyperparameter is out of bounds, or the model cannot be trained.
            Exception: whatever the task's ``model`` raises.
        """
        has_loss = own_loss(self._task) is not None
        recipe = replace(
            read_recipe(hp, getattr(self._task, "preprocess", "none"), has_loss), teacher=teacher
        )
        if self.options.metric.startswith(AVERAGED) and not recipe.averaged:
            raise TaskError(
                f'metric = "{self.options.metric}": needs the running average of the parameters; '
                "add ema = 0.99 to [space]"
            )
        known = self._shared.get(self._key(hp, recipe)) if self._shares else None
        if known is not None and known.layers is not None:
            start = known.layers.start(hp.given, seed)
            return replace(known, recipe=recipe, rates=start.rates, start=start)
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(seed)
        try:
            module = model_of(self._task, hp)
            if lazy_layers(module):
                with no_exit(USED):
                    give_sizes(module, self.setting().first_inputs(recipe))
            groups = read_groups(self._task, module, hp)
        finally:
            torch.default_generator.set_state(before)
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        if name := next((name for name, tensor in tensors.items() if tensor.is_complex()), None):
            raise TaskError(
                f"{name} is complex, and torch would drop its imaginary part; keep "
                "torch.view_as_real of it, and turn it back in forward"
            )
        module.to(self.options.device, self.options.dtype)
        layers = Layers(module) if self._shares else None
        model = prepare(module, recipe, alone=False, groups=groups)
        model.layers = layers
        if model.layout.size == 0:
            raise TaskError("model(hp) has no parameter to train; give it one with requires_grad")
        variant = self._variants.find(model.frame, model.attributes)
        if variant is not None:
            self._number(model, variant)
        return model

    def _lone(self, model: Model, why: str) -> None:
        model.take_calls(())
        model.give_back(model.dropouts)
        model.structure = replace(model.structure, alone=True)
        self.once(f"models of this structure train alone: {why}", key=model.structure)


def _check_activations(model: Model, look: Look | None) -> None:
    """Check that ``activation_l1`` has activations to penalise.

    Raises:
        TaskError: it has none, or they are computed again in the backward.
    """
    strength = model.recipe.values["activation_l1"]
    if not strength:
        return
    if not any(find_activation_kind(layer) for layer in model.module.modules()):
        raise TaskError(
            f"activation_l1 = {strength:g}: the model has no activation layer, such as nn.ReLU "
            "(functions that forward calls, such as torch.relu, are not seen); use layers, or "
            "remove activation_l1 from [space]"
        )
    if look is not None and look.checkpoints is not None:
        raise TaskError(
            f"activation_l1 = {strength:g}: the model's forward checkpoints activations"
            f"{look.checkpoints}, so they are not all kept; remove one of the two"
        )

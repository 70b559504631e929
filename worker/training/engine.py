"""The training engine: jobs in, boundaries out. An array of trials is the only way it trains; one trial is an array of one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from common.errors import TaskError
from common.practice import BUILT_IN_TASKS
from common.search import AVERAGED, Stage
from common.space import Scalar
from worker.tasks.base import Task, check_metric, data_of, measured_by, model_of, no_exit
from worker.training.array import Entry
from worker.training.backends import AUTO, Backends
from worker.training.interface import Boundary, Curves, Job, Outcome, View, Watch
from worker.training.recipe import Recorded, read_recipe
from worker.training.session import USED, Session
from worker.training.setting import Options, Setting
from worker.training.structure import Model, Structure, give_back_dropout, mask_shapes, prepare
from worker.training.width import Threads, Widths, slot_step_s

__all__ = ["Boundary", "Curves", "Engine", "Job", "Outcome", "View", "Watch"]


class Engine:
    """Trains the trials of one search on one device."""

    def __init__(
        self,
        task: Task,
        device: torch.device,
        *,
        search_seed: int,
        task_name: str,
        explosion_factor: float = 3.0,
        width: int | None = None,
        threads: int = 1,
        log: Callable[[str], None],
        dtype: torch.dtype = torch.float32,
        metric: str = "val_acc",
        mode: str = "max",
        stages: Mapping[str, Stage] | None = None,
        watching: bool = True,
        backend: str = AUTO,
    ) -> None:
        """Makes an engine; nothing is loaded before the first job.

        Args:
            task: data, model, and perhaps loss and metrics.
            device: of all tensors.
            search_seed: gives the order of examples.
            task_name: noted in checkpoints.
            explosion_factor: times its first loss a trial is left.
            width: of the arrays; None measures.
            threads: at most so many on the CPU.
            log: hears what a user should know, once.
            dtype: of parameters and floating inputs.
            metric: by which epochs are compared: val_acc, val_loss, or one of the task's own.
            mode: "max" or "min".
            stages: by name, for their policies (patience, chance_epochs, snapshots).
            watching: whether update ratios, silent units and the like are measured.
            backend: how steps are computed: "auto", or one way for all (see ``backends.py``).
        """
        torch.set_flush_denormal(True)  # weights that decay towards zero would slow every step tenfold
        self.device = device
        self.widths = Widths(device, width)
        self.backends = Backends(device, log, backend)
        self._threads = Threads(threads)
        self.log = log
        self._task = task
        self.options = Options(
            device, dtype, search_seed, task_name, explosion_factor, log, metric=metric, mode=mode, stages=stages or {}, watching=watching
        )
        self._setting: Setting | None = None
        self._signatures: dict[object, int] = {}
        self._shapes: dict[Structure, list[tuple[int, ...]] | None] = {}
        self._shapeless: dict[Structure, str] = {}  # why there are no shapes
        self._said: set[Hashable] = set()

    def train(self, jobs: Sequence[Job], refill: Callable[[int], Sequence[Job]], watch: Watch) -> Iterator[Boundary]:
        """Trains ``jobs``, and what ``refill(n_free)`` adds, until nothing is left or ``watch`` says to stop.

        Yields:
            A boundary whenever a slot reaches the end of an epoch or of its budget. Told to stop, a last one whose ``running``
            are unfinished (their states say exactly where they are) and whose ``waiting`` never began.
        """
        return Session(self, refill, watch).run(jobs)

    def width(self, hyperparameters: Mapping[str, Scalar]) -> int:
        """How many trials like this one to claim: measured for its structure if that is known, else a default."""
        try:
            return self.widths.guess(self._prepared(Recorded(hyperparameters), seed=0).structure)
        except Exception:  # the same error comes again, and is told, when the trial is trained
            return 1

    @property
    def backend(self) -> str:
        """How steps are computed now, and why."""
        return self.backends.told

    def setting(self) -> Setting:
        """The data on the device; loaded at the first call.

        Raises:
            TaskError: the data cannot be trained on, or the search's metric is not measured.
            Exception: whatever the task's ``data`` raises.
        """
        if self._setting is None:
            data = data_of(self._task)
            check_metric(self.options.metric, measured_by(self._task, data.n_classes))
            self._setting = Setting(self._task, data, self.options)
        return self._setting

    def entry(self, job: Job) -> Entry:
        """Builds the job's model.

        Raises:
            Exception: whatever the task's ``model`` raises, or TaskError for a hyperparameter out of bounds.
        """
        trial = job.claim.trial
        hp = Recorded(trial.hyperparameters)
        model = self._prepared(hp, trial.seed)
        others = BUILT_IN_TASKS.get(self.options.task_name, {})  # what another kind of model reads of the same task
        for name in sorted(hp.unread() - others.keys()):
            self.once(f"hyperparameter {name} is used by neither the task nor the training; remove it from [space] or read it in model()")
        entry = Entry(job, model, job.resume)
        if not model.structure.alone and self.shapes(model) is None:
            self._lone(model, self._shapeless[model.structure])
        elif not model.structure.alone and model.obstacle is not None:
            return self.alone(entry, model.obstacle)
        return entry

    def shapes(self, model: Model) -> list[tuple[int, ...]] | None:
        """What its dropout layers see; None where they cannot be lifted or the forward raises.

        Raises:
            TaskError: the model's output is not one score a class.
        """
        if model.structure not in self._shapes:
            setting = self.setting()
            try:
                with no_exit(USED):
                    self._shapes[model.structure] = mask_shapes(model, setting.sample(model)[0], setting.n_classes)
                self._shapeless[model.structure] = "a dropout layer is passed through more than once, or never"
            except TaskError:
                raise
            except Exception as error:
                self._shapeless[model.structure] = f"a forward of the model on one batch raised {type(error).__name__}: {error}"
                self._shapes[model.structure] = None
        return self._shapes[model.structure]

    def slot_step_s(self, model: Model, width: int) -> float:
        """Seconds that one step takes for each of ``width`` slots."""
        with no_exit(USED):
            return slot_step_s(model, self.shapes(model) or [], width, self.setting())

    def share_cores(self, structure: Structure, step_s: Callable[[], float]) -> None:
        """Sets the number of threads for the array that comes next; ``step_s`` tells the seconds of one of its steps."""
        if self.device.type == "cpu":
            torch.set_num_threads(self._threads.choose(structure, step_s))

    def alone(self, entry: Entry, why: str) -> Entry:
        """The same trial, to be trained without stacking."""
        shapes = self._shapes.get(entry.model.structure)
        structure = replace(entry.model.structure, alone=True)
        self._shapes.setdefault(structure, shapes)
        entry.model.structure = structure
        self.once(f"{entry.job.id} trains alone, as will others like it: {why}", key=structure)
        return entry

    def once(self, message: str, key: Hashable = None) -> None:
        """Logs ``message`` unless it, or another of the same ``key``, has been."""
        if (key or message) not in self._said:
            self._said.add(key or message)
            self.log(message)

    def _prepared(self, hp: Recorded, seed: int) -> Model:
        own_loss = callable(getattr(self._task, "loss", None))
        recipe = read_recipe(hp, getattr(self._task, "preprocess", "none"), own_loss)
        if self.options.metric.startswith(AVERAGED) and not recipe.averaged:
            raise TaskError(f'metric = "{self.options.metric}": is of the running average of the parameters; add ema = 0.99 to [space]')
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(seed)
        try:
            module = model_of(self._task, hp)
        finally:
            torch.default_generator.set_state(before)
        model = prepare(module.to(self.device, self.options.dtype), recipe, alone=False)
        if model.layout.size == 0:
            raise TaskError("model(hp) has no parameter to train; give it one with requires_grad")
        number = self._signatures.setdefault(model.structure.signature, len(self._signatures))
        model.structure = replace(model.structure, signature=number)  # quick to hash and to compare
        return model

    def _lone(self, model: Model, why: str) -> None:
        give_back_dropout(model)
        model.structure = replace(model.structure, alone=True)
        self._shapes[model.structure] = []
        self.once(f"models of this structure train alone: {why}", key=model.structure)

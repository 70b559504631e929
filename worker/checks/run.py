"""All checks of a search, in order. An error in the task becomes a finding, never a traceback."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from common.code.tree import listed
from common.errors import TaskError
from common.folder.chosen import Chosen
from common.search import command
from common.search.values import Value
from worker.checks import data as data_checks
from worker.checks.errors import explain_task_error
from worker.checks.hyperparameters import check_all_read
from worker.checks.model import Ground, Looked, guard, of_centre, of_options
from worker.checks.plan import centre, variants
from worker.checks.report import Finding, Report, Status
from worker.checks.training import load_first
from worker.tasks.base import (
    PART_PREFIX,
    Data,
    Loop,
    Part,
    Task,
    check_metric,
    data_of,
    find_metrics,
    may_be_part,
    no_exit,
)
from worker.tasks.importing import find_users_file
from worker.tasks.loader import code_of, load_chosen, load_code
from worker.training.engine.builder import USED

TRAIN_ROWS, VAL_ROWS = 5000, 2000  # most examples to check models with
LOADING_S = 3.0  # most seconds to load examples of a part that is loaded batch by batch
DIGEST_SHOWN = 19  # characters of a sha256: enough to compare by eye


class Run:
    """A run of all checks of one search."""

    def __init__(self, chosen: Chosen, data_dir: Path) -> None:
        """Create a run.

        Args:
            chosen: the search.
            data_dir: the folder of the built-in data sets.
        """
        self.search = chosen.search
        self._chosen, self._data_dir = chosen, data_dir
        self._findings: list[Finding] = []
        self._notes: list[str] = []
        self._no_data: str | None = None
        self._digest: str | None = None

    def report(self) -> Report:
        """Run all checks and return the report."""
        started = time.monotonic()
        self._task()
        search, seconds = self.search, time.monotonic() - started
        return Report(
            search.name,
            search.task,
            self._digest,
            centre(search.space),
            self._notes,
            self._findings,
            seconds,
            self._no_data,
        )

    def _task(self) -> None:
        if self.search.is_command:
            self._command()
            return
        try:
            task, shipped = self._load()
        except TaskError as error:
            self._fail("task", str(error), "Nothing can be trained without it.")
            return
        why = self.search.resources.refuse_class(self.search.task)
        if why is not None and not isinstance(task, Loop):
            self._fail("task", why, "No worker would train it.")
            return
        self._findings.append(
            Finding(
                "task",
                Status.PASSED,
                f"{self.search.task} loads; its code is {shipped}",
            )
        )
        if isinstance(task, Loop):
            told = (
                "the task has its own training loop; its data, model, loss and gradient are not "
                "checked"
            )
            self._findings.append(Finding("all else", Status.LEFT_OUT, told))
        elif (data := self._data(task)) is not None:
            with double_by_default():
                self._model(task, data)

    def _load(self) -> tuple[Task | Loop, str]:
        """Load the task from the files that workers will run, and describe these."""
        code, name = code_of(self._chosen), self.search.task
        if code is None:
            self._digest = f"builtin:{name}"
            return load_chosen(self._chosen, self._data_dir), self._digest
        self._digest = code.digest
        if code.left_out:
            self._notes.append(
                f"the task names {', '.join(code.left_out)}, which is too large to be shipped with "
                "it: workers read it only from a folder that they see themselves"
            )
        before = set(sys.modules)
        task = load_code(name, code)
        loaded = {find_users_file(sys.modules[own]) for own in sys.modules.keys() - before}
        if beside := sorted(str(file) for file in loaded if file is not None):
            self._notes.append(
                f"the task imports {listed(beside)}, which is not shipped with it: every worker's "
                "machine needs it, or code = [...] in the search file names it"
            )
        return task, f"{code.digest[:DIGEST_SHOWN]}, {code.told}"

    def _command(self) -> None:
        """Look whether the program is there, and show how it is called. It is not run."""
        search, cwd = self.search, self.search.folder or str(self._chosen.base.resolve())
        self._digest = command.digest(search.task)
        values: dict[str, Value] = {**dict.fromkeys(command.PLACEHOLDERS, "..."), "epoch": 0}
        stage = search.stages[0]
        values |= {"epochs": stage.epochs, "max_epochs": search.max_epochs, "seed": search.seed}
        values["gpus"] = search.resources.gpus
        words = command.fill(search.task, {**values, **centre(search.space)})
        program = command.find_program(words[0], cwd)
        if program is None:
            told = f"the program {words[0]!r} is not on the PATH, or may not be run"
            self._fail("task", told, "Nothing can be trained without it.")
            return
        told = f"{program} is there, and is run in {cwd}, as in: {shlex.join(words)}"
        self._findings.append(Finding("task", Status.PASSED, told))
        told = "the task is a program; its data, model, loss and gradient are not checked"
        self._findings.append(Finding("all else", Status.LEFT_OUT, told))

    def _data(self, task: Task) -> Data | None:
        try:
            data = self._in_memory(data_of(task))
        except Exception as error:
            if self.search.is_built_in and isinstance(error, TaskError):
                self._no_data = str(error)
            self._fail("data", explain_task_error(error), "Nothing can be trained without it.")
            return None
        if not may_be_part(self.search.metric, task):
            self._check_metric(find_metrics(task, data.n_classes))
        return data

    def _check_metric(self, measured: tuple[str, ...]) -> None:
        try:
            check_metric(self.search.metric, measured)
        except TaskError as error:
            self._fail("metric", str(error), "Every trial would fail.")

    def _model(self, task: Task, data: Data) -> None:
        ground = Ground.of(task, self._few(data), self.search.seed)
        options = variants(self.search.space)
        middle = centre(self.search.space)
        try:
            with no_exit(USED):
                looked = Looked(ground, middle)
        except Exception as error:
            self._look_at(data, data.train)
            self._fail(
                "model",
                explain_task_error(error),
                "Every trial like it would fail: correct model(hp), loss or [space].",
            )
            return
        self._look_at(data, looked.data.train)
        self._findings.append(guard("model", looked.describe_model))
        if may_be_part(self.search.metric, task):
            parts = tuple(f"{PART_PREFIX}{name}" for name in looked.subject.parts(looked.few))
            self._check_metric((*find_metrics(task, data.n_classes), *parts))
        self._findings.append(
            guard(
                "hyperparameters",
                lambda: check_all_read(task, self.search.task, looked.few, middle, options),
            )
        )
        self._findings += of_centre(looked)
        found, left = of_options(ground, options)
        self._findings += found
        self._tell_plan(len(options) - len(left), left)

    def _look_at(self, data: Data, train: Part) -> None:
        try:
            self._findings += data_checks.of_data(data, train)
        except Exception as error:
            self._fail(
                "data",
                explain_task_error(error),
                "The data has a form that the checks cannot read; the engine may not either.",
            )

    def _in_memory(self, data: Data) -> Data:
        """Return the data with the first examples of each part that is loaded batch by batch."""
        if not data.loaded:
            return data
        rows = {"train": TRAIN_ROWS, "val": VAL_ROWS, "test": VAL_ROWS}
        parts = {
            name: load_first(data.loaded[name], n, LOADING_S)
            if name in data.loaded
            else getattr(data, name)
            for name, n in rows.items()
        }
        told = ", ".join(f"{len(parts[name])} of {name}" for name in data.loaded)
        self._notes.append(f"of the parts that are loaded, the first examples are checked: {told}")
        return Data(**parts, n_classes=data.n_classes)

    def _few(self, data: Data) -> Data:
        """Return at most ``TRAIN_ROWS`` and ``VAL_ROWS`` examples of the parts, drawn by seed."""
        generator = torch.Generator().manual_seed(self.search.seed % 2**63)
        parts = [
            _draw(part, n, generator)
            for part, n in ((data.train, TRAIN_ROWS), (data.val, VAL_ROWS))
        ]
        if len(parts[0]) < len(data.train):
            self._notes.append(
                f"models are checked with {len(parts[0])} of {len(data.train)} training examples, "
                "drawn by the search's seed"
            )
        return Data(parts[0], parts[1], None, data.n_classes)

    def _tell_plan(self, n_options: int, left: list[str]) -> None:
        self._notes.insert(
            0,
            "checked at the centre of the space: the middle of each range in its scale, the first "
            "option of each choice",
        )
        if n_options:
            self._notes.insert(
                1,
                f"and, with the quick checks, at {n_options} other options of its choices, one at "
                "a time",
            )
        if left:
            self._notes.append(f"options left out for lack of time: {', '.join(left)}")

    def _fail(self, check: str, found: str, means: str) -> None:
        self._findings.append(Finding(check, Status.FAILED, found, means))


@contextmanager
def double_by_default() -> Iterator[None]:
    """Make double precision the default for tensors that a model's forward creates.

    This applies to ``torch.zeros(n)``, for example. It must not be active while ``data()`` draws
    random numbers, because it would change them.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _draw(part: Part, n: int, generator: torch.Generator) -> Part:
    if len(part) <= n:
        return part
    places = torch.randperm(len(part), generator=generator)[:n]
    return part.take(places)

"""All checks of a search, in order. Whatever is wrong with the task ends up as a finding, never as a traceback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from common.errors import TaskError
from common.search import Search
from worker.checks import data as data_checks
from worker.checks.errors import explained
from worker.checks.hyperparameters import known_to_all
from worker.checks.model import Ground, Looked, guarded, of_centre, of_options
from worker.checks.plan import centre, variants
from worker.checks.report import Finding, Report, Status
from worker.tasks.base import Data, Loop, Part, Task, check_metric, data_of, measured_by, no_exit
from worker.tasks.loader import BUILT_IN, load_task, task_digest
from worker.training.session import USED

TRAIN_ROWS, VAL_ROWS = 5000, 2000  # examples that models are checked with
DIGEST_SHOWN = 19  # characters: of a sha256 enough to compare by eye


class Run:
    """The checks of one search."""

    def __init__(self, search: Search, spec: str, folder: Path, data_dir: Path) -> None:
        """Args: ``spec``, ``folder``, ``data_dir``: as ``load_task`` takes them."""
        self.search = search
        self._spec, self._folder, self._data_dir = spec, folder, data_dir
        self._findings: list[Finding] = []
        self._notes: list[str] = []
        self._no_data: str | None = None
        self._digest: str | None = None

    def report(self) -> Report:
        """Runs everything."""
        started = time.monotonic()
        self._task()
        search, seconds = self.search, time.monotonic() - started
        return Report(search.name, search.task, self._digest, centre(search.space), self._notes, self._findings, seconds, self._no_data)

    def _task(self) -> None:
        try:
            self._digest = task_digest(self._spec, self._folder)
            task = load_task(self._spec, self._folder, self._data_dir)
        except TaskError as error:
            self._fail("task", str(error), "Nothing can be trained without it.")
            return
        self._findings.append(Finding("task", Status.PASSED, f"{self.search.task} loads; its code is {self._digest[:DIGEST_SHOWN]}"))
        if isinstance(task, Loop):
            told = "the task is a loop of its own: its data, model, loss and gradient are its own and are not looked at"
            self._findings.append(Finding("all else", Status.LEFT_OUT, told))
        elif (data := self._data(task)) is not None:
            with double_by_default():
                self._model(task, data)

    def _data(self, task: Task) -> Data | None:
        try:
            data = data_of(task)
        except Exception as error:
            if self._spec in BUILT_IN and isinstance(error, TaskError):
                self._no_data = str(error)
            self._fail("data", explained(error), "Nothing can be trained without it.")
            return None
        try:
            check_metric(self.search.metric, measured_by(task, data.n_classes))
        except TaskError as error:
            self._fail("metric", str(error), "Every trial would fail.")
        return data

    def _model(self, task: Task, data: Data) -> None:
        ground = Ground.of(task, self._few(data), self.search.seed)
        options = variants(self.search.space)
        middle = centre(self.search.space)
        try:
            with no_exit(USED):
                looked = Looked(ground, middle)
        except Exception as error:
            self._look_at(data, data.train)
            self._fail("model", explained(error), "Every trial like it would fail: correct model(hp), loss or [space].")
            return
        self._look_at(data, looked.data.train)
        self._findings.append(guarded("model", looked.built))
        self._findings.append(guarded("hyperparameters", lambda: known_to_all(task, self.search.task, looked.few, middle, options)))
        self._findings += of_centre(looked)
        found, left = of_options(ground, options)
        self._findings += found
        self._tell_plan(len(options) - len(left), left)

    def _look_at(self, data: Data, train: Part) -> None:
        try:
            self._findings += data_checks.of_data(data, train)
        except Exception as error:
            self._fail("data", explained(error), "The data has a form that the checks cannot read; the engine may not either.")

    def _few(self, data: Data) -> Data:
        """A random part of large data."""
        generator = torch.Generator().manual_seed(self.search.seed % 2**63)
        parts = [_drawn(part, n, generator) for part, n in ((data.train, TRAIN_ROWS), (data.val, VAL_ROWS))]
        if len(parts[0]) < len(data.train):
            self._notes.append(
                f"models are checked with {len(parts[0])} of {len(data.train)} training examples, drawn by the search's seed"
            )
        return Data(parts[0], parts[1], None, data.n_classes)

    def _tell_plan(self, n_options: int, left: list[str]) -> None:
        self._notes.insert(0, "checked at the centre of the space: the middle of each range in its scale, the first option of each choice")
        if n_options:
            self._notes.insert(1, f"and, with the quick checks, at {n_options} other options of its choices, one at a time")
        if left:
            self._notes.append(f"options that the time did not suffice for: {', '.join(left)}")

    def _fail(self, check: str, found: str, means: str) -> None:
        self._findings.append(Finding(check, Status.FAILED, found, means))


@contextmanager
def double_by_default() -> Iterator[None]:
    """Tensors that a model's forward makes, as ``torch.zeros(n)``, get the precision of the checks. Not while data() draws: it would
    draw other numbers.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _drawn(part: Part, n: int, generator: torch.Generator) -> Part:
    if len(part) <= n:
        return part
    places = torch.randperm(len(part), generator=generator)[:n]
    return Part(part.inputs[places], part.targets[places])

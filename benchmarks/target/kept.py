"""The models that were this program's best at some time, kept and evaluated afterwards.

A promoted trial's earlier checkpoint is replaced by its later one. So at the end the folder does
not show what would have been selected before. While the command runs, each new best checkpoint is
hard-linked into another folder. This only reads directories, ten times a second.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from benchmarks.target.problems import Problem, make_task

EVERY_S = 0.1
BEST = re.compile(r"val_acc=([0-9.]+)-.*\.pt")


class Keeper:
    """A thread that links checkpoints in ``search`` into ``place``.

    It links each checkpoint that is at least as good as all before it.
    """

    def __init__(self, search: Path, place: Path) -> None:
        self._search, self._place, self._best = search, place, 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Keeper:
        self._place.mkdir()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Link new checkpoints."""
        known = self._best
        # The folder or a checkpoint may not exist yet, or not any more.
        with suppress(FileNotFoundError):
            for path in self._search.glob("*/*.pt"):
                found = BEST.fullmatch(path.name)
                # Of several new checkpoints, each may have been the best for a moment.
                if found and float(found[1]) >= known:
                    with suppress(FileNotFoundError, FileExistsError):
                        os.link(path, self._place / path.name)
                    self._best = max(self._best, float(found[1]))

    def _watch(self) -> None:
        while not self._done.wait(EVERY_S):
            self.look()


def make_measure(problem: Problem) -> Callable[[Path], float]:
    """Return a function that computes the test accuracy of a checkpoint."""
    import torch

    from worker.training.outcome.evaluate import load, n_correct, read_checkpoint, read_test_part

    task = make_task(problem)
    part = read_test_part(task)

    def measure(path: Path) -> float:
        name = read_checkpoint(path).get("task", problem.task)
        return n_correct(load(path, task, name, torch.device("cpu")), part) / len(part)

    return measure

"""Live progress of a stage: a bar on a terminal or in a notebook, else a line every few seconds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from common.folder.record import format_metric
from common.search.trial import ENDED, TrialState
from master.run.notebook_bar import Bar, NotebookBar

LINE_S = 10.0  # seconds between lines where there is no terminal
LEAST_BAR = 10  # characters
LEAST_SHARE = 5  # 1 / LEAST_SHARE of the window is the bar, where the text would need all of it
WHOLE_TEXT = 100  # characters of the longest usual line without its bar
PACE_WINDOW_S = 60.0  # the pace is taken over the last minute


@dataclass(frozen=True)
class Snapshot:
    """State of a stage at one moment."""

    stage: str
    counts: Mapping[str, int]  # number of trials by state
    best: float | None
    pace: float | None  # trials ended per second, over the last minute
    workers: int
    metric: str = "val_acc"

    @property
    def named_best(self) -> str:
        """The best value, as in ``best 0.9361``. A metric other than ``val_acc`` is named."""
        name = "" if self.metric == "val_acc" else f"{self.metric} "
        return (
            f"best {name}{format_metric(self.best)}" if self.best is not None else "best none yet"
        )

    @property
    def total(self) -> int:
        """Number of trials."""
        return sum(self.counts.values())

    @property
    def done(self) -> int:
        """Number of trials that have ended."""
        return sum(self.counts[state] for state in ENDED)

    @property
    def left_s(self) -> float | None:
        """Expected seconds until all trials have ended; None while the pace is unknown."""
        return (self.total - self.done) / self.pace if self.pace else None

    @property
    def short(self) -> str:
        """One line, the most important parts first."""
        return ", ".join(self.parts)

    def fit(self, width: int) -> str:
        """Return as many of the parts as fit, since half a number is worse than none."""
        taken = list(self.parts)
        while taken and len(", ".join(taken)) > width:
            taken.pop()
        return ", ".join(taken)

    @property
    def parts(self) -> list[str]:
        """What is said beside the bar, the most important parts first."""
        parts = [
            self.named_best if self.best is not None else "",
            f"{duration(self.left_s)} left" if self.left_s is not None else "",
        ]
        parts += [
            f"{self.counts[TrialState.RUNNING]} running",
            f"{self.counts[TrialState.EXPLODED]} exploded",
        ]
        parts += [describe_pace(self.pace) if self.pace else "", f"{self.workers} workers"]
        return [part for part in parts if part]

    def __str__(self) -> str:
        running, exploded = self.counts[TrialState.RUNNING], self.counts[TrialState.EXPLODED]
        other = sum(
            self.counts[s] for s in (TrialState.STOPPED, TrialState.KILLED, TrialState.FAILED)
        )
        pace = describe_pace(self.pace) if self.pace else "pace unknown"
        left = f"{duration(self.left_s)} left" if self.left_s is not None else "time left unknown"
        rest = f", {other} stopped/killed/failed" if other else ""
        return (
            f"{running} running, {exploded} exploded{rest}, {self.named_best}, {pace}, {left}, "
            f"{self.workers} workers"
        )


class Pace:
    """Number of trials that ended per second, over the last minute.

    The caller passes in the clock's readings.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def update(self, now_s: float, done: int) -> float | None:
        """Note that ``done`` trials have ended by ``now_s``, and return the pace.

        Returns:
            Trials per second, or None until two readings differ.
        """
        self._seen.append((now_s, done))
        while len(self._seen) > 2 and now_s - self._seen[0][0] > PACE_WINDOW_S:
            self._seen.popleft()
        began_s, began_done = self._seen[0]
        return (
            (done - began_done) / (now_s - began_s)
            if done > began_done and now_s > began_s
            else None
        )


class LiveProgress:
    """Display that shows snapshots until its ``with`` block ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar_column = BarColumn(bar_width=LEAST_BAR)
        self._bar = Progress(
            TextColumn("{task.description} {task.completed}/{task.total}"),
            self._bar_column,
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, visible=False, text="")
        self._notebook = NotebookBar() if console.is_jupyter else None
        self._line_at = -LINE_S
        self._last = ""

    def __enter__(self) -> LiveProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, snapshot: Snapshot, final: bool = False) -> None:
        """Draw the bar. Where there is none, print a line every ``LINE_S`` seconds instead.

        The final snapshot is always printed as a line, unless it equals the last line.
        """
        # The window may have changed. The text has no say, or the bar would jump with it.
        width = self._console.width
        bar = self._bar_column.bar_width = max(LEAST_BAR, width // LEAST_SHARE, width - WHOLE_TEXT)
        taken = len(f"{snapshot.stage} {snapshot.done}/{snapshot.total}") + bar + 3
        self._bar.update(
            self._task,
            description=snapshot.stage,
            total=snapshot.total,
            completed=snapshot.done,
            text=snapshot.fit(width - taken),
            visible=True,
        )
        if self._notebook is not None:
            self._notebook.show(Bar(snapshot.stage, snapshot.done, snapshot.total, snapshot.short))
        has_bar = self._console.is_terminal or self._notebook is not None
        now = time.monotonic()
        line = f"{snapshot.stage}: {snapshot.done}/{snapshot.total} trials done, {snapshot}"
        if (
            (not has_bar or final)
            and (final or now - self._line_at >= LINE_S)
            and line != self._last
        ):
            self._line_at, self._last = now, line
            self.say(line)

    def say(self, message: str) -> None:
        """Print a message above the bar."""
        self._console.print(
            message, markup=False, highlight=False, soft_wrap=not self._console.is_terminal
        )


def describe_pace(per_s: float) -> str:
    """Return a pace as text: ``3.2 trials/s``, or ``25 s a trial`` if that is slower than one."""
    if per_s >= 1:
        return f"{per_s:.1f} trials/s"
    each_s = 1 / per_s
    return f"{each_s:.1f} s a trial" if each_s < 9.95 else f"{duration(each_s)} a trial"


def duration(seconds: float) -> str:
    """Return a duration as text: ``1 h 02 min``, ``3 min 20 s`` or ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"

"""The live progress of a stage: a bar on a terminal, a line now and then elsewhere. Always on stderr."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from common.trial import ENDED, TrialState

LINE_S = 10.0  # between lines where there is no terminal
WIDE = 120  # characters from which on the bar has room to be a long one
PACE_WINDOW_S = 60.0  # the pace is that of the last minute


@dataclass(frozen=True)
class Snapshot:
    """Where a stage stands."""

    stage: str
    counts: Mapping[str, int]  # by state
    best: float | None
    pace: float | None  # trials ended a second, of the last minute
    workers: int
    metric: str = "val_acc"

    @property
    def named_best(self) -> str:
        """``best 0.9361``; a metric that is no accuracy is named."""
        name = "" if self.metric == "val_acc" else f"{self.metric} "
        return f"best {name}{self.best:.4f}" if self.best is not None else "best none yet"

    @property
    def total(self) -> int:
        """All trials."""
        return sum(self.counts.values())

    @property
    def done(self) -> int:
        """Those that ended."""
        return sum(self.counts[state] for state in ENDED)

    @property
    def left_s(self) -> float | None:
        """Seconds to go at this pace, None while it is unknown."""
        return (self.total - self.done) / self.pace if self.pace else None

    @property
    def short(self) -> str:
        """What is known, the most important first: a narrow terminal cuts the end."""
        parts = [
            self.named_best if self.best is not None else "",
            f"{duration(self.left_s)} left" if self.left_s is not None else "",
        ]
        parts += [f"{self.counts[TrialState.RUNNING]} running", f"{self.counts[TrialState.EXPLODED]} exploded"]
        parts += [f"{self.pace:.1f} trials/s" if self.pace else "", f"{self.workers} workers"]
        return ", ".join(part for part in parts if part)

    def __str__(self) -> str:
        running, exploded = self.counts[TrialState.RUNNING], self.counts[TrialState.EXPLODED]
        other = sum(self.counts[s] for s in (TrialState.STOPPED, TrialState.KILLED, TrialState.FAILED))
        pace = f"{self.pace:.1f} trials/s" if self.pace else "pace unknown"
        left = f"{duration(self.left_s)} left" if self.left_s is not None else "time left unknown"
        rest = f", {other} stopped/killed/failed" if other else ""
        return f"{running} running, {exploded} exploded{rest}, {self.named_best}, {pace}, {left}, {self.workers} workers"


class Pace:
    """How many trials ended a second, over the last minute; the clock's readings are passed in."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def update(self, now_s: float, done: int) -> float | None:
        """Notes that ``done`` trials have ended by ``now_s``; returns the pace, None until two readings differ."""
        self._seen.append((now_s, done))
        while len(self._seen) > 2 and now_s - self._seen[0][0] > PACE_WINDOW_S:
            self._seen.popleft()
        began_s, began_done = self._seen[0]
        return (done - began_done) / (now_s - began_s) if done > began_done and now_s > began_s else None


class LiveProgress:
    """Shows snapshots until the ``with`` block ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar_width = 20 if console.width >= WIDE else 6
        self._bar = Progress(
            TextColumn("{task.description} {task.completed}/{task.total}"),
            BarColumn(bar_width=self._bar_width),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, visible=False, text="")
        self._line_at = -LINE_S
        self._last = ""

    def __enter__(self) -> LiveProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, snapshot: Snapshot, final: bool = False) -> None:
        """Draws the bar, or prints a line where the last is old or the stage has ended."""
        text = Text(snapshot.short)
        taken = len(f"{snapshot.stage} {snapshot.done}/{snapshot.total}") + self._bar_width + 3
        text.truncate(max(1, self._console.width - taken), overflow="ellipsis")
        self._bar.update(
            self._task, description=snapshot.stage, total=snapshot.total, completed=snapshot.done, text=text.plain, visible=True
        )
        now = time.monotonic()
        line = f"{snapshot.stage}: {snapshot.done}/{snapshot.total} trials done, {snapshot}"
        if (not self._console.is_terminal or final) and (final or now - self._line_at >= LINE_S) and line != self._last:
            self._line_at, self._last = now, line
            self.say(line)

    def say(self, message: str) -> None:
        """A message above the bar."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=not self._console.is_terminal)


def duration(seconds: float) -> str:
    """``1 h 02 min``, ``3 min 20 s``, ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"

"""What the checks found: values, a table for people, strict JSON for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rich.table import Table
from rich.text import Text

from common.space import Scalar

CENTRE = "centre"  # the configuration that most checks look at
Figure = float | int | str | None


class Status(StrEnum):
    """How a check went."""

    PASSED = "passed"
    WARNING = "warning"
    FAILED = "failed"
    LEFT_OUT = "left out"


STYLES = {Status.PASSED: "green", Status.WARNING: "yellow", Status.FAILED: "bold red", Status.LEFT_OUT: "dim"}


@dataclass(frozen=True)
class Finding:
    """What one check found in one configuration."""

    check: str
    status: Status
    found: str  # with the figures
    means: str = ""  # what it usually means, where it did not pass
    figures: Mapping[str, Figure] = field(default_factory=dict)
    configuration: str = CENTRE  # or what differs from it, such as ``activation = "tanh"``

    def plain(self) -> dict[str, Any]:
        """As strict JSON takes it: a figure that is not finite is None."""
        return {
            "check": self.check,
            "configuration": self.configuration,
            "status": str(self.status),
            "found": self.found,
            "means": self.means,
            "figures": {name: _finite(value) for name, value in self.figures.items()},
        }


@dataclass(frozen=True)
class Report:
    """All findings for one search."""

    search: str
    task: str
    digest: str | None  # of the task's code; None where it could not be read
    configuration: Mapping[str, Scalar]  # the centre of the space
    notes: Sequence[str]  # what was looked at, and what not
    findings: Sequence[Finding]
    seconds: float
    no_data: str | None = None  # why a built-in data set is not there: nothing is wrong with the search itself

    @property
    def passed(self) -> bool:
        """Whether nothing failed; warnings are allowed."""
        return not any(finding.status is Status.FAILED for finding in self.findings)

    def count(self, status: Status) -> int:
        """How many findings have that status."""
        return sum(finding.status is status for finding in self.findings)

    def json(self) -> str:
        """Strict JSON."""
        content = {
            "search": self.search,
            "task": self.task,
            "task_digest": self.digest,
            "passed": self.passed,
            "no_data": self.no_data,
            "configuration": dict(self.configuration),
            "notes": list(self.notes),
            "checks": [finding.plain() for finding in self.findings],
            "seconds": round(self.seconds, 3),
        }
        return json.dumps(content, indent=2, allow_nan=False)

    def table(self) -> Table:
        """For people: what did not pass says what it usually means."""
        table = Table(title=f"checks of search {self.search!r}, task {self.task!r}", title_justify="left", pad_edge=False)
        for name in ("check", "", "found"):
            table.add_column(name, overflow="fold")
        for finding in self.findings:
            named = finding.check if finding.configuration == CENTRE else f"{finding.check}\n  {finding.configuration}"
            text = Text(finding.found)
            if finding.means and finding.status is not Status.PASSED:
                text.append(f"\n{finding.means}", style="italic")
            table.add_row(Text(named), Text(str(finding.status), style=STYLES[finding.status]), text)
        return table

    def summary(self) -> str:
        """The last line."""
        counts = [f"{self.count(status)} {word}" for status, word in WORDS.items() if self.count(status)]
        return f"{', '.join(counts)}, in {self.seconds:.1f} s"


WORDS = {Status.PASSED: "passed", Status.WARNING: "with a warning", Status.FAILED: "failed", Status.LEFT_OUT: "left out"}


def _finite(value: Figure) -> Figure:
    return None if isinstance(value, float) and not math.isfinite(value) else value

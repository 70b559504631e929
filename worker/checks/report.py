"""Results of the checks: findings, a table for people, strict JSON for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rich.table import Table
from rich.text import Text

from common.search.values import Value

CENTRE = "centre"  # the configuration that most checks use
Figure = float | int | str | None


class Status(StrEnum):
    """The result of a check."""

    PASSED = "passed"
    WARNING = "warning"
    FAILED = "failed"
    LEFT_OUT = "left out"


STYLES = {
    Status.PASSED: "green",
    Status.WARNING: "yellow",
    Status.FAILED: "bold red",
    Status.LEFT_OUT: "dim",
}


@dataclass(frozen=True)
class Finding:
    """The result of one check in one configuration."""

    check: str
    status: Status
    found: str  # the result in words, with the figures
    means: str = ""  # the usual cause, if the check did not pass
    figures: Mapping[str, Figure] = field(default_factory=dict)
    configuration: str = CENTRE  # or the difference from it, such as ``activation = "tanh"``

    def plain(self) -> dict[str, Any]:
        """Return the finding as values for strict JSON. Figures that are not finite become None."""
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
    digest: str | None  # of the task's code; None if it could not be read
    configuration: Mapping[str, Value]  # the centre of the space
    notes: Sequence[str]  # which parts of the space and of the data were checked
    findings: Sequence[Finding]
    seconds: float
    # Why a built-in data set is missing; the search itself may be right.
    no_data: str | None = None

    @property
    def passed(self) -> bool:
        """Whether no check failed. Warnings are allowed."""
        return not any(finding.status is Status.FAILED for finding in self.findings)

    def count(self, status: Status) -> int:
        """Return how many findings have that status."""
        return sum(finding.status is status for finding in self.findings)

    def json(self) -> str:
        """Return the report as strict JSON."""
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
        """Return the report as a table. Findings that did not pass state the usual cause."""
        table = Table(
            title=f"checks of search {self.search!r}, task {self.task!r}",
            title_justify="left",
            pad_edge=False,
        )
        for name in ("check", "", "found"):
            table.add_column(name, overflow="fold")
        for finding in self.findings:
            named = (
                finding.check
                if finding.configuration == CENTRE
                else f"{finding.check}\n  {finding.configuration}"
            )
            text = Text(finding.found)
            if finding.means and finding.status is not Status.PASSED:
                text.append(f"\n{finding.means}", style="italic")
            table.add_row(
                Text(named), Text(str(finding.status), style=STYLES[finding.status]), text
            )
        return table

    def summary(self) -> str:
        """Return the last line of the report."""
        counts = [
            f"{self.count(status)} {word}" for status, word in WORDS.items() if self.count(status)
        ]
        return f"{', '.join(counts)}, in {self.seconds:.1f} s"


WORDS = {
    Status.PASSED: "passed",
    Status.WARNING: "with a warning",
    Status.FAILED: "failed",
    Status.LEFT_OUT: "left out",
}


def _finite(value: Figure) -> Figure:
    return None if isinstance(value, float) and not math.isfinite(value) else value

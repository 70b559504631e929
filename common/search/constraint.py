"""Constraints on the metrics of a trial, such as ``latency_ms < 20``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.errors import ConfigError
from common.search.condition import ORDERS, Condition, Name
from common.search.trial import VIOLATES

HOW = "compare a metric with a number, as in latency_ms < 20"


@dataclass(frozen=True)
class Constraint:
    """A comparison that the metrics of a trial, at its best epoch, have to satisfy."""

    condition: Condition

    @classmethod
    def parse(cls, raw: object, place: str = "subject_to") -> Constraint:
        """Parse one constraint.

        Raises:
            ConfigError: with the place, the value and the remedy.
        """
        condition = Condition.parse(raw, place, HOW)
        for one in condition.comparisons():
            numbers = [side for side in (one.left, one.right) if not isinstance(side, Name)]
            if one.sign not in ORDERS or any(
                isinstance(side, bool) or not isinstance(side, int | float) for side in numbers
            ):
                raise ConfigError(f"{place} = {raw!r}: use <, <=, > or >=; {HOW}")
        return cls(condition)

    @property
    def metrics(self) -> list[str]:
        """The metrics that it names."""
        return self.condition.names

    def find_violation(self, metrics: Mapping[str, float | None]) -> str | None:
        """Return the reason of a trial that violates it; None if the trial satisfies it.

        A metric that was not measured satisfies nothing.
        """
        known = {name: value for name, value in metrics.items() if value is not None}
        if self.condition.holds(known):
            return None
        found = ", ".join(
            f"{name} = {known[name]:.6g}" if name in known else f"{name} was not reported"
            for name in self.metrics
        )
        return f"{VIOLATES}{self.condition.text} ({found})"


def find_violation(
    constraints: Iterable[Constraint], metrics: Mapping[str, float | None]
) -> str | None:
    """Return the reasons of a trial that violates any constraint; None if it satisfies all."""
    found = [why for one in constraints if (why := one.find_violation(metrics)) is not None]
    return "; ".join(found) or None

"""The lineage of a trial: its budget, its rungs, the rule that drew it, and its parents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.folder.record import Record
from common.search.trial import DRAWN, TrialState

ENDED_WELL = (TrialState.COMPLETED, TrialState.STOPPED)
TIMES = {0: "", 1: "once", 2: "twice"}
MOST_ANCESTORS = 12  # trials of a line of descent that a page shows
GRANDPARENTS = 2  # generations of ancestors that are followed


@dataclass(frozen=True)
class Ancestor:
    """A trial in a line of descent.

    ``generation`` is 0 for the trial itself and 1 for its parents.
    """

    record: Record
    generation: int


def times(n: int) -> str:
    """Return ``once``, ``twice``, ``3 times``, or an empty string for 0."""
    return TIMES.get(n, f"{n} times")


def longest_of(budget_epochs: float, max_epochs: float) -> float:
    """Return the longest budget that a trial may get.

    The budget of a trial in a stage without rungs is its only one.
    """
    return max(budget_epochs, max_epochs)


def budget_words(budget_epochs: float, max_epochs: float, rung: int) -> str:
    """Return the budget of a trial and its promotions, as ``7 of 20 epochs, promoted twice``."""
    longest = longest_of(budget_epochs, max_epochs)
    unit = "epoch" if longest == 1 else "epochs"
    share = (
        f"{budget_epochs:g} of {longest:g} {unit}"
        if longest > budget_epochs
        else f"{budget_epochs:g} {unit}"
    )
    return f"{share}, promoted {times(rung)}" if rung else share


def way_of(drawn: str, parents: Sequence[str] = ()) -> str:
    """Return how a configuration was drawn, in words.

    Both parents of a child may be the same trial.
    """
    if drawn == "child" and len(parents) == 1:
        return "bred from one of the best trials"
    return DRAWN.get(drawn, drawn)


def describe_draw(drawn: str, parents: Sequence[str] = ()) -> str:
    """Return how a configuration was drawn, with its parents.

    For example: ``bred from two of the best trials: a, b``.
    """
    words = way_of(drawn, parents)
    return f"{words}: {', '.join(parents)}" if words and parents else words


def rung_values(record: Record) -> list[tuple[float, float | None]]:
    """Return (epochs, best value of the search's metric so far) at each rung that a trial reached.

    A trial that exploded, failed or was killed did not reach the last budget in its record.
    """
    last = (record.budget_epochs,) if record.state in ENDED_WELL else ()
    return [(epochs, record.value_at(epochs)) for epochs in (*record.passed, *last)]


def at_rungs(record: Record) -> dict[str, list[float | None]]:
    """Return curves that contain only the metric at each rung.

    They are a few numbers, enough for ``Record.value_at``.
    """
    known = [(epochs, value) for epochs, value in rung_values(record) if value is not None]
    if not known:
        return {}
    return {"epoch": [epochs for epochs, _ in known], record.metric: [value for _, value in known]}


def line_of_descent(trial: Record, known: Mapping[str, Record]) -> list[Ancestor]:
    """Return a trial, its parents and their parents, each trial once, nearest first.

    Args:
        trial: the trial whose line is returned.
        known: the last record of each trial of the search, by name; parents without a record are
            left out.
    """
    line = [Ancestor(trial, 0)]
    seen = {trial.trial}
    generation = [trial]
    for number in range(1, GRANDPARENTS + 1):
        names = dict.fromkeys(
            name for record in generation for name in record.parents if name not in seen
        )
        generation = [known[name] for name in names if name in known]
        seen |= names.keys()
        line += [Ancestor(record, number) for record in generation]
    return line[:MOST_ANCESTORS]


def children_of(trial: str, records: Iterable[Record]) -> list[Record]:
    """Return the trials whose configurations came from ``trial``, in the order of ``records``."""
    return [record for record in records if trial in record.parents]

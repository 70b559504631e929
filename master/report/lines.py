"""The lines that summaries and reports of a stage are made of."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from common.diagnosis import SUGGESTIONS, DiagnosisWord
from common.folder.record import Record, format_metric
from common.search.search_file import Search
from common.search.space import Space
from common.search.stage import Stage
from common.shell_command import shell_command
from master.results import ranking
from master.strategy.borders import Border
from master.strategy.guessing import Guessing

TOP = 10  # trials in the table; `master rank` shows the others
WIDTH = 80  # characters after which a command is broken
REASON_WIDTH = 400  # characters of a reason, enough for the remedy at its end
INDENT = 4  # spaces before a continuation line
WHOLE_RANGES = (
    "Nothing is narrowed by noise: a next stage that searches draws from its whole ranges."
)


UNREPORTED = re.compile(r"(\w+) was not reported")  # in the reason of a trial that violates


@dataclass(frozen=True)
class Ended:
    """A stage that has ended: its records, and those of all stages that search."""

    search: Search
    stage: Stage
    records: Sequence[Record]
    whole: Sequence[Record]
    borders: Sequence[Border]
    ranges: Space
    checkpoints: frozenset[str] = frozenset()  # names of the weight files that are kept
    distilled: Text | None = None  # what a distillation stage has gained
    guessing: Guessing | None = None  # why the best trial says nothing, if so


def counts(records: Sequence[Record]) -> Text:
    """Return the counts, as ``200 trials ended: 141 completed, 59 exploded``.

    If trials failed or were killed, the most common reason is added.
    """
    by_state = Counter(record.state for record in records)
    listed = ", ".join(
        f"{by_state[state]} {state.value}" for state in ranking.STATE_ORDER if by_state[state]
    )
    text = Text(
        f"{len(records)} {'trial' if len(records) == 1 else 'trials'} ended: {listed or 'none'}"
    )
    for state in ("failed", "killed"):
        reasons = Counter(
            ranking.one_line(r.reason, REASON_WIDTH)
            for r in records
            if r.state == state and r.reason
        )
        for reason, n in reasons.most_common(1):
            text.append(f"\n{n} {state}: {reason}", style="yellow")
    if violating := [record for record in records if record.violates]:
        told = ranking.one_line(violating[0].reason or "", REASON_WIDTH)
        n = len(violating)
        text.append(
            f"\n{n} {'violates' if n == 1 else 'violate'} a constraint and "
            f"{'ranks' if n == 1 else 'rank'} after all others that completed; the first {told}",
            style="yellow",
        )
        missing = sorted(
            {name for r in violating for name in UNREPORTED.findall(r.reason or "")}
            - {name for r in records for name in r.metrics}
        )
        if missing:
            text.append(
                f"\nNo trial reported {', '.join(missing)}: report it as a metric, or correct "
                "subject_to and begin again",
                style="yellow",
            )
    failed = next((r for r in records if r.state == "failed"), None)
    if failed is not None:
        command = shell_command("master retry --state failed")
        record = f"{failed.stage}/trials/{failed.trial}-try={failed.attempt}.json"
        text.append(f"\n{record} has the traceback; once fixed: {command}")
    return text


def best_line(records: Sequence[Record]) -> Text:
    """Return a line with the best trial and the number of trials that it was selected from.

    The best of many on one validation part is flattered.
    """
    completed = ranking.best(records)
    if not completed:
        satisfied = " and satisfies all constraints" if any(r.violates for r in records) else ""
        return Text(f"No trial completed{satisfied}, so there is no best one.")
    top = completed[0]
    n = len(completed)
    flattered = (
        f", selected over {n} trials: the best of many on one validation part is flattered"
        if n > 1
        else ""
    )
    spread = ranking.find_spread(records, top)
    mean = ""
    if spread is not None and spread.deviation is not None:
        told = f"{format_metric(spread.mean)} ± {format_metric(spread.deviation, spread.mean)}"
        mean = f" ({told} over {spread.n} seeds)"
    return Text(f"Best: {top.trial}, {top.metric} {format_metric(top.measured)}{mean}{flattered}.")


def spread_line(records: Sequence[Record]) -> Text:
    """Return a line that says how much the initial weights alone change the metric.

    All trials have the same configuration and differ in their initial weights.
    """
    values = [value for record in ranking.best(records) if (value := record.measured) is not None]
    if len(values) < 2:
        return Text("One seed does not measure luck; run more.")
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    found = (
        f"{records[0].metric} {format_metric(mean)} on average, standard deviation "
        f"{format_metric(deviation, mean)}"
    )
    return Text(f"{len(values)} seeds of one configuration: {found}.")


def diagnosis_line(records: Sequence[Record]) -> Text | None:
    """Return the most common diagnosis and its advice; None if no trial has a diagnosis."""
    words = Counter(record.diagnosis.word for record in records if record.diagnosis)
    if not words:
        return None
    word, n = words.most_common(1)[0]
    advice = SUGGESTIONS.get(DiagnosisWord(word)) if word in set(DiagnosisWord) else None
    return Text(
        f"Most common diagnosis: {word} ({n} of {words.total()}){f': {advice}' if advice else ''}."
    )


def guessing_line(found: Guessing) -> Text:
    """Return the warning that nothing was learned.

    The ranges have their own lines, so that they can be copied.
    """
    lines = found.advice.lines
    return Text(
        "\n".join([f"{found.words}; try", *lines]) if lines else f"{found.words}.", style="yellow"
    )


def border_lines(borders: Sequence[Border]) -> Text:
    """Return one warning per border, or a sentence that there is none."""
    if not borders:
        return Text("No best value sits on the border of its range.")
    return Text("\n").join(Text(border.text, style="yellow") for border in borders)

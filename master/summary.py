"""What `launch` says when a stage has ended: counts, ranking, borders, the next stage's ranges, and the command that runs it."""

from __future__ import annotations

import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from common.diagnosis import SUGGESTIONS, DiagnosisWord
from common.record import Record
from common.search import Stage
from common.space import Choice, Fixed, Parameter, Space
from master import ranking
from master.borders import Border
from master.scales import shown
from master.stages import Proposal

TOP = 10  # trials in the table; `master rank` has the rest
WIDTH = 80  # characters of a line that we break ourselves
REASON_WIDTH = 400  # characters of a reason: with the remedy, which stands last
INDENT = 4  # characters before a line that goes on


def stage_end(
    records: Sequence[Record],
    borders: Sequence[Border],
    ranges: Space,
    proposal: Proposal | None = None,
    command: str | None = None,
    width: int = WIDTH,
    seeds: bool = False,
    note: Text | None = None,
) -> Group:
    """The whole of it, top to bottom.

    Args:
        records: of the ended stage.
        borders: of the same records.
        ranges: what the stage sampled.
        proposal: for the next stage, None after the last.
        command: runs the next stage, None after the last.
        width: characters of the terminal.
        seeds: whether it repeated one configuration, so that there are no borders.
        note: what else to say of the next stage.
    """
    parts: list[RenderableType] = [counts(records)]
    if ranking.best(records, 1):
        parts += ["", ranking.table(ranking.frame(records), TOP, width), "", best_line(records)]
        parts.append(spread_line(records) if seeds else border_lines(borders))
    told = diagnosis_line(records)
    parts += [told] if told is not None else []
    if proposal is not None:
        parts += ["", next_ranges(ranges, proposal)]
    if note is not None:
        parts += ["", note]
    if command is not None:
        parts += ["", Text("Next: ", style="bold") + Text(command)]
    return Group(*parts)


def counts(records: Sequence[Record]) -> Text:
    """``200 trials ended: 141 completed, 59 exploded``, with the commonest reason where something failed."""
    by_state = Counter(record.state for record in records)
    listed = ", ".join(f"{by_state[state]} {state.value}" for state in ranking.STATE_ORDER if by_state[state])
    text = Text(f"{len(records)} {'trial' if len(records) == 1 else 'trials'} ended: {listed or 'none'}")
    for state in ("failed", "killed"):
        reasons = Counter(ranking.one_line(r.reason, REASON_WIDTH) for r in records if r.state == state and r.reason)
        for reason, n in reasons.most_common(1):
            text.append(f"\n{n} {state}: {reason}", style="yellow")
    failed = next((r for r in records if r.state == "failed"), None)
    if failed is not None:
        record = f"{failed.stage}/trials/{failed.trial}-try={failed.attempt}.json"
        text.append(f"\n{record} has the traceback; once mended: master retry --state failed")
    return text


def best_line(records: Sequence[Record]) -> Text:
    """The best trial, and over how many it was selected: the best of many on one validation part is flattered."""
    completed = ranking.best(records)
    if not completed:
        return Text("No trial completed, so there is no best one.")
    top = completed[0]
    n = len(completed)
    flattered = f", selected over {n} trials: the best of many on one validation part is flattered" if n > 1 else ""
    return Text(f"Best: {top.trial}, {top.metric} {ranking.shown_metric(top.measured)}{flattered}.")


def spread_line(records: Sequence[Record]) -> Text:
    """How much initial weights alone make of a difference: the same configuration, trained from several of them."""
    values = [value for record in ranking.best(records) if (value := record.measured) is not None]
    if len(values) < 2:
        return Text("One seed says nothing about luck; more trials do.")
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return Text(f"{len(values)} seeds of one configuration: {records[0].metric} {mean:.4f} on average, standard deviation {deviation:.4f}.")


def again_line(following: Stage, top: Record) -> Text:
    """What a stage of seeds is going to do."""
    return Text(f"Stage {following.name} trains {top.trial} again, {following.trials} times from other initial weights.")


def diagnosis_line(records: Sequence[Record]) -> Text | None:
    """The commonest diagnosis and what it suggests for the search; None where no trial has one."""
    words = Counter(record.diagnosis.word for record in records if record.diagnosis)
    if not words:
        return None
    word, n = words.most_common(1)[0]
    advice = SUGGESTIONS.get(DiagnosisWord(word)) if word in set(DiagnosisWord) else None
    return Text(f"Most common diagnosis: {word} ({n} of {words.total()}){f': {advice}' if advice else ''}.")


def border_lines(borders: Sequence[Border]) -> Text:
    """One warning a border; says so where there is none."""
    if not borders:
        return Text("No best value sits on the border of its range.")
    return Text("\n").join(Text(border.text, style="yellow") for border in borders)


def next_ranges(ranges: Space, proposal: Proposal) -> RenderableType:
    """Old range -> new range for each sampled hyperparameter, and why below it."""
    parts: list[RenderableType] = [Text("Ranges of the next stage", style="bold")]
    for name, parameter in proposal.space.sampled.items():
        parts.append(Text(f"{name}  {change(ranges.parameters[name], parameter)}"))
        parts.append(Padding(Text(proposal.notes[name], style="dim"), (0, 0, 0, INDENT), expand=False))
    return Group(*parts)


def change(old: Parameter, new: Parameter) -> str:
    """``log_uniform [1e-06, 10] -> [0.001, 1]``, or the one range where nothing changes."""
    before, after = _described(old), _described(new)
    return f"{new.kind} {before}" if before == after else f"{new.kind} {before} -> {after}"


def next_command(stage: str, options: Mapping[str, str | None]) -> str:
    """The command that runs ``stage``, broken as a shell takes it where it would pass a line.

    Args:
        stage: the next stage.
        options: such as {"--config": "my search.toml"}; None leaves one out.
    """
    parts = ["master launch", f"--stage {shlex.quote(stage)}"]
    parts += [f"{name} {shlex.quote(value)}" for name, value in options.items() if value is not None]
    if len(" ".join(parts)) + len("Next: ") <= WIDTH:
        return " ".join(parts)
    return f"{parts[0]} {parts[1]}" + "".join(f" \\\n{' ' * INDENT}{part}" for part in parts[2:])


def _described(parameter: Parameter) -> str:
    if isinstance(parameter, Choice):
        return f"[{', '.join(str(option) for option in parameter.options)}]"
    if isinstance(parameter, Fixed):
        return str(parameter.value)
    return shown(parameter.low, parameter.high)

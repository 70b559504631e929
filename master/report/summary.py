"""What `launch` prints when a stage has ended.

It shows the counts, the ranking, the borders, the ranges of the next stage, and the command that
runs it.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from common.search.parameters import Choice, Fixed, Parameter
from common.search.space import Space
from common.search.values import flat
from common.shell_command import find_program, join_options
from master.report.kinds import REPORTS
from master.report.lines import (
    Ended,
    best_line,
    border_lines,
    counts,
    diagnosis_line,
    guessing_line,
)
from master.results import ranking
from master.strategy.borders import Border
from master.strategy.box import Proposal
from master.strategy.scales import words_of

TOP = 10  # trials in the table; `master rank` shows the others
WIDTH = 80  # characters after which a command is broken
REASON_WIDTH = 400  # characters of a reason, enough for the remedy at its end
INDENT = 4  # spaces before a continuation line
WHOLE_RANGES = (
    "Noise does not narrow the ranges: a next stage that searches draws from its whole ranges."
)


def stage_end(
    ended: Ended,
    proposal: Proposal | None = None,
    command: str | None = None,
    width: int = WIDTH,
    note: Text | None = None,
    anew: str | None = None,
) -> Group:
    """Return the whole summary, top to bottom.

    Args:
        ended: the stage.
        proposal: the ranges for the next stage; None after the last stage.
        command: the command that runs the next stage; None after the last stage.
        width: characters of the terminal.
        note: further text about the next stage.
        anew: the command that begins again with other ranges, if nothing was learned.
    """
    records = ended.records
    parts: list[RenderableType] = [counts(records)]
    parts += REPORTS[ended.stage.kind].describe_end(ended, width)
    if ended.distilled is not None:
        parts += ["", ended.distilled]
    told = diagnosis_line(records) if ended.guessing is None else guessing_line(ended.guessing)
    parts += [told] if told is not None else []
    if proposal is not None:
        parts += ["", next_ranges(ended.ranges, proposal)]
    if note is not None:
        parts += ["", note]
    if anew is not None:
        parts += ["", Text("With another range: ", style="bold") + Text(anew)]
    if command is not None:
        parts += ["", Text("Next: ", style="bold") + Text(command)]
    return Group(*parts)


def stage_between(ended: Ended, proposal: Proposal | None, told: Collection[object] = ()) -> Group:
    """Return the summary of a stage after which the next one starts by itself.

    It shows the outcome, the best trial so far, and the borders.

    Args:
        ended: the stage.
        proposal: the ranges for the next stage.
        told: the keys of the borders that were told after earlier stages. They are only named.
    """
    parts: list[RenderableType] = [counts(ended.records)]
    if ranking.best(ended.whole, 1):
        parts.append(best_line(ended.whole))
        if ended.guessing is None:
            parts += _border_news(ended.borders, told)
    if ended.guessing is not None:
        parts += [guessing_line(ended.guessing), Text(WHOLE_RANGES)]
    if proposal is not None and (moved := describe_moved_ranges(ended.ranges, proposal)):
        parts.append(moved)
    return Group(*parts, "")


def _border_news(borders: Sequence[Border], told: Collection[object]) -> list[Text]:
    news = [border for border in borders if border.key not in told]
    again = [f"{own.hyperparameter} ({own.side})" for own in borders if own.key in told]
    parts = [border_lines(news)] if news else []
    return parts + ([Text(f"Still on the border: {', '.join(again)}.")] if again else [])


def next_ranges(ranges: Space, proposal: Proposal) -> RenderableType:
    """Return the old and the new range of each sampled hyperparameter, with the reason below."""
    parts: list[RenderableType] = [Text("Ranges of the next stage", style="bold")]
    for name, parameter in proposal.space.sampled.items():
        parts.append(Text(f"{name}  {change(ranges.parameters[name], parameter)}"))
        parts.append(
            Padding(Text(proposal.notes[name], style="dim"), (0, 0, 0, INDENT), expand=False)
        )
    return Group(*parts)


def describe_moved_ranges(ranges: Space, proposal: Proposal) -> Text | None:
    """Return the ranges of the next stage that differ, one per line; None if none differs."""
    lines = [
        f"{name}  {change(ranges.parameters[name], parameter)}: {proposal.notes[name]}"
        for name, parameter in proposal.space.sampled.items()
        if parameter != ranges.parameters[name]
    ]
    return Text("\n".join(lines)) if lines else None


def change(old: Parameter, new: Parameter) -> str:
    """Return ``log_uniform [1e-06, 10] -> [0.001, 1]``, or one range if nothing changes."""
    before, after = _describe(old), _describe(new)
    return f"{new.kind} {before}" if before == after else f"{new.kind} {before} -> {after}"


def next_command(stage: str, options: Mapping[str, str | Sequence[str] | None], *flags: str) -> str:
    """Return the command that runs ``stage``.

    If it is longer than a line, it is broken in the way that a shell accepts.

    Args:
        stage: the next stage.
        options: such as {"--config": "my search.toml"}; an option with the value None is left out,
            and one with several values is repeated.
        flags: options without a value.
    """
    program = shlex.join([*find_program("master"), "launch"])
    parts = [program, *join_options({"--stage": stage, **options}), *flags]
    if len(" ".join(parts)) + len("Next: ") <= WIDTH:
        return " ".join(parts)
    return f"{parts[0]} {parts[1]}" + "".join(f" \\\n{' ' * INDENT}{part}" for part in parts[2:])


def _describe(parameter: Parameter) -> str:
    if isinstance(parameter, Choice):
        return f"[{', '.join(str(flat(option)) for option in parameter.options)}]"
    if isinstance(parameter, Fixed):
        return str(flat(parameter.value))
    return words_of(parameter)

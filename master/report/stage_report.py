"""``report.html`` of a stage: the findings in words, the ranking and the figures.

The pages of a search share plotly.js, which lies in the search's folder, and so does a page that
leads to them. None of them needs a network. A report may also be a single file.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from common.folder import durable
from common.folder.chosen import Chosen
from common.folder.record import Record, format_metric
from common.folder.records import REPORT, SearchFolder
from common.search.search_file import Search
from common.search.space import Space
from common.search.stage import Stage
from master.figures.catalogue import NARROW_COLUMNS, Material, draw
from master.figures.names import FIGURES
from master.report.contents import find_ways, share_library, write_contents
from master.report.figure_data import Following, Known, gather, read_following, read_known
from master.report.kinds import REPORTS
from master.report.lines import (
    best_line,
    border_lines,
    counts,
    diagnosis_line,
    guessing_line,
)
from master.report.page import Drawn, cells, page, place
from master.report.reading import read_stage
from master.report.summary import change, next_command
from master.results import ranking
from master.results.lineage import (
    Ancestor,
    budget_words,
    describe_draw,
    line_of_descent,
    rung_values,
    times,
)
from master.results.usage import Times, Usage, use_of_time
from master.strategy.borders import borders
from master.strategy.guessing import guessing_so_far

TOP = 20  # trials in the table of the report; `master rank` shows all
MOST_WORKERS = 20  # in the table of the workers' time
MOST_COUNTED = 2000  # most attempts whose times are counted; the cost is quadratic in their number
GENERATIONS = ("the best", "parent", "grandparent")
# Figures of several panels, which are stacked on a phone.
WITH_COLUMNS = ("hyperparameters", "histograms", "progress")


def report(
    chosen: Chosen,
    stage: str | None,
    warn: Callable[[str], None],
    out: Path | None = None,
    also: Collection[str] = (),
) -> str:
    """Write the report of a stage from the folder alone, and return a line that says where.

    Args:
        chosen: the search.
        stage: the name of the stage; None takes the last one that was launched.
        warn: called with a message about each damaged record.
        out: a file for the whole report. Without it, it goes into the stage's folder and shares
            its script with the other reports.
        also: stages whose reports are about to be written; this one leads to them.

    Raises:
        ConfigError: no such stage, or it has not been launched.
        CheckpointError: no trial has ended, or the folder or file cannot be used.
    """
    folder, records = read_stage(chosen, stage, warn)
    search, own = chosen.search, chosen.search.stage(folder.path.name)
    return f"wrote {write_report(search, chosen.folder, own, records, warn, out, also)}"


def write_report(
    search: Search,
    folder: SearchFolder,
    stage: Stage,
    records: Sequence[Record],
    warn: Callable[[str], None],
    out: Path | None = None,
    also: Collection[str] = (),
) -> Path:
    """Write the report of a stage and return its path.

    Args:
        search: as launched.
        folder: the folder of the search.
        stage: a stage that has been launched.
        records: the latest record of each trial of the stage.
        warn: called with a message about each damaged record.
        out: as for ``report``.
        also: as for ``report``.

    Raises:
        CheckpointError: the folder cannot be read or written.
    """
    following = read_following(search, folder, stage, records)
    known = read_known(search, folder, stage, records, warn)
    material = gather(search, folder, stage, known, following)
    if out is not None:
        whole = report_page(search, stage, known, material, following)
        durable.replace(durable.make_folder(out.absolute().parent) / out.name, whole.encode())
        return out
    library = f"../{share_library(folder)}"
    ways = find_ways(search, folder, stage, also)
    path = folder.stage(stage.name).path / REPORT
    own = report_page(search, stage, known, material, following, library, ways)
    durable.replace(path, own.encode())
    write_contents(search, folder)
    return path


def report_page(
    search: Search,
    stage: Stage,
    known: Known,
    material: Material,
    following: Following | None,
    library: str | None = None,
    ways: str = "",
) -> str:
    """Return the report page as HTML.

    Args:
        search: as launched.
        stage: the stage.
        known: its records and those of the stages before.
        material: what the figures show.
        following: the ranges of the next stage.
        library: where plotly.js is, relative to the page; None for a page that contains it.
        ways: HTML that leads to the other pages of the search.
    """
    figures = [_draw(name, material) for name in FIGURES]
    title = f"{search.name}: stage {stage.name}"
    ranked = _find_compared(search, stage, known)
    top = ranking.best(ranked, 1)
    sections = [
        ways,
        f"<h1>{html.escape(title)}</h1>",
        describe_findings(search, stage, known, material.ranges[stage.name], following),
        _descent(top, known),
        _ranking(ranked),
        _use_of_time(known.attempts),
        "<h2>Figures</h2>",
        *(place(figure) for figure in figures),
    ]
    return page(title, "\n".join(sections), figures, library)


def describe_findings(
    search: Search, stage: Stage, known: Known, ranges: Space, following: Following | None
) -> str:
    """Return the main findings as HTML.

    These are the counts, the best trial, the borders, the diagnosis, and the ranges of the next
    stage.
    """
    records, ranked = known.records, _find_compared(search, stage, known)
    top, nothing = ranking.best(ranked, 1), guessing_so_far(search, known.whole)
    parts = [_paragraphs(counts(records).plain), _paragraphs(best_line(ranked).plain)]
    if top:
        parts.append(_configuration(top[0]))
    searched = [record for record in known.whole if search.stage(record.stage).searches]
    parts += [
        _paragraphs(text) for text in REPORTS[stage.kind].describe_findings(records, searched)
    ]
    if top and stage.searches and nothing is None:
        found = borders(ranked, ranges)
        parts.append(_paragraphs(border_lines(found).plain, "warning" if found else ""))
    told = diagnosis_line(records) if nothing is None else guessing_line(nothing)
    parts += (
        [_paragraphs(told.plain, "warning" if nothing is not None else "")]
        if told is not None
        else []
    )
    if following is not None:
        parts.append(_next_ranges(search, ranges, following))
    return "<h2>What was found</h2>\n" + "\n".join(parts)


def _find_compared(search: Search, stage: Stage, known: Known) -> list[Record]:
    """Return the trials that are compared.

    For a stage that searches, these are all trials so far of such stages. For another kind of
    stage, they are its own trials.
    """
    if not stage.searches:
        return list(known.records)
    return [record for record in known.whole if search.stage(record.stage).searches]


def _descent(top: Sequence[Record], known: Known) -> str:
    """Return the best trial with its parents and grandparents, as HTML.

    A row shows how a trial was drawn and its metric at each budget. The text is empty if no trial
    completed.
    """
    if not top:
        return ""
    line = line_of_descent(top[0], {record.trial: record for record in known.whole})
    budgets = sorted({epochs for own in line for epochs, _ in rung_values(own.record)})
    rows = "".join(cells(_ancestor(own, budgets)) for own in line)
    header = cells(
        ["trial", "generation", "how it was drawn", *(_at(epochs) for epochs in budgets)], "th"
    )
    return (
        f"<h2>Line of descent of {html.escape(top[0].trial)}</h2>"
        f'<div class="table"><table>{header}{rows}</table></div>'
        f'<p class="small">The best {html.escape(top[0].metric)} within each budget that a trial '
        "reached. A promoted trial goes on from "
        "where it was, under the same name.</p>"
    )


def _ancestor(own: Ancestor, budgets: Sequence[float]) -> list[object]:
    record, values = own.record, dict(rung_values(own.record))
    shown = ["" if epochs not in values else format_metric(values[epochs]) for epochs in budgets]
    return [
        record.trial,
        GENERATIONS[own.generation],
        describe_draw(record.drawn, record.parents),
        *shown,
    ]


def _at(epochs: float) -> str:
    return f"{epochs:g} {'epoch' if epochs == 1 else 'epochs'}"


def _draw(name: str, material: Material) -> Drawn:
    return Drawn(
        name,
        draw(name, material),
        draw(name, material, columns=NARROW_COLUMNS) if name in WITH_COLUMNS else None,
    )


def _configuration(best: Record) -> str:
    """Return the best trial's hyperparameters and the file of its weights, as HTML."""
    rows = "".join(
        cells([name, ranking.cell(value)]) for name, value in best.hyperparameters.items()
    )
    kept = (
        f'<p class="small">Weights: <code>{html.escape(best.checkpoint)}</code></p>'
        if best.checkpoint
        else ""
    )
    trained = budget_words(best.budget_epochs, best.max_epochs, best.rung)
    drawn = describe_draw(best.drawn, best.parents)
    said = _paragraphs(
        f"It trained {trained}. Its configuration: {drawn}." if drawn else f"It trained {trained}."
    )
    said += _paragraphs(f"{best.trial}: {best.diagnosis.sentence}") if best.diagnosis else ""
    return (
        f'{said}<div class="table"><table>'
        f"{cells(['hyperparameter', 'best'], 'th')}{rows}</table></div>{kept}"
    )


def _next_ranges(search: Search, ranges: Space, following: Following) -> str:
    """Return the old range, the new range and the reason for each hyperparameter, as HTML."""
    edited = (
        ""
        if following.notes
        else '<p class="small">The proposal in ranges.toml was edited by hand.</p>'
    )
    rows = "".join(
        cells([name, change(ranges.parameters[name], parameter), following.notes.get(name, "")])
        for name, parameter in following.space.sampled.items()
    )
    command = next_command(following.stage.name, {"--search": search.name})
    return (
        f"<h2>Ranges of the next stage, {html.escape(following.stage.name)}</h2>{edited}"
        f'<div class="table words"><table>'
        f"{cells(['hyperparameter', 'range', 'why'], 'th')}{rows}</table></div>"
        f"<p>It runs with:</p><pre>{html.escape(command)}</pre>"
    )


def _use_of_time(attempts: Sequence[Record]) -> str:
    """Return what the workers have done so far, as HTML.

    The text is empty if no record trained, or if there are too many records.
    """
    try:
        usage = use_of_time(attempts if len(attempts) <= MOST_COUNTED else ())
    except ValueError:
        return ""
    names = [field.name for field in fields(Times)]
    shown = [*list(usage.workers.items())[:MOST_WORKERS], ("all", usage.all)]
    rows = "".join(
        cells([name, *(f"{getattr(times, one):.1f} s" for one in names)]) for name, times in shown
    )
    waited = usage.all.waited / (usage.all.total or 1)
    return (
        f"<h2>Time of the workers</h2>{_paragraphs(_time_in_words(usage, waited))}"
        f'<div class="table"><table>{cells(["worker", *names], "th")}{rows}</table></div>'
    )


def _time_in_words(usage: Usage, waited: float) -> str:
    told = (
        f"The workers trained for {usage.trained_share:.0%} of the {usage.seconds:.1f} s from the "
        "first claim to the last record"
    )
    return (
        f"{told}, and had nothing to claim for {waited:.0%}. Pauses between two launches count as "
        "left or waited."
    )


def _ranking(records: Sequence[Record]) -> str:
    rows = ranking.rows(ranking.frame(records).head(TOP), ())
    names = ranking.find_varied([record.hyperparameters for record in records])
    metric = ranking.metric_of(records)[0]
    lines = [
        cells([*_outcome(row), *(ranking.cell(row["hyperparameters"].get(name)) for name in names)])
        for row in rows
    ]
    more = (
        f'<p class="small">The best {len(rows)} of {len(records):,}; <code>master rank</code> has '
        "all.</p>"
    )
    header = cells(
        ["#", "trial", metric, "state", "epochs", "promoted", "drawn", "diagnosis", *names], "th"
    )
    return (
        '<h2>Ranking</h2><p class="small">By the budget, longest first, then by the metric.</p>'
        f'<div class="table"><table>{header}{"".join(lines)}</table></div>'
        f"{more if len(records) > len(rows) else ''}"
    )


def _outcome(row: Mapping[str, Any]) -> list[object]:
    epochs, value = ranking.cell(row["epochs"]), format_metric(row["value"])
    return [
        row["rank"],
        row["trial"],
        value,
        row["state"],
        epochs,
        times(row["rung"]),
        row["drawn"],
        ranking.word_of(row),
    ]


def _paragraphs(text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return "".join(f"<p{attribute}>{html.escape(line)}</p>" for line in text.splitlines())

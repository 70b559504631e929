"""``report.html`` of a stage: what was found in words, then the ranking and the figures, in one file that needs no network."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import durable
from common.record import Record
from common.records import SearchFolder
from common.search import Search, Stage
from common.select import Chosen
from common.space import Space
from master import ranking
from master.borders import borders
from master.figures.catalogue import NARROW_COLUMNS, Material, draw
from master.figures.names import FIGURES
from master.material import Following, gather, proposed
from master.page import Drawn, cells, page, place
from master.reading import read_stage
from master.summary import best_line, border_lines, change, counts, diagnosis_line, next_command, spread_line

NAME = "report.html"
TOP = 20  # trials in its table; leaderboard.csv beside it has all
WITH_COLUMNS = ("hyperparameters", "histograms", "progress")  # figures of several panels, which a phone gets below each other


def report(chosen: Chosen, stage: str | None, warn: Callable[[str], None]) -> str:
    """Writes the report of a stage, from the folder alone; says where.

    Raises:
        ConfigError: no such stage, or it has not been launched.
        CheckpointError: nothing in it has ended, or the folder cannot be used.
    """
    folder, records = read_stage(chosen, stage, warn)
    return f"wrote {write_report(chosen.search, chosen.folder, chosen.search.stage(folder.path.name), records, warn)}"


def write_report(search: Search, folder: SearchFolder, stage: Stage, records: Sequence[Record], warn: Callable[[str], None]) -> Path:
    """Writes ``report.html`` into the stage's folder.

    Args:
        search: as launched.
        folder: its folder.
        stage: launched.
        records: of the stage, the latest attempt of each trial.
        warn: where damaged records are told.

    Raises:
        CheckpointError: the folder cannot be read or written.
    """
    following = proposed(search, folder, stage, records)
    material = gather(search, folder, stage, records, following, warn)
    path = folder.stage(stage.name).path / NAME
    durable.replace(path, report_page(search, stage, records, material, following).encode())
    return path


def report_page(search: Search, stage: Stage, records: Sequence[Record], material: Material, following: Following | None) -> str:
    """The page itself."""
    figures = [_drawn(name, material) for name in FIGURES]
    title = f"{search.name}: stage {stage.name}"
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        found_in_words(search, stage, records, material.ranges[stage.name], following),
        _ranking(records),
        "<h2>Figures</h2>",
        *(place(figure) for figure in figures),
    ]
    return page(title, "\n".join(sections), figures)


def found_in_words(search: Search, stage: Stage, records: Sequence[Record], ranges: Space, following: Following | None) -> str:
    """What a reader wants to know first, as HTML: counts, the best, the borders, the diagnosis, the next ranges."""
    top = ranking.best(records, 1)
    parts = [_paragraphs(counts(records).plain), _paragraphs(best_line(records).plain)]
    if top:
        parts.append(_configuration(top[0]))
    if stage.kind == "seeds":
        parts.append(_paragraphs(spread_line(records).plain))
    elif top:
        found = borders(records, ranges)
        parts.append(_paragraphs(border_lines(found).plain, "warning" if found else ""))
    told = diagnosis_line(records)
    parts += [_paragraphs(told.plain)] if told is not None else []
    if following is not None:
        parts.append(_next_ranges(search, ranges, following))
    return "<h2>What was found</h2>\n" + "\n".join(parts)


def _drawn(name: str, material: Material) -> Drawn:
    return Drawn(name, draw(name, material), draw(name, material, columns=NARROW_COLUMNS) if name in WITH_COLUMNS else None)


def _configuration(best: Record) -> str:
    """The best trial's hyperparameters, and where its weights are."""
    rows = "".join(cells([name, ranking.cell(value)]) for name, value in best.hyperparameters.items())
    kept = f'<p class="small">Weights: <code>{html.escape(best.checkpoint)}</code></p>' if best.checkpoint else ""
    said = _paragraphs(f"{best.trial}: {best.diagnosis.sentence}") if best.diagnosis else ""
    return f'{said}<div class="table"><table>{cells(["hyperparameter", "best"], "th")}{rows}</table></div>{kept}'


def _next_ranges(search: Search, ranges: Space, following: Following) -> str:
    """Old and new range of each hyperparameter, and why."""
    edited = "" if following.notes else '<p class="small">The proposal in ranges.toml was edited by hand.</p>'
    rows = "".join(
        cells([name, change(ranges.parameters[name], parameter), following.notes.get(name, "")])
        for name, parameter in following.space.sampled.items()
    )
    command = next_command(following.stage.name, {"--search": search.name})
    return (
        f"<h2>Ranges of the next stage, {html.escape(following.stage.name)}</h2>{edited}"
        f'<div class="table words"><table>{cells(["hyperparameter", "range", "why"], "th")}{rows}</table></div>'
        f"<p>It runs with:</p><pre>{html.escape(command)}</pre>"
    )


def _ranking(records: Sequence[Record]) -> str:
    rows = ranking.rows(ranking.frame(records).head(TOP), ())
    names = ranking.varied([record.hyperparameters for record in records])
    metric = ranking.metric_of(records)[0]
    lines = [cells([*_outcome(row), *(ranking.cell(row["hyperparameters"].get(name)) for name in names)]) for row in rows]
    more = f'<p class="small">The best {len(rows)} of {len(records):,}; leaderboard.csv has all.</p>' if len(records) > len(rows) else ""
    header = cells(["#", "trial", metric, "state", "epochs", "diagnosis", *names], "th")
    return f'<h2>Ranking</h2><div class="table"><table>{header}{"".join(lines)}</table></div>{more}'


def _outcome(row: Mapping[str, Any]) -> list[object]:
    epochs, value = ranking.cell(row["epochs"]), ranking.shown_metric(row["value"])
    return [row["rank"], row["trial"], value, row["state"], epochs, ranking.word_of(row)]


def _paragraphs(text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return "".join(f"<p{attribute}>{html.escape(line)}</p>" for line in text.splitlines())

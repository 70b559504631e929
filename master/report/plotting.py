"""``master plot``: write one figure of a stage to a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.folder import durable
from common.folder.chosen import Chosen
from common.shell_command import shell_command
from master.figures.names import FIGURES
from master.report.reading import read_stage

if TYPE_CHECKING:
    import plotly.graph_objects as go

SUFFIXES = (".html", ".png", ".json")
WITH_TRIALS = ("losses", "accuracies", "ratios", "histograms", "weights")


def plot(
    chosen: Chosen,
    name: str,
    out: Path,
    stage: str | None,
    trials: Sequence[str],
    warn: Callable[[str], None],
) -> str:
    """Write one figure from the folder alone, and return a line that says where.

    Args:
        chosen: the search.
        name: the name of the figure.
        out: the file. Its suffix chooses the form: a page that needs no network, a picture, or
            plotly's JSON.
        stage: the name of the stage; None takes the last one that was launched.
        trials: the trials to show, if the figure shows chosen ones; if empty, the figure chooses.
        warn: called with a message about each damaged record.

    Raises:
        ConfigError: no such figure, stage, trial or suffix, or there is no browser for a picture.
        CheckpointError: no trial has ended, or the file cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: write a name that ends in {', '.join(SUFFIXES)}")
    figure = draw_figure(chosen, name, stage, trials, warn)
    durable.replace(
        durable.make_folder(out.absolute().parent) / out.name, render(figure, out.suffix)
    )
    return f"wrote {out}"


def draw_figure(
    chosen: Chosen,
    name: str,
    stage: str | None,
    trials: Sequence[str],
    warn: Callable[[str], None],
) -> go.Figure:
    """Draw one figure from the folder alone. The arguments are those of ``plot``.

    Raises:
        ConfigError: no such figure, stage or trial.
        CheckpointError: no trial has ended.
    """
    _check(name, trials)
    from master.figures.catalogue import draw
    from master.report.figure_data import gather, read_following, read_known

    folder, records = read_stage(chosen, stage, warn)
    search, wanted = chosen.search, chosen.search.stage(folder.path.name)
    ended = {record.trial for record in records}
    for trial in trials:
        if trial not in ended:
            raise ConfigError(
                f"--trial {trial}: no trial of stage {wanted.name!r} of that name has ended; "
                f"`{shell_command('master rank')}` lists them"
            )
    following = read_following(search, chosen.folder, wanted, records)
    known = read_known(search, chosen.folder, wanted, records, warn)
    return draw(name, gather(search, chosen.folder, wanted, known, following), trials)


def render(figure: object, suffix: str) -> bytes:
    """Return the figure as the content of a file.

    Raises:
        ConfigError: there is no browser for a picture.
        CheckpointError: the browser made no picture.
    """
    from master.report.browser import png
    from master.report.page import Drawn, page, place

    if suffix == ".png":
        return png(figure)
    if suffix == ".json":
        return str(figure.to_json()).encode()  # type: ignore[attr-defined]
    only = Drawn("only", figure)
    return page("figure", place(only), [only]).encode()


def _check(name: str, trials: Sequence[str]) -> None:
    if name not in FIGURES:
        known = "\n".join(f"  {known:16s} {says}" for known, says in FIGURES.items())
        raise ConfigError(f"{name!r} is no figure; there are\n{known}")
    if trials and name not in WITH_TRIALS:
        raise ConfigError(
            f"--trial {trials[0]}: the figure {name!r} shows all trials; leave it out, or plot one "
            f"of {', '.join(WITH_TRIALS)}"
        )

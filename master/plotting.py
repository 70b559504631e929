"""One figure of a stage into a file: ``master plot``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from common import durable
from common.errors import ConfigError
from common.select import Chosen
from master.figures.names import FIGURES
from master.reading import read_stage

SUFFIXES = (".html", ".png", ".json")
WITH_TRIALS = ("losses", "accuracies", "ratios", "histograms", "weights")


def plot(chosen: Chosen, name: str, out: Path, stage: str | None, trials: Sequence[str], warn: Callable[[str], None]) -> str:
    """Writes one figure, from the folder alone; says where.

    Args:
        chosen: the search.
        name: of the figure.
        out: its suffix says what is written: a page that needs no network, a picture, or plotly's JSON.
        stage: its name; None takes the last that was launched.
        trials: to show, where the figure is of chosen ones; without any it chooses.
        warn: where damaged records are told.

    Raises:
        ConfigError: no such figure, stage, trial or suffix, or there is no browser for a picture.
        CheckpointError: nothing has ended, or the file cannot be written.
    """
    _check(name, out, trials)
    from master.figures.catalogue import draw
    from master.material import gather, proposed

    folder, records = read_stage(chosen, stage, warn)
    search, wanted = chosen.search, chosen.search.stage(folder.path.name)
    ended = {record.trial for record in records}
    for trial in trials:
        if trial not in ended:
            raise ConfigError(f"--trial {trial}: no trial of stage {wanted.name!r} of that name has ended; `master rank` lists them")
    following = proposed(search, chosen.folder, wanted, records)
    figure = draw(name, gather(search, chosen.folder, wanted, records, following, warn), trials)
    durable.replace(durable.make_folder(out.absolute().parent) / out.name, written(figure, out.suffix))
    return f"wrote {out}"


def written(figure: object, suffix: str) -> bytes:
    """The figure as the content of a file.

    Raises:
        ConfigError: there is no browser for a picture.
        CheckpointError: the browser made no picture.
    """
    from master.browser import png
    from master.page import Drawn, page, place

    if suffix == ".png":
        return png(figure)
    if suffix == ".json":
        return str(figure.to_json()).encode()  # type: ignore[attr-defined]
    only = Drawn("only", figure)
    return page("figure", place(only), [only]).encode()


def _check(name: str, out: Path, trials: Sequence[str]) -> None:
    if name not in FIGURES:
        known = "\n".join(f"  {known:16s} {says}" for known, says in FIGURES.items())
        raise ConfigError(f"{name!r} is no figure; there are\n{known}")
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: write a name that ends in {', '.join(SUFFIXES)}")
    if trials and name not in WITH_TRIALS:
        raise ConfigError(
            f"--trial {trials[0]}: the figure {name!r} shows all trials; leave it out, or plot one of {', '.join(WITH_TRIALS)}"
        )

"""`master export`: write the trials of a folder in another program's format.

It needs no Redis and no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.folder.chosen import Chosen
from master.export.ended import EndedStage, read
from master.export.files import need
from master.strategy.ranges import read_frozen


@dataclass(frozen=True)
class Request:
    """The options of `master export`."""

    form: str
    out: str
    stage: str | None = None


# The writer of a format: it writes the trials and returns where they are and how to open them.
Writer = Callable[[Chosen, Sequence[EndedStage], str, Callable[[str], None]], str]


def export(chosen: Chosen, request: Request, say: Callable[[str], None]) -> str:
    """Write the ended trials of a search in another program's format.

    Args:
        chosen: the search.
        request: the options.
        say: called with messages about damaged records and about slow steps.

    Returns:
        What was written, as one line.

    Raises:
        ConfigError: no such stage, no launched stage, a missing library, or a place that cannot be
            written.
        CheckpointError: no trial has ended, or writing failed.
    """
    for module in NEEDS[request.form]:
        need(module, request.form)
    stages = read(chosen, request.stage, say)
    where = WRITERS[request.form](chosen, stages, request.out, say)
    n = sum(len(stage.trials) for stage in stages)
    names = ", ".join(stage.stage.name for stage in stages)
    return (
        f"{n:,} ended {'trial' if n == 1 else 'trials'} of {chosen.search.name} ({names}): {where}"
    )


def _csv(chosen: Chosen, stages: Sequence[EndedStage], out: str, say: Callable[[str], None]) -> str:
    from master.export.delimited import write

    return "{}, and the curves in {}".format(*write(stages, out))


def _parquet(
    chosen: Chosen, stages: Sequence[EndedStage], out: str, say: Callable[[str], None]
) -> str:
    from master.export.parquet import write

    return "{}, and the curves in {}".format(*write(stages, out))


def _tensorboard(
    chosen: Chosen, stages: Sequence[EndedStage], out: str, say: Callable[[str], None]
) -> str:
    from master.export.events import write

    search = chosen.folder.search() or chosen.search  # as launched, which includes the id
    frozen = (chosen.folder.stage(stage.name).ranges for stage in search.stages)
    folder = write(
        stages, out, search, [read_frozen(path, search.space) for path in frozen if path.exists()]
    )
    return f"{folder}; open it with: tensorboard --logdir {folder}"


def _optuna(
    chosen: Chosen, stages: Sequence[EndedStage], out: str, say: Callable[[str], None]
) -> str:
    from master.export.study import write

    url, names = write(stages, out, chosen.folder.search() or chosen.search, say)
    return (
        f"{url} ({'study' if len(names) == 1 else 'studies'} {', '.join(names)}); open it with: "
        f"optuna-dashboard {url}"
    )


WRITERS: dict[str, Writer] = {
    "tensorboard": _tensorboard,
    "csv": _csv,
    "parquet": _parquet,
    "optuna": _optuna,
}
NEEDS: dict[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "csv": (),
    "parquet": ("pyarrow",),
    "optuna": ("optuna",),
}

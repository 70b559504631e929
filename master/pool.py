"""Which models an ensemble is made of: those of a search's folder that have predictions beside them, best first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common import predictions
from common.checkpoint_name import CheckpointName
from common.errors import CheckpointError, ConfigError
from common.record import Record
from common.records import SearchFolder, StageFolder
from common.search import RESERVED_STAGE, Search, Stage
from common.select import Chosen
from master import ranking
from master.ensemble import Member, same_data
from master.reading import not_launched

KINDS = ("top", "seeds", "snapshots", "greedy")
TOP = 10  # models of the kind "top": more of them hardly change what ten agree on


@dataclass(frozen=True)
class Pool:
    """Models, best first, and over how many these were selected: trials that were ranked by the metric, or snapshots."""

    stages: str
    members: Sequence[Member]
    selected_over: int
    unit: str = "trials"


def pool(kind: str, chosen: Chosen, named: str | None, top: int | None, warn: Callable[[str], None]) -> Pool:
    """The models for an ensemble of that kind.

    Args:
        kind: one of ``KINDS``.
        named: the stage, ``all``, or None for the last launched one that has such models.
        top: only the best of them.
        warn: told which predictions are damaged.

    Raises:
        ConfigError: no such stage, or none that has what is asked for.
        CheckpointError: there are no predictions, or they are of different data.
    """
    search, folder = chosen.search, chosen.folder
    stages = _stages(kind, chosen, named)
    records = [record for stage in stages for record in folder.stage(stage.name).records(warn)]
    names = " and ".join(stage.name for stage in stages)
    ranked = [record for record in ranking.ranked(records) if record.checkpoint] if records else []
    members = _over_time(search, folder, ranked, names, warn) if kind == "snapshots" else _kept(folder, ranked, names, warn)
    members = members[: top or (TOP if kind == "top" else None)]
    if stranger := same_data(members):
        raise CheckpointError(
            f"{folder.path / stranger.checkpoint}: its predictions are of other examples than those of {members[0].checkpoint}: "
            "the data have changed; only models that were trained on the same data make an ensemble"
        )
    if kind == "snapshots":
        return Pool(names, members, len(members), "snapshots")
    return Pool(names, members, len(ranking.best(records)) if records else 0)


def _stages(kind: str, chosen: Chosen, named: str | None) -> list[Stage]:
    """The stages that the models come from: the one that was named, or the last launched that has such models."""
    search, folder = chosen.search, chosen.folder
    launched = [stage for stage in search.stages if folder.stage(stage.name).ranges.exists()]
    fitting = [stage for stage in launched if _fits(kind, stage)]
    if not launched:
        raise not_launched(chosen)
    if named is None or named == RESERVED_STAGE:
        if not fitting:
            raise ConfigError(_remedy(kind, search, "no stage that was launched"))
        return fitting if named else fitting[-1:]
    stage = search.stage(named)
    if stage not in launched:
        raise ConfigError(f"stage {named!r} of search {search.name!r} has not been launched; run `master launch --stage {named}`")
    if stage not in fitting:
        raise ConfigError(_remedy(kind, search, f"stage {named!r}"))
    return [stage]


def _fits(kind: str, stage: Stage) -> bool:
    if kind == "seeds":
        return stage.kind == "seeds"
    return stage.snapshots > 0 if kind == "snapshots" else stage.kind == "search"


def _remedy(kind: str, search: Search, where: str) -> str:
    after = search.stages[-1].name
    remedies = {
        "seeds": f'trains one configuration several times: add [stages.seeds] with kind = "seeds", trials = 10 and epochs below {after}',
        "snapshots": "keeps weights over time: add snapshots = 5 to a stage that has not been launched yet",
    }
    return f"--of {kind}: {where} {remedies.get(kind, 'searches: a stage of seeds has one configuration; use --of seeds')}"


def _kept(folder: SearchFolder, ranked: Sequence[Record], stages: str, warn: Callable[[str], None]) -> list[Member]:
    """What the kept models of these trials predict, in the order of the ranking."""
    names = [(folder.stage(record.stage), CheckpointName.parse(str(record.checkpoint))) for record in ranked]
    pairs = [(stage, name) for stage, name in names if name is not None and (stage.path / str(name)).exists()]
    members = [_member(folder, stage, name, "", warn) for stage, name in pairs]
    return _some([member for member in members if member], len(pairs), stages)


def _over_time(search: Search, folder: SearchFolder, ranked: Sequence[Record], stages: str, warn: Callable[[str], None]) -> list[Member]:
    """What the snapshots of the best trial that has some predict, best first by the search's metric."""
    for record in ranked:
        stage = folder.stage(record.stage)
        names = stage.snapshots_of(record.trial, record.attempt)
        if names:
            names.sort(key=lambda name: name.value, reverse=search.mode == "max")
            members = [_member(folder, stage, name, f"{stage.snapshots.name}/", warn) for name in names]
            return _some([member for member in members if member], len(names), stages)
    return _some([], 0, stages)


def _member(folder: SearchFolder, stage: StageFolder, name: CheckpointName, below: str, warn: Callable[[str], None]) -> Member | None:
    path = stage.path / below / str(name)
    try:
        found = predictions.read(path.with_name(name.predictions))
    except FileNotFoundError:
        return None
    except CheckpointError as error:
        warn(str(error))
        return None
    return Member(name.trial_id, str(path.relative_to(folder.path)), name.epoch, found)


def _some(members: list[Member], n_kept: int, stages: str) -> list[Member]:
    if members:
        return members
    if not n_kept:
        raise CheckpointError(
            f"stage {stages}: no weights are kept, so there is nothing to put together; `master rank` shows what came out"
        )
    raise CheckpointError(
        f"stage {stages}: none of the {n_kept} kept models has predictions beside it (the same name with .npz). Tasks without classes, and "
        "loops of your own, have none and make no ensemble; a classification gets them when it is launched again with --new-name NAME"
    )

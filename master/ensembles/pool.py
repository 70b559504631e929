"""The models that an ensemble can be made of: those with predictions beside them, best first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.errors import CheckpointError, ConfigError
from common.folder import predictions
from common.folder.checkpoint_name import CheckpointName
from common.folder.chosen import Chosen, not_launched
from common.folder.record import Record
from common.folder.records import SearchFolder, StageFolder
from common.search.search_file import RESERVED_STAGE, Search
from common.search.stage import Stage
from common.shell_command import shell_command
from master.ensembles.ensemble import Member, same_data
from master.results import ranking

KINDS = ("top", "seeds", "snapshots", "greedy")
TOP = 10  # number of models of the kind "top"; more hardly change what ten agree on


@dataclass(frozen=True)
class Pool:
    """Models for an ensemble, best first.

    Attributes:
        stages: names of the stages that they come from.
        members: the models.
        selected_over: number of trials, ranked by the metric, or of snapshots that they were
            selected from.
        unit: what ``selected_over`` counts.
    """

    stages: str
    members: Sequence[Member]
    selected_over: int
    unit: str = "trials"


def pool(
    kind: str, chosen: Chosen, named: str | None, top: int | None, warn: Callable[[str], None]
) -> Pool:
    """Return the models for an ensemble of that kind.

    Args:
        kind: one of ``KINDS``.
        chosen: the search.
        named: the stage, ``all``, or None for the last launched stage that has such models with
            predictions.
        top: how many of the best to return; None for the kind's default.
        warn: called with a message about each file of damaged predictions.

    Raises:
        ConfigError: there is no such stage, or none has what is asked for.
        CheckpointError: there are no predictions, or they are of different data.
    """
    search, folder = chosen.search, chosen.folder
    stages = _stages(kind, chosen, named)
    records = [record for stage in stages for record in folder.stage(stage.name).records(warn)]
    names = " and ".join(stage.name for stage in stages)
    ranked = [record for record in ranking.rank(records) if record.checkpoint] if records else []
    members = (
        _over_time(search, folder, ranked, names, warn)
        if kind == "snapshots"
        else find_kept_members(folder, ranked, names, warn)
    )
    members = members[: top or (TOP if kind == "top" else None)]
    if stranger := same_data(members):
        raise CheckpointError(
            f"{folder.path / stranger.checkpoint}: its predictions are of other examples than "
            f"those of {members[0].checkpoint}: the data have changed; only models that were "
            "trained on the same data make an ensemble"
        )
    if kind == "snapshots":
        return Pool(names, members, len(members), "snapshots")
    return Pool(names, members, len(ranking.best(records)) if records else 0)


def _stages(kind: str, chosen: Chosen, named: str | None) -> list[Stage]:
    """Return the stages that the models come from.

    This is the named stage, all stages that have such models, or the last launched one that has
    them with predictions.
    """
    search, folder = chosen.search, chosen.folder
    launched = [stage for stage in search.stages if folder.stage(stage.name).has_begun]
    fitting = [stage for stage in launched if _fits(kind, stage)]
    if not launched:
        raise not_launched(chosen)
    if named is None or named == RESERVED_STAGE:
        if not fitting:
            raise ConfigError(_remedy(kind, search, "no stage that was launched is"))
        # A stage that trains the best again is used only if it is named, or if there is no other.
        usual = [stage for stage in fitting if not stage.traits.several] or fitting
        if named:
            return fitting
        # Of a stage whose trials all stopped before the longest budget, nothing was predicted.
        predicting = (one for one in reversed(usual) if _has_predictions(folder, one))
        return [next(predicting, usual[-1])]
    stage = search.stage(named)
    if stage not in launched:
        raise ConfigError(
            f"stage {named!r} of search {search.name!r} has not been launched; run "
            f"`{shell_command('master launch --stage', named)}`"
        )
    if stage not in fitting:
        raise ConfigError(_remedy(kind, search, f"stage {named!r} is not"))
    return [stage]


def _fits(kind: str, stage: Stage) -> bool:
    if kind == "seeds":
        return stage.traits.is_spread
    return stage.snapshots > 0 if kind == "snapshots" else stage.traits.joins_ensembles


def _has_predictions(folder: SearchFolder, stage: Stage) -> bool:
    place = folder.stage(stage.name)
    return any(next(path.glob("*.npz"), None) for path in (place.path, place.snapshots))


def _remedy(kind: str, search: Search, where: str) -> str:
    after = search.stages[-1].name
    remedies = {
        "seeds": (
            "a stage that trains one configuration several times; add [stages.seeds] with kind = "
            f'"seeds", trials = 10 and epochs below {after}'
        ),
        "snapshots": (
            "a stage that keeps weights over time; add snapshots = 5 to a stage that has not been "
            "launched yet"
        ),
    }
    models = "a search stage; a stage of seeds has one configuration, so use --of seeds"
    return f"--of {kind}: {where} {remedies.get(kind, models)}"


def find_kept_members(
    folder: SearchFolder, ranked: Sequence[Record], stages: str, warn: Callable[[str], None]
) -> list[Member]:
    """Return the kept models of these trials with their predictions, in the order of the ranking.

    Args:
        folder: the search's folder.
        ranked: records of trials that left weights, best first.
        stages: names of their stages, for messages.
        warn: called with a message about each file of damaged predictions.

    Raises:
        CheckpointError: none of them has weights, or none has predictions.
    """
    names = [
        (folder.stage(record.stage), CheckpointName.parse(str(record.checkpoint)))
        for record in ranked
    ]
    pairs = [
        (stage, name)
        for stage, name in names
        if name is not None and (stage.path / str(name)).exists()
    ]
    members = [_member(folder, stage, name, "", warn) for stage, name in pairs]
    return _some([member for member in members if member], len(pairs), stages)


def _over_time(
    search: Search,
    folder: SearchFolder,
    ranked: Sequence[Record],
    stages: str,
    warn: Callable[[str], None],
) -> list[Member]:
    """Return the snapshots of the best trial that has any, best first by the search's metric."""
    for record in ranked:
        stage = folder.stage(record.stage)
        names = stage.snapshots_of(record.trial, record.attempt)
        if names:
            names.sort(key=lambda name: name.value, reverse=search.mode == "max")
            members = [
                _member(folder, stage, name, f"{stage.snapshots.name}/", warn) for name in names
            ]
            return _some([member for member in members if member], len(names), stages)
    return _some([], 0, stages)


def _member(
    folder: SearchFolder,
    stage: StageFolder,
    name: CheckpointName,
    below: str,
    warn: Callable[[str], None],
) -> Member | None:
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
            f"stage {stages}: no weights are kept, so there is no ensemble; "
            f"`{shell_command('master rank')}` shows the results"
        )
    raise CheckpointError(
        f"stage {stages}: none of the {n_kept} kept models has predictions beside it (the same "
        "name with .npz). Trials get them at their longest budget, so name another stage, or "
        "--stage all. Tasks without classes, and loops of your own, have none"
    )

"""What a stage samples: what was frozen, given, proposed by the stage before, or the one configuration that a stage of seeds repeats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from common.record import Record
from common.records import SearchFolder
from common.search import Search, Stage
from common.space import Fixed, Space
from common.vet import check_space
from master import ranking
from master.ranges import load_ranges, read_frozen, read_proposal
from master.stages import Proposal, propose


@dataclass(frozen=True)
class StageRanges:
    """``seeds_of``: the trial whose configuration a stage of seeds repeats; None once that is frozen, and where the stage searches."""

    space: Space
    seeds_of: str | None = None


def stage_ranges(search: Search, folder: SearchFolder, stage: Stage, ranges_file: Path | None, warn: Callable[[str], None]) -> StageRanges:
    """The ranges that ``stage`` samples: as frozen, as given, as [space], as proposed, or one configuration.

    Raises:
        ConfigError: the stage before is unfinished or has no best trial, or ``ranges_file`` is wrong, comes too late, or has no use.
        CheckpointError: what was frozen is damaged.
    """
    if ranges_file and stage.kind == "seeds":
        raise ConfigError(f"--ranges {ranges_file}: stage {stage.name!r} repeats one configuration and samples no ranges; leave it out")
    given = load_ranges(ranges_file, search.space) if ranges_file else None
    if given is not None:
        check_space(search.task, given, f"{ranges_file}:")
    path = folder.stage(stage.name).ranges
    if path.exists():
        frozen = read_frozen(path, search.space)
        if given is not None and given != frozen:
            raise ConfigError(
                f"--ranges {ranges_file}: stage {stage.name!r} has begun with the ranges in {path}; use --new-name NAME for others"
            )
        return StageRanges(frozen)
    before = search.before(stage.name)
    if before is None:
        return StageRanges(given or search.space)
    records = _ended(search, folder, before, stage, warn)
    if stage.kind == "seeds":
        return _repeated(before, stage, records)
    return StageRanges(given or proposed_space(search, folder, stage, warn))


def _ended(search: Search, folder: SearchFolder, before: Stage, stage: Stage, warn: Callable[[str], None]) -> Sequence[Record]:
    """The records of the stage before, all of whose trials have ended."""
    records = folder.stage(before.name).records(warn)
    if len(records) < before.trials:
        raise ConfigError(
            f"--stage {stage.name}: the stage before it, {before.name!r}, has ended {len(records)} of {before.trials} trials; "
            f"run `master launch --search {search.name} --stage {before.name}` first, or --stage all"
        )
    return records


def _repeated(before: Stage, stage: Stage, records: Sequence[Record]) -> StageRanges:
    """The configuration of the best trial before, each value fixed."""
    top = ranking.best(records, 1)
    if not top:
        raise ConfigError(
            f"--stage {stage.name}: no trial of the stage before it, {before.name!r}, completed, so there is no best configuration to "
            "train again; `master rank` says why, and `master launch --new-name NAME` begins anew with other ranges"
        )
    return StageRanges(Space({name: Fixed(value) for name, value in top[0].hyperparameters.items()}), top[0].trial)


def proposed_space(search: Search, folder: SearchFolder, stage: Stage, warn: Callable[[str], None]) -> Space:
    """The proposal for ``stage`` of the last stage before that searched, edited by the user or not; made now if there is none."""
    before = search.searched_before(stage.name)
    assert before is not None  # the first stage searches
    stage_folder = folder.stage(before.name)
    proposal = read_proposal(stage_folder.ranges, search.space)
    if proposal is not None:
        check_space(search.task, proposal, f"{stage_folder.ranges}: [next.ranges]")
        return proposal
    return make_proposal(search, folder, before, stage, stage_folder.records(warn)).space


def make_proposal(search: Search, folder: SearchFolder, before: Stage, stage: Stage, records: Sequence[Record]) -> Proposal:
    """The ranges for ``stage`` from the ranking of ``before``."""
    return propose(records, read_frozen(folder.stage(before.name).ranges, search.space), search.space, before, stage)

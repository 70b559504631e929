"""`master recover`: what Redis knew of a search, rebuilt from its folder; what is damaged there is set aside by name.

Damage comes from outside (a disk, a copy that was cut off, an editor): what the programs write themselves appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable

from common import durable
from common.broker import open_broker
from common.errors import CheckpointError, ConfigError, DamagedReplyError
from common.options import Shared
from common.queue import TrialQueue
from common.record import Record
from common.records import SearchFolder
from common.search import Search, Stage
from common.select import Chosen
from common.space import Space
from master.commands import of_folder
from master.damage import set_damaged_aside
from master.prepare import Launched, file_text, publish
from master.ranges import checked, configuration, read_frozen, write_frozen
from master.sampling import configurations
from master.stage_ranges import StageRanges, proposed_space, stage_ranges


def recover(shared: Shared, chosen: Chosen, warn: Callable[[str], None]) -> str:
    """Rebuilds what Redis knew of a search from its folder; says what it did.

    Args:
        warn: told of each file that is damaged and what became of it.

    Raises:
        ConfigError: the search was never launched.
        QueueError: Redis cannot be reached.
        CheckpointError: something is damaged that nothing tells anew.
    """
    mend_search_file(chosen, warn)
    launched = of_folder(chosen)
    with open_broker(shared.redis, shared.checkpoints.resolve()) as broker:
        queue = TrialQueue(broker.client, launched.id, launched.search.stragglers.lease_s)
        try:
            for stage in launched.search.stages:
                if has_begun(launched.folder, stage):
                    mend_ranges(launched, stage, queue, warn)  # while Redis can still tell them
            queue.check()
            lines = _rebuild(launched, queue, warn)
        except DamagedReplyError as error:
            problem = str(error).partition("; see who else")[0]
            warn(f"{problem}: Redis forgets the search, which is rebuilt from the folder alone; see who else uses this Redis")
            queue.drop()
            lines = _rebuild(launched, queue, warn)
    return "\n".join(lines) or "no stage was ever launched; nothing to recover"


def _rebuild(launched: Launched, queue: TrialQueue, warn: Callable[[str], None]) -> list[str]:
    lines = []
    for stage in launched.search.stages:
        if not has_begun(launched.folder, stage):
            continue
        mend_ranges(launched, stage, queue, warn)
        set_damaged_aside(launched.folder.stage(stage.name), warn)
        published = publish(launched, stage, queue, None, warn)
        done = published.reconciled
        lines.append(
            f"stage {stage.name}: {done.to_redis} trials taken over from the folder as ended, {published.added} queued again, "
            f"{done.to_folder} missing records written"
        )
    return lines


def has_begun(folder: SearchFolder, stage: Stage) -> bool:
    """Whether the folder shows that a stage was launched, by its ranges or, where these are lost, by a record."""
    return folder.stage(stage.name).ranges.exists() or bool(folder.stage(stage.name).highest_attempts())


def mend_search_file(chosen: Chosen, warn: Callable[[str], None]) -> None:
    """Puts the user's own search file in the place of a damaged or lost one; its id is that of the records.

    Raises:
        CheckpointError: it is damaged, and there is no other text of it or no record that names its id.
    """
    folder = chosen.folder
    try:
        if folder.search() is not None:
            return
        problem = None
    except CheckpointError as error:
        problem = error
    ids = {record.search_id for stage in chosen.search.stages for record in folder.stage(stage.name).records(warn)}
    if len(ids) != 1:
        if problem is None:
            return  # never launched, for all that can be seen
        raise CheckpointError(
            f"{problem}. That needs the search's id, of which its records name {len(ids)}; without one, begin anew: move {folder.path} away"
        )
    for stage in chosen.search.stages:
        _check_copy(chosen, stage, warn)
    if problem is not None:
        warn(f"{folder.search_file}: damaged; set aside as {durable.set_aside(folder.search_file).name}, and written anew from your copy")
    durable.write_new({folder.search_file: file_text(ids.pop(), chosen.text).encode()})


def _check_copy(chosen: Chosen, stage: Stage, warn: Callable[[str], None]) -> None:
    """The file that is to replace the damaged one has to describe the trials that were trained."""
    folder = chosen.folder.stage(stage.name)
    try:
        space = read_frozen(folder.ranges, chosen.search.space)
    except CheckpointError:
        return  # mended later, and compared then
    if not _agree(chosen.search, stage, space, folder.records(warn)):
        raise CheckpointError(
            f"{chosen.folder.search_file}: is damaged, and your copy is not what was launched: it gives trials of stage {stage.name!r} "
            "other configurations than their records have; undo its changes"
        )


def mend_ranges(launched: Launched, stage: Stage, queue: TrialQueue, warn: Callable[[str], None]) -> None:
    """Writes a stage's frozen ranges anew where they are damaged or lost: from Redis, else as they came about, if the records agree.

    Raises:
        CheckpointError: neither tells them.
    """
    folder = launched.folder.stage(stage.name)
    try:
        read_frozen(folder.ranges, launched.search.space)
        return
    except CheckpointError as error:
        problem = error
    warn(f"{folder.ranges}: damaged or lost; what is left of it is set aside as {durable.set_aside(folder.ranges).name}")
    records = [record for record in folder.records(warn) if record.search_id == launched.id]
    told = (_as_they_came(launched, stage, warn), _from_redis(launched.search, stage, queue))
    for known in told if stage.kind == "seeds" else told[::-1]:
        if known is not None and _agree(launched.search, stage, known.space, records):
            write_frozen(folder.ranges, known.space, known.seeds_of)
            return
    raise CheckpointError(
        f"{problem}. Neither Redis nor the stage before tells them as the records have them: put back the file from a backup, or the "
        f"[ranges] of its remains, {folder.ranges.name}{durable.ASIDE}"
    )


def _from_redis(search: Search, stage: Stage, queue: TrialQueue) -> StageRanges | None:
    frozen = queue.frozen(stage.name)
    if frozen is None:
        return None
    place = f"the ranges of stage {stage.name!r} in Redis"
    try:
        if stage.kind == "seeds":
            return StageRanges(configuration(frozen.get("ranges"), place, search.space), "as Redis has it")
        return StageRanges(checked(frozen.get("ranges"), place, search.space))
    except ConfigError:
        return None  # damaged as well


def _as_they_came(launched: Launched, stage: Stage, warn: Callable[[str], None]) -> StageRanges | None:
    """As the stage's first launch found them: [space], the proposal, or the best trial before."""
    search, folder = launched.search, launched.folder
    try:
        if stage.kind == "seeds" or search.before(stage.name) is None:
            return stage_ranges(search, folder, stage, None, warn)
        return StageRanges(proposed_space(search, folder, stage, warn))  # though records of the stage before may be lost
    except (CheckpointError, ConfigError):
        return None


def _agree(search: Search, stage: Stage, space: Space, records: list[Record]) -> bool:
    """Whether these ranges give the configurations that were trained."""
    n_trials = max((record.index + 1 for record in records), default=0)
    sampled = configurations(search.seed, stage, space, search.sampler, range(n_trials))
    return all(sampled[record.index].hyperparameters == record.hyperparameters for record in records)

"""`master recover`: rebuild what Redis knew of a search from its folder.

Damaged files in the folder are set aside under another name. Damage comes from outside, such as a
disk, a truncated copy or an editor. The programs themselves write a file as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from common.broker.connection import open_broker
from common.errors import CheckpointError, ConfigError, DamagedReplyError, ProtocolError
from common.folder import durable
from common.folder.chosen import Chosen
from common.folder.record import Record
from common.folder.records import SearchFolder, StageFolder
from common.options import Shared
from common.queue.trial_queue import TrialQueue
from common.search.search_file import Search
from common.search.space import Space
from common.search.stage import Stage
from master.commands.damage import set_damaged_aside
from master.commands.redis_commands import of_folder
from master.run.janitor import sweep_left_over
from master.stages.prepare import Launched, file_text
from master.stages.promotions import read_decisions
from master.stages.publishing import publish
from master.stages.sampling import configurations
from master.stages.source import (
    StageSource,
    first_source,
    make_source,
    read_before,
    read_source,
    read_strategy,
    write_source,
)
from master.strategy.ranges import check_ranges, read_frozen


def recover(shared: Shared, chosen: Chosen, warn: Callable[[str], None]) -> str:
    """Rebuild what Redis knew of a search from its folder, and return what was done.

    Args:
        shared: the options that all commands share.
        chosen: the search.
        warn: called with a message about each damaged file and what became of it.

    Raises:
        ConfigError: the search was never launched.
        QueueError: Redis cannot be reached.
        CheckpointError: a file is damaged and nothing can restore it.
    """
    mend_search_file(chosen, warn)
    launched = of_folder(chosen)
    sweep_left_over(launched.folder)
    with open_broker(shared.redis, shared.checkpoints.resolve()) as broker:
        queue = TrialQueue(broker.client, launched.id, launched.search.stragglers.lease_s)
        try:
            for stage in launched.search.stages:
                if was_launched(launched.folder, stage):
                    # Redis may still have the ranges now, before its damaged data are dropped.
                    mend_source(launched, stage, queue, warn)
            queue.check()
            lines = _rebuild(launched, queue, warn)
        except DamagedReplyError as error:
            problem = str(error).partition("; see who else")[0]
            warn(
                f"{problem}. The search is removed from Redis and rebuilt from the folder; see who "
                "else uses this Redis"
            )
            queue.drop()
            lines = _rebuild(launched, queue, warn)
    return "\n".join(lines) or "no stage was ever launched; nothing to recover"


def _rebuild(launched: Launched, queue: TrialQueue, warn: Callable[[str], None]) -> list[str]:
    lines, begun = (
        [],
        [stage for stage in launched.search.stages if was_launched(launched.folder, stage)],
    )
    for stage in begun:
        mend_source(launched, stage, queue, warn)
        set_damaged_aside(launched.folder.stage(stage.name), warn)
    for stage in begun:
        mend_decisions(launched, stage, warn)
    for stage in begun:
        published = publish(launched, stage, queue, None, warn)
        done = published.reconciled
        lines.append(
            f"stage {stage.name}: {done.to_redis} trials taken over from the folder as ended, "
            f"{published.added} queued again, "
            f"{done.to_folder} missing records written"
        )
    return lines


def was_launched(folder: SearchFolder, stage: Stage) -> bool:
    """Return whether the folder shows that a stage was launched.

    Its ranges show that, or, if these are lost, any record.
    """
    return folder.stage(stage.name).has_begun or bool(folder.stage(stage.name).highest_attempts())


def mend_search_file(chosen: Chosen, warn: Callable[[str], None]) -> None:
    """Replace a damaged or lost search file with the user's copy. Its id comes from the records.

    Raises:
        CheckpointError: the file is damaged, and there is no copy of it or no record that has its
            id.
    """
    folder = chosen.folder
    try:
        if folder.search() is not None:
            return
        problem = None
    except ProtocolError:
        raise  # the file is sound, so it must not be replaced
    except CheckpointError as error:
        problem = error
    ids = {
        record.search_id
        for stage in chosen.search.stages
        for record in folder.stage(stage.name).records(warn)
    }
    if len(ids) != 1:
        if problem is None:
            return  # nothing shows that the search was launched
        raise CheckpointError(
            f"{problem}. Restoring it needs the search's id, and the records contain {len(ids)} "
            f"ids; to begin anew, move {folder.path} away"
        )
    for stage in chosen.search.stages:
        _check_copy(chosen, stage, warn)
    if problem is not None:
        warn(
            f"{folder.search_file}: damaged; set aside as "
            f"{durable.set_aside(folder.search_file).name}, and written anew from your copy"
        )
    place = chosen.search.folder or (
        str(chosen.base.resolve()) if chosen.search.is_command else None
    )
    restored = file_text(ids.pop(), chosen.text, _plan_of(chosen.search), place)
    durable.write_new({folder.search_file: restored.encode()})


def _plan_of(search: Search) -> list[dict[str, Any]]:
    """Return the stages that the budget plans, as launch planned them.

    Stages that were added with --more have to be added again.
    """
    return (
        search.budget.stages(resumes=search.strategy.resumes, shape=search.shape)
        if search.budget is not None
        else []
    )


def _check_copy(chosen: Chosen, stage: Stage, warn: Callable[[str], None]) -> None:
    """Check that the copy of the search file describes the trials that were trained.

    Raises:
        CheckpointError: it gives other configurations than the records have.
    """
    folder = chosen.folder.stage(stage.name)
    records = folder.records(warn)
    search = chosen.search.model_copy(update={"id": records[0].search_id if records else None})
    try:
        source = read_source(search, folder)
    except CheckpointError:
        return  # `mend_source` repairs this later and compares it then
    if not _agree(search, stage, source, records):
        raise CheckpointError(
            f"{chosen.folder.search_file}: is damaged, and your copy is not what was launched: "
            f"its trials of stage {stage.name!r} have other configurations than the records; undo "
            "the changes in your copy"
        )


def mend_source(
    launched: Launched, stage: Stage, queue: TrialQueue, warn: Callable[[str], None]
) -> None:
    """Write the frozen source of a stage again if it is damaged or lost.

    That needs something that tells what the stage samples, and it must agree with the records.

    Raises:
        CheckpointError: no such thing exists.
    """
    folder = launched.folder.stage(stage.name)
    try:
        read_source(launched.search, folder)
        return
    except CheckpointError as error:
        problem = error
    ranges, strategy = _readable_parts(launched.search, folder)
    records = [record for record in folder.records(warn) if record.search_id == launched.id]
    for known in _find_sources(launched, stage, queue, ranges, strategy, warn):
        if _agree(launched.search, stage, known, records):
            for path, part in ((folder.ranges, ranges), (folder.strategy, strategy)):
                if part is None:
                    warn(
                        f"{path}: damaged or lost; what is left of it is set aside as "
                        f"{durable.set_aside(path).name}"
                    )
            if ranges is not None:
                durable.set_aside(folder.ranges)
            write_source(folder, launched.id, known)
            return
    raise CheckpointError(
        f"{problem}. Neither Redis nor earlier stages reproduce the recorded configurations: "
        "restore the file from a backup, or from its remains"
    )


def _readable_parts(search: Search, folder: StageFolder) -> tuple[Space | None, StageSource | None]:
    """Return the content of each of the two files; None for a file that is damaged or lost."""
    ranges = strategy = None
    with suppress(CheckpointError):
        ranges = read_frozen(folder.ranges, search.space)
    with suppress(CheckpointError):
        strategy = read_strategy(search, folder)
    return ranges, strategy


def _find_sources(
    launched: Launched,
    stage: Stage,
    queue: TrialQueue,
    ranges: Space | None,
    strategy: StageSource | None,
    warn: Callable[[str], None],
) -> Iterator[StageSource]:
    """Yield what may have been frozen, the most certain first.

    The candidates come from the file that is sound, from Redis, and from the earlier stages.
    """
    search, folder = launched.search, launched.folder
    if strategy is not None and strategy.space.parameters:
        yield strategy
    spaces = [own for own in (ranges, _from_redis(search, stage, queue)) if own is not None]
    with suppress(CheckpointError, ConfigError):
        if search.before(stage.name) is None:
            yield from (first_source(search, space) for space in [*spaces, None])
            return
        before = read_before(search, folder, search.up_to(stage.name)[:-1], warn)
        yield from (make_source(search, folder, stage, before, space) for space in [*spaces, None])


def _from_redis(search: Search, stage: Stage, queue: TrialQueue) -> Space | None:
    frozen = queue.frozen(stage.name)
    if frozen is None or not stage.searches:
        return None
    try:
        return check_ranges(
            frozen.get("ranges"), f"the ranges of stage {stage.name!r} in Redis", search.space
        )
    except ConfigError:
        return None  # the copy in Redis is damaged as well


def mend_decisions(launched: Launched, stage: Stage, warn: Callable[[str], None]) -> None:
    """Set damaged promotion decisions of a stage aside. They are made again from the records.

    Raises:
        CheckpointError: a file cannot be renamed.
    """
    folder = launched.folder
    while True:
        try:
            read_decisions(folder, launched.id, [stage])
            return
        except CheckpointError as error:
            damaged = next(
                (
                    path
                    for path in folder.stage(stage.name).promotions.glob("*.json")
                    if str(error).startswith(f"{path}: ")
                ),
                None,
            )
            if damaged is None:
                raise
            warn(f"{error}; set aside as {durable.set_aside(damaged).name}")


def _agree(search: Search, stage: Stage, source: StageSource, records: list[Record]) -> bool:
    """Return whether this source gives the configurations that were trained."""
    n_trials = max((record.index + 1 for record in records), default=0)
    sampled = configurations(search, stage, source, range(n_trials))
    return all(
        sampled[record.index].hyperparameters == record.hyperparameters for record in records
    )

"""Publishing of a stage's trials.

A launch freezes what the stage samples, queues its trials, and reconciles Redis with the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from common.code.store import task_digest
from common.errors import ConfigError
from common.folder.record import Record
from common.folder.records import SearchFolder
from common.queue.reconcile import Reconciled, reconcile, restore
from common.queue.trial_queue import TrialQueue
from common.search.space import Space
from common.search.stage import Stage
from common.search.trial import Trial
from master.samplers.choose import make_sampler
from master.stages.asked import write_asked
from master.stages.asking import AskingLadder, slots_a_worker
from master.stages.distilling import choose_teacher, write_teacher
from master.stages.ladder import Ladder
from master.stages.population import Population, leave_state
from master.stages.prepare import Launched, show_value
from master.stages.promotions import Decision, write_part
from master.stages.sampling import configurations
from master.stages.source import Before, StageSource, find_source, read_before, write_source
from master.strategy.drawing import Drawn

Ladders = Ladder | AskingLadder | Population


@dataclass(frozen=True)
class Published:
    """A stage whose trials are in the queue."""

    stage: Stage
    source: StageSource
    trials: Sequence[Trial]  # its own, with their current budgets
    added: int
    reconciled: Reconciled
    ladder: Ladders

    @property
    def space(self) -> Space:
        """The ranges that the stage samples."""
        return self.source.space


def publish(
    launched: Launched,
    stage: Stage,
    queue: TrialQueue,
    ranges_file: Path | None,
    warn: Callable[[str], None],
    holds_last: bool = False,
    before_trials: Callable[[], object] = lambda: None,
) -> Published:
    """Freeze a stage's ranges and options, queue its trials, and reconcile Redis with the folder.

    Args:
        launched: the search.
        stage: one of its stages.
        queue: the search's queue.
        ranges_file: the file of ``--ranges``, if any.
        warn: called with a message about each damaged record.
        holds_last: whether its last rung waits for the next stage, beside which it runs.
        before_trials: called once the stage is frozen and before its trials are queued.

    Raises:
        ConfigError: the stage before is unfinished, or ``ranges_file`` is wrong or comes too late.
        QueueError: Redis cannot be reached.
        CheckpointError: the folder cannot be written.
    """
    search, folder = launched.search, launched.folder.stage(stage.name)
    source = find_source(search, launched.folder, stage, ranges_file, warn)
    queue.register(search.name)
    _freeze(queue, stage, frozen_options(launched, stage, source))
    folder.make()
    if stage.traits.distills:
        write_teacher(
            launched.folder, stage, lambda: choose_teacher(search, launched.folder, stage, warn)
        )
    write_source(folder, launched.id, source)
    before_trials()
    attempts = folder.highest_attempts()
    if attempts:
        folder.records(warn, set_aside=True)
    begun = [own for own in search.stages if launched.folder.stage(own.name).has_begun]
    before = read_before(search, launched.folder, begun, warn)
    n_trials = stage.trials if source.asked is None else len(source.asked)
    for trial in configurations(search, stage, source, range(n_trials)):
        before.standings.add(trial)
    for decision in before.decisions:
        before.standings.promote(decision)
    _decide_again(launched, stage, before)
    own, earlier = (
        before.standings.of_stage(stage.name),
        before.standings.find_unfinished_besides(stage.name),
    )
    added, reconciled = _bring_together(
        launched, queue, [*earlier, *before.standings.costliest_first(own)], before.records
    )
    ladder = make_ladder(launched, stage, source, before, holds_last)
    for trial_id, _, result in queue.read_ended():
        ladder.note(trial_id, result)
    return Published(stage, source, own, added, reconciled, ladder)


def _decide_again(launched: Launched, stage: Stage, before: Before) -> None:
    """Make lost decisions of earlier stages again.

    Otherwise this stage would take the trials promoted there for its own.
    """
    for earlier in launched.search.up_to(stage.name)[:-1]:
        own = [decision for decision in before.decisions if decision.stage == earlier.name]
        all_known = len(before.standings.of_stage(earlier.name)) == earlier.trials
        if (
            earlier.searches
            and not launched.search.asks
            and all_known
            and not all(decision.complete for decision in own)
        ):
            Ladder(
                earlier, before.standings, own, partial(write_part, launched.folder, launched.id)
            ).advance()


def _bring_together(
    launched: Launched, queue: TrialQueue, trials: Sequence[Trial], records: Sequence[Record]
) -> tuple[int, Reconciled]:
    """Publish trials that Redis lacks, repeat promotions, and reconcile Redis with the folder."""
    attempts = _attempts_of(launched.folder, trials)
    restored = restore(queue, trials, records, attempts)
    added = queue.publish(trials, attempts)
    done = Reconciled()
    if records or added < len(trials):
        done = reconcile(queue, launched.folder, trials, records)
    # Promote last, because a record of the longer budget may have ended a trial already.
    queue.promote([trial for trial in trials if trial.rung], attempts)
    return added, Reconciled(done.to_redis + restored, done.to_folder)


def queue_again(queue: TrialQueue, folder: SearchFolder, trials: Sequence[Trial]) -> list[Trial]:
    """Queue trials for their longer budget. Return those that must be sent to Redis again.

    The trials are published first: a Redis that was emptied may not know one of an earlier stage.
    """
    attempts = _attempts_of(folder, trials)
    queue.publish(trials, attempts)
    return queue.promote(trials, attempts)


def _attempts_of(folder: SearchFolder, trials: Sequence[Trial]) -> dict[str, int]:
    """Return the highest attempt of each trial that left anything in the folder.

    No attempt number is used twice.
    """
    attempts: dict[str, int] = {}
    for name in {trial.stage for trial in trials}:
        attempts |= folder.stage(name).highest_attempts()
    return attempts


def make_ladder(
    launched: Launched, stage: Stage, source: StageSource, before: Before, holds_last: bool
) -> Ladders:
    """Return the ladder that decides which trials of a stage train next.

    It is made from what the folder knows of the stage.
    """
    search, folder = launched.search, launched.folder

    def write(known: Decision, trials: Sequence[str], complete: bool) -> Decision:
        return write_part(folder, launched.id, known, trials, complete)

    def add(first: int, drawn: Sequence[Drawn]) -> list[Trial]:
        asked = write_asked(folder.stage(stage.name), launched.id, first, drawn)
        own = replace(source, asked=(*[Drawn({}, "")] * first, *asked))
        return configurations(search, stage, own, range(first, first + len(asked)))

    own = [decision for decision in before.decisions if decision.stage == stage.name]
    if source.asked is None:
        return Ladder(stage, before.standings, own, write, holds_last)
    if search.sampler == "pbt":
        leave = partial(leave_state, folder)
        return Population(search, stage, source.space, before.standings, own, write, add, leave)
    sampler = make_sampler(search, source.space, stage.name)
    slots = search.budget.slots if search.budget is not None else None
    return AskingLadder(
        stage, before.standings, own, write, sampler, add, slots, slots_a_worker(search.sampler)
    )


def frozen_options(launched: Launched, stage: Stage, source: StageSource) -> dict[str, Any]:
    """Return the options that a stage's first launch freezes in Redis.

    The number of trials is not among them.
    """
    search = launched.search
    rule = search.explosion if stage.explosion is None else stage.explosion
    return {
        "ranges": source.space.plain(),
        "strategy": source.digest,
        "seed": search.seed,
        "sampler": search.sampler,
        "epochs": stage.epochs,
        "rungs": list(stage.rungs),
        "task": search.task,
        "task_digest": task_digest(search, launched.folder),
        "explosion_factor": search.explosion_factor if rule is True else rule,
    }


def _freeze(queue: TrialQueue, stage: Stage, wanted: dict[str, Any]) -> None:
    stored = queue.freeze(stage.name, wanted)
    lines = [
        f"{key}: {show_value(stored.get(key))} -> {show_value(wanted[key])}"
        for key in wanted
        if stored.get(key) != wanted[key]
    ]
    if lines:
        listed = "\n  ".join(lines)
        raise ConfigError(
            f"stage {stage.name!r} was launched before with other options:\n  {listed}\n"
            "put them back, or use --new-name NAME"
        )

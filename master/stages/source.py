"""Sources of a stage's configurations: ranges, earlier trials, or configurations that are repeated.

The first launch of a stage fixes its source in two files of the stage's folder: ``ranges.toml``,
which people read and edit, and ``strategy.json``, which is written before it. Configuration n is a
pure function of these two files and the seed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import safe_read
from common.errors import CheckpointError, ConfigError
from common.folder import durable
from common.folder.record import Record
from common.folder.records import SearchFolder, StageFolder
from common.search.check_space import check_space
from common.search.parameters import Fixed
from common.search.search_file import Search
from common.search.space import Space
from common.search.stage import Stage
from common.search.values import Hyperparameters, is_value
from common.shell_command import recover_remedy, shell_command
from master.results import confirming, ranking
from master.stages.asked import read_asked
from master.stages.distilling import make_distilled_space
from master.stages.promotions import Decision, read_decisions
from master.stages.standings import VERDICTS, Standings, make_seen
from master.strategy.box import Proposal, propose
from master.strategy.drawing import Drawn
from master.strategy.freezing import Frozen, Seen, freeze
from master.strategy.guessing import guessing_of, look_of
from master.strategy.ranges import load_ranges, read_frozen, read_proposal, write_frozen

FORMAT = 1
MEASURED = (
    "curves",
    "metric",
    "mode",
    "n_val",
    "guess_acc",
    "guess_loss",
    "epoch_steps",
)  # fields that the record of a master's verdict lacks
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Repeat:
    """A configuration that a stage trains again, and the trial that had it."""

    trial: str
    hyperparameters: Hyperparameters


@dataclass(frozen=True)
class StageSource:
    """Source of a stage's configurations.

    Attributes:
        space: the ranges that the stage samples.
        frozen: what is frozen of a stage that is bred from earlier ones; else None.
        repeats: the configurations of a stage that trains earlier trials again.
        asked: the configurations so far, of a stage that draws them one after another; else None.
    """

    space: Space
    frozen: Frozen | None = None
    repeats: tuple[Repeat, ...] = ()
    asked: tuple[Drawn, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``strategy.json``, without the search's id."""
        return {
            "format": FORMAT,
            "frozen": self.frozen.as_json() if self.frozen is not None else None,
            "repeats": [
                {"trial": own.trial, "hyperparameters": own.hyperparameters} for own in self.repeats
            ],
        }

    @property
    def digest(self) -> str:
        """Digest of what is frozen, which does not depend on its spelling."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Before:
    """Records, decisions and standings of the stages before one."""

    records: Sequence[Record]
    decisions: Sequence[Decision]
    standings: Standings


def read_before(
    search: Search, folder: SearchFolder, stages: Sequence[Stage], warn: Callable[[str], None]
) -> Before:
    """Return what the folder knows of these stages.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    own = str(search.id)
    found = [
        (place, record)
        for place in [folder.stage(stage.name) for stage in stages]
        for record in place.records(warn)
    ]
    records = [_with_curves(place, record) for place, record in found if record.search_id == own]
    decisions = read_decisions(folder, own, [stage for stage in stages if stage.searches])
    standings = Standings(search)
    for record in records:
        standings.add_record(record)
    for decision in decisions:
        standings.promote(decision)
    return Before(records, decisions, standings)


def _with_curves(folder: StageFolder, record: Record) -> Record:
    """Return a record with the curves of its earlier rungs.

    A master's verdict has none, so they come from the trial's last attempt that has curves.
    """
    if record.curves or not record.passed or record.state not in VERDICTS:
        return record
    for attempt in range(record.attempt - 1, 0, -1):
        earlier = folder.record(record.trial, attempt)
        if earlier is not None and earlier.search_id == record.search_id and earlier.curves:
            return record.model_copy(update={name: getattr(earlier, name) for name in MEASURED})
    return record


def find_source(
    search: Search,
    folder: SearchFolder,
    stage: Stage,
    ranges_file: Path | None,
    warn: Callable[[str], None],
) -> StageSource:
    """Return what ``stage`` samples: as it was frozen, or as it is to be frozen now.

    Raises:
        ConfigError: the stage before is unfinished or has no best trial, or ``ranges_file`` is
            wrong, comes too late, or has no use.
        CheckpointError: what was frozen is damaged.
    """
    if ranges_file and not stage.searches:
        raise ConfigError(
            f"--ranges {ranges_file}: stage {stage.name!r} trains configurations of earlier stages "
            "again and samples no ranges; leave it out"
        )
    given = load_ranges(ranges_file, search.space) if ranges_file else None
    if given is not None:
        check_space(search.task, given, f"{ranges_file}:")
    own = folder.stage(stage.name)
    if own.has_begun:
        source = read_source(search, own)
        if given is not None and given != source.space:
            raise ConfigError(
                f"--ranges {ranges_file}: stage {stage.name!r} has begun with the ranges in "
                f"{own.ranges}; use --new-name NAME for others"
            )
        return source
    if search.before(stage.name) is None:
        return first_source(search, given)
    before = read_before(search, folder, search.up_to(stage.name)[:-1], warn)
    _check_finished(search, stage, before)
    return make_source(search, folder, stage, before, given)


def first_source(search: Search, given: Space | None = None) -> StageSource:
    """Return what the first stage samples."""
    space = given or search.space
    if search.asks:
        return StageSource(space, asked=())
    return StageSource(
        space, freeze(search.space, space, ()) if search.sampler == "staged" else None
    )


def make_source(
    search: Search, folder: SearchFolder, stage: Stage, before: Before, given: Space | None = None
) -> StageSource:
    """Return what a later stage samples, from what the folder knows of the stages before it."""
    if not stage.searches:
        return _make_repeating(search, stage, before.records)
    seen = read_seen_before(search, folder, stage, before)
    space = given or next_space(search, folder, stage, seen)
    if search.asks:
        return StageSource(space, asked=())
    return StageSource(
        space, freeze(search.space, space, seen) if search.sampler == "staged" else None
    )


def read_seen_before(
    search: Search, folder: SearchFolder, stage: Stage, before: Before
) -> list[Seen]:
    """Return what ``stage`` may know of earlier trials. The answer is the same at any time.

    What trials of earlier stages reached in this stage or a later one is left out. With ``overlap``
    the last rung of the stage before runs beside this one. So its outcome is left out, whether it
    has ended or not. If the best trial cannot be told from guessing, nothing is known: the stage
    draws from its whole ranges, and no range moves.
    """
    previous = search.find_searched_before(stage.name)
    names = [own.name for own in search.stages]
    later = [own for own in search.stages[names.index(stage.name) :] if own.searches]
    unseen: dict[str, float] = {}
    for decision in read_decisions(folder, str(search.id), later):
        for trial in decision.trials:
            unseen.setdefault(trial, decision.epochs)
    if search.overlaps and previous is not None and len(previous.plan.rungs) > 1:
        last = next(
            d
            for d in before.decisions
            if (d.stage, d.epochs) == (previous.name, previous.plan.rungs[-1])
        )
        unseen |= dict.fromkeys(last.trials, last.epochs)
    positions = {own.name: number for number, own in enumerate(search.stages)}
    records = [record for record in before.records if search.stage(record.stage).searches]
    if (
        guessing_of([look_of(record, unseen.get(record.trial, math.inf)) for record in records])
        is not None
    ):
        return []
    sign = 1.0 if search.mode == "max" else -1.0
    return make_seen(records, positions, sign, unseen, search.constraints)


def next_space(search: Search, folder: SearchFolder, stage: Stage, seen: Sequence[Seen]) -> Space:
    """Return the ranges of ``stage``.

    They are the proposal of the stage before, which the user may have edited. If there is no
    proposal, it is made now.
    """
    previous = search.find_searched_before(stage.name)
    assert previous is not None  # the first stage always searches
    path = folder.stage(previous.name).ranges
    proposal = read_proposal(path, search.space)
    if proposal is not None:
        check_space(search.task, proposal, f"{path}: [next.ranges]")
        return proposal
    return propose(search.space, read_frozen(path, search.space), seen).space


def make_proposal(
    search: Search, folder: SearchFolder, stage: Stage, following: Stage, before: Before
) -> Proposal:
    """Return the ranges that ``following`` is going to sample, with the reasons.

    Args:
        search: the search as launched.
        folder: its folder.
        stage: the last stage before ``following`` that searched.
        following: the next stage.
        before: what is known of all stages up to and including ``stage``.
    """
    seen = read_seen_before(search, folder, following, before)
    return propose(search.space, read_frozen(folder.stage(stage.name).ranges, search.space), seen)


def write_source(folder: StageFolder, search_id: str, source: StageSource) -> None:
    """Freeze what a stage samples. What is frozen already stays, because the first launch counts.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    # If the stage has not begun, a strategy.json is the rest of a launch that was cut off.
    if not folder.has_begun:
        content = json.dumps({"search_id": search_id, **source.as_json()}, indent=1)
        durable.replace(folder.strategy, content.encode())
    write_frozen(folder.ranges, source.space, [own.trial for own in source.repeats])


def read_source(search: Search, folder: StageFolder) -> StageSource:
    """Return what a stage that has begun samples.

    Raises:
        CheckpointError: one of the two files is damaged or lost.
    """
    space = read_frozen(folder.ranges, search.space)
    source = read_strategy(search, folder)
    asked = (
        tuple(read_asked(folder, str(search.id))) if search.asks and not source.repeats else None
    )
    return replace(
        source, space=space, frozen=source.frozen and replace(source.frozen, box=space), asked=asked
    )


def read_strategy(search: Search, folder: StageFolder) -> StageSource:
    """Return what ``strategy.json`` holds, with the ranges that it was made with.

    Raises:
        CheckpointError: it is damaged or lost.
    """
    try:
        raw = json.loads(safe_read.read_bytes(folder.strategy, MAX_BYTES))
    except FileNotFoundError:
        raise CheckpointError(f"{folder.strategy}: is lost; {recover_remedy()}") from None
    except OSError as error:
        raise durable.explain_os_error(error, folder.strategy) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{folder.strategy}: is damaged ({error}); {recover_remedy()}"
        ) from None
    if (
        not isinstance(raw, dict)
        or raw.get("format") != FORMAT
        or raw.get("search_id") != search.id
    ):
        raise CheckpointError(
            f"{folder.strategy}: was not written by this search; {recover_remedy()}"
        )
    frozen = None
    if raw.get("frozen") is not None:
        frozen = Frozen.from_json(raw["frozen"], search.space, str(folder.strategy))
    repeats = _read_repeats(raw.get("repeats"), folder.strategy)
    return StageSource(frozen.box if frozen is not None else Space({}), frozen, repeats)


def _read_repeats(raw: object, path: Path) -> tuple[Repeat, ...]:
    if not isinstance(raw, list):
        raise CheckpointError(f"{path}: repeats = {raw!r} is not a list; {recover_remedy()}")
    found = []
    for own in raw:
        named = isinstance(own, dict) and isinstance(own.get("trial"), str)
        values = own.get("hyperparameters") if named else None
        if not isinstance(values, dict) or not is_value(values):
            raise CheckpointError(
                f"{path}: {own!r} is not a trial with its configuration; {recover_remedy()}"
            )
        found.append(Repeat(own["trial"], values))
    return tuple(found)


def _check_finished(search: Search, stage: Stage, before: Before) -> None:
    """Check that the stages before have ended, as far as ``stage`` has to know them.

    Raises:
        ConfigError: one has not.
    """
    held = search.find_searched_before(stage.name) if search.overlaps and stage.searches else None
    for own in search.up_to(stage.name)[:-1]:
        n_ended = sum(record.stage == own.name for record in before.records)
        last = own.plan.rungs[-1] if own is held and len(own.plan.rungs) > 1 else None
        undecided = [
            d
            for d in before.decisions
            if d.stage == own.name and not d.complete and d.epochs != last
        ]
        if n_ended < own.trials or undecided:
            how_far = (
                f"has ended {n_ended} of {own.trials} trials"
                if n_ended < own.trials
                else "has rungs to go"
            )
            raise ConfigError(
                f"--stage {stage.name}: the stage before it, {own.name!r}, {how_far}; run "
                f"`{_launch(search, own)}` first, or --stage all"
            )
    promised = {
        trial for d in before.decisions if held and d.stage == held.name for trial in d.trials
    }
    waiting = [trial.id for trial in before.standings.find_unfinished() if trial.id not in promised]
    if waiting:
        raise ConfigError(
            f"--stage {stage.name}: {len(waiting)} trials of earlier stages have not ended "
            f"({', '.join(waiting[:3])}); run `{_launch(search, search.up_to(stage.name)[-2])}` "
            "first, or --stage all"
        )


def _make_repeating(search: Search, stage: Stage, records: Sequence[Record]) -> StageSource:
    """Return a source that repeats the best configurations of all stages before.

    If one configuration is repeated, it is the one that the last stage of kind "confirm" picked, if
    any.
    """
    n = stage.best if stage.traits.several else 1
    searched = [record for record in records if search.stage(record.stage).searches]
    top = _find_confirmed(search, records, searched) if n == 1 else []
    top = top or ranking.best_configurations(searched, n)
    if not top:
        raise ConfigError(
            f"--stage {stage.name}: no trial of the stages before it completed"
            f"{' and satisfies subject_to' if search.subject_to else ''}, so there is no best "
            f"configuration to train again; `{shell_command('master rank')}` says why, and "
            "--new-name NAME launches anew with other ranges"
        )
    repeats = tuple(Repeat(record.trial, dict(record.hyperparameters)) for record in top)
    fixed = Space({name: Fixed(value) for name, value in top[0].hyperparameters.items()})
    return StageSource(
        make_distilled_space(search.space, fixed) if stage.traits.distills else fixed,
        None,
        repeats,
    )


def _find_confirmed(
    search: Search, records: Sequence[Record], searched: Sequence[Record]
) -> list[Record]:
    """Return the trial whose configuration the last stage of kind "confirm" picked.

    The list is empty if there was no such stage.
    """
    stages = [record.stage for record in records if search.stage(record.stage).traits.picks]
    own = [record for record in records if stages and record.stage == stages[-1]]
    pick = confirming.confirm(own, searched, len(searched)).pick if own else None
    return [record for record in searched if pick is not None and record.trial == pick.trial]


def _launch(search: Search, stage: Stage) -> str:
    return shell_command("master launch", "--search", search.name, "--stage", stage.name)

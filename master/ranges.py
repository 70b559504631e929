"""``ranges.toml`` in a stage's folder: the ranges that it samples, frozen, and those proposed for the next stage.

    [ranges]          what this stage samples; in a stage of seeds one configuration, and above it seeds_of = "fine-0012"
    [next]            stage = "fine", digest = what [next.ranges] was when it was written
    [next.ranges]     the proposal, which may be edited

A proposal that was edited is never overwritten: its digest tells, and a newer one goes to ``ranges.proposed.toml`` beside it.
"""

from __future__ import annotations

import hashlib
import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from common import durable
from common.errors import CheckpointError, ConfigError
from common.search import read_text
from common.space import Fixed, Parameter, Space
from master.stages import Proposal

PROPOSED_NAME = "ranges.proposed.toml"
COMMENT_WIDTH = 100  # characters of a comment's line
FROZEN_HEADER = "The ranges that this stage samples. They were frozen when it was launched; a change here has no effect."
SEEDS_HEADER = (
    "The configuration that each trial of this stage has: that of the best trial of the stage before, {trial}. It was frozen when the "
    "stage was launched; a change here has no effect."
)
NEXT_HEADER = (
    "The ranges proposed for the next stage. Edit them as you like: master launch --search {search} --stage {stage} samples what is here, "
    "or a copy named with --ranges FILE. An edited proposal is never overwritten."
)


@dataclass(frozen=True)
class Written:
    """Where a proposal went. ``edited``: the one in ``ranges.toml`` was edited, so it stays and the new one lies beside it."""

    path: Path
    edited: bool = False


def write_frozen(path: Path, space: Space, seeds_of: str | None = None) -> None:
    """Freezes a stage's ranges; a file that is there already stays, for the first launch counts.

    Args:
        path: its ``ranges.toml``.
        space: the ranges; of a stage of seeds, the one configuration.
        seeds_of: the trial that has this configuration.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    document = tomlkit.document()
    _comment(document, SEEDS_HEADER.format(trial=seeds_of) if seeds_of else FROZEN_HEADER)
    if seeds_of:
        document["seeds_of"] = seeds_of
    document["ranges"] = _ranges_table(space, {})
    durable.write_new({path: tomlkit.dumps(document).encode()})


def read_frozen(path: Path, space: Space) -> Space:
    """The ranges that a stage samples.

    Args:
        path: its ``ranges.toml``.
        space: the search's ``[space]``.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        raw = _parse(path)
        if "ranges" not in raw:
            raise ConfigError(f"{path}: the table [ranges] is missing")
        if "seeds_of" in raw:
            return configuration(raw["ranges"], f"{path}: [ranges]", space)
        return checked(raw["ranges"], f"{path}: [ranges]", space)
    except ConfigError as error:
        raise CheckpointError(
            f"{error} (the stage's frozen ranges; undo what was changed, or let `master recover` set the file aside and write it anew)"
        ) from None


def write_proposal(path: Path, stage: str, proposal: Proposal) -> Written:
    """Writes the proposal for ``stage`` into the ``ranges.toml`` of the stage before it, or beside it if that was edited.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        document = tomlkit.parse(read_text(path)) if path.exists() else tomlkit.document()
    except (TOMLKitError, ValueError, RecursionError, ConfigError):
        return _write_beside(path, stage, proposal)  # nobody but a user writes what cannot be read
    if _was_edited(document.unwrap().get("next")):
        following = document.unwrap()["next"]
        if isinstance(following, Mapping) and _digest(following.get("ranges")) == _digest(proposal.space.plain()):
            return Written(path)
        return _write_beside(path, stage, proposal)
    document.pop("next", None)
    document["next"] = _next_table(path, stage, proposal)
    durable.replace(path, tomlkit.dumps(document).encode())
    return Written(path)


def read_proposal(path: Path, space: Space) -> Space | None:
    """The proposal in a stage's ``ranges.toml``, edited or not; None if there is none yet.

    Raises:
        ConfigError: it was edited into something that cannot be sampled.
    """
    if not path.exists():
        return None
    raw = _parse(path).get("next", {})
    return checked(raw["ranges"], f"{path}: [next.ranges]", space) if isinstance(raw, Mapping) and "ranges" in raw else None


def load_ranges(path: Path, space: Space) -> Space:
    """The ranges in a file that the user names: the proposal of a ``ranges.toml``, or a plain ``[ranges]`` or ``[space]``.

    Args:
        path: of ``--ranges``.
        space: the search's ``[space]``, which says what there is and how far it may go.

    Raises:
        ConfigError: with the place, the value and the remedy.
    """
    if not path.exists():
        raise ConfigError(f"--ranges {path}: no such file; a launched stage has one in its folder, ranges.toml")
    raw = _parse(path)
    following = raw.get("next")
    if isinstance(following, Mapping) and "ranges" in following:
        return checked(following["ranges"], f"{path}: [next.ranges]", space)
    for name in ("ranges", "space"):
        if name in raw:
            return checked(raw[name], f"{path}: [{name}]", space)
    raise ConfigError(f"{path}: holds none of the tables [next.ranges], [ranges], [space]; write the ranges under [ranges]")


def checked(raw: object, place: str, space: Space) -> Space:
    """Ranges that fit the search: the same hyperparameters, sampled the same way, within their limits, in the same order.

    Raises:
        ConfigError: with the place, the value and the remedy.
    """
    given = Space.parse(raw, place)
    for name in given.parameters:
        if name not in space.parameters:
            raise ConfigError(
                f"{place} {name}: the search has no such hyperparameter; remove it or use one of {', '.join(space.parameters)}"
            )
    for name, own in space.parameters.items():
        if name not in given.parameters:
            raise ConfigError(f"{place}: {name} is missing; add {name} = {_inline(own)}")
    return Space({name: _fitting(name, given, f"{place} {name}", space) for name in space.parameters})


def configuration(raw: object, place: str, space: Space) -> Space:
    """One configuration of the search, as plain values in the order of its space.

    Raises:
        ConfigError: a hyperparameter is missing, unknown, or not a plain value.
    """
    given = Space.parse(raw, place)
    if given.sampled:
        raise ConfigError(f"{place} {next(iter(given.sampled))}: a stage of seeds has one configuration; write a plain value")
    if set(given.parameters) != set(space.parameters):
        raise ConfigError(f"{place}: has {', '.join(given.parameters)}; the search has {', '.join(space.parameters)}")
    return Space({name: given.parameters[name] for name in space.parameters})


def _fitting(name: str, given: Space, place: str, space: Space) -> Parameter:
    parameter, own = given.parameters[name], space.parameters[name]
    if parameter.kind != own.kind:
        raise ConfigError(f"{place} = {_inline(parameter)}: is {own.kind} in the search; write it the same way, as in {_inline(own)}")
    if name not in space.numeric:
        return parameter
    low, high = space.limits(name)
    interval = given.numeric[name]
    if interval.low < low or interval.high > high:
        raise ConfigError(
            f"{place}: the range [{interval.low:g}, {interval.high:g}] leaves what is allowed, [{low:g}, {high:g}]; "
            f"stay inside it, or give {name} other limits in the search file"
        )
    return replace(interval, limits=space.numeric[name].limits)


def _parse(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        return tomlkit.parse(text).unwrap()
    except (TOMLKitError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}; strings need quotes, tables [brackets]") from None


def _write_beside(path: Path, stage: str, proposal: Proposal) -> Written:
    beside = path.with_name(PROPOSED_NAME)
    document = tomlkit.document()
    document["next"] = _next_table(beside, stage, proposal)
    durable.replace(beside, tomlkit.dumps(document).encode())
    return Written(beside, edited=True)


def _was_edited(following: object) -> bool:
    """Whether a user has been at it: what is there is not what its digest says."""
    if following is None:
        return False
    return not isinstance(following, Mapping) or following.get("digest") != _digest(following.get("ranges"))


def _digest(ranges: object) -> str:
    """Names the values, whatever their order and spelling."""
    return hashlib.sha256(json.dumps(_canonical(ranges), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _canonical(value: object) -> object:
    """Whole floats as whole numbers, since 1.0 and 1 are the same end."""
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value


def _next_table(path: Path, stage: str, proposal: Proposal) -> Table:
    table = tomlkit.table()
    _comment(table, NEXT_HEADER.format(stage=stage, search=path.absolute().parent.parent.name))
    table["stage"] = stage
    table["digest"] = _digest(proposal.space.plain())
    table["ranges"] = _ranges_table(proposal.space, proposal.notes)
    return table


def _ranges_table(space: Space, notes: Mapping[str, str]) -> Table:
    table = tomlkit.table()
    for name, parameter in space.parameters.items():
        if name in notes:
            _comment(table, notes[name])
        table[name] = _item(parameter)
    return table


def _item(parameter: Parameter) -> Any:
    if isinstance(parameter, Fixed):
        return parameter.value
    inline = tomlkit.inline_table()
    inline.update(parameter.plain())
    return inline


def _inline(parameter: Parameter) -> str:
    """As one writes it in the file."""
    return str(tomlkit.item(_item(parameter)).as_string())


def _comment(table: Any, text: str) -> None:
    printable = "".join(c if c.isprintable() else " " for c in text)  # an option's name may hold anything
    for line in textwrap.wrap(printable, COMMENT_WIDTH, break_long_words=False, break_on_hyphens=False):
        table.add(tomlkit.comment(line))

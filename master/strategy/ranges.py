"""``ranges.toml`` in a stage's folder: the frozen ranges, and those proposed for the next stage.

    [ranges]        the ranges that this stage samples; if it trains earlier trials again, the
                    values of the best one, and above the table repeats = ["fine-0012"]
    [next]          stage = "fine", digest = hash of [next.ranges] when it was written
    [next.ranges]   the proposal, which may be edited

An edited proposal is never overwritten. The digest shows that it was edited, and a newer proposal
is written to ``ranges.proposed.toml`` beside it.
"""

from __future__ import annotations

import hashlib
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from common.errors import CheckpointError, ConfigError
from common.folder import durable
from common.search.parameters import Fixed, Parameter
from common.search.search_file import read_text
from common.search.space import Space
from common.shell_command import recover_remedy
from master.strategy.box import Proposal

PROPOSED_NAME = "ranges.proposed.toml"
COMMENT_WIDTH = 100  # characters of a comment line
FROZEN_HEADER = (
    "The ranges that this stage samples. They were frozen when it was launched; a change here has "
    "no effect."
)
REPEATS_HEADER = (
    "This stage trains the configurations of {trials} again; these are the first one's values. "
    "They were frozen when the stage was launched; a change here has no effect."
)
# Prefix of the hyperparameters that a stage of kind "distill" samples beside those of the search.
DISTILLING = "distill_"
NEXT_HEADER = (
    "The ranges proposed for the next stage. Edit them as you like: master launch --search "
    "{search} --stage {stage} samples what is here, or a copy named with --ranges FILE. An edited "
    "proposal is never overwritten."
)


@dataclass(frozen=True)
class Written:
    """Where a proposal was written.

    ``edited`` is whether the one in ``ranges.toml`` was edited. Then it stays, and the new one lies
    beside it.
    """

    path: Path
    edited: bool = False


def write_frozen(path: Path, space: Space, repeats: Sequence[str] = ()) -> None:
    """Freeze the ranges of a stage. An existing file stays, because the first launch counts.

    Args:
        path: the ``ranges.toml`` of the stage.
        space: the ranges; if the stage trains earlier trials again, the values of the first one.
        repeats: the trials whose configurations the stage trains again.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    document = tomlkit.document()
    _comment(
        document, REPEATS_HEADER.format(trials=", ".join(repeats)) if repeats else FROZEN_HEADER
    )
    if repeats:
        document["repeats"] = list(repeats)
    document["ranges"] = write_table(space)
    durable.write_new({path: tomlkit.dumps(document).encode()})


def read_frozen(path: Path, space: Space) -> Space:
    """Return the ranges that a stage samples.

    Args:
        path: the ``ranges.toml`` of the stage.
        space: the ``[space]`` of the search.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        raw = _parse(path)
        if "ranges" not in raw:
            raise ConfigError(f"{path}: the table [ranges] is missing")
        if "repeats" in raw:
            return read_repeated(raw["ranges"], f"{path}: [ranges]", space)
        return check_ranges(raw["ranges"], f"{path}: [ranges]", space)
    except ConfigError as error:
        raise CheckpointError(f"{error} (the stage's frozen ranges; {recover_remedy()})") from None


def write_proposal(path: Path, stage: str, proposal: Proposal) -> Written:
    """Write the proposal for ``stage`` into the ``ranges.toml`` of the previous stage.

    If the proposal in that file was edited, write the new one into a file beside it.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        document = tomlkit.parse(read_text(path)) if path.exists() else tomlkit.document()
    except (TOMLKitError, ValueError, RecursionError, ConfigError):
        # Only an edit by a user can make the file unreadable.
        return _write_beside(path, stage, proposal)
    if _was_edited(document.unwrap().get("next")):
        following = document.unwrap()["next"]
        if isinstance(following, Mapping) and _digest(following.get("ranges")) == _digest(
            proposal.space.plain()
        ):
            return Written(path)
        return _write_beside(path, stage, proposal)
    document.pop("next", None)
    document["next"] = _next_table(path, stage, proposal)
    durable.replace(path, tomlkit.dumps(document).encode())
    return Written(path)


def read_proposal(path: Path, space: Space) -> Space | None:
    """Return the proposal in a stage's ``ranges.toml``, edited or not; None if there is none yet.

    Raises:
        ConfigError: the proposal was edited into something that cannot be sampled.
    """
    if not path.exists():
        return None
    raw = _parse(path).get("next", {})
    return (
        check_ranges(raw["ranges"], f"{path}: [next.ranges]", space)
        if isinstance(raw, Mapping) and "ranges" in raw
        else None
    )


def load_ranges(path: Path, space: Space) -> Space:
    """Return the ranges in a file that the user names.

    They are the proposal of a ``ranges.toml``, or a plain table ``[ranges]`` or ``[space]``.

    Args:
        path: the value of ``--ranges``.
        space: the ``[space]`` of the search, which has the names and limits of the hyperparameters.

    Raises:
        ConfigError: with the place, the value and the remedy.
    """
    if not path.exists():
        raise ConfigError(
            f"--ranges {path}: no such file; a launched stage has one in its folder, ranges.toml"
        )
    raw = _parse(path)
    following = raw.get("next")
    if isinstance(following, Mapping) and "ranges" in following:
        return check_ranges(following["ranges"], f"{path}: [next.ranges]", space)
    for name in ("ranges", "space"):
        if name in raw:
            return check_ranges(raw[name], f"{path}: [{name}]", space)
    raise ConfigError(
        f"{path}: holds none of the tables [next.ranges], [ranges], [space]; "
        "write the ranges under [ranges]"
    )


def check_ranges(raw: object, place: str, space: Space) -> Space:
    """Return the ranges in ``raw``, checked against the search.

    They must have the same hyperparameters, sampled the same way and within their limits. The
    result has the order of the search's space.

    Raises:
        ConfigError: with the place, the value and the remedy.
    """
    given = Space.parse(raw, place)
    for name in given.parameters:
        if name not in space.parameters:
            raise ConfigError(
                f"{place} {name}: the search has no such hyperparameter; remove it or use one of "
                f"{', '.join(space.parameters)}"
            )
    for name, own in space.parameters.items():
        if name not in given.parameters:
            raise ConfigError(f"{place}: {name} is missing; add {name} = {_inline(own)}")
    return Space(
        {name: _fitting(name, given, f"{place} {name}", space) for name in space.parameters}
    )


def read_repeated(raw: object, place: str, space: Space) -> Space:
    """Return one configuration of the search, as plain values in the order of its space.

    The hyperparameters of distillation may be sampled.

    Raises:
        ConfigError: a hyperparameter is missing, unknown, or not a plain value.
    """
    given = Space.parse(raw, place)
    own = [
        name
        for name in given.parameters
        if name in space.parameters or not name.startswith(DISTILLING)
    ]
    if sampled := [name for name in given.sampled if not name.startswith(DISTILLING)]:
        raise ConfigError(
            f"{place} {sampled[0]}: this stage repeats a configuration; write a plain value"
        )
    values = {name: p.value for name, p in given.parameters.items() if isinstance(p, Fixed)}
    absent = space.find_absent(values)
    wanted = [name for name in space.parameters if name not in absent]
    if set(own) != set(wanted):
        raise ConfigError(f"{place}: has {', '.join(own)}; the search has {', '.join(wanted)}")
    more = [name for name in given.parameters if name not in space.parameters]
    return Space({name: given.parameters[name] for name in [*wanted, *more]})


def _fitting(name: str, given: Space, place: str, space: Space) -> Parameter:
    parameter, own = given.parameters[name], space.parameters[name]
    if parameter.kind != own.kind:
        raise ConfigError(
            f"{place} = {_inline(parameter)}: is {own.kind} in the search; write it the same way, "
            f"as in {_inline(own)}"
        )
    if parameter.when is not None and parameter.when != own.when:
        told = f"is {own.when.text!r}" if own.when is not None else "has none"
        raise ConfigError(
            f"{place}: when = {parameter.when.text!r}, and in the search it {told}; a condition "
            "stays the same in all stages: put it back, or leave when out"
        )
    if name not in space.ranged:
        return replace(parameter, when=own.when)
    low, high = space.limits(name)
    interval = given.ranged[name]
    if interval.low < low or interval.high > high:
        raise ConfigError(
            f"{place}: the range [{interval.low:g}, {interval.high:g}] exceeds the limits "
            f"[{low:g}, {high:g}]; stay inside them, or give {name} others in the search file"
        )
    return replace(interval, limits=space.ranged[name].limits, when=own.when)


def _parse(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        return tomlkit.parse(text).unwrap()
    except (TOMLKitError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not valid TOML: {error}; strings need quotes, tables [brackets]"
        ) from None


def _write_beside(path: Path, stage: str, proposal: Proposal) -> Written:
    beside = path.with_name(PROPOSED_NAME)
    document = tomlkit.document()
    document["next"] = _next_table(beside, stage, proposal)
    durable.replace(beside, tomlkit.dumps(document).encode())
    return Written(beside, edited=True)


def _was_edited(following: object) -> bool:
    """Return whether a user edited the proposal, so that its digest does not match."""
    if following is None:
        return False
    return not isinstance(following, Mapping) or following.get("digest") != _digest(
        following.get("ranges")
    )


def _digest(ranges: object) -> str:
    """Return a hash of the values that does not depend on their order and spelling."""
    return hashlib.sha256(
        json.dumps(_canonical(ranges), sort_keys=True, default=str).encode()
    ).hexdigest()[:16]


def _canonical(value: object) -> object:
    """Return the value with integral floats as integers, since 1.0 and 1 are the same end."""
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return (
        int(value)
        if isinstance(value, float) and math.isfinite(value) and value == int(value)
        else value
    )


def _next_table(path: Path, stage: str, proposal: Proposal) -> Table:
    table = tomlkit.table()
    _comment(table, NEXT_HEADER.format(stage=stage, search=path.absolute().parent.parent.name))
    table["stage"] = stage
    table["digest"] = _digest(proposal.space.plain())
    table["ranges"] = write_table(proposal.space, proposal.notes)
    return table


def write_table(space: Space, notes: Mapping[str, str] | None = None) -> Table:
    """Return a space as a TOML table, with a comment above each hyperparameter that has a note."""
    table = tomlkit.table()
    for name, parameter in space.parameters.items():
        if notes and name in notes:
            _comment(table, notes[name])
        table[name] = _item(parameter)
    return table


def _item(parameter: Parameter) -> Any:
    return _in_line(parameter.plain())


def _in_line(value: object) -> Any:
    """Return a value as TOML that stands on one line, whatever lists and tables are in it."""
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        table.update({key: _in_line(one) for key, one in value.items()})
        return table
    if isinstance(value, list):
        array = tomlkit.array()
        array.extend([_in_line(one) for one in value])
        return array
    return value


def _inline(parameter: Parameter) -> str:
    """Return the hyperparameter as it is written in the file."""
    return str(tomlkit.item(_item(parameter)).as_string())


def _comment(table: Any, text: str) -> None:
    # The name of an option may contain any character.
    printable = "".join(c if c.isprintable() else " " for c in text)
    for line in textwrap.wrap(
        printable, COMMENT_WIDTH, break_long_words=False, break_on_hyphens=False
    ):
        table.add(tomlkit.comment(line))

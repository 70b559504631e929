"""Parse one hyperparameter of a search file.

Each error names the place, the value and the remedy.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace

from common.errors import ConfigError
from common.search.condition import Condition
from common.search.parameters import (
    NORMAL_KINDS,
    ON_GRID,
    RANGED_KINDS,
    Choice,
    Fixed,
    Normal,
    Parameter,
    Ranged,
)
from common.search.values import MOST_NESTED, Scalar, Value, distinct

LARGEST_WHOLE = 2**53  # up to here a double represents every whole number
# The nearest value to an excluded 1: a dropout rate of 1 would divide by zero, and a momentum of 1
# would never forget.
OPEN_END = 0.999
NATURAL_LIMITS: dict[str, tuple[float, float]] = {
    "dropout": (0.0, OPEN_END),
    "momentum": (0.0, OPEN_END),
    "weight_decay": (0.0, math.inf),
    "learning_rate": (0.0, math.inf),
}


# What may stand beside each way to sample.
BESIDE: dict[str, frozenset[str]] = {
    "log_uniform": frozenset({"limits"}),
    "uniform": frozenset({"limits", "step"}),
    "int_uniform": frozenset({"limits", "step"}),
    "log_int_uniform": frozenset({"limits"}),
    "normal": frozenset({"low", "high"}),
    "log_normal": frozenset({"low", "high"}),
    "choice": frozenset(),
    "fixed": frozenset(),
}
OPTIONS = frozenset().union(*BESIDE.values())
REMEDIES = {
    "step": "; on a log scale equal steps are no steps: remove it, or use int_uniform or uniform",
    "limits": "; the ends of a normal distribution are low and high",
}


def parse_parameter(raw: object, place: str, name: str = "") -> Parameter:
    """Parse one line of ``[space]``.

    Raises:
        ConfigError: with the place, the value and the remedy.
    """
    if isinstance(raw, bool | int | float | str):
        return Fixed(_scalar(raw, place))
    if not isinstance(raw, Mapping):
        raise ConfigError(
            f"{place}: {raw!r} is neither a plain value nor a table; a list of options is "
            f"written {{ choice = {raw!r} }}, a list that is one value {{ fixed = {raw!r} }}"
        )
    kinds = [k for k in raw if k not in OPTIONS and k != "when"]
    if len(kinds) != 1 or kinds[0] not in BESIDE:
        raise ConfigError(
            f"{place}: {', '.join(map(str, kinds)) or 'nothing'} is not a way to sample; use one "
            f"of {', '.join(BESIDE)}"
        )
    kind = kinds[0]
    for key in sorted(raw.keys() - BESIDE[kind] - {kind, "when"}):
        remedy = (
            REMEDIES[key]
            if (key, kind) in {("step", "log_uniform"), ("step", "log_int_uniform")}
            or (key == "limits" and kind in NORMAL_KINDS)
            else "; remove it"
        )
        raise ConfigError(f"{place}: {key} = {raw[key]!r} has no meaning beside {kind}{remedy}")
    made: Parameter
    if kind == "choice":
        made = _choice(raw["choice"], place)
    elif kind == "fixed":
        made = Fixed(_value(raw["fixed"], f"{place}: fixed"))
    elif kind in NORMAL_KINDS:
        made = _normal(NORMAL_KINDS[kind], raw, place)
    else:
        made = _interval(RANGED_KINDS[kind], raw, place, name)
    return (
        replace(made, when=Condition.parse(raw["when"], f"{place}: when"))
        if "when" in raw
        else made
    )


def _value(raw: object, place: str, room: int = MOST_NESTED) -> Value:
    """Return a plain value, or a list or a table of values.

    Args:
        raw: as parsed from TOML or JSON.
        place: for the message.
        room: how many levels of lists and tables are allowed.
    """
    if isinstance(raw, bool | int | float | str):
        return _scalar(raw, place)
    if not isinstance(raw, list | Mapping):
        raise ConfigError(
            f"{place}: {raw!r} is no value; use numbers, strings, booleans, and lists and tables "
            "of them"
        )
    if not room:
        raise ConfigError(
            f"{place}: lists and tables are nested more than {MOST_NESTED} levels deep; write it "
            "flatter"
        )
    if isinstance(raw, list):
        return [_value(one, place, room - 1) for one in raw]
    return {str(key): _value(one, place, room - 1) for key, one in raw.items()}


def _scalar(raw: Scalar, place: str) -> Scalar:
    if isinstance(raw, float) and not math.isfinite(raw):
        raise ConfigError(f"{place}: {raw!r} is not a finite number; write a number")
    _check_normal(raw, place)
    if isinstance(raw, int) and not -(2**63) <= raw < 2**63:
        raise ConfigError(
            f"{place}: the whole number does not fit in 64 bits; write it as a float, such as 1e20"
        )
    return raw


def _check_normal(number: object, place: str) -> None:
    """Refuse subnormal numbers: they have few digits, and training takes them for 0.

    On a GPU, and in fast modes of a CPU, they are flushed to zero.
    """
    if isinstance(number, float) and 0 < abs(number) < sys.float_info.min:
        least = sys.float_info.min
        raise ConfigError(
            f"{place}: {number!r} is so near to zero that training takes it for 0; write at "
            f"least {least:.1e}, or 0"
        )


def _choice(raw: object, place: str) -> Choice:
    if not isinstance(raw, list) or not raw:
        raise ConfigError(
            f"{place}: choice = {raw!r} has no options; list at least one, as in choice = [32, 64]"
        )
    options = [_value(option, place) for option in raw]
    # 1, 1.0 and true compare equal, so they are one option.
    if len(distinct(options)) < len(options):
        raise ConfigError(f"{place}: choice = {raw!r} names an option twice; remove the repetition")
    return Choice(tuple(options))


def _normal(kind: type[Normal], raw: Mapping[str, object], place: str) -> Normal:
    mean, deviation = _pair(raw[kind.kind], f"{place}: {kind.kind}", False, "[mean, deviation]")
    if deviation <= 0:
        raise ConfigError(
            f"{place}: {kind.kind} = [{mean:g}, {deviation:g}]: the second number is the standard "
            "deviation; write one above 0"
        )
    ends = {key: _number(raw[key], f"{place}: {key}") for key in ("low", "high") if key in raw}
    try:
        whole = kind(mean, deviation)
        reached = whole.low, whole.high
    except OverflowError:
        reached = math.inf, math.inf
    smallest = sys.float_info.min if kind.log else -math.inf
    if not (smallest <= reached[0] < reached[1] < math.inf and math.isfinite(reached[0])):
        named = " of the natural logarithm" if kind.log else ""
        raise ConfigError(
            f"{place}: {kind.kind} = [{mean:g}, {deviation:g}] draws numbers that a 64-bit number "
            f"cannot hold or tell apart; write the mean and the standard deviation{named}"
        )
    made = kind(mean, deviation, ends.get("low"), ends.get("high"))
    if not made.low < made.high:
        raise ConfigError(
            f"{place}: low and high leave nothing of {kind.kind} = [{mean:g}, {deviation:g}], "
            f"which draws from {reached[0]:.4g} to {reached[1]:.4g}; move them"
        )
    return made


def _interval(kind: type[Ranged], raw: Mapping[str, object], place: str, name: str) -> Ranged:
    low, high = _pair(raw[kind.kind], f"{place}: {kind.kind}", kind.integer)
    if low > high:
        raise ConfigError(
            f"{place}: the range [{low:g}, {high:g}] is upside down; write [{high:g}, {low:g}]"
        )
    if low == high:
        raise ConfigError(
            f"{place}: the range [{low:g}, {high:g}] is a single point; write "
            f"{name or 'the value'} = {low:g} instead"
        )
    if kind.log and low <= 0:
        remedy = (
            f"start at {'1' if kind.integer else 'a small positive number such as 1e-06'}, or "
            f"use {kind.kind.removeprefix('log_')}"
        )
        raise ConfigError(
            f"{place}: the range [{low:g}, {high:g}] touches zero, which a log scale never "
            f"reaches; {remedy}"
        )
    if not math.isfinite(high - low):
        raise ConfigError(
            f"{place}: the range [{low:g}, {high:g}] is too wide for a 64-bit number; narrow it, "
            "or use log_uniform"
        )
    limits = _limits(raw, place, kind)
    allowed = limits or (-math.inf, math.inf)
    natural = NATURAL_LIMITS.get(name, (-math.inf, math.inf))
    bound_low, bound_high = max(natural[0], allowed[0]), min(natural[1], allowed[1])
    if low < bound_low or high > bound_high:
        raise ConfigError(
            f"{place}: the range [{low:g}, {high:g}] exceeds the limits [{bound_low:g}, "
            f"{bound_high:g}]; stay inside them"
        )
    return kind(low, high, limits, _step(raw, place, kind, low, high))


def _step(
    raw: Mapping[str, object], place: str, kind: type[Ranged], low: float, high: float
) -> float | None:
    if "step" not in raw:
        return None
    step = _number(raw["step"], f"{place}: step")
    if step <= 0 or (kind.integer and step != int(step)):
        what = "a whole number above 0" if kind.integer else "a number above 0"
        raise ConfigError(f"{place}: step = {step:g} cannot be a step; write {what}")
    step = int(step) if kind.integer else float(step)
    if (high - low) / step > LARGEST_WHOLE:
        raise ConfigError(
            f"{place}: step = {step:g} is too small for [{low:g}, {high:g}]; remove it"
        )
    grid = kind(low, high, None, step)
    below = grid.to_grid(high, math.floor)
    if abs(below - high) > ON_GRID * step:
        above = grid.to_grid(high, math.ceil)
        ends = f"[{low:g}, {above:g}]"
        if below > low:
            ends = f"[{low:g}, {below:g}] or {ends}"
        raise ConfigError(
            f"{place}: steps of {step:g} from {low:g} on do not reach {high:g}; write {ends}"
        )
    return step


def _limits(
    raw: Mapping[str, object], place: str, kind: type[Ranged]
) -> tuple[float, float] | None:
    if "limits" not in raw:
        return None
    low, high = _pair(raw["limits"], f"{place}: limits", kind.integer)
    if low > high:
        raise ConfigError(
            f"{place}: limits = [{low:g}, {high:g}] are upside down; write [{high:g}, {low:g}]"
        )
    return low, high


def _pair(raw: object, place: str, integer: bool, form: str = "[low, high]") -> tuple[float, float]:
    if not isinstance(raw, list | tuple) or len(raw) != 2:
        raise ConfigError(f"{place} = {raw!r} is not a pair; write {form}")
    for end in raw:
        if isinstance(end, bool) or not isinstance(end, int | float):
            raise ConfigError(
                f"{place} = {raw!r}: {end!r} is not a number; write {form} as numbers"
            )
        if isinstance(end, int) and abs(end) > LARGEST_WHOLE:
            raise ConfigError(
                f"{place}: an end is larger than 2^53, so that it cannot be sampled exactly; "
                "stay below"
            )
        if not math.isfinite(end):
            raise ConfigError(f"{place} = {raw!r}: {end!r} is not a finite number; write a number")
        _check_normal(end, place)
        if integer and (int(end) != end or abs(end) > LARGEST_WHOLE):
            raise ConfigError(
                f"{place} = {raw!r}: {end!r} is not a whole number within 2^53; round it"
            )
    low, high = raw
    return (int(low), int(high)) if integer else (float(low), float(high))


def _number(raw: object, place: str) -> float:
    """Return a finite number that a double holds."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ConfigError(f"{place} = {raw!r} is not a number; write one")
    if isinstance(raw, int) and abs(raw) > LARGEST_WHOLE:
        raise ConfigError(f"{place}: is larger than 2^53; stay below")
    if not math.isfinite(raw):
        raise ConfigError(f"{place} = {raw!r} is not a finite number; write a number")
    _check_normal(raw, place)
    return float(raw)

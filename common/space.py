"""Hyperparameters: how each is sampled, and its way to and from the unit interval.

Source: CS231n notes, "Hyperparameter optimization" (search on a log scale where effects multiply); Bergstra and Bengio,
"Random Search for Hyper-Parameter Optimization", JMLR 13 (2012).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from common.errors import ConfigError
from common.practice import bounds, never_splits

Scalar = bool | int | float | str
Hyperparameters = dict[str, Scalar]

LARGEST_WHOLE = 2**53  # up to here a double tells neighbouring whole numbers apart
OPEN_END = 0.999  # nearest value to an excluded 1: a dropout rate or momentum of 1 would divide by zero or never forget
NATURAL_LIMITS: dict[str, tuple[float, float]] = {
    "dropout": (0.0, OPEN_END),
    "momentum": (0.0, OPEN_END),
    "weight_decay": (0.0, math.inf),
    "learning_rate": (0.0, math.inf),
}


@dataclass(frozen=True)
class _Interval:
    """A numeric range [low, high]; ``limits`` are the user's own bounds that no later stage may pass."""

    low: float
    high: float
    limits: tuple[float, float] | None = None

    kind = ""
    log = False
    integer = False

    def to_scale(self, value: float) -> float:
        """``value`` in the scale that it is sampled on (log10 or plain); a log scale's zero is -inf."""
        if not self.log:
            return float(value)
        return math.log10(value) if value > 0 else -math.inf

    def from_scale(self, position: float) -> float:
        """The inverse of ``to_scale``."""
        return 10.0**position if self.log else position

    @property
    def scaled(self) -> tuple[float, float]:
        """(low, high) in the sampling scale."""
        return self.to_scale(self.low), self.to_scale(self.high)

    def from_unit(self, unit: float) -> float:
        """The value at ``unit`` in [0, 1), never outside [low, high] in spite of rounding."""
        low, high = self.scaled
        return min(max(self.from_scale(low + unit * (high - low)), self.low), self.high)

    def to_unit(self, value: float) -> float:
        """Where ``value`` lies between low (0) and high (1), in the sampling scale; a range of one point is 0.5."""
        low, high = self.scaled
        return (self.to_scale(value) - low) / (high - low) if high > low else 0.5

    def moved(self, low: float, high: float) -> Self:
        """The same parameter over another range."""
        return replace(self, low=low, high=high)

    def plain(self) -> dict[str, Any]:
        """As in the search file."""
        return {self.kind: [self.low, self.high]} | ({"limits": list(self.limits)} if self.limits else {})


@dataclass(frozen=True)
class LogUniform(_Interval):
    """Uniform in log10 between two positive ends."""

    kind = "log_uniform"
    log = True


@dataclass(frozen=True)
class Uniform(_Interval):
    """Uniform between two ends."""

    kind = "uniform"


@dataclass(frozen=True)
class IntUniform(_Interval):
    """A whole number between two ends, both included, each equally likely."""

    kind = "int_uniform"
    integer = True

    @property
    def scaled(self) -> tuple[float, float]:
        """(low, high) in the sampling scale, half a step wider at each end so that each number has its full share."""
        return self.to_scale(self.low - 0.5), self.to_scale(self.high + 0.5)

    def from_unit(self, unit: float) -> int:
        """The whole number whose share of the unit interval holds ``unit``."""
        low, high = self.scaled
        return int(min(max(round(self.from_scale(low + unit * (high - low))), self.low), self.high))

    def moved(self, low: float, high: float) -> Self:
        """The same parameter over another range, ends rounded to whole numbers."""
        return replace(self, low=round(low), high=round(high))


@dataclass(frozen=True)
class LogIntUniform(IntUniform):
    """A whole number of at least 1, sampled uniformly in log10."""

    kind = "log_int_uniform"
    log = True


@dataclass(frozen=True)
class Choice:
    """One of several options, each equally likely."""

    options: tuple[Scalar, ...]
    kind = "choice"

    def from_unit(self, unit: float) -> Scalar:
        """The option whose share of the unit interval holds ``unit``."""
        return self.options[min(int(unit * len(self.options)), len(self.options) - 1)]

    def to_unit(self, value: Scalar) -> float:
        """The middle of the option's share of the unit interval."""
        return (self.options.index(value) + 0.5) / len(self.options)

    def plain(self) -> dict[str, Any]:
        """As in the search file."""
        return {"choice": list(self.options)}


@dataclass(frozen=True)
class Fixed:
    """A plain value, the same for all trials."""

    value: Scalar
    kind = "fixed"

    def from_unit(self, unit: float) -> Scalar:
        """The value, whatever ``unit`` is."""
        return self.value

    def plain(self) -> Scalar:
        """As in the search file."""
        return self.value


Numeric = LogUniform | Uniform | IntUniform | LogIntUniform
Parameter = Numeric | Choice | Fixed
NUMERIC_KINDS: dict[str, type[Numeric]] = {c.kind: c for c in (LogUniform, Uniform, IntUniform, LogIntUniform)}


@dataclass(frozen=True)
class Space:
    """The hyperparameters of a search, by name, in the order of the file."""

    parameters: Mapping[str, Parameter]

    @classmethod
    def parse(cls, raw: object, place: str = "[space]") -> Space:
        """Reads the table ``[space]``.

        Raises:
            ConfigError: with the place, the value and the remedy.
        """
        if not isinstance(raw, Mapping) or not raw:
            raise ConfigError(f"{place}: {raw!r} is not a table of hyperparameters; add learning_rate = {{ log_uniform = [1e-6, 1e1] }}")
        return cls({str(name): parse_parameter(value, f"{place} {name}", str(name)) for name, value in raw.items()})

    def plain(self) -> dict[str, Any]:
        """As in the search file, ready for TOML or JSON."""
        return {name: parameter.plain() for name, parameter in self.parameters.items()}

    @property
    def sampled(self) -> dict[str, Numeric | Choice]:
        """Those that are not fixed."""
        return {name: p for name, p in self.parameters.items() if not isinstance(p, Fixed)}

    @property
    def numeric(self) -> dict[str, Numeric]:
        """Those with a range, which has borders."""
        return {name: p for name, p in self.parameters.items() if isinstance(p, _Interval)}

    @property
    def structural(self) -> dict[str, Choice | IntUniform]:
        """Those whose values keep trials from training together: whole numbers, and choices but of what is a number to the engine."""
        return {
            name: p
            for name, p in self.parameters.items()
            if isinstance(p, IntUniform) or (isinstance(p, Choice) and not never_splits(name, p.options))
        }

    def group(self, hyperparameters: Hyperparameters) -> str:
        """Names the trials that are likely to share an array: equal values of what is structural, as canonical JSON."""
        structural = {name: hyperparameters[name] for name in self.structural}
        return json.dumps(structural, sort_keys=True, separators=(",", ":"))

    def n_groups(self) -> float:
        """How many groups the space falls into: the product of its options and whole numbers."""
        return math.prod(len(p.options) if isinstance(p, Choice) else p.high - p.low + 1 for p in self.structural.values())

    def limits(self, name: str) -> tuple[float, float]:
        """What values the parameter allows: the user's ``limits``, within what its meaning allows.

        A range of a name of the engine's that lies within what the engine takes stays there. A range without limits that starts
        at 0 or above stays there (a noise level), a whole number that starts at 1 or above stays at 1 or above (a width, a depth).
        """
        parameter = self.numeric[name]
        low, high = NATURAL_LIMITS.get(name) or bounds(name)
        if not low <= parameter.low <= parameter.high <= high:  # a loop of the user's own means something else by the name
            low, high = -math.inf, math.inf
        own_low, own_high = parameter.limits or (-math.inf, math.inf)
        if parameter.log and parameter.integer:
            low = max(low, 1)
        elif parameter.limits is None and parameter.low >= 0:
            low = max(low, 1 if parameter.integer and parameter.low >= 1 else 0)
        return max(low, own_low), min(high, own_high)


def parse_parameter(raw: object, place: str, name: str = "") -> Parameter:
    """Reads one line of ``[space]``.

    Raises:
        ConfigError: with the place, the value and the remedy.
    """
    if isinstance(raw, bool | int | float | str):
        return Fixed(_scalar(raw, place))
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{place}: {raw!r} is neither a plain value nor a table; a list of options is written {{ choice = {raw!r} }}")
    kinds = [k for k in raw if k != "limits"]
    if len(kinds) != 1 or (kinds[0] not in NUMERIC_KINDS and kinds[0] != "choice"):
        known = ", ".join([*NUMERIC_KINDS, "choice"])
        raise ConfigError(f"{place}: {', '.join(map(str, kinds)) or 'nothing'} is not a way to sample; use one of {known}")
    if kinds[0] == "choice":
        if "limits" in raw:
            raise ConfigError(f"{place}: limits = {raw['limits']!r} has no meaning for a choice; remove it")
        return _choice(raw["choice"], place)
    return _interval(NUMERIC_KINDS[kinds[0]], raw, place, name)


def _scalar(raw: Scalar, place: str) -> Scalar:
    if isinstance(raw, float) and not math.isfinite(raw):
        raise ConfigError(f"{place}: {raw!r} is not a finite number; write a number")
    if isinstance(raw, int) and not -(2**63) <= raw < 2**63:
        raise ConfigError(f"{place}: the whole number does not fit in 64 bits; write it as a float, such as 1e20")
    return raw


def _choice(raw: object, place: str) -> Choice:
    if not isinstance(raw, list) or not raw:
        raise ConfigError(f"{place}: choice = {raw!r} has no options; list at least one, as in choice = [32, 64]")
    for option in raw:
        if not isinstance(option, bool | int | float | str):
            raise ConfigError(f"{place}: the option {option!r} is not a plain value; use numbers, strings or booleans")
        _scalar(option, place)
    if len(set(raw)) < len(raw):  # 1, 1.0 and true are one option: they compare equal
        raise ConfigError(f"{place}: choice = {raw!r} names an option twice; remove the repetition")
    return Choice(tuple(raw))


def _interval(kind: type[Numeric], raw: Mapping[str, object], place: str, name: str) -> Numeric:
    low, high = _pair(raw[kind.kind], f"{place}: {kind.kind}", kind.integer)
    if low > high:
        raise ConfigError(f"{place}: the range [{low:g}, {high:g}] is upside down; write [{high:g}, {low:g}]")
    if low == high:
        raise ConfigError(f"{place}: the range [{low:g}, {high:g}] is a single point; write {name or 'the value'} = {low:g} instead")
    if kind.log and low <= 0:
        remedy = f"start at {'1' if kind.integer else 'a small positive number such as 1e-06'}, or use {kind.kind.removeprefix('log_')}"
        raise ConfigError(f"{place}: the range [{low:g}, {high:g}] touches zero, which a log scale never reaches; {remedy}")
    if not math.isfinite(high - low):
        raise ConfigError(f"{place}: the range [{low:g}, {high:g}] is wider than a number can say; narrow it, or use log_uniform")
    limits = _limits(raw, place, kind)
    allowed = limits or (-math.inf, math.inf)
    natural = NATURAL_LIMITS.get(name, (-math.inf, math.inf))
    bound_low, bound_high = max(natural[0], allowed[0]), min(natural[1], allowed[1])
    if low < bound_low or high > bound_high:
        raise ConfigError(f"{place}: the range [{low:g}, {high:g}] leaves what is allowed, [{bound_low:g}, {bound_high:g}]; stay inside it")
    return kind(low, high, limits)


def _limits(raw: Mapping[str, object], place: str, kind: type[Numeric]) -> tuple[float, float] | None:
    if "limits" not in raw:
        return None
    low, high = _pair(raw["limits"], f"{place}: limits", kind.integer)
    if low > high:
        raise ConfigError(f"{place}: limits = [{low:g}, {high:g}] are upside down; write [{high:g}, {low:g}]")
    return low, high


def _pair(raw: object, place: str, integer: bool) -> tuple[float, float]:
    if not isinstance(raw, list | tuple) or len(raw) != 2:
        raise ConfigError(f"{place} = {raw!r} is not a pair; write [low, high]")
    for end in raw:
        if isinstance(end, bool) or not isinstance(end, int | float):
            raise ConfigError(f"{place} = {raw!r}: {end!r} is not a number; write [low, high] as numbers")
        if isinstance(end, int) and abs(end) > LARGEST_WHOLE:
            raise ConfigError(f"{place}: an end is larger than 2^53, so that it cannot be sampled exactly; stay below")
        if not math.isfinite(end):
            raise ConfigError(f"{place} = {raw!r}: {end!r} is not a finite number; write a number")
        if integer and (int(end) != end or abs(end) > LARGEST_WHOLE):
            raise ConfigError(f"{place} = {raw!r}: {end!r} is not a whole number within 2^53; round it")
    low, high = raw
    return (int(low), int(high)) if integer else (float(low), float(high))

"""The structures of models that have the same layers, by the attributes that forwards read."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from worker.training.model.attributes import ALL, Attributes, Path
from worker.training.model.python_state import path_of

Read = Callable[[], dict[Path, str]]
# (paths, values in another model) -> whether a forward takes these numbers as tensors
Accepts = Callable[[Sequence[Path], Sequence[float]], bool]


@dataclass
class Variant:
    """Models that share an array."""

    number: int  # changes when more numbers are lifted
    attributes: Attributes  # of its first model
    # The attributes that a forward reads; None while nobody asked, which means all of them.
    reads: dict[Path, str] | None = None
    lifted: tuple[Path, ...] = ()  # numbers of which each slot has its own

    def holds(self, other: Attributes) -> bool:
        """Return whether a model with these attributes belongs here."""
        if self.attributes.values == other.values:
            return True
        reads = dict.fromkeys(self.attributes.values | other.values, "")
        return not self.differing(other, self.reads if self.reads is not None else reads)

    def differing(self, other: Attributes, reads: dict[Path, str]) -> list[Path]:
        """Return the attributes among ``reads`` that differ, without those that are lifted."""
        mine, theirs = self.attributes, other
        return [
            path
            for path in _spread(reads, mine, theirs)
            if mine.values.get(path) != theirs.values.get(path)
            and not (path in self.lifted and path in theirs.numbers)
        ]


@dataclass
class Variants:
    """All variants that one engine has seen."""

    say: Callable[[str, Hashable], None]  # a message, and a key: each key is said once
    _by_frame: dict[Hashable, list[Variant]] = field(default_factory=dict)
    _by_number: dict[int, Variant] = field(default_factory=dict)
    # Numbers that a forward does not take as tensors, by frame.
    _refused: set[Hashable] = field(default_factory=set)

    def find(self, frame: Hashable, attributes: Attributes) -> Variant | None:
        """Return the variant of a model as far as it is known without a forward."""
        known = self._by_frame.get(frame, ())
        return next((variant for variant in known if variant.holds(attributes)), None)

    def of(self, number: object) -> Variant | None:
        """Return the variant that has, or had, this number."""
        return self._by_number.get(number) if isinstance(number, int) else None

    def settle(
        self, frame: Hashable, attributes: Attributes, read: Read, accepts: Accepts
    ) -> Variant:
        """Return the variant of a model. A new one begins if it fits into none.

        Args:
            frame: what the models have in common in any case.
            attributes: the model's own.
            read: runs the model's forward, and returns what it reads.
            accepts: tries to lift numbers.
        """
        found = self.find(frame, attributes)
        if found is not None:
            return found
        known = self._by_frame.setdefault(frame, [])
        reads = read() if known else None
        for variant in known:
            assert reads is not None
            differing = variant.differing(attributes, reads)
            numbers = variant.attributes.numbers
            if differing and all(p in numbers and p in attributes.numbers for p in differing):
                tried = (frame, tuple(differing))
                if tried in self._refused:
                    continue
                if not accepts(differing, [numbers[path] for path in differing]):
                    self._refused.add(tried)
                    continue
                variant.lifted += tuple(differing)
                self._count(variant)
                differing = []
            if not differing:
                variant.reads = reads
                return variant
        if reads is not None:
            self._tell(known[0], attributes, reads)
        # Without the holders, which would keep the model in memory.
        new = Variant(0, Attributes(attributes.values, attributes.numbers, {}), reads)
        known.append(new)
        self._count(new)
        return new

    def _count(self, variant: Variant) -> None:
        variant.number = len(self._by_number)
        self._by_number[variant.number] = variant

    def _tell(self, first: Variant, other: Attributes, reads: dict[Path, str]) -> None:
        """Say which attributes keep a model out of the arrays of the first one."""
        differing = first.differing(other, reads)
        for path in differing[:3]:
            values = [_show(one.values.get(path)) for one in (first.attributes, other)]
            line = reads.get(path) or reads.get((*path[:-1], ALL)) or ""
            remedy = (
                ". A buffer (register_buffer), from which tensors are computed, is each trial's own"
            )
            self.say(
                f"attribute `{tell(path)}` differs between trials ({values[0]} and {values[1]}), "
                f"and the forward reads it{line}: they train alone, or with those of the same "
                f"value{remedy if path in other.numbers else ''}",
                ("attribute", path),
            )


def tell(path: Path) -> str:
    """Return how a person writes the path of an attribute."""
    return path_of(path[0], ".".join(path[1:]))


def _spread(reads: dict[Path, str], mine: Attributes, theirs: Attributes) -> list[Path]:
    """Return the paths, with all fields in the place of ``ALL``."""
    wholes = [path[:-1] for path in reads if path[-1] == ALL]
    fields = [
        path
        for path in (mine.values | theirs.values if wholes else ())
        if any(path[: len(whole)] == whole for whole in wholes)
    ]
    return [path for path in dict.fromkeys([*reads, *fields]) if path[-1] != ALL]


def _show(frozen: Hashable) -> str:
    if frozen is None:
        return "none"
    if isinstance(frozen, tuple) and len(frozen) == 2:
        kind, value = frozen
        if kind in ("int", "float"):
            return f"{value:g}"
        if kind in ("bool", "str", "NoneType"):
            return repr(value)
    return "another"

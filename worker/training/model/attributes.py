"""Plain attributes that differ between models of the same layers, and whether a forward reads them.

A forward that reads only values which two models share does the same in both. So the attributes
that no forward reads cannot keep trials apart. Where a number that is read differs, each slot of an
array can have its own if the forward takes it as a tensor.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from worker.training.model.lifted_numbers import ATTRIBUTES, STARTS
from worker.training.model.python_state import (
    COMMON,
    plain_attributes,
    users_line,
)

Path = tuple[str, ...]  # the module's name, the attribute's, and fields of an object in it
ALL = "*"  # read as a whole
MODULE_FILE = nn.Module.forward.__code__.co_filename
Freeze = Callable[[object], Hashable]


@dataclass
class Holder:
    """Something that has fields: a module, or an object or dict in an attribute."""

    owner: object
    fields: dict[str, Any]  # the dict that holds them
    path: Path


@dataclass
class Attributes:
    """The plain attributes of one model, with those of the configurations that they hold."""

    values: dict[Path, Hashable]
    numbers: dict[Path, float]  # those that are floats
    holders: dict[Path, Holder]

    def place(self, path: Path) -> tuple[dict[str, Any], str]:
        """Return the dict that holds a number, and its key there."""
        return self.holders[path[:-1]].fields, path[-1]


def attributes_of(root: nn.Module, freeze: Freeze, lifted: Collection[str]) -> Attributes:
    """Read the attributes of all modules of ``root``, before its numbers are lifted.

    Args:
        root: the model.
        freeze: returns a hashable that is equal for equal values.
        lifted: the names of the modules that are ``liftable``.
    """
    found, seen = Attributes({}, {}, {}), set[int]()
    for name, module in root.named_modules():
        kind = type(module)
        hidden = {STARTS.get(kind, ""), ATTRIBUTES[kind] if name in lifted else ""}
        fields = {k: v for k, v in plain_attributes(module).items() if k not in hidden}
        found.holders[(name,)] = Holder(module, module.__dict__, (name,))
        for key, value in fields.items():
            _add(found, (name, key), value, freeze, seen)
    return found


def _add(found: Attributes, path: Path, value: object, freeze: Freeze, seen: set[int]) -> None:
    fields = _fields(value)
    if fields is None:
        found.values[path] = freeze(value)
        if type(value) is float:
            found.numbers[path] = value
        return
    found.values[path] = (type(value).__module__, type(value).__qualname__)
    if id(value) in seen:  # a configuration that several modules hold counts once
        return
    seen.add(id(value))
    found.holders[path] = Holder(value, fields, path)
    for key, one in fields.items():
        if isinstance(key, str):
            _add(found, (*path, key), one, freeze, seen)


def _fields(value: object) -> dict[str, Any] | None:
    """Return the fields of a configuration, or None for any other value."""
    if type(value) is dict:
        return value if value and all(isinstance(key, str) for key in value) else None
    if isinstance(value, type | Tensor | nn.Module | types.ModuleType) or callable(value):
        return None
    held = getattr(value, "__dict__", None)
    outside = type(value).__module__.partition(".")[0] not in ("torch", "numpy", "builtins")
    return held if isinstance(held, dict) and outside else None


class _ReadNamespace(types.SimpleNamespace):
    """A copy of a SimpleNamespace whose reads can be noted, as its own class allows no change."""


class _ReadDict(dict[str, Any]):
    """A copy of a dict that notes what is read."""

    note: Callable[[str], None]

    def __getitem__(self, key: str) -> Any:
        self.note(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.note(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.note(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self.note(ALL)
        return super().__iter__()

    def keys(self) -> Any:
        self.note(ALL)
        return super().keys()

    def values(self) -> Any:
        self.note(ALL)
        return super().values()

    def items(self) -> Any:
        self.note(ALL)
        return super().items()

    def __len__(self) -> int:
        self.note(ALL)
        return super().__len__()


@contextmanager
def reading(attributes: Attributes) -> Iterator[dict[Path, str]]:
    """Note each attribute that is read within the block, with the line of the user's code.

    Yields:
        The paths that were read so far. A path that ends with ``ALL`` stands for all fields.
    """
    read: dict[Path, str] = {}
    by_owner = {id(h.owner): h.path for h in attributes.holders.values()}
    kinds = {type(h.owner) for h in attributes.holders.values()} - {dict, types.SimpleNamespace}
    with (
        _copies(attributes, by_owner, read),
        _spied(kinds | {_ReadNamespace}, by_owner, read, attributes),
    ):
        yield read


@contextmanager
def _copies(
    attributes: Attributes, by_owner: dict[int, Path], read: dict[Path, str]
) -> Iterator[None]:
    """Put copies that note reads in the place of dicts and namespaces."""
    copies: dict[int, Any] = {}
    undo: list[tuple[dict[str, Any], str, Any]] = []
    # The innermost first, so that copies hold copies.
    for holder in sorted(attributes.holders.values(), key=lambda h: -len(h.path)):
        if type(holder.owner) is dict:
            noted: Any = _ReadDict(holder.fields)
            noted.note = _noting(holder.path, read)
        elif type(holder.owner) is types.SimpleNamespace:
            noted = _ReadNamespace(**holder.fields)
            by_owner[id(noted)] = holder.path
        else:
            continue
        copies[id(holder.owner)] = noted
        for other in [*attributes.holders.values(), *_as_holders(copies.values())]:
            for key, value in list(dict.items(other.fields)):
                if value is holder.owner and other.owner is not noted:
                    undo.append((other.fields, key, value))
                    dict.__setitem__(other.fields, key, noted)
    try:
        yield
    finally:
        for fields, key, value in reversed(undo):
            dict.__setitem__(fields, key, value)


def _as_holders(copies: Any) -> list[Holder]:
    return [Holder(c, c if isinstance(c, dict) else vars(c), ()) for c in copies]


def _noting(path: Path, read: dict[Path, str]) -> Callable[[str], None]:
    return lambda key: _note(read, (*path, key))


def _note(read: dict[Path, str], path: Path) -> None:
    if not read.get(path):
        read[path] = users_line(sys._getframe(1))


@contextmanager
def _spied(
    kinds: set[type], owners: Mapping[int, Path], read: dict[Path, str], attributes: Attributes
) -> Iterator[None]:
    kinds_of = {id(holder.owner): type(holder.owner) for holder in attributes.holders.values()}
    genuine = {kind: kind.__getattribute__ for kind in kinds}
    own = {kind: "__getattribute__" in vars(kind) for kind in kinds}

    def spy(get: Any) -> Any:
        def look_up(self: object, name: str) -> Any:
            if name not in COMMON and (path := owners.get(id(self))) is not None:
                if name != "__dict__":
                    _note(read, (*path, name))
                # torch looks up parameters and submodules there.
                elif sys._getframe(1).f_code.co_filename != MODULE_FILE:
                    _note(read, (*path, ALL))
            return get(self, name)

        return look_up

    changed: list[type] = []
    try:
        for kind in kinds:
            try:
                kind.__getattribute__ = spy(genuine[kind])  # type: ignore[method-assign]
                changed.append(kind)
            except TypeError:  # a class of C: what is read cannot be seen, so all of it may be
                read.update({(*p, ALL): "" for o, p in owners.items() if kinds_of.get(o) is kind})
        yield
    finally:
        for kind in changed:
            if own[kind]:
                kind.__getattribute__ = genuine[kind]  # type: ignore[method-assign]
            else:
                del kind.__getattribute__

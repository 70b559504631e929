"""Which options of the practice are compared with a trusted reference, and by which tests.

A test that compares the engine's results with torch, or with a reference that it writes out, says
what it covers:

    @covers("momentum", "rho", optimizer="rmsprop")
    @pytest.mark.parametrize("rate", RATES)
    def test_rmsprop_agrees_with_torch(rate): ...

Positional names are numbers (``momentum``) that take different values a slot in that test. Keywords
are kinds, with one option or several:

    @covers(activation=ACTIVATIONS, batch_norm=(False, True))

``ACTIVATIONS`` may be what the test is parameterised over. The cover belongs to its test and is
removed with it. ``test_references.py`` imports every test module below ``HOMES`` and compares all
that is covered with all that ``common/search/hyperparameters.py`` accepts.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, TypeVar

from common.search.hyperparameters import BUILT_IN_TASKS, ENGINE, Kind

HOMES = ("tests.unit.training", "tests.unit.tasks")  # packages whose tests may cover something
COVERED: dict[
    tuple[str, str | bool | None], list[str]
] = {}  # (name, option, None for a number) -> tests

Test = TypeVar("Test", bound=Callable[..., Any])


def covers(*numbers: str, **kinds: str | bool | Iterable[str | bool]) -> Callable[[Test], Test]:
    """Declare that a test compares these numbers and these options of kinds with a reference."""
    pairs: list[tuple[str, str | bool | None]] = [(name, None) for name in numbers]
    for name, options in kinds.items():
        pairs += [
            (name, option) for option in ([options] if isinstance(options, str | bool) else options)
        ]

    def declared(test: Test) -> Test:
        assert test.__name__.startswith("test_"), (
            f"{test.__name__} is not a test, so that it covers nothing"
        )
        for pair in pairs:
            COVERED.setdefault(pair, []).append(f"{test.__module__}.{test.__name__}")
        return test

    return declared


def covered() -> set[tuple[str, str | bool | None]]:
    """All that any test covers."""
    for home in HOMES:
        for module in pkgutil.iter_modules(import_module(home).__path__):
            if module.name.startswith("test_"):
                import_module(f"{home}.{module.name}")
    return set(COVERED)


def accepted() -> set[tuple[str, str | bool | None]]:
    """All that a search file may say, to the engine and to the models of the built-in tasks."""
    entries = dict(ENGINE)
    for names in BUILT_IN_TASKS.values():
        entries |= names
    pairs: set[tuple[str, str | bool | None]] = set()
    for name, entry in entries.items():
        pairs |= (
            {(name, option) for option in entry.options}
            if isinstance(entry, Kind)
            else {(name, None)}
        )
    return pairs

"""What the episodes share, and the table at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import answers, faults
from tests.chaos.arena import Arena
from tests.chaos.nursery import Nursery
from tests.chaos.tally import TALLY, Episode
from tests.chaos.verdict import corrected

FAULTS = int(os.environ.get("CHAOS_FAULTS", "200"))  # at least so many in all
SEED = int(os.environ.get("CHAOS_SEED", "231"))
A_ROUND = 200  # faults that one round of all episodes makes at least
ROUNDS = -(-FAULTS // A_ROUND)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", [SEED + 1000 * n for n in range(ROUNDS)])


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    here = Nursery()
    try:
        yield here
    finally:
        here.close()


@pytest.fixture
def path(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder with a short path (a socket has to fit), which stays where the test fails."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    failed = request.session.testsfailed
    yield folder
    if request.session.testsfailed == failed and not getattr(request.node, "failed", False):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    if outcome.get_result().failed:
        item.failed = True  # type: ignore[attr-defined]


RunsEpisode = Callable[..., Counter[str]]
Ends = Mapping[str, str]
NONE: Ends = {}


@pytest.fixture
def episode(request: pytest.FixtureRequest) -> RunsEpisode:
    """Run an arena under faults, assert that the witnesses agree, and return the faults by kind.

    ``ends`` says how processes end by themselves in this arena, and as which fault that counts.
    """

    def run(
        arena: Arena,
        names: tuple[str, ...],
        n: int,
        every_s: float,
        undisturbed: list[str] | None,
        ends: Ends = NONE,
    ) -> Counter[str]:
        began = time.monotonic()
        with contextlib.closing(arena):
            made = arena.run(faults.kinds(arena, *names), n, every_s).made
            made.update({name: arena.crew.ends[end] for end, name in ends.items()})
            account = arena.verdict(undisturbed)
            sent_back = set(answers.sent_back(arena))
            asked_for = {one for one in account.double if one.partition(" ")[0] in sent_back}
            once = sent_back - {one.partition(" ")[0] for one in asked_for}
            assert not once, f"killed and sent back, but ended no more often than others: {once}"
            account.double = [
                told for told in account.double if told not in asked_for | corrected(arena, account)
            ]
        TALLY.add(Episode(request.node.name, arena.seed, made, account, time.monotonic() - began))
        told = "\n".join(account.findings[:20])
        assert not account.findings, (
            f"seed {arena.seed}, {len(account.findings)} findings; everything lies in "
            f"{arena.path}\n{told}\n"
            f"faults {dict(made)}, ends of processes {dict(arena.crew.ends)}"
        )
        return made

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in TALLY.lines(SEED):
        terminalreporter.write_line(line)

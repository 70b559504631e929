"""Commands whose output cannot be written give one message and fail.

If the reader has gone, the command ends quietly.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import master.cli
import worker.cli
from tests.integration.commands import DEADLINE_S, Place

FULL = Path("/dev/full")
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not FULL.is_char_device(), reason="a device that is always full is Linux's"),
]
PROGRAMS: dict[str, click.Group] = {"master": master.cli.cli, "worker": worker.cli.cli}
HELPS = ["master --help", "master rank --help", "worker --help", "worker check --help"]
PRINTING = [  # after a stage of three trials
    "master init new",
    "master plan",
    "master status",
    "master status --json",
    "master rank",
    "master rank --format json",
    "master borders",
    "master report",
    "master plot rungs --out rungs.html",
    "master ensemble",
    "master export --format csv --out trials.csv",
    "master workers --json",
    "master note",
    "master retry --state failed",
    "master recover",
    "worker test {checkpoint}",
    "worker predict {checkpoint} --inputs inputs.csv",
    "worker check",
    "worker check --json",
    "worker profile --array-width 2 --backend eager",
    "worker pace --array-width 2",
]
# The first three outlive their readers. The others print the same way, and ask, stay, or need the
# trial of a program or a server of its own.
NOT_HERE = {"launch", "start", "fork-server", "kill", "serve", "logs", "redis"}


def said(place: Place, command: str, stdout: int) -> tuple[int, str]:
    buffered = {
        name: value for name, value in place.environment.items() if name != "PYTHONUNBUFFERED"
    }
    words = [sys.executable, "-P", "-m", *command.split()]
    done = subprocess.run(
        words,
        cwd=place.path,
        env=buffered,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("outputs"))
    place.write_search(trials=3, hidden="16")
    (place.path / "inputs.csv").write_text("\n".join(",".join(["0.5"] * 64) for _ in range(5)))
    done = place.run("master", "launch", "--stage", "coarse", "--workers", "1")
    assert done.returncode == 0, done.stderr
    yield place
    place.stop()


def full(place: Place, command: str) -> None:
    with FULL.open("w") as output:
        code, told = said(place, command, output.fileno())
    assert (
        code == 1
        and told.count("error: ") == 1
        and "Traceback" not in told
        and "Exception ignored" not in told
    ), told
    assert told.splitlines()[-1].startswith(
        "error: what is printed cannot be written to stdout (No space left on device)"
    ), told


def gone(place: Place, command: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        code, told = said(place, command, write)
    finally:
        os.close(write)
    assert code == 0 and "rror" not in told and "Exception ignored" not in told, told


@pytest.mark.parametrize("command", HELPS)
def test_a_help_that_cannot_be_written(tmp_path: Path, command: str) -> None:
    full(Place(tmp_path), command)


def test_every_command_is_here() -> None:
    assert {f"{command.split()[0]} {command.split()[1]}" for command in PRINTING} == {
        f"{program} {name}"
        for program, group in PROGRAMS.items()
        for name in group.commands
        if name not in NOT_HERE
    }


@pytest.mark.parametrize("command", PRINTING)
def test_a_result_that_cannot_be_written(searched: Place, command: str) -> None:
    checkpoint = next((searched.root / "digits" / "coarse").glob("*.pt"))
    full(searched, command.format(checkpoint=checkpoint))
    (searched.path / "new" / "search.toml").unlink(missing_ok=True)
    gone(searched, command.format(checkpoint=checkpoint))

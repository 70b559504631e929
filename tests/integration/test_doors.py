"""Old servers, other versions, and leftovers of killed programs.

The tests check what a launch and a worker say and do.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.broker.sandbox import CVE
from common.search.protocol import PROTOCOL
from master.run.janitor import ORPHAN_S
from tests.integration.commands import Place, place
from tests.redis_server import start_redis

pytestmark = pytest.mark.faults


def test_a_server_whose_scripts_leave_their_sandbox_is_told_of_once_by_launch_and_worker(
    tmp_path: Path,
) -> None:
    with start_redis(tmp_path, "6.2") as server, place(tmp_path, server.url) as here:
        here.write_search(trials=2)
        for command in (
            ("master", "launch", "--stage", "coarse", "--workers", "0", "--detach"),
            ("worker", "start", "--burst"),
        ):
            done = here.run(*command)
            told = [line for line in done.stderr.splitlines() if CVE in line]
            assert (
                done.returncode == 0
                and len(told) == 1
                and "upgrade it to 6.2.20 or newer" in told[0]
            ), done.stderr
        assert CVE not in here.run("master", "status").stderr


def test_of_the_embedded_server_nothing_is_said(here: Place) -> None:
    here.write_search(trials=2)
    for command in (
        ("master", "launch", "--stage", "coarse", "--workers", "0", "--detach"),
        ("worker", "start", "--burst"),
    ):
        done = here.run(*command)
        assert done.returncode == 0 and CVE not in done.stderr, done.stderr


def test_a_launch_removes_what_killed_ones_have_left(here: Place) -> None:
    here.write_search(trials=2)
    launch = ("master", "launch", "--stage", "coarse", "--workers", "0", "--detach")
    assert here.run(*launch).returncode == 0
    (here.root / "digits" / "logs").mkdir(exist_ok=True)
    places = (
        here.root,
        here.root / "digits",
        here.root / "digits" / "logs",
        here.root / "digits" / "coarse" / "trials",
    )
    old, young = ([place / f".tmp-1-{age}" for place in places] for age in ("old", "young"))
    for path in (*old, *young):
        path.touch()
    for path in old:
        os.utime(path, (path.stat().st_mtime - 2 * ORPHAN_S,) * 2)
    assert here.run(*launch).returncode == 0
    assert all(path.exists() for path in young) and not any(path.exists() for path in old)


@pytest.fixture
def newer(here: Place) -> Place:
    """Make a search launched by another version, with two waiting trials.

    Beside it is a search of this version.
    """
    for name in ("ours", "theirs"):
        file = here.write_search(name=name, trials=2)
        assert (
            here.run(
                "master", "launch", "--stage", "coarse", "--workers", "0", "--detach"
            ).returncode
            == 0
        )
    file.rename(here.path / "theirs.toml")
    launched = here.root / "theirs" / "search.toml"
    text = launched.read_text()
    assert f"protocol = {PROTOCOL}\n" in text
    launched.write_text(
        text.replace(f"protocol = {PROTOCOL}\n", f'protocol = {PROTOCOL + 1}\nof_tomorrow = "x"\n')
    )
    return here


def test_a_worker_of_another_protocol_says_so_trains_nothing_of_that_search_and_goes_on_with_others(
    newer: Place,
) -> None:
    done = newer.run("worker", "start", "--burst")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    sentence = (
        f"this worker speaks protocol {PROTOCOL}, search 'theirs' was launched by protocol "
        f"{PROTOCOL + 1}: install the same version"
    )
    assert done.stderr.count(sentence) == 1 and "another volume" not in done.stderr, done.stderr
    trained = {
        name: len(list((newer.root / name / "coarse" / "trials").iterdir()))
        for name in ("ours", "theirs")
    }
    assert trained == {"ours": 2, "theirs": 0}


def test_no_command_touches_a_search_of_another_protocol(newer: Place) -> None:
    before = {
        path: path.read_bytes() for path in (newer.root / "theirs").rglob("*") if path.is_file()
    }
    named = ("--search", "theirs")
    commands = (
        ("master", "launch", *named, "--stage", "coarse", "--workers", "0", "--detach"),
        (
            "master",
            "launch",
            "--config",
            "theirs.toml",
            "--stage",
            "coarse",
            "--workers",
            "0",
            "--detach",
        ),
        ("master", "status", *named),
        ("master", "rank", "--config", "theirs.toml"),
        ("master", "kill", *named, "--stage", "coarse", "--yes"),
        ("master", "retry", *named, "--state", "failed"),
        ("master", "recover", "--config", "theirs.toml"),
    )
    for command in commands:
        done = newer.run(*command, checks=True)
        assert done.returncode == 1, (command, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert (
            f"speaks protocol {PROTOCOL}, search 'theirs' was launched by protocol {PROTOCOL + 1}"
            in done.stderr
        ), (command, done.stderr)
    assert before == {
        path: path.read_bytes() for path in (newer.root / "theirs").rglob("*") if path.is_file()
    }
    assert newer.run("master", "status", "--search", "ours").returncode == 0

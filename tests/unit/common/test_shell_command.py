from __future__ import annotations

import ast
import os
import re
import shlex
import stat
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from common import shell_command as module
from common.shell_command import find_program, note_given, shell_command
from master.cli import cli as master_cli
from worker.cli import cli as worker_cli

ROOT = Path(__file__).parents[3]
BY_HAND = re.compile(r"`(master|worker) [a-z]")
# Messages that are read on another machine or in a browser, where this installation's path is of
# no use, and text that names a command without telling anybody to run it.
ELSEWHERE = {
    "common/broker/connection.py",
    "common/broker/errors.py",
    "common/broker/shared_server.py",
    "common/queue/wire.py",
    "master/commands/redis_server.py",
    "master/dashboard/access.py",
    "master/dashboard/guard.py",
    "master/dashboard/logs.py",
    "master/dashboard/watch.py",
    "master/run/checking.py",
    "worker/own/saved.py",
}


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_given", {})


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment in the current folder, which is not active."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("master", "worker"):
        (programs / name).write_text("#!/bin/sh\necho ran\n")
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return programs


def test_a_program_outside_the_path_is_named_by_its_shorter_path(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_program("master") == [".venv/bin/master"]
    far = installed.parents[1].joinpath(*"abcdefghijklmnopqrstuvwxyz" * 3)
    far.mkdir(parents=True)
    monkeypatch.chdir(far)
    assert find_program("worker") == [str(installed / "worker")]
    monkeypatch.chdir(installed)
    assert find_program("master") == ["./master"]


def test_a_program_in_the_path_is_named_alone(
    installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", f"{installed}{os.pathsep}/usr/bin")
    assert find_program("master") == ["master"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "master").write_text("#!/bin/sh\n")
    (other / "master").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{other}{os.pathsep}{installed}")
    assert find_program("master") == [".venv/bin/master"]


def test_without_a_script_the_module_is_run(installed: Path) -> None:
    (installed / "master").unlink()
    assert find_program("master") == [".venv/bin/python", "-m", "master"]


def test_what_the_command_line_gave_is_repeated_where_it_is_needed(installed: Path) -> None:
    note_given("--checkpoints", "my folder")
    note_given("--config", "my search.toml")
    note_given("--redis", "redis://host:6379/0")
    note_given("--data-dir", "images")
    own = "--checkpoints 'my folder'"
    search = "--config 'my search.toml'"
    assert shell_command("master rank --top 5") == f".venv/bin/master rank --top 5 {own} {search}"
    redis = "--redis redis://host:6379/0"
    assert shell_command("master status") == f".venv/bin/master status {own} {search} {redis}"
    assert shell_command("master recover --config FILE").count("--config") == 1
    assert shell_command("master redis start") == f".venv/bin/master redis start {own}"
    assert shell_command("master init") == ".venv/bin/master init"
    assert "--data-dir images" in shell_command("master launch", "--stage", "all")
    note_given("--search", "digits")
    assert "--config" not in shell_command("master rank")


def test_a_password_is_not_printed(tmp_path: Path) -> None:
    url = "redis://user:secret@127.0.0.1:1/0?ssl_password=hidden"
    answer = CliRunner().invoke(
        master_cli, ["retry", "--redis", url, "--state", "failed", "--search", "nothing"]
    )
    assert answer.exit_code == 2
    with click.Context(master_cli) as context:
        master_cli.make_context("master", ["--redis", url, "status"], parent=context)
        told = shell_command("master status")
    assert "secret" not in told and "hidden" not in told and "redis://user:***@" in told


def test_the_options_are_noted_from_the_command_line_alone_and_end_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(tmp_path / "a folder")
    answer = CliRunner().invoke(master_cli, ["--checkpoints", here, "rank"])
    assert f"rank --checkpoints {shlex.quote(here)}" not in answer.output  # nothing to rank yet
    assert f"launch --stage all --checkpoints {shlex.quote(here)}`" in answer.output
    assert module._given == {}
    monkeypatch.setenv("CHECKPOINT_DIR", here)
    answer = CliRunner().invoke(master_cli, ["rank"])
    assert "launch --stage all`" in answer.output


def test_every_command_takes_the_options_that_it_is_given() -> None:
    places = {"--checkpoints", "--redis", "--data-dir", "--config", "--search"}
    for program in (master_cli, worker_cli):
        for name, command in program.commands.items():
            if isinstance(command, click.Group) or command.hidden:
                continue
            taken = {option for own in command.params for option in own.opts}
            added = {option for option in places if module._takes(name, option, ())}
            assert added <= taken, name


def test_no_message_writes_a_command_by_hand() -> None:
    found = []
    for package in ("common", "master", "worker"):
        for path in sorted((ROOT / package).rglob("*.py")):
            file = str(path.relative_to(ROOT))
            if file not in ELSEWHERE:
                found += [f"{file}:{line}" for line in _by_hand(ast.parse(path.read_text()))]
    assert found == []


def _by_hand(tree: ast.Module) -> list[int]:
    """Return the lines of strings, besides docstrings and help, that name a command."""
    ignored = {
        id(node)
        for owner in ast.walk(tree)
        if isinstance(owner, ast.Expr) or (isinstance(owner, ast.keyword) and owner.arg in HELP)
        for node in ast.walk(owner.value)
        if not isinstance(owner, ast.Expr) or isinstance(owner.value, ast.Constant)
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in ignored
        and BY_HAND.search(node.value)
    ]


HELP = ("help", "description")

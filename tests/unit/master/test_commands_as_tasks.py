"""A task that is a command, as the master and the checks see it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.code.store import task_digest
from common.errors import ConfigError, TaskError
from common.folder.chosen import Chosen, choose
from common.folder.output import Follower, read_end
from common.folder.records import SearchFolder
from common.search import command
from master.commands.logs import show_logs
from master.stages.prepare import settle
from master.strategy.ranges import write_frozen
from worker.checks.report import Status
from worker.checks.run import Run

TEXT = """
name = "own"
task = {{ command = {command} }}
[space]
learning_rate = {{ uniform = [0.1, 0.3] }}
[stages.coarse]
trials = 4
epochs = 4
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Chosen]:
    """Write a search file with this command, and choose it."""

    def written(words: object, folder: str = "mine") -> Chosen:
        base = tmp_path / folder
        base.mkdir(exist_ok=True)
        (base / "search.toml").write_text(TEXT.format(command=json.dumps(words)))
        return choose(tmp_path / "checkpoints", base / "search.toml", None, print, builtin=True)

    return written


def test_a_launch_notes_where_the_program_runs_and_again_means_the_same(
    write: Callable[..., Chosen], tmp_path: Path
) -> None:
    chosen = write("sh -c 'echo {learning_rate}'")
    first = settle(chosen, None, None, print)
    assert first.search.folder == str(tmp_path / "mine")
    assert task_digest(first.search, first.folder) == command.digest(first.search.task)
    again = settle(write(["sh", "-c", "echo {learning_rate}"], "moved"), None, None, print)
    assert (again.id, again.search.folder) == (first.id, first.search.folder)
    by_name = choose(tmp_path / "checkpoints", None, "own", print)
    assert settle(by_name, None, None, print).search == first.search
    with pytest.raises(ConfigError, match="launched before with other settings"):
        settle(write("sh -c 'echo {seed}'"), None, None, print)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("no-such-program {seed}", "the program 'no-such-program' is not found on the PATH"),
        ("./train.sh", "the program './train.sh' is no such file in"),
    ],
)
def test_a_program_that_is_missing_is_refused_before_anything_is_written(
    write: Callable[..., Chosen], tmp_path: Path, words: str, reason: str
) -> None:
    with pytest.raises(TaskError) as told:
        settle(write(words), None, None, print)
    assert reason in str(told.value) and not (tmp_path / "checkpoints").exists()


def test_a_folder_is_no_setting_of_other_tasks(tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text('folder = "x"\n' + TEXT.replace("{{ command = {command} }}", '"digits"'))
    file.write_text(file.read_text().replace("{{", "{").replace("}}", "}"))
    with pytest.raises(ConfigError, match="is for a task that is a command; remove it"):
        choose(tmp_path, file, None, print)


def test_the_checks_show_how_the_program_is_called(
    write: Callable[..., Chosen], tmp_path: Path
) -> None:
    chosen = write("sh train.sh --lr {learning_rate} --epochs {epochs}")
    report = Run(chosen, tmp_path).report()
    assert report.passed and [one.status for one in report.findings] == [
        Status.PASSED,
        Status.LEFT_OUT,
    ]
    assert "as in: sh train.sh --lr 0.2 --epochs 4" in report.findings[0].found
    gone = write("no-such-program")
    assert not Run(gone, tmp_path).report().passed


def test_logs_show_the_last_attempt_and_follow_it_to_its_end(
    write: Callable[..., Chosen], tmp_path: Path
) -> None:
    chosen, parts = write("sh"), list[bytes]()
    stage = SearchFolder(tmp_path / "checkpoints", "own").stage("coarse")
    with pytest.raises(ConfigError, match="has not been launched"):
        show_logs(chosen, "coarse-0001", False, parts.append)
    stage.make()
    write_frozen(stage.ranges, chosen.search.space)
    with pytest.raises(ConfigError, match="coarse-0001: has no output in"):
        show_logs(chosen, "coarse-0001", False, parts.append)
    with pytest.raises(ConfigError, match="coarse-9999: no such trial; stage 'coarse' has"):
        show_logs(chosen, "coarse-9999", False, parts.append)
    for name in ("../x", "other-0001"):
        with pytest.raises(ConfigError):
            show_logs(chosen, name, False, parts.append)
    for attempt in (2, 10):
        path = stage.output_path("coarse-0001", attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"try %d\n" % attempt)
    show_logs(chosen, "coarse-0001", False, parts.append)
    assert (
        parts == [b"try 10\n"] and read_end(path, 3) == "10\n" and read_end(stage.path, 3) is None
    )

    def grow(_seconds: float) -> None:
        with path.open("ab") as file:
            file.write(b"more\n")
        record = stage.record_path("coarse-0001", 10)
        record.parent.mkdir(exist_ok=True)
        record.touch()

    parts.clear()
    show_logs(chosen, "coarse-0001", True, parts.append, grow)
    assert b"".join(parts) == b"try 10\nmore\n"


def test_logs_show_an_attempt_or_all_of_them(write: Callable[..., Chosen], tmp_path: Path) -> None:
    chosen, parts = write("sh"), list[bytes]()
    stage = SearchFolder(tmp_path / "checkpoints", "own").stage("coarse")
    for attempt in (2, 10):
        path = stage.output_path("coarse-0001", attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"try %d\n" % attempt)
    show_logs(chosen, "coarse-0001", False, parts.append, wanted="2")
    assert parts == [b"try 2\n"]
    parts.clear()
    show_logs(chosen, "coarse-0001", False, parts.append, wanted="all")
    assert b"".join(parts) == (
        b"==> coarse-0001, attempt 2 <==\ntry 2\n==> coarse-0001, attempt 10 <==\ntry 10\n"
    )
    with pytest.raises(ConfigError, match=r"--attempt 3: has no output of coarse-0001; .*: 2, 10"):
        show_logs(chosen, "coarse-0001", False, parts.append, wanted="3")
    for bad in ("first", "-1", "\u0661"):
        with pytest.raises(ConfigError, match="neither a number nor last nor all"):
            show_logs(chosen, "coarse-0001", False, parts.append, wanted=bad)


def test_a_file_that_was_cut_is_followed_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"one\n")
    follower = Follower(path)
    assert b"".join(follower.read_new()) == b"one\n"
    (tmp_path / "new").write_bytes(b"one\n[...]\n")
    (tmp_path / "new").replace(path)
    assert b"".join(follower.read_new()) == b""
    with path.open("ab") as file:
        file.write(b"two\n")
    assert b"".join(follower.read_new()) == b"two\n"
    path.unlink()
    assert b"".join(follower.read_new()) == b""

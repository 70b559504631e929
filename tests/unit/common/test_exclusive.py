"""Files get their names whole and once.

This also holds if the file system has no hard links, or no rename without replacement.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import CheckpointError
from common.folder import durable, exclusive

WITHOUT = {"links": ("link",), "links and renames": ("link", "rename")}
SIZE = 100_000
PATCHED = """
import errno, os, sys
from pathlib import Path
from common.folder import durable, exclusive
def refuse(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))
    return call
os.link = refuse(errno.EPERM)
if "rename" in sys.argv[2].split(","):
    exclusive._rename_new = refuse(errno.EINVAL)
folder, own = Path(sys.argv[1]), sys.argv[3].encode()
"""
RACE = """
print("ready", flush=True)
sys.stdin.readline()
for number in range(200):
    path = folder / str(number)
    if not durable.write_new({path: own * 100_000}):
        print(number, flush=True)
"""
WRITE_FOR_EVER = """
for number in range(10 ** 6):
    durable.write_new({folder / str(number): own * 100_000})
    print(number, flush=True)
"""


def refusing(number: int) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def started(folder: Path, without: str, own: str, code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PATCHED + code, str(folder), ",".join(WITHOUT[without]), own]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(params=WITHOUT)
def without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """In this process, too, the file system lacks them."""
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    if "rename" in WITHOUT[request.param]:
        monkeypatch.setattr(exclusive, "_rename_new", refusing(errno.EINVAL))
    return str(request.param)


def test_what_exists_is_yielded_to_and_nothing_else_is_left(tmp_path: Path, without: str) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("first")
    assert durable.write_new({old: b"second", new: b"second"}) == {old}, without
    assert (old.read_text(), new.read_text()) == ("first", "second")
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]  # noqa: PTH208  hidden ones too
    (tmp_path / "dangling").symlink_to("nowhere")
    assert durable.write_new({tmp_path / "dangling": b"second"}) == {tmp_path / "dangling"}


@pytest.mark.parametrize("number", sorted(exclusive.NO_LINKS))
def test_each_way_to_say_that_there_are_no_links_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", refusing(number))
    assert (
        durable.write_new({tmp_path / "new": b"x"}) == set()
        and (tmp_path / "new").read_bytes() == b"x"
    )


def test_of_two_processes_exactly_one_wins_each_name(tmp_path: Path, without: str) -> None:
    racers = [started(tmp_path, without, own, RACE) for own in "ab"]
    for racer in racers:
        assert racer.stdout and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [set(racer.communicate(timeout=120)[0].split()) for racer in racers]
    assert all(racer.returncode == 0 for racer in racers)
    assert not won[0] & won[1] and won[0] | won[1] == {str(number) for number in range(200)}
    for own, names in zip("ab", won, strict=True):
        assert all((tmp_path / name).read_text() == own * SIZE for name in names)
    assert len(os.listdir(tmp_path)) == 200  # noqa: PTH208  hidden ones too


def test_without_links_and_renames_who_has_the_lock_names_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(exclusive, "_rename_new", refusing(errno.EINVAL))
    path, taken = tmp_path / "record", list[set[Path]]()
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    writer = threading.Thread(target=lambda: taken.append(durable.write_new({path: b"late"})))
    writer.start()
    writer.join(0.5)
    assert not path.exists(), "another has the lock"
    path.write_bytes(b"first")
    os.close(other)
    writer.join()
    assert taken == [{path}] and path.read_bytes() == b"first"


def test_a_writer_that_is_killed_leaves_whole_files_and_no_lock(
    tmp_path: Path, without: str
) -> None:
    for n_lines in (1, 5, 9):
        with started(tmp_path, without, "a", WRITE_FOR_EVER) as writer:
            assert writer.stdout
            for _ in range(n_lines):
                writer.stdout.readline()
            writer.kill()
    names = [
        path for path in tmp_path.iterdir() if not path.name.startswith(durable.TEMPORARY_PREFIX)
    ]
    assert len(names) >= 9 and all(path.read_text() == "a" * SIZE for path in names)
    assert durable.write_new({tmp_path / "next": b"x"}) == set()


def test_without_even_a_lock_the_remedy_is_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(exclusive, "_rename_new", refusing(errno.EINVAL))
    monkeypatch.setattr(exclusive.fcntl, "flock", refusing(errno.ENOLCK))
    with pytest.raises(
        CheckpointError,
        match=f"^{tmp_path}: its file system has neither hard links nor file locks; pass another",
    ):
        durable.write_new({tmp_path / "new": b"x"})
    assert not list(tmp_path.iterdir())


def test_what_has_nothing_to_do_with_links_is_no_reason_to_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EROFS))
    with pytest.raises(CheckpointError, match="read-only"):
        durable.write_new({tmp_path / "new": b"x"})
    assert not list(tmp_path.iterdir())

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import CheckpointError
from common.folder import durable
from master.export import files


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208  hidden ones too


def test_a_batch_appears_whole(tmp_path: Path) -> None:
    files = {tmp_path / f"{i}.json": f"content {i}".encode() * i for i in range(50)}
    assert durable.write_new(files) == set()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_an_empty_batch_is_nothing(tmp_path: Path) -> None:
    assert durable.write_new({}) == set()
    assert names(tmp_path) == []


def test_what_exists_is_yielded_to_and_told(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("first")
    assert durable.write_new({old: b"second", new: b"second"}) == {old}
    assert (old.read_text(), new.read_text()) == ("first", "second")
    assert names(tmp_path) == ["new", "old"]


def test_of_many_writers_exactly_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda i: durable.write_new({path: b"%d" % i * 1000}), range(40)))
    assert taken.count(set()) == 1
    assert path.read_bytes() == b"%d" % taken.index(set()) * 1000
    assert names(tmp_path) == ["record.json"]


def test_replacing_never_shows_a_part(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    contents = [bytes([i]) * 200_000 for i in (65, 66)]
    durable.replace(path, contents[0])
    done, seen = threading.Event(), set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for i in range(60):
            durable.replace(path, contents[i % 2])
    finally:
        done.set()
        reader.join()
    assert seen and seen <= set(contents)
    assert names(tmp_path) == ["leaderboard.csv"]


def test_a_writer_that_is_killed_leaves_the_old_version_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "state"
    code = (
        "import sys, itertools; from pathlib import Path; from common.folder import durable\n"
        "for i in itertools.count():\n"
        "    durable.replace(Path(sys.argv[1]), bytes([65 + i % 26]) * 300_000); "
        "print(i, flush=True)"
    )
    for rounds in (1, 4, 7):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            for _ in range(rounds):
                writer.stdout.readline()
            writer.kill()
        content = path.read_bytes()
        assert len(content) == 300_000 and len(set(content)) == 1


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (
            errno.EDQUOT,
            r"the disk quota is used up, of space or of files \(`quota -s` tells which\)",
        ),
        (
            errno.EROFS,
            "the file system is read-only; mount it writable or pass another --checkpoints",
        ),
        (errno.EACCES, "permission denied; make it writable"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_folder_that_refuses_is_told_with_the_remedy_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str, call: str
) -> None:
    old = tmp_path / "old"
    old.write_text("old")

    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(CheckpointError, match=f"^{tmp_path}: {remedy}"):
            durable.replace(old, b"new")
        with pytest.raises(CheckpointError, match=remedy):
            durable.write_new({tmp_path / f"new-{i}": b"x" for i in range(3)})
    assert names(tmp_path) == ["old"] and old.read_text() == "old"


def test_a_disk_without_inodes_is_told_apart_from_one_without_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for n_files, n_free, told in (
        (1000, 0, "its inodes are used up"),
        (1000, 5, "is full; free some space"),
        (0, 0, "is full; free some space"),
    ):
        found = SimpleNamespace(f_files=n_files, f_favail=n_free)

        def answer(path: Path, found: SimpleNamespace = found) -> SimpleNamespace:
            if path != tmp_path:
                raise FileNotFoundError(path)
            return found

        monkeypatch.setattr(os, "statvfs", answer)
        assert told in str(durable.explain_os_error(full, tmp_path / "not" / "there")), (
            n_files,
            n_free,
        )
    monkeypatch.undo()
    assert durable.shortage(OSError(errno.EIO, "x"), tmp_path) is None


def test_a_folder_that_is_not_there_or_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/none: "):
        durable.replace(tmp_path / "none" / "file", b"x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="a part of the path is a file"):
        durable.make_folder(tmp_path / "file" / "below")
    with pytest.raises(CheckpointError, match="a file stands where a folder belongs"):
        durable.make_folder(tmp_path / "file")
    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync_folder", synced.append)
    assert durable.make_folder(tmp_path / "a" / "b" / "c").is_dir()
    assert set(synced) == {
        tmp_path,
        tmp_path / "a",
        tmp_path / "a" / "b",
    }  # a power cut would else take what lies in them


def test_removing_what_is_gone_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("x")
    durable.remove([tmp_path / "gone", tmp_path / "here", tmp_path])
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "write",
    [lambda path: durable.replace(path, b"new"), lambda path: files.appearing(path).__enter__()],
)
def test_a_pipe_a_device_and_a_folder_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable
) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(
            CheckpointError, match=f"^{path}: not a regular file, and is not replaced"
        ):
            write(path)
    devices = tmp_path / "dev"
    devices.mkdir()
    (tmp_path / "redirected").write_text("old")
    (devices / "stdout").symlink_to(tmp_path / "redirected")
    monkeypatch.setattr(durable, "DEVICES", devices)
    with pytest.raises(CheckpointError, match="not a regular file"):
        write(devices / "stdout")
    assert (names(tmp_path), pipe.is_fifo()) == (["dev", "folder", "pipe", "redirected"], True)

"""When a worker that waits for the next command leaves before its time."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import time
from pathlib import Path

import pytest

from worker.run.staying import Staying


def test_it_stays_while_its_folder_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    staying = Staying(folder)
    assert staying.over() is None
    folder.rename(tmp_path / "aside")
    assert staying.over() == staying.is_gone() == f"{folder} is gone"
    folder.mkdir()
    assert staying.over() == f"{folder} is gone"  # this one is another
    assert Staying(folder).over() is None and Staying(None).over() is None


def test_another_folder_of_that_name_is_known_however_soon_it_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    staying = Staying(folder)
    folder.rmdir()
    folder.mkdir()  # ext4 would give it the number of the one before
    assert staying.is_gone() == f"{folder} is gone"


def test_a_folder_that_cannot_be_seen_for_now_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staying = Staying(tmp_path)

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "the network is away")

    monkeypatch.setattr(Path, "stat", fail)
    assert staying.is_gone() is None


def test_a_folder_that_is_made_later_is_waited_for(tmp_path: Path) -> None:
    staying = Staying(tmp_path / "digits")
    assert staying.over() is None
    (tmp_path / "digits").mkdir()
    assert staying.over() is None
    (tmp_path / "digits").rmdir()
    assert staying.over() is not None


def test_it_leaves_when_a_file_that_its_task_has_imported_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helpers_of_mine.py").write_text("layers = 2\n")
    (tmp_path / "never_imported.py").write_text("layers = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    staying = Staying(None)
    monkeypatch.setattr(staying, "_since_s", time.time() + 100)
    assert staying.over() is None
    try:
        importlib.import_module("helpers_of_mine")
        assert staying.over() is None
        os.utime(tmp_path / "never_imported.py", (time.time() + 200,) * 2)
        assert staying.over() is None
        os.utime(tmp_path / "helpers_of_mine.py", (time.time() + 200,) * 2)
        assert "helpers_of_mine.py has changed" in str(staying.over())
    finally:
        sys.modules.pop("helpers_of_mine", None)


def test_neither_libraries_nor_the_program_itself_are_the_users_own() -> None:
    own = Staying(None).own_sources()
    assert not [
        path
        for path in own
        if path.parts[-2:] in (("torch", "__init__.py"), ("worker", "staying.py"), ("pathlib.py",))
    ]
    assert Path(__file__) in own

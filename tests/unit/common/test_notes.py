"""Tags and notes: whole or not at all, bounded, and nothing lost when two write at once."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from common.errors import CheckpointError, ConfigError
from common.folder.notes import (
    MOST_CHARACTERS,
    MOST_TAGS,
    Note,
    Notes,
    change_note,
    find_notes,
    notes_file,
    read_notes,
)
from common.folder.records import SearchFolder


@pytest.fixture
def folder(tmp_path: Path) -> SearchFolder:
    made = SearchFolder(tmp_path, "digits")
    made.path.mkdir()
    return made


def put(*tags: str, note: str = "") -> Note:
    return Note(tags=tags, note=note)


def test_what_is_written_is_read_and_counts_its_edits(folder: SearchFolder) -> None:
    assert read_notes(folder) == Notes()
    first = change_note(
        folder, "coarse-0001", lambda before: put("keep", "keep", note=" good \r\n")
    )
    assert (first.tags, first.note, first.edit) == (("keep",), "good", 1) and first.at > 0
    change_note(folder, None, lambda before: put(note="about the search"))
    known = read_notes(folder)
    assert known.of("coarse-0001") == first and known.of(None).note == "about the search"
    assert known.of("coarse-0002").is_empty
    same = change_note(folder, "coarse-0001", lambda before: before)
    assert same == first, "without a change it is no new edit"
    gone = change_note(folder, "coarse-0001", lambda before: put())
    assert gone.is_empty and gone.edit == 2 and read_notes(folder).of("coarse-0001").edit == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (put("two words"), "tag 'two words': use 1 to 32 letters"),
        (put(""), "tag '': use"),
        (put("a" * 33), "use 1 to 32"),
        (put("-x"), "beginning with a letter"),
        (put(*map(str, range(MOST_TAGS + 1))), f"{MOST_TAGS + 1} tags are too many"),
        (put(note="x" * (MOST_CHARACTERS + 1)), "is too long; use at most 2,000"),
        (put(note="a\x1b[31mred"), r"cannot hold the character U\+001B"),
    ],
)
def test_what_is_not_allowed_is_told_and_changes_nothing(
    folder: SearchFolder, bad: Note, message: str
) -> None:
    change_note(folder, None, lambda before: put("here"))
    with pytest.raises(ConfigError, match=message):
        change_note(folder, None, lambda before: bad)
    assert read_notes(folder).of(None).tags == ("here",)


def test_the_file_has_a_limit(folder: SearchFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.folder.notes.MAX_FILE_BYTES", 9000)
    for n in range(4):
        change_note(folder, f"coarse-{n:04d}", lambda before: put(note="x" * 2000))
    with pytest.raises(ConfigError, match=r"more than the 9,000 allowed; shorten or remove other"):
        change_note(folder, "coarse-0004", lambda before: put(note="y" * 2000))
    assert len(read_notes(folder).trials) == 4


def test_a_damaged_file_is_named_and_never_overwritten(folder: SearchFolder) -> None:
    notes_file(folder).write_text('{"search": 3}')
    with pytest.raises(
        CheckpointError, match=r"notes.json: damaged .*; repair it, or set it aside"
    ):
        change_note(folder, None, lambda before: put("x"))
    assert notes_file(folder).read_text() == '{"search": 3}'
    told = list[str]()
    assert find_notes(folder, told.append) == Notes() and "damaged" in told[0]


def _add(root: Path, name: str) -> None:
    folder = SearchFolder(root, "digits")
    for n in range(15):
        change_note(folder, f"coarse-{n:04d}", lambda before: put(*before.tags, name))


def test_two_who_write_at_once_lose_nothing(folder: SearchFolder) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add, args=(folder.root, f"tag{n}")) for n in range(3)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert [one.exitcode for one in writers] == [0, 0, 0]
    known = read_notes(folder)
    assert [set(known.of(f"coarse-{n:04d}").tags) for n in range(15)] == [
        {"tag0", "tag1", "tag2"}
    ] * 15
    assert [path.name for path in folder.path.iterdir() if path.name.startswith(".tmp")] == []

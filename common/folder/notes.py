"""What people write about trials and about a search: tags, and a note in free text.

They are in ``notes.json`` in the search's folder, which is replaced as a whole. Whoever changes it
holds a lock, so that two people who write at once lose nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from common.errors import CheckpointError, ConfigError
from common.folder import durable
from common.folder.filelock import FileLock
from common.folder.json_file import read_model
from common.folder.records import SearchFolder

NAME = "notes.json"
LOCK = ".notes.lock"
PATIENCE_S = 10.0  # for the lock; a change takes milliseconds
MAX_FILE_BYTES = 8 << 20  # some ten thousand notes of a few sentences
# No spaces, since a filter separates words by them.
TAG_PATTERN = re.compile(r"\w[\w.-]{0,31}")
MOST_TAGS = 20  # of one trial, or of a search
MOST_CHARACTERS = 2000  # of a note


class Note(BaseModel):
    """What is written about one trial, or about the search.

    ``edit`` grows with each change, so that a writer can tell whether somebody else was faster.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    tags: tuple[str, ...] = ()
    note: str = ""
    edit: int = 0
    at: float = 0.0  # Unix time of the last change, s

    @property
    def is_empty(self) -> bool:
        """Whether nothing is written."""
        return not self.tags and not self.note


class Notes(BaseModel):
    """All notes of a search."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = 1
    search: Note = Note()
    trials: dict[str, Note] = {}

    def of(self, trial: str | None) -> Note:
        """Return what is written about a trial; None means the search."""
        return self.search if trial is None else self.trials.get(trial, Note())


def notes_file(folder: SearchFolder) -> Path:
    """Return the path of the file."""
    return folder.path / NAME


def read_notes(folder: SearchFolder) -> Notes:
    """Return the notes of a search; none if nobody has written any.

    Raises:
        CheckpointError: the file is damaged, or cannot be read.
    """
    remedy = "repair it, or set it aside: notes and tags are lost, results are not"
    return read_model(Notes, notes_file(folder), MAX_FILE_BYTES, remedy) or Notes()


def find_notes(folder: SearchFolder, warn: Callable[[str], None]) -> Notes:
    """Return the notes of a search, or none with a warning if they cannot be read."""
    try:
        return read_notes(folder)
    except CheckpointError as error:
        warn(str(error))
        return Notes()


def change_note(folder: SearchFolder, trial: str | None, edit: Callable[[Note], Note]) -> Note:
    """Change what is written about a trial, durably.

    Args:
        folder: the folder of a launched search.
        trial: the trial, which must exist; None means the search itself.
        edit: returns the new note for the present one. What it raises leaves the file as it is.

    Returns:
        The note as it is now in the file.

    Raises:
        ConfigError: a tag or the note is not allowed, or the file would become too large.
        CheckpointError: the file is damaged or cannot be written, or another process holds the
            lock.
    """
    lock = FileLock(folder.path / LOCK, everyones=True)
    try:
        with lock.exclusive(PATIENCE_S):
            known = read_notes(folder)
            before = known.of(trial)
            wanted = edit(before)
            tags, note = check_tags(wanted.tags), check_text(wanted.note)
            if (tags, note) == (before.tags, before.note):
                return before
            now = Note(tags=tags, note=note, edit=before.edit + 1, at=time.time())
            content = _encode(known, trial, now)
            if len(content) > MAX_FILE_BYTES:
                raise ConfigError(
                    f"{notes_file(folder)} would hold {len(content):,} bytes, more than the "
                    f"{MAX_FILE_BYTES:,} allowed; shorten or remove other notes"
                )
            durable.replace(notes_file(folder), content)
            return now
    finally:
        lock.close()


def _encode(known: Notes, trial: str | None, now: Note) -> bytes:
    # An empty note stays, with its count of edits: the next writer must not begin at 0 again.
    changed = {"search": now} if trial is None else {"trials": {**known.trials, trial: now}}
    return known.model_copy(update=changed).model_dump_json(indent=1).encode()


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags without repetitions, in their order.

    Raises:
        ConfigError: one is not a tag, or there are too many.
    """
    found = tuple(dict.fromkeys(tags))
    for tag in found:
        if not TAG_PATTERN.fullmatch(tag):
            raise ConfigError(
                f"tag {tag[:60]!r}: use 1 to 32 letters, digits, '_', '.' or '-', beginning with a "
                "letter or a digit"
            )
    if len(found) > MOST_TAGS:
        raise ConfigError(f"{len(found)} tags are too many; use at most {MOST_TAGS}")
    return found


def check_text(note: str) -> str:
    """Return a note without space around it.

    Raises:
        ConfigError: it is too long, or holds characters that cannot be shown.
    """
    note = note.replace("\r\n", "\n").strip()
    if len(note) > MOST_CHARACTERS:
        raise ConfigError(
            f"a note of {len(note):,} characters is too long; use at most {MOST_CHARACTERS:,}"
        )
    odd = next((c for c in note if not c.isprintable() and c not in "\n\t"), None)
    if odd is not None:
        raise ConfigError(f"a note cannot hold the character U+{ord(odd):04X}; remove it")
    return note

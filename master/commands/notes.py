"""`master note`: tags and notes of trials and of the search."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ConfigError
from common.folder.chosen import Chosen, not_launched
from common.folder.notes import Note, change_note, read_notes
from master.commands.trials import check_known


@dataclass(frozen=True)
class Change:
    """What is to be changed: tags to add and to remove, and a new text; None keeps the old one."""

    tags: tuple[str, ...] = ()
    untags: tuple[str, ...] = ()
    text: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be changed."""
        return not self.tags and not self.untags and self.text is None

    def apply(self, before: Note) -> Note:
        """Return a note with the change.

        Raises:
            ConfigError: a tag to remove is not there.
        """
        for tag in self.untags:
            if tag not in before.tags:
                there = ", ".join(before.tags) or "none"
                raise ConfigError(f"--untag {tag}: there is no such tag (there: {there})")
        kept = tuple(tag for tag in before.tags if tag not in self.untags)
        text = before.note if self.text is None else self.text
        return before.model_copy(update={"tags": (*kept, *self.tags), "note": text})


def note(chosen: Chosen, trial: str | None, change: Change) -> str:
    """Change what is written about a trial, or about the search without one, and return it as text.

    Without a change, only return it; without a trial, also that of each trial.

    Raises:
        ConfigError: the search was not launched, there is no such trial, or a tag or the text is
            not allowed.
        CheckpointError: the file of the notes is damaged or cannot be written.
    """
    if not chosen.folder.launched:
        raise not_launched(chosen)
    if trial is not None:
        check_known(chosen.search, chosen.folder, trial)
    what = trial or f"search {chosen.search.name!r}"
    if not change.is_empty:
        return _line(what, change_note(chosen.folder, trial, change.apply))
    known = read_notes(chosen.folder)
    others = {} if trial else dict(sorted(known.trials.items()))
    lines = [_line(name, own) for name, own in others.items() if not own.is_empty]
    return "\n".join([_line(what, known.of(trial)), *lines])


def _line(what: str, own: Note) -> str:
    if own.is_empty:
        return f"{what}: no tags and no note"
    tags = f"[{', '.join(own.tags)}]" if own.tags else ""
    text = own.note.replace("\n", "\n    ")
    return f"{what}: {' '.join(part for part in (tags, text) if part)}"

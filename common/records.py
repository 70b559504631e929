"""The checkpoint folder: the grammar of its file names, and the records in it.

    checkpoints/digits/search.toml
    checkpoints/digits/coarse/val_acc=0.9361-trial=coarse-0042-epoch=001-try=1.pt    weights
    checkpoints/digits/coarse/val_acc=0.9361-trial=coarse-0042-epoch=001-try=1.npz   what they predict, see common/predictions.py
    checkpoints/digits/coarse/snapshots/                                             the same two over time, of trials that keep weights
    checkpoints/digits/coarse/pictures/coarse-0042-try=1.png                         first-layer weights of an image model that is kept
    checkpoints/digits/coarse/trials/coarse-0042-try=1.json
    checkpoints/digits/coarse/resume/coarse-0042-try=1.pt

Every name is made and read here and in common/checkpoint_name.py, and nowhere else.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from common import bounded, durable
from common.checkpoint_name import CheckpointName
from common.errors import CheckpointError, ConfigError, DamagedFileError
from common.record import Record
from common.search import NAME_PATTERN, Search, load_search
from common.trial import STAGE_PATTERN, TRIAL_PATTERN

MAX_RECORD_BYTES = 16 << 20  # a record of a million epochs; anything larger is not ours
_TRIAL = rf"(?P<trial>{TRIAL_PATTERN.pattern})"
ATTEMPT_PATTERN = re.compile(rf"{_TRIAL}-try=(?P<attempt>\d{{1,9}})\.(?:json|pt)", re.ASCII)


@dataclass(frozen=True)
class AttemptFile:
    """A record or a resume state: which attempt of which trial."""

    trial_id: str
    attempt: int
    path: Path


class StageFolder:
    """One stage's part of a search's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials = path / "trials"
        self.resume = path / "resume"
        self.snapshots = path / "snapshots"
        self.pictures = path / "pictures"
        self.ranges = path / "ranges.toml"
        self.leaderboard = path / "leaderboard.csv"

    def make(self) -> None:
        """Creates the folders.

        Raises:
            CheckpointError: they cannot be made.
        """
        durable.make_folder(self.trials)
        durable.make_folder(self.resume)

    def record_path(self, trial_id: str, attempt: int) -> Path:
        """``trials/coarse-0042-try=1.json``."""
        return self.trials / f"{_named_safely(trial_id)}-try={attempt}.json"

    def resume_path(self, trial_id: str, attempt: int) -> Path:
        """``resume/coarse-0042-try=1.pt``."""
        return self.resume / f"{_named_safely(trial_id)}-try={attempt}.pt"

    def picture_path(self, trial_id: str, attempt: int) -> Path:
        """``pictures/coarse-0042-try=1.png``."""
        return self.pictures / f"{_named_safely(trial_id)}-try={attempt}.png"

    def write_records(self, records: Sequence[Record]) -> list[Record]:
        """Makes a batch of records durable. One that exists already stays: the first word about an attempt counts.

        Returns:
            The records as the folder has them now; one that cannot be read there is as it was given.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        contents = {self.record_path(r.trial, r.attempt): r.model_dump_json(exclude_none=True).encode() for r in records}
        taken = durable.write_new(contents)
        return [self._standing(r) if path in taken else r for path, r in zip(contents, records, strict=True)]

    def _standing(self, record: Record) -> Record:
        found = self.record(record.trial, record.attempt)
        return found if found is not None and found.search_id == record.search_id else record

    def set_damaged_aside(self, trial_id: str, attempt: int, search_id: str) -> None:
        """Renames a record that is damaged, or is another search's, so that a new one can take its name.

        Raises:
            CheckpointError: the record cannot be read for now, or the folder not be written.
        """
        path = self.record_path(trial_id, attempt)
        try:
            if read_record(path).search_id == search_id:
                return
        except FileNotFoundError:
            return
        except DamagedFileError:
            pass  # the very thing
        durable.set_aside(path)

    def record(self, trial_id: str, attempt: int) -> Record | None:
        """The record of one attempt, None if there is none or it is damaged."""
        path = self.record_path(trial_id, attempt)
        try:
            return read_record(path)
        except (CheckpointError, FileNotFoundError):
            return None

    def records(self, warn: Callable[[str], None], set_aside: bool = False) -> list[Record]:
        """Each trial's highest readable ended attempt, in the order of trial numbers; damaged files are told and passed over.

        Args:
            warn: told of each damaged file.
            set_aside: whether damaged files are given another name, so that nobody stumbles over them again.

        Raises:
            CheckpointError: the folder cannot be read, or a damaged file not be renamed; with ``set_aside`` also where a record cannot
                be read for now, which another look may find whole.
        """
        latest: dict[str, Record] = {}
        with _without_collection():
            for file in sorted(self.attempts(self.trials), key=lambda f: f.attempt, reverse=True):
                if file.trial_id in latest:
                    continue
                try:
                    latest[file.trial_id] = read_record(file.path)
                except FileNotFoundError:
                    continue
                except CheckpointError as error:
                    if set_aside and not isinstance(error, DamagedFileError):
                        raise
                    warn(str(error))
                    if set_aside:
                        durable.set_aside(file.path)
        return sorted(latest.values(), key=lambda r: r.index)

    @staticmethod
    def attempts(folder: Path, besides: str = "") -> list[AttemptFile]:
        """The records (in ``trials``) or resume states (in ``resume``) of all attempts; those with the ending ``besides`` as well."""
        matches = ((ATTEMPT_PATTERN.fullmatch(name.removesuffix(besides)), name) for name in _names(folder))
        return [AttemptFile(m["trial"], int(m["attempt"]), folder / name) for m, name in matches if m]

    def highest_attempts(self) -> dict[str, int]:
        """Each trial's highest attempt that left any file here, damaged or not: no attempt number is used twice."""
        highest: dict[str, int] = {}
        for file in [*self.attempts(self.trials, durable.ASIDE), *self.attempts(self.resume, durable.ASIDE)]:
            highest[file.trial_id] = max(file.attempt, highest.get(file.trial_id, 0))
        return highest

    def saved_states(self, trial_id: str) -> list[Path]:
        """The saved states of an unfinished trial, latest first."""
        own = [f for f in self.attempts(self.resume) if f.trial_id == trial_id]
        return [file.path for file in sorted(own, key=lambda f: f.attempt, reverse=True)]

    def checkpoints(self, mode: str = "max") -> list[CheckpointName]:
        """The weights files, best first as `ls -r` shows them; with ``mode`` "min" the smallest value first, as `ls` does."""
        parsed = (CheckpointName.parse(name) for name in sorted(_names(self.path), reverse=mode == "max"))
        return sorted((name for name in parsed if name), key=lambda name: name.value, reverse=mode == "max")

    def snapshots_of(self, trial_id: str, attempt: int) -> list[CheckpointName]:
        """The weights over time of one attempt, first epoch first."""
        parsed = (CheckpointName.parse(name) for name in _names(self.snapshots))
        return sorted((name for name in parsed if name and name.tried == (trial_id, attempt)), key=lambda name: name.epoch)

    def belongings(self, name: CheckpointName) -> list[Path]:
        """Every file that goes when these weights go: they, what they predict, the snapshots and the picture of their attempt."""
        over_time = self.snapshots_of(*name.tried)
        return [
            self.path / str(name),
            self.path / name.predictions,
            self.picture_path(name.trial_id, name.attempt),
            *(self.snapshots / file for snapshot in over_time for file in (str(snapshot), snapshot.predictions)),
        ]

    def left_behind(self) -> list[Path]:
        """Predictions whose weights are gone, and snapshots and pictures whose trial keeps no weights."""
        kept = {name.tried for name in self.checkpoints()}
        found = []
        for file in _names(self.path):
            owner = CheckpointName.parse_predictions(file)
            if owner is not None and not (self.path / str(owner)).exists():
                found.append(self.path / file)
        for file in _names(self.snapshots):
            owner = CheckpointName.parse(file) or CheckpointName.parse_predictions(file)
            if owner is not None and owner.tried not in kept:
                found.append(self.snapshots / file)
        pictures = {self.picture_path(*tried).name for tried in kept}
        return found + [self.pictures / file for file in _names(self.pictures) if file.endswith(".png") and file not in pictures]


class SearchFolder:
    """The folder of one search below the checkpoint root."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name
        self.path = root / name
        self.search_file = self.path / "search.toml"
        self.check_file = self.path / "check.json"  # the report of the checks that passed before the first stage

    def stage(self, name: str) -> StageFolder:
        """The part of one stage.

        Raises:
            CheckpointError: the name is no stage's, so it might lead elsewhere.
        """
        if not STAGE_PATTERN.fullmatch(name):
            raise CheckpointError(f"{name!r} is no stage's name, so {self.path} has no folder for it; whoever gave it is not this program")
        return StageFolder(self.path / name)

    @property
    def launched(self) -> bool:
        """Whether it has a ``search.toml``.

        Raises:
            CheckpointError: the folder may not be looked into.
        """
        try:
            return self.search_file.is_file()
        except OSError as error:
            raise durable.explained(error, self.path) from error

    def search(self) -> Search | None:
        """The search as launched, None if it never was.

        Raises:
            CheckpointError: its ``search.toml`` is damaged.
        """
        if not self.launched:
            return None
        try:
            search = load_search(self.search_file)
        except ConfigError as error:
            remedy = "the file as launched; `master recover --config FILE` puts your own copy of it in its place"
            raise CheckpointError(f"{error} ({remedy})") from None
        if search.id is None:
            raise CheckpointError(f"{self.search_file}: has no id, so it was not written by launch; move it out of the checkpoint folder")
        return search


def searches(root: Path) -> list[SearchFolder]:
    """The searches below ``root`` that were launched, by name."""
    folders = (SearchFolder(root, name) for name in sorted(_names(root)) if NAME_PATTERN.fullmatch(name))
    return [folder for folder in folders if folder.launched]


def home_of(checkpoint: Path) -> tuple[SearchFolder, CheckpointName]:
    """The search in whose folder a weights file lies, kept at the end or over time, and what its name says.

    Raises:
        CheckpointError: it lies elsewhere, or is none.
    """
    path = checkpoint.resolve()
    name = CheckpointName.parse(path.name)
    stage = path.parent.parent if path.parent.name == StageFolder(path).snapshots.name else path.parent
    folder = SearchFolder(stage.parent.parent, stage.parent.name)
    if name is None or not folder.launched:
        raise CheckpointError(f"{checkpoint}: not a checkpoint in a search's folder; give one that `master rank` names")
    return folder, name


def _named_safely(trial_id: str) -> str:
    """The id of a trial, which comes from Redis or from a file, as a part of a file's name."""
    if not TRIAL_PATTERN.fullmatch(trial_id):
        raise CheckpointError(f"{trial_id!r} is no trial's name, so no file is named after it; whoever gave it is not this program")
    return trial_id


def read_record(path: Path) -> Record:
    """Reads and validates one record.

    Raises:
        FileNotFoundError: gone.
        DamagedFileError: damaged, or another trial's.
        CheckpointError: it cannot be read for now.
    """
    match = ATTEMPT_PATTERN.fullmatch(path.name)
    try:
        record = Record.model_validate_json(bounded.read_bytes(path, MAX_RECORD_BYTES))
    except FileNotFoundError:
        raise
    except OSError as error:
        explained = durable.explained(error, path)
        raise (DamagedFileError(str(explained)) if bounded.is_odd(error) else explained) from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise DamagedFileError(f"{path}: damaged record ({problem}); set aside, its trial counts as not ended") from None
    named = (match["trial"], match["stage"], int(match["attempt"])) if match else None
    if (record.trial, record.stage, record.attempt) != named:
        raise DamagedFileError(f"{path}: holds the record of {record.trial} try {record.attempt}; set aside, its trial counts as not ended")
    return record


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keeps the collector of cycles from walking thousands of new records again and again, a third of the time of reading them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _names(folder: Path) -> Iterable[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise durable.explained(error, folder) from error

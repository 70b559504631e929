"""The checkpoint folder: its file names, and its records.

In ``checkpoints/digits``, the folder of the search "digits":

    search.toml
    coarse/val_acc=0.9361-trial=coarse-0042-epoch=001-try=1.pt    weights
    coarse/val_acc=0.9361-trial=coarse-0042-epoch=001-try=1.npz   predictions of these weights,
                                                                  see common/folder/predictions.py
    coarse/snapshots/                                             the same two over time, of trials
                                                                  that keep weights
    coarse/pictures/coarse-0042-try=1.png                         first-layer weights of an image
                                                                  model that is kept
    coarse/trials/coarse-0042-try=1.json                          record
    coarse/resume/coarse-0042-try=1.pt                            state to resume from
    coarse/programs/coarse-0042-try=1/                            what the program of a task wrote
    coarse/output/coarse-0042-try=1.txt                           stdout and stderr of the loop or
                                                                  program of a task
    notes.json                                                    tags and notes of people, see
                                                                  common/folder/notes.py
    small/teacher.json, teacher.npz                               of a stage that distills,
                                                                  see common/folder/teacher.py

Only this module and common/folder/checkpoint_name.py make and parse these names.
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

from common import safe_read
from common.errors import CheckpointError, ConfigError, DamagedFileError
from common.folder import durable
from common.folder.checkpoint_name import CheckpointName
from common.folder.record import Record
from common.repeats import list_few
from common.search.search_file import NAME_PATTERN, Search, load_search
from common.search.trial import STAGE_PATTERN, TRIAL_PATTERN
from common.shell_command import shell_command

REPORT = "report.html"  # in a stage's folder, and in the search's
MAX_RECORD_BYTES = 16 << 20  # a million epochs; a larger file is not a record
_TRIAL = rf"(?P<trial>{TRIAL_PATTERN.pattern})"
ATTEMPT_PATTERN = re.compile(rf"{_TRIAL}-try=(?P<attempt>\d{{1,9}})\.(?:json|pt|txt)", re.ASCII)


@dataclass(frozen=True)
class AttemptFile:
    """A record or a resume state, with the trial and the attempt it belongs to."""

    trial_id: str
    attempt: int
    path: Path


class StageFolder:
    """The folder of one stage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials = path / "trials"
        self.resume = path / "resume"
        self.snapshots = path / "snapshots"
        self.pictures = path / "pictures"
        self.programs = path / "programs"
        self.output = path / "output"
        self.ranges = path / "ranges.toml"
        # What the stage's configurations are drawn from, besides the ranges.
        self.strategy = path / "strategy.json"
        self.promotions = path / "promotions"  # which trials were promoted from each rung
        self.asked = path / "asked"  # configurations that were drawn one after the other
        self.leaderboard = path / "leaderboard.csv"
        # The models that a stage of kind "distill" learns from.
        self.teacher = path / "teacher.json"
        self.taught = path / "teacher.npz"  # their predictions on the training examples

    @property
    def has_begun(self) -> bool:
        """Whether the ranges that the stage samples are frozen."""
        return self.ranges.exists()

    def make(self) -> None:
        """Create the folders.

        Raises:
            CheckpointError: they cannot be created.
        """
        durable.make_folder(self.trials)
        durable.make_folder(self.resume)

    def record_path(self, trial_id: str, attempt: int) -> Path:
        """Return the path of a record, such as ``trials/coarse-0042-try=1.json``."""
        return self.trials / f"{_name_safely(trial_id)}-try={attempt}.json"

    def resume_path(self, trial_id: str, attempt: int) -> Path:
        """Return the path of a resume state, such as ``resume/coarse-0042-try=1.pt``."""
        return self.resume / f"{_name_safely(trial_id)}-try={attempt}.pt"

    def picture_path(self, trial_id: str, attempt: int) -> Path:
        """Return the path of a picture, such as ``pictures/coarse-0042-try=1.png``."""
        return self.pictures / f"{_name_safely(trial_id)}-try={attempt}.png"

    def program_path(self, trial_id: str, attempt: int) -> Path:
        """Return the folder of a program's attempt, such as ``programs/coarse-0042-try=1``."""
        return self.programs / f"{_name_safely(trial_id)}-try={attempt}"

    def output_path(self, trial_id: str, attempt: int) -> Path:
        """Return the path of an output, such as ``output/coarse-0042-try=1.txt``."""
        return self.output / f"{_name_safely(trial_id)}-try={attempt}.txt"

    def outputs_by_attempt(self, trial_id: str) -> dict[int, Path]:
        """Return the outputs of a trial's attempts by their numbers, the first one first."""
        own = (one for one in self.attempts(self.output) if one.trial_id == trial_id)
        return {one.attempt: one.path for one in sorted(own, key=lambda file: file.attempt)}

    def write_records(self, records: Sequence[Record]) -> list[Record]:
        """Write a batch of records durably.

        An existing record stays: the first one of an attempt counts.

        Returns:
            The records as they are now in the folder. Where the existing one cannot be read, the
            given one is returned.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        contents = {
            self.record_path(r.trial, r.attempt): r.model_dump_json(exclude_none=True).encode()
            for r in records
        }
        taken = durable.write_new(contents)
        return [
            self._standing(r) if path in taken else r
            for path, r in zip(contents, records, strict=True)
        ]

    def _standing(self, record: Record) -> Record:
        found = self.record(record.trial, record.attempt)
        return found if found is not None and found.search_id == record.search_id else record

    def set_damaged_aside(self, trial_id: str, attempt: int, search_id: str) -> None:
        """Rename a record that is damaged, or another search's, to free its name for a new one.

        Raises:
            CheckpointError: the record cannot be read for now, or the folder cannot be written.
        """
        path = self.record_path(trial_id, attempt)
        try:
            if read_record(path).search_id == search_id:
                return
        except FileNotFoundError:
            return
        except DamagedFileError:
            pass  # this is the record to rename
        durable.set_aside(path)

    def record(self, trial_id: str, attempt: int) -> Record | None:
        """Return the record of one attempt; None if there is none or it is damaged."""
        path = self.record_path(trial_id, attempt)
        try:
            return read_record(path)
        except (CheckpointError, FileNotFoundError):
            return None

    def records(self, warn: Callable[[str], None], set_aside: bool = False) -> list[Record]:
        """Return each trial's last readable record, in the order of trial numbers.

        The last one is that of the longest budget, and among these that of the highest attempt.
        Damaged files are skipped.

        Args:
            warn: called with a message if files are damaged: why the first of them is, and the
                names of the others.
            set_aside: whether to rename damaged files, so that they are not met again.

        Raises:
            CheckpointError: the folder cannot be read, or a damaged file cannot be renamed. With
                ``set_aside`` also if a record cannot be read for now, since a later try may
                succeed.
        """
        by_trial: dict[str, list[AttemptFile]] = {}
        for file in sorted(self.attempts(self.trials), key=lambda f: f.attempt, reverse=True):
            by_trial.setdefault(file.trial_id, []).append(file)
        damaged: dict[str, str] = {}
        try:
            with _without_collection():
                last = (self._last_of(own, damaged, set_aside) for own in by_trial.values())
                return sorted((own for own in last if own is not None), key=lambda own: own.index)
        finally:
            if damaged:
                first, *others = damaged
                more = f"; damaged as well: {list_few(others)}" if others else ""
                warn(damaged[first] + more)

    @staticmethod
    def _last_of(
        files: Sequence[AttemptFile], damaged: dict[str, str], set_aside: bool
    ) -> Record | None:
        """Return the readable record of the longest budget, and among these of the highest attempt.

        A trial that was never lost has one record for each rung, so its first readable file is the
        one. A lower attempt can only have the longer budget if there are more files than that, as
        after Redis has lost writes.

        Args:
            files: the trial's records, highest attempt first.
            damaged: gets the name of each damaged file, and why it is.
            set_aside: as for ``records``.
        """
        last: Record | None = None
        for number, file in enumerate(files):
            if last is not None and len(files) - number <= last.rung:
                break
            try:
                record = read_record(file.path)
            except FileNotFoundError:
                continue
            except CheckpointError as error:
                if set_aside and not isinstance(error, DamagedFileError):
                    raise
                damaged[file.path.name] = str(error)
                if set_aside:
                    durable.set_aside(file.path)
                continue
            last = record if last is None or record.rung > last.rung else last
        return last

    @staticmethod
    def attempts(folder: Path, besides: str = "") -> list[AttemptFile]:
        """Return the records (in ``trials``) or resume states (in ``resume``) of all attempts.

        Args:
            folder: ``trials`` or ``resume``.
            besides: an ending; files that have it appended to their names are returned too.
        """
        matches = (
            (ATTEMPT_PATTERN.fullmatch(name.removesuffix(besides)), name) for name in _names(folder)
        )
        return [
            AttemptFile(m["trial"], int(m["attempt"]), folder / name) for m, name in matches if m
        ]

    def highest_attempts(self) -> dict[str, int]:
        """Return the highest attempt of each trial that left any file here, damaged or not.

        No attempt number is used twice.
        """
        highest: dict[str, int] = {}
        for file in [
            *self.attempts(self.trials, durable.ASIDE),
            *self.attempts(self.resume, durable.ASIDE),
        ]:
            highest[file.trial_id] = max(file.attempt, highest.get(file.trial_id, 0))
        return highest

    def find_states(self, trial_id: str) -> list[Path]:
        """Return the saved states of an unfinished trial, latest first."""
        own = [f for f in self.attempts(self.resume) if f.trial_id == trial_id]
        return [file.path for file in sorted(own, key=lambda f: f.attempt, reverse=True)]

    def checkpoints(self, mode: str = "max") -> list[CheckpointName]:
        """Return the weights files, best value first.

        For ``mode`` "max" this is the order of `ls -r`, for "min" that of `ls`.
        """
        parsed = (
            CheckpointName.parse(name) for name in sorted(_names(self.path), reverse=mode == "max")
        )
        return sorted(
            (name for name in parsed if name), key=lambda name: name.value, reverse=mode == "max"
        )

    def snapshots_of(self, trial_id: str, attempt: int) -> list[CheckpointName]:
        """Return the snapshots of one attempt, first epoch first."""
        parsed = (CheckpointName.parse(name) for name in _names(self.snapshots))
        return sorted(
            (name for name in parsed if name and name.tried == (trial_id, attempt)),
            key=lambda name: name.epoch,
        )

    def belongings(self, name: CheckpointName) -> list[Path]:
        """Return all files that are removed together with these weights.

        They are the weights, their predictions, and the snapshots and the picture of their attempt.
        """
        over_time = self.snapshots_of(*name.tried)
        return [
            self.path / str(name),
            self.path / name.predictions,
            self.picture_path(name.trial_id, name.attempt),
            *(
                self.snapshots / file
                for snapshot in over_time
                for file in (str(snapshot), snapshot.predictions)
            ),
        ]

    def find_left_behind(self) -> list[Path]:
        """Return files whose weights are gone: predictions, snapshots and pictures."""
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
        return found + [
            self.pictures / file
            for file in _names(self.pictures)
            if file.endswith(".png") and file not in pictures
        ]


class SearchFolder:
    """The folder of one search below the checkpoint root."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name
        self.path = root / name
        self.search_file = self.path / "search.toml"
        # The report of the checks that passed before the first stage.
        self.check_file = self.path / "check.json"
        # The versions of the task's code, and a note of the current one. A stage cannot have the
        # name of the folder.
        self.code = self.path / "task-code"
        self.task_file = self.path / "task.json"

    def stage(self, name: str) -> StageFolder:
        """Return the folder of one stage.

        Raises:
            CheckpointError: the name is not valid for a stage, so it might lead elsewhere.
        """
        if not STAGE_PATTERN.fullmatch(name):
            raise CheckpointError(
                f"{name!r} is no stage's name, so {self.path} has no folder for it; another "
                "program wrote it"
            )
        return StageFolder(self.path / name)

    @property
    def launched(self) -> bool:
        """Whether it has a ``search.toml``.

        Raises:
            CheckpointError: the folder may not be read.
        """
        try:
            return self.search_file.is_file()
        except OSError as error:
            raise durable.explain_os_error(error, self.path) from error

    def search(self) -> Search | None:
        """Return the search as it was launched; None if it never was.

        Raises:
            CheckpointError: its ``search.toml`` is damaged.
            ProtocolError: another version of this program has launched it.
        """
        if not self.launched:
            return None
        try:
            search = load_search(self.search_file)
        except ConfigError as error:
            remedy = (
                f"the file as launched; `{shell_command('master recover --config FILE')}` puts "
                "your own copy of it in its place"
            )
            raise CheckpointError(f"{error} ({remedy})") from None
        if search.id is None:
            raise CheckpointError(
                f"{self.search_file}: has no id, so it was not written by launch; move it out of "
                "the checkpoint folder"
            )
        return search


def searches(root: Path) -> list[SearchFolder]:
    """Return the launched searches below ``root``, by name."""
    folders = (
        SearchFolder(root, name) for name in sorted(_names(root)) if NAME_PATTERN.fullmatch(name)
    )
    return [folder for folder in folders if folder.launched]


def home_of(checkpoint: Path) -> tuple[SearchFolder, CheckpointName]:
    """Return the folder of the search that a weights file belongs to, and its parsed name.

    The file may be a checkpoint or a snapshot.

    Raises:
        CheckpointError: it lies elsewhere, or is not a weights file.
    """
    path = checkpoint.resolve()
    name = CheckpointName.parse(path.name)
    stage = (
        path.parent.parent if path.parent.name == StageFolder(path).snapshots.name else path.parent
    )
    folder = SearchFolder(stage.parent.parent, stage.parent.name)
    if name is None or not folder.launched:
        raise CheckpointError(
            f"{checkpoint}: not a checkpoint in a search's folder; give one that "
            f"`{shell_command('master rank')}` names"
        )
    return folder, name


def _name_safely(trial_id: str) -> str:
    """Return a trial's id if it is safe in a file name; it comes from Redis or a file."""
    if not TRIAL_PATTERN.fullmatch(trial_id):
        raise CheckpointError(
            f"{trial_id!r} is no trial's name, so no file is named after it; another program "
            "wrote it"
        )
    return trial_id


def read_record(path: Path) -> Record:
    """Read and validate one record.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is damaged, or another trial's.
        CheckpointError: it cannot be read for now.
    """
    match = ATTEMPT_PATTERN.fullmatch(path.name)
    try:
        record = Record.model_validate_json(safe_read.read_bytes(path, MAX_RECORD_BYTES))
    except FileNotFoundError:
        raise
    except OSError as error:
        explained = durable.explain_os_error(error, path)
        raise (
            DamagedFileError(str(explained)) if safe_read.is_odd(error) else explained
        ) from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise DamagedFileError(
            f"{path}: damaged record ({problem}); set aside, its trial counts as not ended"
        ) from None
    named = (match["trial"], match["stage"], int(match["attempt"])) if match else None
    if (record.trial, record.stage, record.attempt) != named:
        raise DamagedFileError(
            f"{path}: holds the record of {record.trial} try {record.attempt}; set aside, its "
            "trial counts as not ended"
        )
    return record


@contextmanager
def _without_collection() -> Iterator[None]:
    """Pause the garbage collector while thousands of records are read.

    Otherwise it would traverse the new records again and again, a third of the time of reading
    them.
    """
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
        raise durable.explain_os_error(error, folder) from error

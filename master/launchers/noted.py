"""The files in a search's folder that name the jobs which were submitted for it.

Each submission has a file, ``logs/slurm/17.json`` for the jobs 17_1, 17_2 and so on, or
``logs/kubernetes/17.json`` for coarsefine-digits-17-1 and so on. It is replaced as a whole, so
several masters may write it without a lock: all write what the scheduler says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from common.folder.durable import explain_os_error, make_folder, remove, replace
from common.folder.json_file import read_model
from master.launchers.stayed import FOLDER

MAX_FILE_BYTES = 16 << 20
ENDED = "ended"
MOST_ENDED = 20  # submissions that have ended and are still explained
OWNER_ONLY = 0o700
NUMBER = re.compile(r"(\d+)(?:[_-]\d+)?$", re.ASCII)


class Noted(BaseModel, frozen=True):
    """What is noted of a job: its phase, and its words, as in ``master/launchers/cluster.py``."""

    phase: str
    words: str = ""


class _File(BaseModel):
    jobs: dict[str, Noted]


class Notes:
    """The jobs of a search, in a folder that its owner alone may enter."""

    def __init__(self, search: Path, launcher: str) -> None:
        """Name the folder without reading it.

        Args:
            search: The folder of the search.
            launcher: The name of the launcher, such as "slurm".
        """
        self.folder = search / FOLDER / launcher

    def make_folder(self) -> Path:
        """Create the folder. The logs of jobs are there too, and may show what others must not see.

        Raises:
            CheckpointError: it cannot be created.
        """
        make_folder(self.folder)
        try:
            self.folder.chmod(OWNER_ONLY)
        except OSError as error:
            raise explain_os_error(error, self.folder) from error
        return self.folder

    def read(self) -> dict[str, Noted]:
        """Return the noted jobs by id, in the order of their submission.

        Raises:
            CheckpointError: a file is damaged, or cannot be read.
        """
        return {id: job for file in self._files() for id, job in _read(file).items()}

    def update(self, jobs: Mapping[str, Noted]) -> None:
        """Note what is new of some jobs. Jobs that have ended without a word are forgotten.

        Raises:
            CheckpointError: a file is damaged, or cannot be written.
        """
        self.make_folder()
        by_file: dict[Path, dict[str, Noted]] = {}
        for id, job in jobs.items():
            by_file.setdefault(self.folder / f"{find_number(id)}.json", {})[id] = job
        for file, own in by_file.items():
            known = _read(file) | own
            left = {id: job for id, job in known.items() if job.phase != ENDED or job.words}
            if left:
                replace(file, _File(jobs=left).model_dump_json(indent=1).encode())
            else:
                remove([file])
        over = [
            file for file in self._files() if all(j.phase == ENDED for j in _read(file).values())
        ]
        remove(over[:-MOST_ENDED])

    def _files(self) -> list[Path]:
        """Return the files, in the order of the submissions."""
        found = (file for file in self.folder.glob("*.json") if file.stem.isdecimal())
        return sorted(found, key=lambda file: int(file.stem))


def find_number(id: str) -> int:
    """Return the number of the submission that a job belongs to: 17 for 17_2 and for a-b-17-2.

    Raises:
        ValueError: the id has none.
    """
    found = NUMBER.search(id)
    if not found:
        raise ValueError(f"{id}: not the id of a job")
    return int(found[1])


def _read(file: Path) -> dict[str, Noted]:
    remedy = "cancel its jobs by hand (its name is their number), and delete it"
    found = read_model(_File, file, MAX_FILE_BYTES, remedy)
    return found.jobs if found else {}


def find_notes(root: Path, launcher: str) -> dict[str, Notes]:
    """Return the notes of each search in a checkpoint root that has some, by its name."""
    folders = sorted(root.glob(f"*/{FOLDER}/{launcher}"))
    return {folder.parents[1].name: Notes(folder.parents[1], launcher) for folder in folders}

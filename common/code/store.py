"""The code of a search in its checkpoint folder: one folder for each version.

``task-code/3f0c.../`` holds the files and ``task-code/3f0c....json`` lists them. ``task.json``
names the version that was launched or mended last. Each version stays, since records name it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from common import safe_read
from common.code.tree import MOST_FILE_BYTES, Code, File, Manifest, is_safe
from common.errors import CheckpointError, TaskError
from common.folder import durable
from common.folder.json_file import read_model
from common.folder.records import SearchFolder
from common.search import command
from common.search.search_file import Search

MOST_LIST_BYTES = 4 << 20
NAME_LENGTH = 16  # characters of the digest in a name
REMEDY = "launch under a new name with --new-name, or restore the file"


class Current(BaseModel):
    """The content of ``task.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = 1
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


def keep(folder: SearchFolder, code: Code) -> None:
    """Write the files into the search's folder, unless they are there; durable on return.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    home, listing = _places(folder, code.digest)
    durable.make_folder(home.parent)
    if home.exists() and _is_damaged(home, code.manifest):
        durable.set_aside(home)
    durable.write_new_folder(
        home, {name: (file.content, file.executable) for name, file in code.files.items()}
    )
    try:
        manifest(folder, code.digest)
    except (TaskError, CheckpointError):  # none yet, or a damaged one
        durable.replace(listing, code.manifest.model_dump_json(indent=2).encode())


def make_first(folder: SearchFolder, digest: str) -> str:
    """Note which version of the code is launched, unless another launch has noted one.

    Returns:
        The digest that is noted now.
    """
    durable.write_new({folder.task_file: _note(digest)})
    return launched_digest(folder)


def make_current(folder: SearchFolder, digest: str) -> None:
    """Note which version of the code is launched from now on."""
    durable.replace(folder.task_file, _note(digest))


def _note(digest: str) -> bytes:
    return Current(digest=digest).model_dump_json().encode()


def current(folder: SearchFolder) -> str | None:
    """Return the digest of the code that was launched or mended last; None without any.

    Raises:
        CheckpointError: it cannot be read.
    """
    found = read_model(
        Current, folder.task_file, MOST_FILE_BYTES, "launch again with the search file"
    )
    return found.digest if found is not None else None


def launched_digest(folder: SearchFolder) -> str:
    """Return the digest of the code that was launched.

    Raises:
        TaskError: the folder has no code.
    """
    found = current(folder)
    if found is None:
        raise TaskError(
            f"{folder.path}: has no {folder.task_file.name}, which names the code of its task; "
            "launch with the search file again. If an earlier version of this program launched it, "
            "use --new-name"
        )
    return found


def task_digest(search: Search, folder: SearchFolder) -> str:
    """Return the digest of the launched task: of its code in the folder, or ``builtin:NAME``.

    Of a task that is a command it is the digest of the command. A stage freezes it at launch, a
    worker compares it with the code that it is about to run, and each record includes it.

    Raises:
        TaskError: the folder has no code.
        CheckpointError: it cannot be read.
    """
    if search.is_command:
        return command.digest(search.task)
    return f"builtin:{search.task}" if search.is_built_in else launched_digest(folder)


def manifest(folder: SearchFolder, digest: str) -> Manifest:
    """Return the list of the files of one version.

    Raises:
        TaskError: it is missing, or another version's.
        CheckpointError: it cannot be read.
    """
    listing = _places(folder, digest)[1]
    found = read_model(Manifest, listing, MOST_LIST_BYTES, REMEDY)
    if found is None:
        raise TaskError(
            f"{listing}: the code with digest {digest} is not there; {REMEDY}, or wait until the "
            "folder's file system shows it"
        )
    if found.digest != digest:
        raise TaskError(
            f"{listing}: the code here has digest {found.digest}, the launched one {digest}; "
            f"{REMEDY}"
        )
    return found


def read(folder: SearchFolder, digest: str) -> Code:
    """Return one version of the code. Each file is compared with the digest.

    Raises:
        TaskError: a file is missing, or is not what was launched.
        CheckpointError: the list of the files cannot be read.
    """
    known, home = manifest(folder, digest), _places(folder, digest)[0]
    files = {}
    for name, entry in known.files.items():
        if not is_safe(name):
            raise TaskError(f"{home}: lists {name!r}, which is no path in a folder; {REMEDY}")
        try:
            content = safe_read.read_bytes(home / name, MOST_FILE_BYTES)
        except OSError as error:
            raise TaskError(
                f"{home / name}: cannot be read ({error.strerror}); {REMEDY}"
            ) from error
        found = hashlib.sha256(content).hexdigest()
        if found != entry.sha256:
            raise TaskError(
                f"{home / name}: the file here has digest {found}, the launched one "
                f"{entry.sha256}; {REMEDY}"
            )
        files[name] = File(content, entry.executable)
    return Code(known.module, files, known.commit, known.dirty)


def _places(folder: SearchFolder, digest: str) -> tuple[Path, Path]:
    """Return the folder of one version, and the list of its files."""
    name = digest[:NAME_LENGTH]
    return folder.code / name, folder.code / f"{name}.json"


def _is_damaged(home: Path, wanted: Manifest) -> bool:
    try:
        return any(
            hashlib.sha256(safe_read.read_bytes(home / name, MOST_FILE_BYTES)).hexdigest()
            != entry.sha256
            for name, entry in wanted.files.items()
        )
    except OSError:
        return True


def explain_change(folder: SearchFolder, digest: str, now: Code) -> list[str]:
    """Return how the code differs from a launched version: "changed my_task.py", ...

    Raises:
        TaskError: the list of the launched files is missing or damaged.
    """
    return manifest(folder, digest).changes(now.manifest)

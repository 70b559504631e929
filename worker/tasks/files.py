"""The files of a data set: found in the data folder, or downloaded into it and checked, or an error that says what to put where."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import CheckpointError, TaskError
from common.filelock import FileLock

CONNECT_S = 15.0  # of silence, after which an address counts as out of reach
DOWNLOAD_S = 500.0  # for a whole data set: below the time that a worker is given to load its data
CHUNK_BYTES = 1 << 20
NETWORK_ERRORS = (OSError, http.client.HTTPException, ValueError)  # urllib's own, and timeouts, are OSErrors
PARTIAL_PREFIX = ".partial-"  # never read: a file gets its name when it is whole


@dataclass(frozen=True)
class DataFile:
    """One file as its authors published it."""

    name: str
    size_bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}  {self.size_bytes} bytes  sha256 {self.sha256}"


@dataclass(frozen=True)
class DataSet:
    """The files of a data set."""

    title: str
    folders: tuple[str, ...]  # below the data folder, looked into one after the other; downloads go to the first
    files: tuple[DataFile, ...]
    addresses: tuple[str, ...]  # the data set's home and its mirrors: where each file lies below


def say(message: str) -> None:
    """One line on stderr, where a worker's log is."""
    print(message, file=sys.stderr, flush=True)


def find(data_set: DataSet, data_dir: Path, tell: Callable[[str], None] = say) -> list[Path]:
    """The files of a data set in the order of its ``files``; those that are missing are downloaded first.

    A file that was put there by hand may differ from the published one: that is told, and it is read all the same, since its format
    says whether it is whole. A downloaded one has to be the published one.

    Args:
        data_set: which files.
        data_dir: the data folder; made where missing.
        tell: hears of downloads and of files that are not the published ones.

    Raises:
        TaskError: files are missing and cannot be downloaded; the message says which to put where.
    """
    found = [_there(data_set, file, data_dir) for file in data_set.files]
    if None in found:
        _complete(data_set, data_dir, tell)
        found = [_there(data_set, file, data_dir) for file in data_set.files]
    paths = [path for path in found if path is not None]
    for file, path in zip(data_set.files, paths, strict=True):
        if (why := _difference(file, path)) is not None:
            tell(f"warning: {path}: not the published file ({why}); results will differ from those of others")
    return paths


def _there(data_set: DataSet, file: DataFile, data_dir: Path) -> Path | None:
    candidates = (data_dir / folder / file.name for folder in data_set.folders)
    return next((path for path in candidates if path.is_file()), None)


def _difference(file: DataFile, path: Path) -> str | None:
    """Why the file is not the published one, None if it is."""
    try:
        size = path.stat().st_size
        if size != file.size_bytes:
            return f"{size} bytes instead of {file.size_bytes}"
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return None if digest == file.sha256 else f"sha256 {digest} instead of {file.sha256}"


def _complete(data_set: DataSet, data_dir: Path, tell: Callable[[str], None]) -> None:
    """Downloads what is missing; of several workers one does, and the others wait for it."""
    folder = data_dir / data_set.folders[0]
    deadline = time.monotonic() + DOWNLOAD_S
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock").exclusive(DOWNLOAD_S):
            for file in data_set.files:
                if _there(data_set, file, data_dir) is None:
                    _download(data_set, file, folder, deadline, tell)
    except _UnreachableError as error:
        raise _missing(data_set, data_dir, str(error)) from None
    except CheckpointError as error:
        raise _missing(data_set, data_dir, f"the folder cannot be locked for a download: {error}") from None
    except OSError as error:
        raise _missing(data_set, data_dir, f"the folder cannot be written: {error.strerror or error}") from None


class _UnreachableError(Exception):
    """No address gave the file."""


def _download(data_set: DataSet, file: DataFile, folder: Path, deadline: float, tell: Callable[[str], None]) -> None:
    problems = []
    for address in data_set.addresses:
        url = f"{address}/{file.name}"
        tell(f"{data_set.title}: downloading {url} ({file.size_bytes / 1e6:.1f} MB)")
        problem = _fetched(url, file, folder, deadline)
        if problem is None:
            return
        problems.append(f"{url}: {problem}")
    raise _UnreachableError("; ".join(problems))


def _fetched(url: str, file: DataFile, folder: Path, deadline: float) -> str | None:
    """Brings one file to its place; returns why not, None where it lies there now.

    Raises:
        OSError: the folder cannot be written.
    """
    descriptor, partial = tempfile.mkstemp(dir=folder, prefix=PARTIAL_PREFIX)
    try:
        with os.fdopen(descriptor, "wb") as out:
            problem = _copied(url, file, out.write, deadline)
            out.flush()
            os.fsync(out.fileno())
        if problem is None:
            Path(partial).chmod(0o644)  # mkstemp's are the owner's alone; a data folder is often shared
            Path(partial).replace(folder / file.name)
        return problem
    finally:
        Path(partial).unlink(missing_ok=True)


def _copied(url: str, file: DataFile, write: Callable[[bytes], object], deadline: float) -> str | None:
    """Reads the address into ``write``; returns what is wrong with what came, None if it is the published file."""
    digest, size = hashlib.sha256(), 0
    try:
        answer = urllib.request.urlopen(url, timeout=CONNECT_S)
    except NETWORK_ERRORS as error:
        return _told(error)
    with answer:
        while size <= file.size_bytes:
            try:
                chunk = answer.read(CHUNK_BYTES)
            except NETWORK_ERRORS as error:
                return _told(error)
            if not chunk:
                break
            if time.monotonic() > deadline:
                return f"too slow: {size} of {file.size_bytes} bytes in {DOWNLOAD_S:g} s"
            digest.update(chunk)
            size += len(chunk)
            write(chunk)  # what the disk raises is not the network's
    if size != file.size_bytes or digest.hexdigest() != file.sha256:
        return f"answered with another file ({size} bytes, sha256 {digest.hexdigest()})"
    return None


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {getattr(error, 'reason', None) or error}"


def _missing(data_set: DataSet, data_dir: Path, why: str) -> TaskError:
    lacking = [str(file) for file in data_set.files if _there(data_set, file, data_dir) is None]
    places = " (or ".join(str((data_dir / folder).absolute()) for folder in data_set.folders) + ")" * (len(data_set.folders) - 1)
    return TaskError(
        f"{data_set.title}: {_counted(lacking)} missing and could not be downloaded ({why}). "
        f"Put into {places}, or name another data folder with --data-dir:\n  " + "\n  ".join(lacking)
    )


def _counted(lacking: Sequence[str]) -> str:
    return "1 file is" if len(lacking) == 1 else f"{len(lacking)} files are"

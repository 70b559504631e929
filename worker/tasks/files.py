"""Find the files of a data set in the data folder, or download and check them.

If that fails, the error message says which file to put where.
"""

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
from common.folder import durable
from common.folder.filelock import FileLock

CONNECT_S = 15.0  # an address that is silent for so long counts as unreachable
DOWNLOAD_S = 500.0  # for a whole data set; less than a worker may take to load its data
CHUNK_BYTES = 1 << 20
# URLError and timeouts are subclasses of OSError.
NETWORK_ERRORS = (OSError, http.client.HTTPException, ValueError)
PARTIAL_PREFIX = ".partial-"  # such files are never read; a complete file gets its real name


@dataclass(frozen=True)
class DataFile:
    """A file as its authors published it."""

    name: str
    size_bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}  {self.size_bytes} bytes  sha256 {self.sha256}"


@dataclass(frozen=True)
class DataSet:
    """A data set: its files, and where to look for them."""

    title: str
    # Folders below the data folder, searched in this order. Downloads go to the first.
    folders: tuple[str, ...]
    files: tuple[DataFile, ...]
    addresses: tuple[str, ...]  # URLs of the folder that holds the files: the home, then mirrors


def say(message: str) -> None:
    """Print one line to stderr, where a worker's log goes."""
    print(message, file=sys.stderr, flush=True)


def find(data_set: DataSet, data_dir: Path, tell: Callable[[str], None] = say) -> list[Path]:
    """Return the paths of a data set's files, in the order of ``data_set.files``.

    Missing files are downloaded first. A downloaded file must equal the published one. A file that
    was put there by hand may differ: ``tell`` is called with a warning and the file is used, since
    its format shows whether it is complete.

    Args:
        data_set: the data set to find.
        data_dir: the data folder. It is created if a download needs it.
        tell: called with a line about each download and each file that differs from the published
            one.

    Raises:
        TaskError: files are missing and cannot be downloaded. The message says which file to put
            where.
    """
    found = [_there(data_set, file, data_dir) for file in data_set.files]
    if None in found:
        _complete(data_set, data_dir, tell)
        found = [_there(data_set, file, data_dir) for file in data_set.files]
    paths = [path for path in found if path is not None]
    for file, path in zip(data_set.files, paths, strict=True):
        if (why := _difference(file, path)) is not None:
            tell(
                f"warning: {path}: not the published file ({why}); results will differ from those "
                "of others"
            )
    return paths


def _there(data_set: DataSet, file: DataFile, data_dir: Path) -> Path | None:
    candidates = (data_dir / folder / file.name for folder in data_set.folders)
    return next((path for path in candidates if path.is_file()), None)


def _difference(file: DataFile, path: Path) -> str | None:
    """Return how the file differs from the published one, or None if it does not."""
    try:
        size = path.stat().st_size
        if size != file.size_bytes:
            return f"{size} bytes instead of {file.size_bytes}"
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise TaskError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    return None if digest == file.sha256 else f"sha256 {digest} instead of {file.sha256}"


def _complete(data_set: DataSet, data_dir: Path, tell: Callable[[str], None]) -> None:
    """Download the missing files.

    If several workers call this at once, one downloads and the others wait for it.
    """
    folder = data_dir / data_set.folders[0]
    deadline = time.monotonic() + DOWNLOAD_S
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock").exclusive(DOWNLOAD_S):
            durable.remove(folder.glob(f"{PARTIAL_PREFIX}*"))  # left by killed downloads
            for file in data_set.files:
                if _there(data_set, file, data_dir) is None:
                    _download(data_set, file, folder, deadline, tell)
    except _UnreachableError as error:
        raise _missing(data_set, data_dir, str(error)) from None
    except CheckpointError as error:
        raise _missing(
            data_set, data_dir, f"the folder cannot be locked for a download: {error}"
        ) from None
    except OSError as error:
        why = durable.shortage(error, data_dir) or error.strerror or str(error)
        raise _missing(data_set, data_dir, f"the folder cannot be written: {why}") from None


class _UnreachableError(Exception):
    """No address delivered the file."""


def _download(
    data_set: DataSet, file: DataFile, folder: Path, deadline: float, tell: Callable[[str], None]
) -> None:
    problems = []
    for address in data_set.addresses:
        url = f"{address}/{file.name}"
        tell(f"{data_set.title}: downloading {url} ({file.size_bytes / 1e6:.1f} MB)")
        problem = _fetch(url, file, folder, deadline)
        if problem is None:
            return
        problems.append(f"{url}: {problem}")
    raise _UnreachableError("; ".join(problems))


def _fetch(url: str, file: DataFile, folder: Path, deadline: float) -> str | None:
    """Download one file to its place.

    Returns:
        What went wrong, or None if the file is in place now.

    Raises:
        OSError: the folder cannot be written.
    """
    descriptor, partial = tempfile.mkstemp(dir=folder, prefix=PARTIAL_PREFIX)
    try:
        with os.fdopen(descriptor, "wb") as out:
            problem = _copy(url, file, out.write, deadline)
            out.flush()
            os.fsync(out.fileno())
        if problem is None:
            # mkstemp makes the file readable by its owner only, but a data folder is often shared.
            Path(partial).chmod(0o644)
            Path(partial).replace(folder / file.name)
        return problem
    finally:
        Path(partial).unlink(missing_ok=True)


def _copy(
    url: str, file: DataFile, write: Callable[[bytes], object], deadline: float
) -> str | None:
    """Download ``url`` into ``write``.

    Returns:
        What is wrong with the download, or None if it is the published file.
    """
    digest, size = hashlib.sha256(), 0
    try:
        answer = urllib.request.urlopen(url, timeout=CONNECT_S)
    except NETWORK_ERRORS as error:
        return _explain(error)
    with answer:
        while size <= file.size_bytes:
            try:
                chunk = answer.read(CHUNK_BYTES)
            except NETWORK_ERRORS as error:
                return _explain(error)
            if not chunk:
                break
            if time.monotonic() > deadline:
                return f"too slow: {size} of {file.size_bytes} bytes in {DOWNLOAD_S:g} s"
            digest.update(chunk)
            size += len(chunk)
            write(chunk)  # outside the `try`: an error of the disk is not one of the network
    if size != file.size_bytes or digest.hexdigest() != file.sha256:
        return f"answered with another file ({size} bytes, sha256 {digest.hexdigest()})"
    return None


def _explain(error: Exception) -> str:
    return f"{type(error).__name__}: {getattr(error, 'reason', None) or error}"


def _missing(data_set: DataSet, data_dir: Path, why: str) -> TaskError:
    lacking = [str(file) for file in data_set.files if _there(data_set, file, data_dir) is None]
    places = " (or ".join(
        str((data_dir / folder).absolute()) for folder in data_set.folders
    ) + ")" * (len(data_set.folders) - 1)
    return TaskError(
        f"{data_set.title}: {_count_lacking(lacking)} missing and could not be downloaded ({why}). "
        f"Put into {places}, or name another data folder with --data-dir:\n  "
        + "\n  ".join(lacking)
    )


def _count_lacking(lacking: Sequence[str]) -> str:
    return "1 file is" if len(lacking) == 1 else f"{len(lacking)} files are"

"""Files that appear whole or not at all, and survive a power cut once the call has returned."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.errors import CheckpointError

TEMPORARY_PREFIX = ".tmp-"  # hidden from `ls`; whatever bears it was never finished
ASIDE = ".damaged"  # added to the name of a file that cannot be read
SYNC_THREADS = 8  # concurrent fsyncs share the journal's commits: 64 files cost about as much as 8
REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EROFS: "the file system is read-only; mount it writable or pass another --checkpoints",
    errno.EACCES: "permission denied; make it writable for this user or pass another --checkpoints",
    errno.EPERM: "not permitted; make it writable for this user or pass another --checkpoints",
    errno.ENOTDIR: "a part of the path is a file; pass another --checkpoints",
    errno.EEXIST: "a file stands where a folder belongs; move it away or pass another --checkpoints",
}


def explained(error: OSError, path: Path) -> CheckpointError:
    """The error for the user: which file, what is wrong, what to do."""
    return CheckpointError(f"{path}: {REMEDIES.get(error.errno or 0, error.strerror or str(error))}")


def make_folder(path: Path) -> Path:
    """Creates ``path`` and its parents where missing; durable on return.

    Raises:
        CheckpointError: it cannot be made.
    """
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(error, path) from error
    for folder in missing:
        sync_folder(folder.parent)
    return path


def write_new(files: Mapping[Path, bytes]) -> set[Path]:
    """Writes a batch of files, none of which replaces an existing one; durable on return.

    Args:
        files: final path to content; their folders exist.

    Returns:
        The paths that existed already and were left as they are.

    Raises:
        CheckpointError: the folder cannot be written; files of the batch that did not appear may be written again.
    """
    taken: set[Path] = set()

    def publish(temporary: Path, final: Path) -> None:
        try:
            os.link(temporary, final)
        except FileExistsError:
            taken.add(final)

    _write(files, publish)
    return taken


def replace(path: Path, content: bytes) -> None:
    """Writes one file, in place of an older version if there is one; durable on return.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    replace_all({path: content})


def replace_all(files: Mapping[Path, bytes]) -> None:
    """Writes a batch of files, each in place of an older version if there is one; durable on return.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    _write(files, os.replace)


def _write(files: Mapping[Path, bytes], publish: Callable[[Path, Path], None]) -> None:
    temporaries = {final: _temporary_name(final) for final in files}
    current = next(iter(files), Path())
    try:
        _synced_all((temporaries[final], content) for final, content in files.items())
        for current, temporary in temporaries.items():
            publish(temporary, current)
    except OSError as error:
        raise explained(error, current.parent) from error
    finally:
        remove(temporaries.values())
    for folder in {final.parent for final in files}:
        sync_folder(folder)


def _synced_all(files: Iterable[tuple[Path, bytes]]) -> None:
    batch = list(files)
    if len(batch) == 1:
        _write_synced(*batch[0])
        return
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        for _ in pool.map(lambda item: _write_synced(*item), batch):
            pass


def _write_synced(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def set_aside(path: Path) -> Path:
    """Gives a damaged file another name, whose old bearer is lost; returns it.

    Raises:
        CheckpointError: it cannot be renamed.
    """
    aside = path.with_name(path.name + ASIDE)
    try:
        path.replace(aside)
    except FileNotFoundError:
        return aside  # somebody else has done it
    except OSError as error:
        raise explained(error, path) from error
    return aside


def remove(paths: Iterable[Path]) -> None:
    """Removes files; one that is gone already is no error, nor is one that cannot go (the janitor comes again)."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            continue


def sync_folder(folder: Path) -> None:
    """Makes the names in ``folder`` durable."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise explained(error, folder) from error


def _temporary_name(final: Path) -> Path:
    return final.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"

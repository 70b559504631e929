"""Files that appear whole or not at all, and survive a power cut once the call has returned."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.errors import CheckpointError
from common.folder.exclusive import give_name

TEMPORARY_PREFIX = ".tmp-"  # hidden from `ls`; marks files that were never finished
ASIDE = ".damaged"  # appended to the name of a file that cannot be read
DEVICES = Path("/dev")
# Concurrent fsyncs share commits of the journal: 64 files take about as long as 8.
SYNC_THREADS = 8
MOST_OPEN = 128  # files at a time, below the limits of processes
REMEDIES = {
    errno.EROFS: "the file system is read-only; mount it writable or pass another --checkpoints",
    errno.EACCES: "permission denied; make it writable for this user or pass another --checkpoints",
    errno.EPERM: "not permitted; make it writable for this user or pass another --checkpoints",
    errno.ENOLCK: (
        "its file system has neither hard links nor file locks; pass another --checkpoints"
    ),
    errno.ENOTDIR: "a part of the path is a file; pass another --checkpoints",
    errno.EEXIST: (
        "a file stands where a folder belongs; move it away or pass another --checkpoints"
    ),
}


def explain_os_error(error: OSError, path: Path) -> CheckpointError:
    """Return the error for the user: which file, what is wrong, what to do."""
    remedy = shortage(error, path) or REMEDIES.get(error.errno or 0, error.strerror or str(error))
    return CheckpointError(f"{path}: {remedy}")


def shortage(error: OSError, path: Path) -> str | None:
    """Return what the disk has run out of, and the remedy; None for any other error."""
    if error.errno == errno.EDQUOT:
        used = (
            "the disk quota is used up, of space or of files (`quota -s` tells which); remove some"
        )
    elif error.errno != errno.ENOSPC:
        return None
    elif _has_no_inodes(path):
        used = (
            f"the disk takes no more files: its inodes are used up (`df -i {path}`), whatever "
            "space is free; remove some files"
        )
    else:
        used = "the disk is full; free some space"
    return f"{used} and run the same command again"


def _has_no_inodes(path: Path) -> bool:
    for place in (path, *path.parents):
        try:
            found = os.statvfs(place)
        except OSError:  # the path does not exist yet
            continue
        return found.f_files > 0 and found.f_favail == 0  # some file systems report 0 inodes
    return False


def make_folder(path: Path) -> Path:
    """Create ``path`` and missing parents; durable on return.

    Raises:
        CheckpointError: it cannot be created.
    """
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, path) from error
    for folder in missing:
        sync_folder(folder.parent)
    return path


def write_new(files: Mapping[Path, bytes]) -> set[Path]:
    """Write a batch of files that must not replace existing ones; durable on return.

    Args:
        files: final path -> content. The folders exist.

    Returns:
        The paths that existed already and were left unchanged.

    Raises:
        CheckpointError: the folder cannot be written. Files of the batch that did not appear may be
            written again.
    """
    taken: set[Path] = set()

    def publish(temporary: Path, final: Path) -> None:
        if not give_name(temporary, final):
            taken.add(final)

    _write(files, publish)
    return taken


def write_new_folder(final: Path, files: Mapping[str, tuple[bytes, bool]]) -> bool:
    """Write a folder that must not replace an existing one; durable on return.

    Args:
        final: path of the folder. Its parent exists.
        files: content of each file, and whether it is executable, by its path in the folder.

    Returns:
        True if the folder has the name. False if another folder had it, which is unchanged.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    temporary = _temporary_name(final)
    try:
        folders = {temporary, *((temporary / name).parent for name in files)}
        for folder in sorted(folders):
            folder.mkdir(parents=True, exist_ok=True)
        _sync_all(
            (temporary / name, content, 0o777 if executable else 0o666)
            for name, (content, executable) in files.items()
        )
        for folder in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
            sync_folder(folder)
        temporary.rename(final)  # refused if there is a folder that holds something
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise explain_os_error(error, final.parent) from error
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(final.parent)
    return True


def replace(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write one file, and replace an older version if there is one; durable on return.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    replace_all({path: content}, mode)


def replace_all(files: Mapping[Path, bytes], mode: int = 0o666) -> None:
    """Write a batch of files, and replace older versions if there are any; durable on return.

    Args:
        files: path -> content. The folders exist.
        mode: The files' rights, less those that the umask takes.

    Raises:
        CheckpointError: the folder cannot be written, or one of the paths is not a file.
    """
    for path in files:
        check_replaceable(path)
    _write(files, os.replace, mode)


def check_replaceable(path: Path) -> None:
    """Check that a path may be replaced by a file.

    A folder, a pipe or a device may not; root would otherwise be able to replace a device.

    Raises:
        CheckpointError: it may not be replaced.
    """
    if path.exists() and (not path.is_file() or path.absolute().parent == DEVICES):
        raise CheckpointError(f"{path}: not a regular file, and is not replaced; name a file")


def _write(
    files: Mapping[Path, bytes], publish: Callable[[Path, Path], None], mode: int = 0o666
) -> None:
    temporaries = {final: _temporary_name(final) for final in files}
    current = next(iter(files), Path())
    try:
        _sync_all((temporaries[final], content, mode) for final, content in files.items())
        for current, temporary in temporaries.items():
            publish(temporary, current)
    except OSError as error:
        raise explain_os_error(error, current.parent) from error
    finally:
        remove(temporaries.values())
    for folder in {final.parent for final in files}:
        sync_folder(folder)


def _sync_all(files: Iterable[tuple[Path, bytes, int]]) -> None:
    """Create files with these contents and rights. They are durable on return, but for their names.

    Threads do nothing but sync: where they also run Python code, they wait for each other.
    """
    rest = list(files)
    while rest:
        batch, rest = rest[:MOST_OPEN], rest[MOST_OPEN:]
        descriptors: list[int] = []
        try:
            descriptors.extend(_create(*file) for file in batch)  # the first ones also if one fails
            _sync(descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _create(path: Path, content: bytes, mode: int) -> int:
    """Create a file, which is not durable yet. Return its descriptor."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _sync(descriptors: Sequence[int]) -> None:
    if len(descriptors) == 1:
        os.fsync(descriptors[0])
        return

    def sync(first: int) -> None:
        for descriptor in descriptors[first::SYNC_THREADS]:
            os.fsync(descriptor)

    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        for _ in pool.map(sync, range(min(SYNC_THREADS, len(descriptors)))):
            pass


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, and return its new path. An older one of that name is lost.

    Raises:
        CheckpointError: it cannot be renamed.
    """
    aside = path.with_name(path.name + ASIDE)
    try:
        if aside.is_dir():
            shutil.rmtree(aside)
        path.replace(aside)
    except FileNotFoundError:
        return aside  # another process has renamed it
    except OSError as error:
        raise explain_os_error(error, path) from error
    return aside


def remove(paths: Iterable[Path]) -> None:
    """Remove files and unfinished folders. Ignore what is gone, and what cannot be removed.

    The janitor tries the latter again.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            if path.name.startswith(TEMPORARY_PREFIX):
                shutil.rmtree(path, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise explain_os_error(error, folder) from error


def _temporary_name(final: Path) -> Path:
    return final.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}")

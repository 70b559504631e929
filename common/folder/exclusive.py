"""Giving a written file its final name only if that name is free, on any file system.

A hard link does this. Where the file system has none, a rename that replaces nothing does. Where
there is no such rename either, a plain rename does, under a lock on the folder; the system releases
the lock even if its holder dies. The last way is only safe between processes of one machine: it
depends on the file system whether the lock reaches other machines.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from pathlib import Path

# Errors of a file system that has no hard links, or allows a file only one name.
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
# Errors of a kernel, a sandbox or a file system that does not support this rename.
NO_RENAME = frozenset({errno.EINVAL, *NO_LINKS})
AT_FDCWD = -100
RENAME_NOREPLACE = 1


def give_name(temporary: Path, final: Path) -> bool:
    """Give a file its final name. The temporary name may remain.

    Returns:
        True if the file has the name. False if the name was taken; the file that has it is
        unchanged.

    Raises:
        OSError: the file system refuses.
    """
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _rename(temporary, final)
    return True


def _rename(temporary: Path, final: Path) -> bool:
    try:
        _rename_new(temporary, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_RENAME:
            raise
        return _rename_alone(temporary, final)
    return True


def _rename_new(temporary: Path, final: Path) -> None:
    """Call Linux's ``renameat2``, for which Python has no function."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(AT_FDCWD, os.fsencode(temporary), AT_FDCWD, os.fsencode(final), RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(final))


def _rename_alone(temporary: Path, final: Path) -> bool:
    folder = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if os.path.lexists(final):
            return False
        temporary.rename(final)
        return True
    finally:
        os.close(folder)  # releases the lock

"""Reading files that others may have put there: regular files only, and of limited size.

Reading a pipe might wait for ever, and a device has no end. Files that the user names, such as
``--inputs``, are not checked this way.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

# The errors with which ``open_ordinary`` rejects a file for its kind or size.
ODD = frozenset({errno.EISDIR, errno.EINVAL, errno.EFBIG})


def is_odd(error: OSError) -> bool:
    """Return whether a file was rejected for its kind or size, and not because reading failed."""
    return error.errno in ODD


def open_ordinary(path: Path, most_bytes: int) -> BinaryIO:
    """Open a file for reading, following links.

    Args:
        path: the file.
        most_bytes: the largest size allowed.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be opened, is not a regular file, or is too large. ``strerror`` says
            which, and what to do.
    """
    # Without O_NONBLOCK, a pipe that has no writer would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(
                errno.EISDIR, "is a folder, where a file belongs; set it aside", str(path)
            )
        if not stat.S_ISREG(found.st_mode):
            raise OSError(
                errno.EINVAL,
                "is no ordinary file but a pipe, a socket or a device; set it aside",
                str(path),
            )
        if found.st_size > most_bytes:
            told = (
                f"holds {found.st_size:,} bytes, more than the {most_bytes:,} that such a file "
                "can have; set it aside"
            )
            raise OSError(errno.EFBIG, told, str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """Return the content of a file; if it grows meanwhile, the first ``most_bytes``.

    Raises:
        FileNotFoundError: there is none.
        OSError: as for ``open_ordinary``.
    """
    with open_ordinary(path, most_bytes) as file:
        return file.read(most_bytes)


def read_end(path: Path, most_bytes: int, begin: int = 0) -> bytes:
    """Return the end of a file of any size.

    Args:
        path: the file.
        most_bytes: how many bytes to read at most.
        begin: the first byte that counts.

    Raises:
        FileNotFoundError: there is none.
        OSError: as for ``open_ordinary``, except for its size.
    """
    with open_ordinary(path, sys.maxsize) as file:
        file.seek(max(begin, os.fstat(file.fileno()).st_size - most_bytes))
        return file.read(most_bytes)


def open_to_append(path: Path) -> int:
    """Open a file of this program to read and append. Create it if missing, and follow no link.

    Returns:
        The file descriptor.

    Raises:
        OSError: it cannot be opened, is a link, or is not a regular file.
    """
    try:
        descriptor = os.open(
            path,
            os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            0o666,
        )
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(
                errno.ELOOP, "is a link, where a file of this program belongs; remove it", str(path)
            ) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no ordinary file; remove it", str(path))
    return descriptor

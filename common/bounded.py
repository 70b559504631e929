"""Reading files that others may have put there: ordinary ones alone, and no more of them than they can honestly hold.

A pipe would wait for ever, a device would never end. Files of a user's own choice, such as ``--inputs``, are read as they are.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

ODD = frozenset({errno.EISDIR, errno.EINVAL, errno.EFBIG})  # what ``open_ordinary`` refuses for what it is


def is_odd(error: OSError) -> bool:
    """Whether a file was refused for what it is, and not since it could not be read for now."""
    return error.errno in ODD


def open_ordinary(path: Path, most_bytes: int) -> BinaryIO:
    """Opens a file to read, following links.

    Args:
        path: of the file.
        most_bytes: as large as it may be.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be opened, is no ordinary file, or is larger; ``strerror`` says which and what to do.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would keep us here
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder, where a file belongs; set it aside", str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is no ordinary file but a pipe, a socket or a device; set it aside", str(path))
        if found.st_size > most_bytes:
            told = f"holds {found.st_size:,} bytes, more than the {most_bytes:,} that such a file can have; set it aside"
            raise OSError(errno.EFBIG, told, str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """The content of a file; of one that grows meanwhile, the first ``most_bytes``.

    Raises:
        FileNotFoundError: there is none.
        OSError: as ``open_ordinary``.
    """
    with open_ordinary(path, most_bytes) as file:
        return file.read(most_bytes)


def read_end(path: Path, most_bytes: int, begin: int = 0) -> bytes:
    """The end of a file, however long it is.

    Args:
        path: of the file.
        most_bytes: to read.
        begin: the first byte that counts.

    Raises:
        FileNotFoundError: there is none.
        OSError: as ``open_ordinary``, but for its size.
    """
    with open_ordinary(path, sys.maxsize) as file:
        file.seek(max(begin, os.fstat(file.fileno()).st_size - most_bytes))
        return file.read(most_bytes)


def open_to_append(path: Path) -> int:
    """The descriptor of a file of ours to read and to append to, made where missing; never what a link leads to.

    Raises:
        OSError: it cannot be opened, or is a link or no ordinary file.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link, where a file of this program belongs; remove it", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no ordinary file; remove it", str(path))
    return descriptor

"""Where the embedded server runs: its host, its boot id, and a socket only its owner can reach."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from common import safe_read
from common.errors import QueueError
from common.folder import durable

MAX_FILE_BYTES = 1 << 16  # the file holds three short strings
MAX_SOCKET_BYTES = 100  # the system's limit is 108 (104 on macOS)
SOCKET = "redis.sock"
SOCKET_PREFIX = "coarsefine-"  # of a temporary folder that holds nothing but a socket
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Place:
    """The host, boot and socket of a server that may be running."""

    host: str
    boot_id: str
    socket: str

    @classmethod
    def new(cls, folder: Path) -> Self:
        """Return a place on this host for the server of ``folder``.

        Raises:
            QueueError: there is no usable path for a socket.
        """
        return cls(socket.gethostname(), boot_id(), str(choose_socket(folder)))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read what ``write`` wrote; None if there is no file.

        Raises:
            CheckpointError: the file cannot be read.
            QueueError: the file is damaged.
        """
        try:
            place = cls(**json.loads(safe_read.read_bytes(path, MAX_FILE_BYTES)))
            if not all(
                isinstance(part, str) and part for part in (place.host, place.boot_id, place.socket)
            ):
                raise ValueError("a part is empty or no text")
            return place
        except FileNotFoundError:
            return None
        except OSError as error:
            raise durable.explain_os_error(error, path) from error
        except (ValueError, TypeError, RecursionError) as error:
            raise QueueError(
                f"{path}: it is damaged; if no search runs on this folder, delete it"
            ) from error

    def write(self, path: Path) -> None:
        """Write the place to a file.

        Raises:
            CheckpointError: the file cannot be written.
        """
        durable.replace(path, json.dumps(asdict(self)).encode())

    def may_run_elsewhere(self) -> bool:
        """Return whether the server may have been started on another host.

        A server that this boot of the kernel has started (containers share it), or an earlier boot
        of this host, does not count.
        """
        return is_elsewhere(self.host, self.boot_id)

    def is_ours(self, folder: Path) -> bool:
        """Return whether ``choose_socket`` may have chosen the socket for ``folder``.

        Another path may be that of the folder before it was moved, or anybody's file.
        """
        path = Path(self.socket)
        is_temporary = path.parent.name.startswith(SOCKET_PREFIX) and path.name == SOCKET
        return path == folder / SOCKET or is_temporary

    def is_outlived(self) -> bool:
        """Return whether the host has rebooted since.

        Then the server no longer runs, and its socket may be gone.
        """
        return self.boot_id != boot_id()


def is_elsewhere(host: str, boot: str) -> bool:
    """Return whether a host and boot id belong to neither this boot nor this host."""
    return boot != boot_id() and host != socket.gethostname()


def choose_socket(folder: Path) -> Path:
    """Return a path for a socket.

    It is in ``folder``. Where that path is too long, or the file system does not support sockets,
    it is in a new temporary folder of this user.

    Raises:
        QueueError: there is no such path.
    """
    inside = folder / SOCKET
    if _fits(inside) and _holds_sockets(folder):
        return inside
    for parent in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"]):
        with suppress(OSError):  # missing or not writable: try the next one
            # mkdtemp gives the new folder rights 0700.
            path = Path(tempfile.mkdtemp(prefix=SOCKET_PREFIX, dir=parent)) / SOCKET
            if _fits(path):
                return path
            path.parent.rmdir()
    raise QueueError(
        f"{folder}: there is no folder for the server's socket with a path below "
        f"{MAX_SOCKET_BYTES} bytes; set TMPDIR to one"
    )


def remove_socket(path: Path) -> None:
    """Remove a socket that nobody listens on, and the temporary folder made for it.

    No other kind of file is removed, and no folder that holds anything.
    """
    with suppress(OSError):
        if path.is_socket():
            path.unlink()
        if path.parent.name.startswith(SOCKET_PREFIX):
            path.parent.rmdir()


def boot_id() -> str:
    """Return an id that changes with each boot of the kernel."""
    if BOOT_ID_FILE.exists():
        return BOOT_ID_FILE.read_text().strip()
    return subprocess.run(
        ["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True
    ).stdout.strip()  # macOS


def make_private(folder: Path) -> None:
    """Create a folder that only its owner can enter.

    Raises:
        CheckpointError: it cannot be created, or belongs to another user.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise durable.explain_os_error(error, folder) from error


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_SOCKET_BYTES


def _holds_sockets(folder: Path) -> bool:
    probe = folder / f"{os.getpid()}.sock"
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(os.fspath(probe))
    except OSError:
        return False  # some shared file systems do not support sockets
    probe.unlink(missing_ok=True)
    return True

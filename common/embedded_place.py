"""Where the embedded server runs: which host and boot, and a socket that only its owner reaches."""

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

from common import bounded, durable
from common.errors import QueueError

MAX_FILE_BYTES = 1 << 16  # of three short strings
MAX_SOCKET_BYTES = 100  # the system's limit is 108 (104 on macOS)
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Place:
    """Where a server may be running."""

    host: str
    boot_id: str
    socket: str

    @classmethod
    def new(cls, folder: Path) -> Self:
        """A place on this host for the server of ``folder``.

        Raises:
            QueueError: there is no path for a socket.
        """
        return cls(socket.gethostname(), boot_id(), str(choose_socket(folder)))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """What ``write`` wrote; None where nothing is.

        Raises:
            CheckpointError: the file cannot be read.
            QueueError: it is damaged.
        """
        try:
            place = cls(**json.loads(bounded.read_bytes(path, MAX_FILE_BYTES)))
            if not all(isinstance(part, str) and part for part in (place.host, place.boot_id, place.socket)):
                raise ValueError("a part is empty or no text")
            return place
        except FileNotFoundError:
            return None
        except OSError as error:
            raise durable.explained(error, path) from error
        except (ValueError, TypeError, RecursionError) as error:
            raise QueueError(f"{path}: it is damaged; if no search runs on this folder, delete it") from error

    def write(self, path: Path) -> None:
        """Notes the place.

        Raises:
            CheckpointError: the file cannot be written.
        """
        durable.replace(path, json.dumps(asdict(self)).encode())

    def may_run_elsewhere(self) -> bool:
        """True if neither this boot of the kernel (containers share it) nor an earlier one of this host started it."""
        return self.boot_id != boot_id() and self.host != socket.gethostname()

    def outlived(self) -> bool:
        """True if the host has started anew since, so that no such server runs and its socket may be gone."""
        return self.boot_id != boot_id()


def choose_socket(folder: Path) -> Path:
    """A path for a socket: in ``folder``, or in a new directory of the user's own where that path is too long or holds no sockets.

    Raises:
        QueueError: there is no such path.
    """
    inside = folder / "redis.sock"
    if _fits(inside) and _holds_sockets(folder):
        return inside
    for parent in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"]):
        with suppress(OSError):  # not there or not writable: the next one
            path = Path(tempfile.mkdtemp(prefix="coarsefine-", dir=parent)) / "redis.sock"  # a new one has rights 0700
            if _fits(path):
                return path
            path.parent.rmdir()
    raise QueueError(f"{folder}: there is no folder for the server's socket with a path below {MAX_SOCKET_BYTES} bytes; set TMPDIR to one")


def boot_id() -> str:
    """Names this start of the kernel."""
    if BOOT_ID_FILE.exists():
        return BOOT_ID_FILE.read_text().strip()
    return subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True).stdout.strip()  # macOS


def make_private(folder: Path) -> None:
    """Makes a folder that nobody else can look into.

    Raises:
        CheckpointError: it cannot be made, or belongs to somebody else.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise durable.explained(error, folder) from error


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_SOCKET_BYTES


def _holds_sockets(folder: Path) -> bool:
    probe = folder / f"{os.getpid()}.sock"
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(os.fspath(probe))
    except OSError:
        return False  # some shared file systems cannot
    probe.unlink(missing_ok=True)
    return True

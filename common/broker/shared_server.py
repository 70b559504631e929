"""The server of a checkpoint root that several hosts reach: where it is, and how to log in.

``master redis start`` writes the hidden folder ``.redis-server`` in the root, which its owner alone
may enter. All commands and workers that use the root find the server there:

    server.json             the host, the address, and where the server keeps its data
    redis_password          the password of the user ``master``
    worker/redis_password   that of the user ``worker``
    ca.pem                  the authority that signed the server's certificate, with TLS
    server.pem, server.key  the server's certificate and its key
    data                    the ``ServerFolder``, where the root is on a disk of the host. In it,
                            start.lock is locked while a process starts the server
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import safe_read
from common.broker import tls_options
from common.broker.acl import Role
from common.broker.embedded_folder import is_elsewhere
from common.broker.server_folder import ServerFolder
from common.broker.urls import parse
from common.errors import ConfigError, QueueError
from common.folder import durable

FOLDER = ".redis-server"
MAX_FILE_BYTES = 1 << 16
MAX_PORT = 65535
OWNER_ONLY = 0o600


@dataclass(frozen=True)
class Record:
    """What ``server.json`` holds."""

    host: str
    boot_id: str
    bind: str  # the address that the server listens on; 0.0.0.0 is all of its host
    address: str  # the address by which others reach it
    port: int
    tls: bool
    home: str  # the folder of its data, relative to that of this file

    def is_elsewhere(self) -> bool:
        """Return whether the server was started on another host."""
        return is_elsewhere(self.host, self.boot_id)

    @property
    def place(self) -> str:
        """Host and port, as in a URL."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"

    def url(self, role: Role) -> str:
        """Return the URL for a role, without the password."""
        return f"redis{'s' if self.tls else ''}://{role}@{self.place}/0"


class SharedServer:
    """The folder ``.redis-server`` of a checkpoint root."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.folder = self.root / FOLDER
        self.file = self.folder / "server.json"
        self.ca = self.folder / "ca.pem"
        self.certificate = self.folder / "server.pem"
        self.key = self.folder / "server.key"

    def home(self, record: Record) -> ServerFolder:
        """Return the folder in which the server runs."""
        return ServerFolder(self.folder / record.home)

    def password_file(self, role: Role) -> Path:
        """Return the file with a role's password."""
        return (self.folder / "worker" if role == "worker" else self.folder) / "redis_password"

    def read(self) -> Record | None:
        """Read where the server is; None if none was started for this root.

        Raises:
            ConfigError: others may read or write in the folder, so that it is not trusted.
            CheckpointError: the folder cannot be read.
            QueueError: the file is damaged.
        """
        try:
            _check_private(self.folder)
            return _parse(safe_read.read_bytes(self.file, MAX_FILE_BYTES))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise durable.explain_os_error(error, self.file) from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise QueueError(
                f"{self.file}: it is damaged; delete it, and run `master redis start` on the host "
                "of the server"
            ) from error

    def write(self, record: Record) -> None:
        """Write where the server is.

        Raises:
            CheckpointError: the file cannot be written.
        """
        durable.replace(self.file, json.dumps(asdict(record)).encode(), OWNER_ONLY)

    def options(self, record: Record, role: Role) -> dict[str, Any]:
        """Return redis-py's options for a connection of a role.

        Raises:
            ConfigError: the password or the certificate of the authority cannot be read.
        """
        options = {**parse(record.url(role)).options}
        options["password"] = read_password(self.password_file(role))
        files = {tls_options.CA: str(self.ca)} if record.tls else {}
        # The environment may name the files of another server.
        return tls_options.with_files({**options, **files}, {})


def read_password(path: Path, named: str = "") -> str:
    """Read a file that holds a password and nothing else.

    Args:
        path: The file.
        named: The variable that names it, for the message.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    told = f"{named}={path}" if named else str(path)
    try:
        password = path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"{told} cannot be read: {reason}; correct the path, make it readable, or give the "
            "password in the URL"
        ) from error
    if not password:
        raise ConfigError(
            f"{told} is empty; write the password into it{f', or unset {named}' if named else ''}"
        )
    return password


def _check_private(folder: Path) -> None:
    """Check that only this user may read and write in a folder.

    Whoever could write there would lead workers to a server that hands out other code.

    Raises:
        ConfigError: others may.
        FileNotFoundError: there is no such folder.
    """
    found = os.lstat(folder)
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
        return
    raise ConfigError(
        f"{folder}: its server is used by the owner of this folder alone, and only where nobody "
        f"else may enter it (chmod 700); name the server with REDIS_URL and REDIS_PASSWORD_FILE"
    )


def _parse(content: bytes) -> Record:
    record = Record(**json.loads(content))
    texts = (record.host, record.boot_id, record.bind, record.address, record.home)
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError("a text is empty or missing")
    if not isinstance(record.tls, bool) or type(record.port) is not int:
        raise TypeError("a number is missing")
    if not 0 < record.port <= MAX_PORT or set(record.address) & set("/@?#[]% \t\r\n"):
        raise ValueError("no address")
    return record

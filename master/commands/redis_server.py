"""Start, stop and show the Redis server of a checkpoint root that several hosts reach."""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from common.broker.acl import ROLES, rules_for
from common.broker.connection import open_broker
from common.broker.embedded_folder import Place, boot_id, make_private
from common.broker.embedded_server import FOLDER as EMBEDDED
from common.broker.sandbox import sandbox_warning
from common.broker.server_folder import LOADING_PATIENCE_S, Deadline, ServerFolder
from common.broker.server_program import Program, find_programs, version_text
from common.broker.shared_server import OWNER_ONLY, Record, SharedServer, read_password
from common.errors import ConfigError, QueueError
from common.folder import durable
from common.folder.filelock import RETRY_S, FileLock
from common.shell_command import shell_command
from master.commands.addresses import EVERY, find_address, free_port, is_own, own_address
from master.commands.certificates import is_still_valid, make_certificates

LOCK_PATIENCE_S = 120.0
ANSWER_TIMEOUT_S = 5.0
STOP_PATIENCE_S = 30.0  # a slow disk may still be writing
MOUNTS = Path("/proc/self/mountinfo")
# Redis must not keep its append-only file on these: a write may wait for the network, and then all
# clients wait. FUSE is on the list because most that is mounted so on clusters is remote.
NETWORK_FILE_SYSTEMS = (
    "nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "fuse.", "9p", "glusterfs", "afs",
    "panfs", "pvfs", "orangefs", "wekafs", "virtiofs",
)  # fmt: skip
LOCAL_FOLDERS = ("/var/tmp", tempfile.gettempdir())  # the first survives a reboot
INSIDE = "data"  # the folder of the data, where the root is on a disk of the host
GIGA, MEGA = 1 << 30, 1 << 20


@dataclass(frozen=True)
class Wanted:
    """The options of ``master redis start``. None: as at the last start, or chosen."""

    host: str | None = None
    port: int | None = None
    tls: bool | None = None


def start(root: Path, wanted: Wanted, say: Callable[[str], None]) -> str:
    """Start a server in a session of its own, and return where it listens.

    Its address, its users' passwords and its certificates stay the same from start to start.

    Args:
        root: The checkpoint root.
        wanted: What was asked for.
        say: Prints warnings.

    Raises:
        ConfigError: the address, the port or TLS cannot be had.
        CheckpointError: the folder cannot be used.
        QueueError: a server runs already, or does not start.
    """
    shared = SharedServer(durable.make_folder(root))
    make_private(shared.folder)
    known = shared.read()
    _check_none_runs(shared, known)
    record = _new_record(shared, known, wanted, say)
    home = shared.home(record)
    # On a disk of this host: a network file system may have no locks.
    lock = FileLock(home.path / "start.lock")
    try:
        with lock.exclusive(LOCK_PATIENCE_S):
            if shared.read() != known or home.is_in_use():
                raise QueueError(
                    f"another `{shell_command('master redis start')}` has just started the server "
                    f"of {shared.root}; `{shell_command('master redis status')}` shows it"
                )
            program = home.choose_program(_programs_with_tls() if record.tls else None)
            _write_secrets(shared, known, record)
            # First, so that a server that runs is never without it.
            shared.write(record)
            try:
                _run(shared, record, program)
            except QueueError:
                if known is None:
                    shared.file.unlink()  # commands on this folder go on with the embedded server
                raise
    finally:
        lock.close()
    with open_broker(None, shared.root) as broker:
        if warning := sandbox_warning(broker):
            say(warning)
    tls = " with TLS" if record.tls else ""
    return (
        f"Redis {version_text(program.version)} listens on {record.place}{tls}. "
        f"On other hosts: worker start --checkpoints {shlex.quote(str(shared.root))}"
    )


def stop(root: Path) -> str:
    """Stop the server of a root, and return what became of it.

    Raises:
        QueueError: no server was started here, it runs on another host, or it does not stop.
    """
    shared = SharedServer(root)
    record = _read(shared)
    if record.is_elsewhere():
        raise QueueError(
            f"the Redis server of {shared.root} runs on the host {record.host}; run `master redis "
            "stop` there"
        )
    home = shared.home(record)
    kept = f"its data stays in {home.path}; `{shell_command('master redis start')}` starts it again"
    if not home.path.is_dir() or not home.is_in_use():
        return f"no Redis server runs for {shared.root}; {kept}"
    os.kill(_find_process(shared, record, home), signal.SIGTERM)
    deadline = Deadline(STOP_PATIENCE_S)
    while home.is_in_use():
        if deadline.has_passed():
            raise _hangs(home)
        time.sleep(RETRY_S)
    return f"stopped Redis on {record.place}; {kept}"


def status(root: Path) -> str:
    """Return where the server of a root listens and how it is.

    Raises:
        QueueError: no server was started for it, or it does not answer.
    """
    shared = SharedServer(root)
    record = _read(shared)
    if not record.is_elsewhere():
        shared.home(record).rotate_log()
    with open_broker(None, shared.root) as broker:
        info: Any = broker.client.info()
    size = info["used_memory"]
    memory = f"{size / GIGA:.1f} GB" if size > GIGA else f"{size / MEGA:.1f} MB"
    return (
        f"Redis {info['redis_version']} on {record.host} listens on {record.place}"
        f"{' with TLS' if record.tls else ''}\n"
        f"up {info['uptime_in_seconds']:,} s, connections: {info['connected_clients']}, "
        f"memory: {memory}\ndata and log in {shared.home(record).path}"
    )


def _read(shared: SharedServer) -> Record:
    record = shared.read()
    if record is None:
        raise QueueError(
            f"{shared.root}: no Redis server for several hosts was started for this folder; "
            f"`{shell_command('master redis start')}` starts one"
        )
    return record


def _check_none_runs(shared: SharedServer, known: Record | None) -> None:
    """Check that neither this server nor the embedded one of the root runs.

    Two servers of one root would each have a queue of their own of the same searches.

    Raises:
        QueueError: one runs, or may run on another host.
    """
    if known is not None:
        if known.is_elsewhere():
            raise QueueError(
                f"the Redis server of {shared.root} was started on the host {known.host}; run "
                f"this there. If {known.host} is gone for good, delete {shared.file}, start anew, "
                f"and run `{shell_command('master recover')}`"
            )
        home = shared.home(known)
        if home.path.is_dir() and home.is_in_use():
            raise QueueError(
                f"the Redis server of {shared.root} runs already and listens on {known.place}; "
                f"`{shell_command('master redis status')}` shows it, "
                f"`{shell_command('master redis stop')}` stops it"
            )
    embedded = shared.root / EMBEDDED
    place = Place.read(embedded / "server.json") if embedded.is_dir() else None
    if place is None:
        return
    if place.may_run_elsewhere() or (
        not place.is_outlived() and ServerFolder(embedded).is_in_use()
    ):
        raise QueueError(
            f"commands or workers on {place.host} use the embedded Redis server of {shared.root}; "
            f"end them first. Then start this server, and run `{shell_command('master recover')}` "
            f"for each search that continues. If none runs, delete {embedded / 'server.json'}"
        )


def _new_record(
    shared: SharedServer, known: Record | None, wanted: Wanted, say: Callable[[str], None]
) -> Record:
    """Decide where the server listens and keeps its data."""
    if wanted.host is not None:
        bind = find_address(wanted.host)
    elif known is not None and (known.bind in EVERY or is_own(known.bind)):
        bind = known.bind
    else:
        bind = own_address()
    address = own_address() if bind in EVERY else bind
    asked = wanted.port if wanted.port is not None else known.port if known is not None else None
    tls = wanted.tls if wanted.tls is not None else known is not None and known.tls
    port = free_port(bind, asked)
    home = _find_home(shared, known, say)
    return Record(socket.gethostname(), boot_id(), bind, address, port, tls, home)


def _find_home(shared: SharedServer, known: Record | None, say: Callable[[str], None]) -> str:
    """Return the folder for the server's data; it is created where it is missing."""
    if known is not None:
        if shared.home(known).path.is_dir():
            return known.home
        if known.home != INSIDE:
            say(
                f"warning: {known.home}, where the server kept its data, is gone; "
                f"`{shell_command('master recover')}` rebuilds it from the folder, for each search"
            )
    kind = file_system(shared.root)
    if not kind.startswith(NETWORK_FILE_SYSTEMS):
        make_private(shared.folder / INSIDE)
        return INSIDE
    for parent in dict.fromkeys(LOCAL_FOLDERS):
        if Path(parent).is_dir() and not file_system(Path(parent)).startswith(NETWORK_FILE_SYSTEMS):
            with suppress(OSError):  # not writable: try the next one
                # mkdtemp gives the new folder rights 0700.
                home = tempfile.mkdtemp(prefix="coarsefine-redis-", dir=parent)
                say(f"{shared.root} is on {kind}, so the server keeps its data in {home}")
                return home
    raise ConfigError(
        f"{shared.root} is on {kind}, where Redis must not keep its data, and this host has no "
        f"local folder for it among {', '.join(LOCAL_FOLDERS)}; set TMPDIR to one"
    )


def file_system(path: Path, mounts: str | None = None) -> str:
    """Return the type of a path's file system, such as ext4 or nfs4; empty if nobody can tell.

    Args:
        path: a path that exists.
        mounts: the text of /proc/self/mountinfo.
    """
    number = path.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    with suppress(OSError):
        for line in (MOUNTS.read_text() if mounts is None else mounts).splitlines():
            fields, _, rest = line.partition(" - ")
            if fields.split()[2:3] == [device] and rest:
                return rest.split()[0]
    return ""


def _programs_with_tls() -> list[Program]:
    found = list(find_programs())
    able = [program for program in found if speaks_tls(program)]
    if found and not able:
        names = ", ".join(map(str, found))
        raise ConfigError(
            f"--tls: no Redis server here was built with TLS (found: {names}); "
            "install redis-server or valkey-server, or start without --tls"
        )
    return able


def speaks_tls(program: Program) -> bool:
    """Return whether a server program was built with TLS.

    It gets a configuration that no server accepts, and complains about the first line that it
    does not understand.
    """
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [program.path, "-"],
            input="tls-port 0\nport nonsense\n",
            capture_output=True,
            text=True,
            timeout=ANSWER_TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        return "port nonsense" in done.stdout + done.stderr
    return False


def _write_secrets(shared: SharedServer, known: Record | None, record: Record) -> None:
    """Write the passwords, unless there are some, and with TLS the certificates."""
    make_private(shared.password_file("worker").parent)
    for role in ROLES:
        if not shared.password_file(role).exists():
            content = f"{secrets.token_hex(32)}\n".encode()
            durable.replace(shared.password_file(role), content, OWNER_ONLY)
    if not record.tls:
        return
    fits = known is not None and known.tls and known.address == record.address
    if fits and is_still_valid(shared.ca) and shared.certificate.exists() and shared.key.exists():
        return
    names = [f"IP:{record.address}", f"DNS:{record.host}", "DNS:localhost"]
    files = make_certificates(names)
    durable.replace_all({shared.folder / name: files[name] for name in files}, OWNER_ONLY)


def _run(shared: SharedServer, record: Record, program: Program) -> None:
    home = shared.home(record)

    def answers(deadline: Deadline) -> bool:
        try:
            with _connection(shared, record) as client:
                return bool(client.ping())
        except BusyLoadingError:
            deadline.extend_once(LOADING_PATIENCE_S)
            return False
        except RedisError:
            return False

    home.start(program, _settings(shared, record, program), answers, "shared")


def _settings(shared: SharedServer, record: Record, program: Program) -> Iterator[tuple[str, ...]]:
    """Yield the directives of the configuration.

    Redis gets digests of the passwords, so that it has none to print: it repeats a line that it
    does not understand.
    """
    yield "bind", record.bind
    yield "port", "0" if record.tls else str(record.port)
    if record.tls:
        yield "tls-port", str(record.port)
        yield "tls-cert-file", str(shared.certificate)
        yield "tls-key-file", str(shared.key)
        yield "tls-ca-cert-file", str(shared.ca)
        yield "tls-auth-clients", "no"
    yield "logfile", "redis.log"  # opened for each line, so that it can be set aside meanwhile
    # The default user is off, so nobody can log in as it. It has all rights because Redis replays
    # its append-only file as this user, and drops what it may not do.
    yield "user", "default", "off", "resetpass", "~*", "&*", "+@all"
    for role in ROLES:
        password = read_password(shared.password_file(role))
        digest = hashlib.sha256(password.encode()).hexdigest()
        yield "user", role, "on", f"#{digest}", *rules_for(role, program.version).split()


def _connection(shared: SharedServer, record: Record) -> redis.Redis:
    options = shared.options(record, "master") | {
        "socket_timeout": ANSWER_TIMEOUT_S,
        "socket_connect_timeout": ANSWER_TIMEOUT_S,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
    }
    return redis.Redis.from_pool(redis.ConnectionPool(**options))


def _find_process(shared: SharedServer, record: Record, home: ServerFolder) -> int:
    """Return the process of a server that holds the lock of its folder."""
    try:
        with _connection(shared, record) as client:
            info: Any = client.info("server")
        pid = int(info["process_id"])
        place = Path(f"/proc/{pid}/cwd")
        if not Path("/proc/self").exists() or place.samefile(home.path):
            return pid
    except (RedisError, OSError) as error:
        raise _hangs(home) from error
    raise _hangs(home)


def _hangs(home: ServerFolder) -> QueueError:
    return QueueError(
        f"{home.path}: its Redis server does not answer or does not stop; `fuser {home.lock}` "
        "shows its process, end it"
    )

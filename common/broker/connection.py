"""The Redis connection of a command or a worker: by URL, or to the server of the checkpoint root.

That is the one that ``master redis start`` has started, and otherwise the embedded one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import ConnectionPool, SSLConnection
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel

from common.broker import tls_options
from common.broker.acl import Role
from common.broker.embedded_server import EmbeddedServer
from common.broker.errors import translate_errors
from common.broker.server_program import MIN_VERSION, parse_version, version_text
from common.broker.shared_server import Record, SharedServer, read_password
from common.broker.urls import EXAMPLE, Address, parse, where_of
from common.errors import ConfigError, NotAllowedError, QueueError
from common.redact import redact

PASSWORD_FILE = "REDIS_PASSWORD_FILE"
CONNECT_TIMEOUT_S = 5.0
SOCKET_TIMEOUT_S = 10.0  # must exceed the time that a blocking command waits
# redis-py has no types for these two.
NODE: Any = ClusterNode
SENTINEL: Any = Sentinel
ONCE: dict[str, Any] = {
    "decode_responses": True,
    # A reply that is not valid text is rejected where it is parsed.
    "encoding_errors": "replace",
    "retry": Retry(NoBackoff(), 0),
    "retry_on_error": [],
    "health_check_interval": 0,
    "client_name": "coarsefine",
    # With RESP2, every server version answers in the same format.
    "protocol": 2,
}


class Broker:
    """A Redis client, its address and, where it is used, the embedded server.

    Closing it ends this process's use of the embedded server.
    """

    def __init__(
        self,
        client: redis.Redis,
        url: str,
        where: str,
        server: EmbeddedServer | None = None,
        by_root: bool = False,
    ) -> None:
        self.client = client
        self.url = url  # may hold a password: show `where` instead
        self.where = where  # for messages, as in "Redis at localhost:6379"
        self.by_root = by_root  # whoever uses the checkpoint root finds the server without the URL
        self._server = server

    @property
    def embedded(self) -> bool:
        """Whether the server is the embedded one of this machine."""
        return self._server is not None

    def ensure(self) -> bool:
        """Start the embedded server again if it has died. Call this when the connection fails.

        For a server with a URL it does nothing, since this program does not manage that server.

        Returns:
            True if the server had died and was started.

        Raises:
            CheckpointError: the embedded server's folder cannot be used.
            QueueError: the embedded server does not start.
        """
        return self._server.ensure() if self._server else False

    def close(self) -> None:
        """Close the connection. A second call does nothing.

        The last user of the embedded server also stops it.

        Raises:
            QueueError: the embedded server does not stop.
        """
        server, self._server = self._server, None
        try:
            if server:
                server.release(self.client)
        finally:
            self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_broker(
    url: str | None,
    root: Path,
    environ: Mapping[str, str] = os.environ,
    role: Role = "master",
) -> Broker:
    """Connect to Redis, and check once that a usable server answers.

    Args:
        url: redis://, rediss:// or unix://. None or empty means the server of ``root``: the one
            that was started for several hosts, and otherwise the embedded one.
        root: the checkpoint root.
        environ: the environment. ``REDIS_PASSWORD_FILE`` gives the password where the URL has none;
            for the certificates see ``common/broker/tls_options.py``.
        role: the user as which to log in to a server that was started for several hosts.

    Raises:
        ConfigError: the URL, the password file or a certificate cannot be read.
        QueueError: the server cannot be reached, refuses the login, is not Redis, or is too old.
        CheckpointError: the embedded server's folder cannot be used.
    """
    if url:
        return _check_server(_connect(url, environ))
    shared = SharedServer(root)
    record = shared.read()
    if record is not None:
        return _open_shared(shared, record, role)
    server = EmbeddedServer(root)
    server.acquire()
    own_url = f"unix://{quote(server.socket)}"
    where = f"the embedded Redis server in {server.folder}"
    return _check_server(Broker(_client(parse(own_url)), own_url, where, server, by_root=True))


def _open_shared(shared: SharedServer, record: Record, role: Role) -> Broker:
    """Connect to the server that ``master redis start`` has started."""
    client = _client(Address("server", shared.options(record, role)))
    try:
        return _check_server(Broker(client, record.url(role), where_of(client), by_root=True))
    except NotAllowedError:
        raise
    except QueueError as error:
        raise QueueError(
            f"{error}. {shared.file} names this server: if it no longer runs, run `master redis "
            f"start` on {record.host}; if it is no longer wanted, delete that file"
        ) from error


def _connect(url: str, environ: Mapping[str, str]) -> Broker:
    address = parse(url)
    address.options.update(tls_options.with_files(address.options, environ))
    if not address.options.get("password") and environ.get(PASSWORD_FILE):
        address.options["password"] = read_password(Path(environ[PASSWORD_FILE]), PASSWORD_FILE)
    try:
        with translate_errors(redact(url)):
            client = _client(address)
    except (TypeError, ValueError, RedisError) as error:
        raise ConfigError(
            f"{redact(url)}: an option after the question mark is not one of redis-py; {EXAMPLE}"
        ) from error
    return Broker(client, url, where_of(client))


def _client(address: Address) -> redis.Redis:
    """Return a client that never resends a command: a script that is sent twice could act twice."""
    timeouts = {"socket_timeout": SOCKET_TIMEOUT_S, "socket_connect_timeout": CONNECT_TIMEOUT_S}
    if "path" in address.options:
        del timeouts["socket_connect_timeout"]
    options = {**timeouts, **address.options, **ONCE}
    if address.kind == "cluster":
        nodes = [NODE(host, port) for host, port in address.hosts]
        cluster: Any = RedisCluster(startup_nodes=nodes, **options)
        return cast(redis.Redis, cluster)  # it has the same commands
    if address.kind == "sentinel":
        tls = {name: value for name, value in options.items() if name.startswith("ssl")}
        login = {**dict(address.login), **timeouts, **tls, "retry": ONCE["retry"]}
        if options.pop("connection_class", None) is SSLConnection:
            options["ssl"] = login["ssl"] = True
        return cast(
            redis.Redis,
            SENTINEL(address.hosts, sentinel_kwargs=login, **options).master_for(address.service),
        )
    pool = ConnectionPool(**options)
    # Raises for unknown options here, rather than at the first command.
    pool.make_connection()
    return redis.Redis.from_pool(pool)


def _check_server(broker: Broker) -> Broker:
    try:
        with translate_errors(broker.where):
            broker.client.ping()
            version = _version(broker.client)
        if version and version < MIN_VERSION:
            needed = version_text(MIN_VERSION)
            raise QueueError(
                f"{broker.where} is version {version_text(version)}; a search needs {needed} or "
                "newer: upgrade it, or give another"
            )
    except BaseException:
        broker.close()
        raise
    return broker


def _version(client: redis.Redis) -> tuple[int, ...]:
    """Return the oldest version among the nodes; empty where the user may not ask.

    Without it, a script that needs a newer server fails by itself.
    """
    nodes = server_info(client, "server")
    return min((parse_version(str(node.get("redis_version", ""))) for node in nodes), default=())


def server_info(client: redis.Redis, section: str) -> list[dict[str, Any]]:
    """Return one section of INFO, as a table for each node of the server.

    The list is empty where this user may not ask: hosted servers forbid INFO.

    Raises:
        redis.exceptions.RedisError: as redis-py raises it; the caller translates it.
    """
    try:
        info: Any = client.info(section)
    except ResponseError:
        return []
    nodes = list(info.values())
    # A cluster answers with one table for each node.
    return nodes if all(isinstance(node, dict) for node in nodes) else [info]

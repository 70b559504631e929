"""The Redis connection of a command or a worker: from a URL, or to the embedded server of this machine."""

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

from common import redis_tls
from common.embedded import EmbeddedServer
from common.errors import ConfigError, QueueError
from common.redis_errors import translated
from common.redis_program import MIN_VERSION, parse_version, version_text
from common.redis_urls import EXAMPLE, Address, parse, redact
from common.scripts import where_of

PASSWORD_FILE = "REDIS_PASSWORD_FILE"
CONNECT_TIMEOUT_S = 5.0
SOCKET_TIMEOUT_S = 10.0  # a blocking command must wait for less
NODE: Any = ClusterNode  # these two bring no types
SENTINEL: Any = Sentinel
ONCE: dict[str, Any] = {
    "decode_responses": True,
    "encoding_errors": "replace",  # what is no text is looked at where it is read, and refused there
    "retry": Retry(NoBackoff(), 0),
    "retry_on_error": [],
    "health_check_interval": 0,
    "client_name": "coarsefine",
    "protocol": 2,  # the same answers from every version
}


class Broker:
    """A client with what belongs to it. Closing it gives up this process's part in the embedded server."""

    def __init__(self, client: redis.Redis, url: str, where: str, server: EmbeddedServer | None = None) -> None:
        self.client = client
        self.url = url  # may hold a password: show `where`
        self.where = where  # for messages, as in "Redis at localhost:6379"
        self._server = server

    @property
    def embedded(self) -> bool:
        """Whether the server is the embedded one of this machine."""
        return self._server is not None

    def ensure(self) -> bool:
        """To be called when the connection fails: starts the embedded server again if it has died. True if it did so.

        A server with a URL is somebody else's to start; for that it does nothing.

        Raises:
            CheckpointError: the embedded server's folder cannot be used.
            QueueError: the embedded server does not start.
        """
        return self._server.ensure() if self._server else False

    def close(self) -> None:
        """Ends the connection; the last user of the embedded server stops it. A second call does nothing.

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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_broker(url: str | None, root: Path, environ: Mapping[str, str] = os.environ) -> Broker:
    """Connects, and makes sure once that a usable Redis answers.

    Args:
        url: redis://, rediss:// or unix://; None or empty means the embedded server of ``root``.
        root: the checkpoint root.
        environ: for ``REDIS_PASSWORD_FILE``, which gives the password where the URL has none, and the certificates of ``redis_tls``.

    Raises:
        ConfigError: the URL, the password file or a certificate cannot be read.
        QueueError: the server cannot be reached, refuses the login, is none, or is too old.
        CheckpointError: the embedded server's folder cannot be used.
    """
    if url:
        return _checked(_connected(url, environ))
    server = EmbeddedServer(root)
    server.acquire()
    own_url = f"unix://{quote(server.socket)}"
    broker = Broker(_client(parse(own_url)), own_url, f"the embedded Redis server in {server.folder}", server)
    return _checked(broker)


def _connected(url: str, environ: Mapping[str, str]) -> Broker:
    address = parse(url)
    address.options.update(redis_tls.with_files(address.options, environ))
    if not address.options.get("password") and environ.get(PASSWORD_FILE):
        address.options["password"] = _read_password(Path(environ[PASSWORD_FILE]))
    try:
        with translated(redact(url)):
            client = _client(address)
    except (TypeError, ValueError, RedisError) as error:
        raise ConfigError(f"{redact(url)}: an option after the question mark is not one of redis-py; {EXAMPLE}") from error
    return Broker(client, url, where_of(client))


def _client(address: Address) -> redis.Redis:
    """A client that sends everything exactly once: a script sent again in silence could act twice."""
    timeouts = {"socket_timeout": SOCKET_TIMEOUT_S, "socket_connect_timeout": CONNECT_TIMEOUT_S}
    if "path" in address.options:
        del timeouts["socket_connect_timeout"]
    options = {**timeouts, **address.options, **ONCE}
    if address.kind == "cluster":
        nodes = [NODE(host, port) for host, port in address.hosts]
        cluster: Any = RedisCluster(startup_nodes=nodes, **options)
        return cast(redis.Redis, cluster)  # it takes the same commands
    if address.kind == "sentinel":
        tls = {name: value for name, value in options.items() if name.startswith("ssl")}
        login = {**dict(address.login), **timeouts, **tls, "retry": ONCE["retry"]}
        if options.pop("connection_class", None) is SSLConnection:
            options["ssl"] = login["ssl"] = True
        return cast(redis.Redis, SENTINEL(address.hosts, sentinel_kwargs=login, **options).master_for(address.service))
    pool = ConnectionPool(**options)
    pool.make_connection()  # refuses unknown options here rather than at the first command
    return redis.Redis.from_pool(pool)


def _read_password(path: Path) -> str:
    try:
        password = path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"{PASSWORD_FILE}={path} cannot be read: {reason}; correct the path, make it readable, or give the password in the URL"
        ) from error
    if not password:
        raise ConfigError(f"{PASSWORD_FILE}={path} is empty; write the password into it, or unset {PASSWORD_FILE}")
    return password


def _checked(broker: Broker) -> Broker:
    try:
        with translated(broker.where):
            broker.client.ping()
            version = _version(broker.client)
        if version and version < MIN_VERSION:
            needed = version_text(MIN_VERSION)
            raise QueueError(
                f"{broker.where} is version {version_text(version)}; a search needs {needed} or newer: upgrade it, or give another"
            )
    except BaseException:
        broker.close()
        raise
    return broker


def _version(client: redis.Redis) -> tuple[int, ...]:
    try:
        info: Any = client.info("server")
    except ResponseError:
        return ()  # hosted servers may forbid INFO; the scripts then tell what is missing
    nodes = [info] if "redis_version" in info else [node for node in info.values() if isinstance(node, dict)]  # a cluster answers by node
    return min((parse_version(str(node.get("redis_version", ""))) for node in nodes), default=())

"""Parse the URL of a Redis: a server, a socket, a service that Sentinels watch, or a cluster."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

import redis
from redis.cluster import RedisCluster
from redis.connection import parse_url
from redis.sentinel import SentinelConnectionPool

from common.errors import ConfigError
from common.redact import redact

EXAMPLE = (
    "write redis://HOST:6379/0, rediss://HOST:6379/0 (TLS), unix:///path/to/redis.sock, "
    "redis+sentinel://HOST:26379,HOST:26379/SERVICE or redis+cluster://HOST:6379,HOST:6379, "
    "special characters of a password as %XX"
)
PARSE: Callable[[str], dict[str, Any]] = parse_url  # redis-py has no type for it
MANY_HOSTS = re.compile(
    r"(rediss?)\+(sentinel|cluster)://((?:[^@/?#]*@)?)([^@/?#]+)(?:/([^?#]*))?(\?[^#]*)?"
)
PORTS = {"sentinel": 26379, "cluster": 6379}
# For Sentinels that need a login of their own.
SENTINEL_OPTIONS = {
    "sentinel_username": "username",
    "sentinel_password": "password",
}


@dataclass(frozen=True)
class Address:
    """A parsed URL. ``options`` are redis-py's options for a connection to a data server."""

    kind: Literal["server", "sentinel", "cluster"]
    options: dict[str, Any]
    hosts: tuple[tuple[str, int], ...] = ()  # the Sentinels, or some nodes of the cluster
    service: str = ""  # the name of the service that the Sentinels watch
    login: tuple[tuple[str, str], ...] = ()  # options for the Sentinels themselves


def parse(url: str) -> Address:
    """Parse a URL.

    Raises:
        ConfigError: it is not a URL, or names no place. The message shows it without its password.
    """
    scheme = url.partition("://")[0]
    if "+" in scheme:
        return _many_hosts(url)
    options = _options(url)
    if url.startswith("unix://") and not options.get("path"):
        raise ConfigError(f"{redact(url)} names no socket; {EXAMPLE}")
    return Address("server", options)


def _options(url: str) -> dict[str, Any]:
    try:
        options = PARSE(url)
    except ValueError:  # the error's text may quote a part of the password
        raise ConfigError(f"{redact(url)} is not the URL of a Redis server; {EXAMPLE}") from None
    database = re.match(r"rediss?://[^/?#]*/+([^/?#]+)", url)
    if database and not database[1].isdecimal():
        raise ConfigError(
            f"{redact(url)}: {redact(database[1])!r} is not the number of a database; {EXAMPLE}"
        )
    return options


def _many_hosts(url: str) -> Address:
    match = MANY_HOSTS.fullmatch(url)
    if not match:
        raise ConfigError(f"{redact(url)} is not the URL of Sentinels or of a cluster; {EXAMPLE}")
    scheme, kind, login, hosts, path, query = (part or "" for part in match.groups())
    # A character of the password has cut the URL in two, so no part of it may be shown.
    if not login and "@" in path + query:
        raise ConfigError(
            f"{redact(url)}: the password has a character that ends it early; {EXAMPLE}"
        )
    places = tuple(_place(host, PORTS[kind], url) for host in hosts.split(","))
    service, _, database = path.partition("/")
    if kind == "cluster":
        if path.strip("/") not in ("", "0"):
            raise ConfigError(
                f"{redact(url)}: a cluster has the database 0 alone; leave {redact(path)!r} out"
            )
        return Address(
            "cluster", _server_options(f"{scheme}://{login}{hosts.split(',')[0]}{query}"), places
        )
    if not service:
        raise ConfigError(
            f"{redact(url)} names no service; write redis+sentinel://HOST:26379/SERVICE, as the "
            "Sentinels call it"
        )
    options = _server_options(f"{scheme}://{login}{hosts.split(',')[0]}/{database or 0}{query}")
    own = tuple(
        (name, str(options.pop(option)))
        for option, name in SENTINEL_OPTIONS.items()
        if option in options
    )
    return Address("sentinel", options, places, unquote(service), own)


def _server_options(url: str) -> dict[str, Any]:
    """Return the options of a URL without its host and port."""
    return {name: value for name, value in _options(url).items() if name not in ("host", "port")}


def _place(host: str, port: int, url: str) -> tuple[str, int]:
    name, colon, number = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    name = (name if colon else host).strip("[]")
    if not name or (colon and not number.isdecimal()):
        raise ConfigError(f"{redact(url)}: {host!r} is not a host and a port; {EXAMPLE}")
    return name, int(number) if colon else port


def where_of(client: redis.Redis) -> str:
    """Return the place that ``client`` connects to, for messages: without user and password."""
    if isinstance(client, RedisCluster):
        return (
            "the Redis Cluster at "
            f"{', '.join(sorted(str(node.name) for node in client.get_nodes()))}"
        )
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return f"Redis {pool.service_name!r}, which Sentinel watches,"
    options = pool.connection_kwargs
    return (
        "Redis at "
        f"""{
            options.get("path")
            or "{}:{}".format(options.get("host", "localhost"), options.get("port", 6379))
        }"""
    )

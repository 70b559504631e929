"""The addresses of this host: which one others reach it by, and which ports are free."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress

from common.errors import ConfigError

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
NAME_BYTES = 15  # of an interface
PORT = 6379  # Redis' own, if it is free
# No packet is sent there: the system only chooses the interface that leads to other networks.
FAR_AWAY = ("192.0.2.1", 9)
EVERY = ("0.0.0.0", "::")


def own_address() -> str:
    """Return the address by which others reach this host.

    It is that of the host's name, or else that of the interface which leads to other networks.

    Raises:
        ConfigError: there is none.
    """
    with suppress(OSError):
        for *_, place in socket.getaddrinfo(
            socket.gethostname(), None, socket.AF_INET, socket.SOCK_STREAM
        ):
            # Debian lets the host's name stand for 127.0.1.1.
            if not ipaddress.ip_address(str(place[0])).is_loopback and is_own(str(place[0])):
                return str(place[0])
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(FAR_AWAY)
        return str(probe.getsockname()[0])
    raise ConfigError(
        "no address of this host leads to other hosts; name one of its interfaces or addresses: "
        f"--host {' or '.join(_interfaces()) or 'ADDRESS'}"
    )


def find_address(host: str) -> str:
    """Return the address of this host that a user named.

    Args:
        host: an interface (eth0), an address, or a name of this host.

    Raises:
        ConfigError: it is none of this host.
    """
    if host in _interfaces():
        return _address_of(host)
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = []
    for *_, place in found:
        if is_own(str(place[0])):
            return str(place[0])
    raise ConfigError(
        f"--host {host}: neither an interface nor an address of this host; its interfaces are "
        f"{', '.join(_interfaces())}"
    )


def is_own(address: str) -> bool:
    """Return whether this host can listen on an address."""
    with suppress(OSError), _listening(address, 0):
        return True
    return False


def free_port(address: str, asked: int | None) -> int:
    """Return the port that was asked for; without one 6379 or, if it is taken, any that is free.

    Raises:
        ConfigError: the port that was asked for is taken, or may not be used.
    """
    for port in (PORT, 0) if asked is None else (asked,):
        try:
            with _listening(address, port) as probe:
                return int(probe.getsockname()[1])
        except OSError as error:
            if asked is not None:
                told = (
                    "another program listens there"
                    if error.errno == errno.EADDRINUSE
                    else error.strerror
                )
                raise ConfigError(
                    f"--port {asked}: {address} port {asked} cannot be used: {told}; give another"
                ) from error
    raise ConfigError(f"{address} has no free port; end programs that are not needed")


def _listening(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    probe = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections of a server that has just ended do not count. A server that runs does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        return probe
    except BaseException:
        probe.close()
        raise


def _interfaces() -> list[str]:
    try:
        return [name for _, name in socket.if_nameindex()]
    except OSError:
        return []


def _address_of(interface: str) -> str:
    packed = struct.pack("256s", interface.encode()[:NAME_BYTES])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, packed)
    except OSError as error:
        raise ConfigError(
            f"--host {interface}: this interface has no IPv4 address ({error.strerror}); give an "
            "address instead"
        ) from error
    return socket.inet_ntoa(answer[20:24])

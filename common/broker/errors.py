"""Errors of Redis as clear messages: each has a cause and a remedy, and never a password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions

from common.broker import tls_options
from common.errors import DamagedReplyError, NotAllowedError, QueueError

ADDRESS = "--redis or REDIS_URL"
# Redis's error codes, which are also searched for in the text of an error: Redis 6.2 wraps the
# error of a command inside a script in an ERR of the script's.
REFUSALS = {
    "WRONGPASS": (
        f"refuses the login; check the user and the password in {ADDRESS}, or REDIS_PASSWORD_FILE"
    ),
    "NOAUTH": (
        f"asks for a password; give it in {ADDRESS} as redis://:PASSWORD@HOST, or name its file "
        "in REDIS_PASSWORD_FILE"
    ),
    # redis-py 7
    "unauthenticated": (
        "asks for a password; give it in --redis or REDIS_URL, or name its file in "
        "REDIS_PASSWORD_FILE"
    ),
    "NOPERM": (
        "does not let this user do that; grant it the rights of a master or worker in "
        "docs/security.md, or log in as another"
    ),
    "OOM": "is out of memory; raise its maxmemory, or delete other data",
    "MISCONF": (
        "cannot write to its disk and therefore takes no more changes; free space or inodes "
        "there, or make its folder writable"
    ),
    "READONLY": f"is a read-only replica; give the address of its primary in {ADDRESS}",
    "LOADING": "is still loading its data; try again in a moment",
    "BUSY": "is busy with another client's script; try again in a moment",
    "MASTERDOWN": "is a replica that has lost its primary; give the address of the primary",
    "CLUSTERDOWN": (
        "belongs to a Redis Cluster that is down; repair the cluster, or give another Redis"
    ),
    "MOVED": (
        "is a node of a Redis Cluster that holds other keys; give the node that MOVED names, or "
        "a Redis outside a cluster"
    ),
}
IN_A_SCRIPT = "@user_script"
OTHER_TYPE = "WRONGTYPE"  # for example a list where a search has a hash
DAMAGED = (
    "holds what a script of this program cannot read; see who else uses it, then run `master "
    "recover`"
)
DENIED_IN_A_SCRIPT = "The user executing the script can't"  # Redis 7.0 leaves the code out here
NO_CLIENTS_LEFT = (
    "has no connection left; raise its maxclients, or stop clients that are not needed"
)
HANGS_UP = ("closed by server", "reset by peer")
UNREACHABLE = f"cannot be reached; start it, or correct {ADDRESS}"
# Newer clients remove the code from the text and raise a type instead.
TYPES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.MovedError, "MOVED"),
)


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """Turn redis-py's errors inside the block into a ``QueueError`` with a remedy.

    Errors that are faults of this program pass unchanged.

    Args:
        where: the server as the message shall name it, such as "Redis at localhost:6379". It must
            not hold a password.

    Raises:
        QueueError: Redis cannot be reached, refuses the login, or refuses to write. After a lost
            connection or a timeout the command may or may not have been carried out.
        NotAllowedError, DamagedReplyError: the same, where waiting does not help.
    """
    try:
        yield
    except exceptions.RedisError as error:
        message = explain_error(error)
        if message is not None:
            kind = NotAllowedError if refusal(error) == "NOPERM" else QueueError
            raise kind(f"{where} {message}") from error
        if IN_A_SCRIPT in str(error) or OTHER_TYPE in str(error):
            raise DamagedReplyError(f"{where} {DAMAGED} (it says: {_first_line(error)})") from error
        raise


def explain_error(error: Exception) -> str | None:
    """Return cause and remedy, to follow the server's name; None if the program is at fault."""
    mark = refusal(error)
    if mark:
        return f"{REFUSALS[mark]} (it says: {_first_line(error)})"
    if isinstance(error, exceptions.TimeoutError):
        hint = f"; {tls_options.WAITS}" if "connecting" in str(error) else ""
        return (
            f"does not answer in time; see whether it is overloaded or the network is down{hint} "
            f"({_first_line(error)})"
        )
    if isinstance(error, exceptions.InvalidResponse):
        return f"answers, but not as Redis does; correct the address and the port in {ADDRESS}"
    if isinstance(error, exceptions.ConnectionError | exceptions.RedisClusterException):
        return tls_options.explain_tls(error) or _unreachable(error)
    return None


def _unreachable(error: Exception) -> str:
    text = _first_line(error)
    if "number of clients" in text:
        return NO_CLIENTS_LEFT
    return (
        f"{UNREACHABLE} ({text}; {tls_options.HUNG_UP})"
        if any(sign in text for sign in HANGS_UP)
        else f"{UNREACHABLE} ({text})"
    )


def refusal(error: Exception) -> str | None:
    """Return the code with which a server refused, such as "NOAUTH"; None for any other error."""
    for kind, mark in TYPES:
        if isinstance(error, kind):
            return mark
    if isinstance(
        error, exceptions.AuthenticationError | exceptions.AuthenticationWrongNumberOfArgsError
    ):
        return "NOAUTH" if "required" in str(error) else "WRONGPASS"
    if isinstance(error, exceptions.ResponseError):
        if DENIED_IN_A_SCRIPT in str(error):
            return "NOPERM"
        words = set(str(error).replace("-", " ").replace(":", " ").split())
        return next((mark for mark in REFUSALS if mark in words), None)
    return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")

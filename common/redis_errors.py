"""What Redis may answer or not answer, as one clear message each: cause and remedy, never a password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions

from common import redis_tls
from common.errors import DamagedReplyError, NotAllowedError, QueueError

ADDRESS = "--redis or REDIS_URL"
# The marks of refusals, looked for in the text too: Redis 6.2 wraps what a command inside a script answered in an ERR of its own.
REFUSALS = {
    "WRONGPASS": f"refuses the login; check the user and the password in {ADDRESS}, or REDIS_PASSWORD_FILE",
    "NOAUTH": f"asks for a password; give it in {ADDRESS} as redis://:PASSWORD@HOST, or name its file in REDIS_PASSWORD_FILE",
    "unauthenticated": "asks for a password; give it in --redis or REDIS_URL, or name its file in REDIS_PASSWORD_FILE",  # 7.x
    "NOPERM": "does not let this user do that; grant it the rights of a master or worker in docs/security.md, or log in as another",
    "OOM": "is out of memory; raise its maxmemory, or remove what else it holds",
    "MISCONF": "cannot write to its disk and therefore takes no more changes; free space on its disk or make its folder writable",
    "READONLY": f"is a read-only replica; give the address of its primary in {ADDRESS}",
    "LOADING": "is still loading its data; try again in a moment",
    "BUSY": "is busy with another client's script; try again in a moment",
    "MASTERDOWN": "is a replica that has lost its primary; give the address of the primary",
    "CLUSTERDOWN": "belongs to a Redis Cluster that is down; repair the cluster, or give another Redis",
    "MOVED": "is a node of a Redis Cluster that holds other keys; give the node that MOVED names, or a Redis that is no cluster",
}
IN_A_SCRIPT = "@user_script"
OTHER_TYPE = "WRONGTYPE"  # a list where a search has a hash
DAMAGED = "holds what a script of this program cannot read; see who else uses it, then run `master recover`"
DENIED_IN_A_SCRIPT = "The user executing the script can't"  # 7.0 forgets the mark there
NO_CLIENTS_LEFT = "has no connection left; raise its maxclients, or stop clients that are not needed"
HANGS_UP = ("closed by server", "reset by peer")
UNREACHABLE = f"cannot be reached; start it, or correct {ADDRESS}"
TYPES: tuple[tuple[type[Exception], str], ...] = (  # newer clients take the mark out of the text
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.MovedError, "MOVED"),
)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turns what redis-py raises inside the block into ``QueueError`` with a remedy; faults of the program itself pass unchanged.

    Args:
        where: the server as the message shall name it, such as "Redis at localhost:6379"; it must not hold a password.

    Raises:
        QueueError: Redis cannot be reached, refuses the login, or refuses to write.
            After a lost connection or a timeout the command may or may not have been carried out.
        NotAllowedError, DamagedReplyError: the same, where no waiting helps.
    """
    try:
        yield
    except exceptions.RedisError as error:
        message = explained(error)
        if message is not None:
            kind = NotAllowedError if refusal(error) == "NOPERM" else QueueError
            raise kind(f"{where} {message}") from error
        if IN_A_SCRIPT in str(error) or OTHER_TYPE in str(error):
            raise DamagedReplyError(f"{where} {DAMAGED} (it says: {_first_line(error)})") from error
        raise


def explained(error: Exception) -> str | None:
    """What is wrong and what to do, to follow the server's name; None where the fault is the program's."""
    mark = refusal(error)
    if mark:
        return f"{REFUSALS[mark]} (it says: {_first_line(error)})"
    if isinstance(error, exceptions.TimeoutError):
        hint = f"; {redis_tls.WAITS}" if "connecting" in str(error) else ""
        return f"does not answer in time; see whether it is overloaded or the network is down{hint} ({_first_line(error)})"
    if isinstance(error, exceptions.InvalidResponse):
        return f"answers, but not as Redis does; correct the address and the port in {ADDRESS}"
    if isinstance(error, exceptions.ConnectionError | exceptions.RedisClusterException):
        return redis_tls.explained(error) or _unreachable(error)
    return None


def _unreachable(error: Exception) -> str:
    text = _first_line(error)
    if "number of clients" in text:
        return NO_CLIENTS_LEFT
    return f"{UNREACHABLE} ({text}; {redis_tls.HUNG_UP})" if any(sign in text for sign in HANGS_UP) else f"{UNREACHABLE} ({text})"


def refusal(error: Exception) -> str | None:
    """The mark of a refusal by a server that is there, such as "NOAUTH"; None for any other error."""
    for kind, mark in TYPES:
        if isinstance(error, kind):
            return mark
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthenticationWrongNumberOfArgsError):
        return "NOAUTH" if "required" in str(error) else "WRONGPASS"
    if isinstance(error, exceptions.ResponseError):
        if DENIED_IN_A_SCRIPT in str(error):
            return "NOPERM"
        words = set(str(error).replace("-", " ").replace(":", " ").split())
        return next((mark for mark in REFUSALS if mark in words), None)
    return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")

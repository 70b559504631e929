"""What a worker and the process of a loop tell each other, and the pipe that carries it.

A message is a line of JSON, and a state follows it as bytes. The worker unpickles nothing of it and
checks every value: the process runs a user's code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from common.search.search_file import METRIC_PATTERN
from worker.own.saved import Packed

RESERVED = frozenset({"epoch", "seconds"})  # curves that every report has
MOST_HEADER = 8 << 20  # bytes; a traceback is the longest part
MOST_NAMES = 10_000  # of hyperparameters that were not read


@dataclass(frozen=True)
class Report:
    """One call of ``trial.report``."""

    epoch: float
    values: dict[str, float]
    state: Any  # frozen, perhaps packed; None if none was reported
    at_s: float  # on the monotonic clock, which all processes of a machine share
    n_classes: int | None = None
    n_val: int | None = None


@dataclass(frozen=True)
class Beat:
    """A sign of life, with the seconds until the next one at most."""

    limit_s: float | None


@dataclass(frozen=True)
class Told:
    """The loop has got TrialEnded, and may tidy up."""


@dataclass(frozen=True)
class Returned:
    """The function has returned, or has let TrialEnded pass."""

    unread: tuple[str, ...] = ()  # hyperparameters
    n_classes: int | None = None
    n_val: int | None = None


@dataclass(frozen=True)
class Raised:
    """The function has raised an exception, or its process has ended."""

    reason: str
    traceback: str


@dataclass(frozen=True)
class Loaded:
    """The task's file is imported, and the function was found."""


@dataclass(frozen=True)
class Refused:
    """The task cannot be loaded."""

    reason: str
    traceback: str


Message = Report | Beat | Told | Returned | Raised | Loaded | Refused
KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Report, Beat, Told, Returned, Raised, Loaded, Refused)
}


class Channel:
    """One end of the pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, header: Mapping[str, Any], state: Packed | None = None) -> None:
        """Send a message.

        Raises:
            OSError: the other side has gone.
        """
        self._connection.send_bytes(
            json.dumps({**header, "state": state is not None}).encode("utf-8", "surrogatepass")
        )
        if state is not None:
            self._connection.send_bytes(state.content)

    def receive(self) -> tuple[dict[str, Any], Packed | None]:
        """Wait for the next message.

        Raises:
            EOFError: the other side has gone.
            OSError: the same.
            ValueError: it is no message.
        """
        header = json.loads(self._connection.recv_bytes(MOST_HEADER))
        if not isinstance(header, dict):
            raise ValueError(f"is {header!r:.60}, not an object")
        return header, Packed(self._connection.recv_bytes()) if header.get("state") else None

    def has_news(self) -> bool:
        """Return whether a message waits."""
        return self._connection.poll(0)

    def close(self) -> None:
        """Close this end."""
        self._connection.close()


def write(message: Message) -> tuple[dict[str, Any], Packed | None]:
    """Return a message as ``Channel.send`` takes it."""
    state = message.state if isinstance(message, Report) else None
    return {**vars(message), "is": type(message).__name__}, state


def read(header: Mapping[str, Any], state: Packed | None) -> Message:
    """Return the message that ``write`` wrote, with every value checked.

    Raises:
        ValueError: it is none, or a value is not what it should be.
    """
    given = dict(header)
    kind = KINDS.get(str(given.pop("is", None)))
    if kind is None:
        raise ValueError(f"is no message: {str(header)[:100]}")
    given.pop("state", None)
    if kind is Report:
        given["state"] = state
    try:
        message: Message = kind(**given)
    except TypeError as error:
        raise ValueError(str(error)) from None
    _check(message)
    if isinstance(message, Returned):
        return Returned(tuple(message.unread), message.n_classes, message.n_val)
    return message


def is_metric(name: Any) -> bool:
    """Return whether a metric may have this name."""
    return (
        isinstance(name, str)
        and METRIC_PATTERN.fullmatch(name) is not None
        and name not in RESERVED
    )


def _check(message: Message) -> None:
    if isinstance(message, Report):
        _need(is_number(message.epoch) and math.isfinite(message.epoch), "epoch", message.epoch)
        _need(is_number(message.at_s), "at_s", message.at_s)
        values = message.values
        _need(isinstance(values, dict), "values", values)
        for name, value in values.items():
            _need(is_metric(name) and is_number(value), name, value)
    if isinstance(message, Report | Returned):
        _need(is_count(message.n_classes, 2), "n_classes", message.n_classes)
        _need(is_count(message.n_val, 1), "n_val", message.n_val)
    if isinstance(message, Returned):
        names = message.unread
        fits = isinstance(names, list | tuple) and len(names) <= MOST_NAMES
        _need(fits and all(isinstance(name, str) for name in names), "unread", names)
    if isinstance(message, Beat):
        _need(message.limit_s is None or is_number(message.limit_s), "limit_s", message.limit_s)
    if isinstance(message, Raised | Refused):
        _need(isinstance(message.reason, str), "reason", message.reason)
        _need(isinstance(message.traceback, str), "traceback", message.traceback)


def _need(fits: bool, name: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"{name} = {value!r:.60}")


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: Any, least: int) -> bool:
    """Return whether a value is a whole number of at least ``least``, or None."""
    return value is None or (
        isinstance(value, int) and not isinstance(value, bool) and value >= least
    )

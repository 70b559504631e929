"""Decides what to do about a local worker that has ended."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum

from common.ending import EXIT_POISONED

# A worker that ends sooner has not begun to work. Importing torch takes a few seconds.
QUICK_S = 10.0
MAX_QUICK_DEATHS = 5
FIRST_WAIT_S = 1.0  # before the first restart; doubled after each further quick death


class Action(Enum):
    """What to do about a worker that has ended."""

    LEAVE = "it left by itself, or by order"
    RESTART = "it died"
    GIVE_UP = "it died too often"


@dataclass(frozen=True)
class Next:
    """An action, the quick deaths in a row so far, and the wait before a restart in seconds."""

    action: Action
    quick_deaths: int = 0
    wait_s: float = 0.0


def after_end(exit_code: int, lived_s: float, quick_deaths: int, held: bool = False) -> Next:
    """Decide what to do about a worker that has ended.

    Args:
        exit_code: The exit code. 0: it left by itself or was told to. Negative: the signal that
            killed it.
        lived_s: Seconds from its start to its end.
        quick_deaths: How many times in a row it had died quickly before.
        held: Whether it still had trials. A worker that leaves gives its trials back, so in this
            case a task has ended it (``os._exit(0)``).
    """
    if exit_code == 0 and not held:
        return Next(Action.LEAVE)
    if exit_code == EXIT_POISONED:  # each such end blames a trial, or makes some suspects
        return Next(Action.RESTART, quick_deaths, FIRST_WAIT_S)
    if lived_s >= QUICK_S:
        return Next(Action.RESTART, 0, FIRST_WAIT_S)
    quick_deaths += 1
    if quick_deaths >= MAX_QUICK_DEATHS:
        return Next(Action.GIVE_UP, quick_deaths)
    return Next(Action.RESTART, quick_deaths, FIRST_WAIT_S * 2 ** (quick_deaths - 1))


def ending(exit_code: int) -> str:
    """Describe an exit code: ``exit status 1`` or ``SIGKILL``."""
    if exit_code >= 0:
        return f"exit status {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def how_ended(exit_code: int) -> str:
    """Describe an exit: ``ended with exit status 1`` or ``was ended by SIGKILL``."""
    return (
        f"ended with {ending(exit_code)}" if exit_code >= 0 else f"was ended by {ending(exit_code)}"
    )

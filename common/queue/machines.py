"""Which machines are in doubt for a search, and which are put aside.

The rules are in ``claim.lua``, ``fail.lua`` and ``finish.lua``.
"""

from __future__ import annotations

from typing import Any

from common.broker.errors import translate_errors
from common.queue import wire
from common.queue.view import QueueView

STRIKES = 3  # as in shared.lua


def find_doubted(queue: QueueView) -> dict[str, bool]:
    """Return the machines in doubt, and whether each is put aside.

    A machine is in doubt if a trial of this search raised on it that has not ended yet, or ended
    well elsewhere.

    Raises:
        QueueError: Redis is unavailable.
    """
    with translate_errors(queue.where):
        stored: dict[Any, Any] = queue.client.hgetall(queue.keys["doubts"])
    return {wire.text(machine): _put_aside(known) for machine, known in stored.items()}


def _put_aside(stored: str | bytes) -> bool:
    """Return whether a machine is put aside. A damaged value counts as not, as in the scripts."""
    try:
        strikes = wire.loads(stored)["s"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    return isinstance(strikes, int | float) and strikes >= STRIKES

"""Which machines are in doubt for a search, and which are put aside; the rules are in ``claim.lua``, ``fail.lua`` and ``finish.lua``."""

from __future__ import annotations

from typing import Any

from common import wire
from common.queue_view import QueueView
from common.redis_errors import translated

STRIKES = 3  # as in shared.lua


def doubted(queue: QueueView) -> dict[str, bool]:
    """Machines on which a trial of this search raised that has not ended yet or ended well elsewhere: whether put aside.

    Raises:
        QueueError: Redis does not serve.
    """
    with translated(queue.where):
        stored: dict[Any, Any] = queue.client.hgetall(queue.keys["doubts"])
    return {wire.text(machine): _put_aside(known) for machine, known in stored.items()}


def _put_aside(stored: str | bytes) -> bool:
    """What no script has written puts nothing aside, as in the scripts."""
    try:
        strikes = wire.loads(stored)["s"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    return isinstance(strikes, int | float) and strikes >= STRIKES

"""A ``sitecustomize`` that makes a launch fail between a decision and telling Redis.

AT_PROMOTION="die" or "empty": at each of the first TIMES promotions whose decision is written, and
of which Redis has not heard, the master is killed, or Redis emptied. MARKS is the folder in which
it notes that.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HARM, TIMES = os.environ.get("AT_PROMOTION", ""), int(os.environ.get("TIMES", "1"))

if HARM and "launch" in sys.orig_argv:
    from common.queue.publishing import PublishingQueue

    promote = PublishingQueue.promote

    def harmed(self: Any, trials: Sequence[Any], *more: Any) -> Any:
        if trials and is_first(f"{HARM} {trials[0].id} {trials[0].epochs:g}"):
            if HARM == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            self.client.flushall()
        return promote(self, trials, *more)

    def is_first(mark: str) -> bool:
        folder = Path(os.environ["MARKS"])
        if len(list(folder.glob(f"{HARM} *"))) >= TIMES:
            return False
        try:
            (folder / mark).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    PublishingQueue.promote = harmed  # type: ignore[method-assign]

"""Watch a running search from outside: when the children's notes came, and who was silent.

It sees what no longer shows at the end. Examples are a record that was written only after its trial
counted, and a trial that was taken from a live worker.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOK_S = 0.05
# If a look comes this late, the machine is overloaded, and workers may be unheard for that reason.
LATE_S = 0.3
STILL = 0.5  # leases: who is silent for so long, while Redis serves, may lose what he has


@dataclass(frozen=True)
class Note:
    """Something that happened.

    Attributes:
        at_s: when it was seen, on the monotonic clock.
        event: "claim", "finish" or "forgotten" of the ledger; "over": a process has ended; "still":
            it stood still for long enough to lose its trials, or its link was down; "late": this
            machine was too busy.
        pid: of the process that wrote it, or that it is about.
        said: the line of the ledger.
    """

    at_s: float
    event: str
    pid: int = 0
    said: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Looked:
    """Where to look.

    Attributes:
        ledger: as the children note it.
        record: the path of the record of an attempt.
        decided: whether a file says that a trial goes on to a budget.
        workers: process ids, and whether their link is up.
        ended: those that have ended.
        server: Redis's process; None where there is none to be seen.
    """

    ledger: Path
    record: Callable[[str, int], Path]
    decided: Callable[[str, float], bool]
    workers: Callable[[], Iterable[tuple[int, bool]]]
    ended: Callable[[], Iterable[int]]
    server: Callable[[], int | None]


class Onlooker:
    """A thread that looks every 50 ms."""

    def __init__(self, where: Looked, lease_s: float) -> None:
        self.notes: list[Note] = []
        self.unrecorded: list[
            str
        ] = []  # "trial try=n" of what was told to count while it had no record
        self.undecided: list[
            str
        ] = []  # the same of what was handed out with a longer budget before a file had said so
        self._where, self._still_s = where, STILL * lease_s
        self._silent_since: dict[int, float] = {}
        self._over: set[int] = set()
        self._read_bytes = 0
        self._looked_at = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onlooker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Looks once more, and no longer."""
        if self._thread.is_alive() and not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()
            self.look()

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at > LATE_S + LOOK_S:
            self.notes.append(Note(now, "late"))
        self._looked_at = now
        self._look_at_processes(now)
        self._look_at_ledger(now)

    def _look_at_processes(self, now: float) -> None:
        gone = set(self._where.ended()) - self._over
        self.notes += [Note(now, "over", pid) for pid in gone]
        self._over |= gone
        server = self._where.server()
        serves = server is None or not stands_still(server)
        for pid, linked in self._where.workers():
            if not serves or (linked and not stands_still(pid)):
                self._silent_since.pop(
                    pid, None
                )  # after an outage nobody is to lose a trial for it: every lease begins anew
            elif (
                now - self._silent_since.setdefault(pid, now) > self._still_s or not linked
            ):  # who was cut off is heard late: TCP waits
                self.notes.append(Note(now, "still", pid))

    def _look_at_ledger(self, now: float) -> None:
        with self._where.ledger.open("rb") as file:
            file.seek(self._read_bytes)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        self._read_bytes += len(lines)
        for line in lines.splitlines():
            said = json.loads(line)
            self.notes.append(Note(now, said["event"], said.get("pid", 0), said))
            if (
                said["event"] == "finish"
                and said["ok"]
                and not self._where.record(said["trial"], said["attempt"]).exists()
            ):
                self.unrecorded.append(f"{said['trial']} try={said['attempt']}")
            if (
                said["event"] == "claim"
                and said["rung"]
                and not self._where.decided(said["trial"], said["epochs"])
            ):
                self.undecided.append(f"{said['trial']} try={said['attempt']}")


def stands_still(pid: int) -> bool:
    """Whether a process is stopped, or no more."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state in "TtZX"

"""The checks before a search's first stage: `worker check` as a process, since the master knows neither torch nor the task."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import bounded, durable, task_file
from common.errors import SearchError
from common.records import SearchFolder
from common.search import Search
from master.prepare import Examined

MAX_NOTE_BYTES = 16 << 20  # a report of the checks is a page
FORMAT = 1  # of the note; another one is not believed
ENDED_WITH_REPORT = (0, 1)  # exit codes of `worker check` that come with one: passed, failed


class CheckFailedError(SearchError):
    """A search does not start: a check failed, or could not be done."""


@dataclass(frozen=True)
class Checker:
    """How `worker check` is called for the search that is launched."""

    arguments: Sequence[str]  # which search, which folders: as the user named them
    say: Callable[[str], None]

    def first(self, examined: Examined, replace: bool) -> bytes | None:
        """Checks a search whose first stage has not begun; returns the note for its folder, None if there is nothing to note.

        Args:
            examined: the search and its folder.
            replace: whether an older search of that name is about to be set aside.

        Raises:
            CheckFailedError: a check failed.
        """
        search, folder = examined.search, examined.folder
        if folder.stage(search.stages[0].name).ranges.exists() and not replace:
            return None
        print_ = fingerprint(search, examined.code, folder)
        if (noted := _noted(folder, print_)) is not None:
            return noted
        by_hand = f"`worker check --search {search.name}` does them on a worker's machine"
        if find_spec("torch") is None or find_spec("worker") is None:
            self.say(
                f"the checks before learning are left out: torch is not installed beside this master; on a worker's machine: {by_hand}"
            )
            return None
        self.say("the checks before learning, on this machine (--skip-check leaves them out):")
        report = self._report()
        if report["no_data"] is not None:
            self.say(f"the checks are left out, the data is not here: {report['no_data']}\n{by_hand}")
            return None
        if not report["passed"]:
            raise CheckFailedError(_refusal(search, report))
        return json.dumps({"format": FORMAT, "fingerprint": print_, "report": report}, indent=2).encode()

    def _report(self) -> dict[str, Any]:
        """Runs it: the table goes to stderr as it is drawn, the report comes back."""
        command = [sys.executable, "-P", "-m", "worker", "check", *self.arguments, "--json", "--table"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if done.returncode not in ENDED_WITH_REPORT:
            raise CheckFailedError(
                f"the checks ended with code {done.returncode} and without a report, so nothing was queued; mend what stands above, "
                "or launch with --skip-check"
            )
        report: dict[str, Any] = json.loads(done.stdout)
        return report


def fingerprint(search: Search, code: bytes | None, folder: SearchFolder) -> str:
    """What a check has looked at: the task's code, the space, the seed and the metric."""
    if search.task_file is not None and code is None:
        code = task_file.read(folder.path / Path(search.task_file).name)
    looked_at = [search.task, hashlib.sha256(code or b"").hexdigest(), search.space.plain(), search.seed, search.metric]
    return hashlib.sha256(json.dumps(looked_at).encode()).hexdigest()


def note(folder: SearchFolder, content: bytes) -> None:
    """Writes down that the checks passed.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    durable.replace(folder.check_file, content)


def _noted(folder: SearchFolder, wanted: str) -> bytes | None:
    """The note of a check that passed on the same search, None if there is none that can be read."""
    try:
        content = bounded.read_bytes(folder.check_file, MAX_NOTE_BYTES)
        known = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return None  # no note, or a damaged one: checked again
    same = isinstance(known, dict) and (known.get("format"), known.get("fingerprint")) == (FORMAT, wanted)
    return content if same else None


def _refusal(search: Search, report: dict[str, Any]) -> str:
    failed = [f"{c['check']}: {c['found']}" for c in report["checks"] if c["status"] == "failed"]
    listed = "\n  ".join(failed)
    return (
        f"search {search.name!r} does not start, since a check failed:\n  {listed}\n"
        "mend it and launch again; where you know better, launch with --skip-check. Nothing was queued"
    )

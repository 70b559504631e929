"""The checks before a search's first stage.

They run `worker check` as a process, because the master knows neither torch nor the task.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from common import safe_read
from common.code import store
from common.code.tree import Code
from common.errors import SearchError
from common.folder import durable
from common.folder.records import SearchFolder
from common.search.search_file import Search
from master.launchers.endings import how_ended
from master.launchers.forked import ForkServer
from master.stages.prepare import Examined

MAX_NOTE_BYTES = 16 << 20  # a report of the checks takes a page
FORMAT = 1  # version of the note; a note of another version is ignored
NEEDED = frozenset({"passed", "no_data", "checks"})  # keys that every report has
ENDED_WITH_REPORT = (0, 1)  # exit codes of `worker check` with a report: passed, failed


class CheckFailedError(SearchError):
    """The error raised when a search does not start because a check failed or could not run."""


@dataclass(frozen=True)
class Checker:
    """Caller of `worker check` for the search that is launched."""

    arguments: Sequence[str]  # options that name the search and the folders, as the user gave them
    say: Callable[[str], None]
    spawner: ForkServer | None = None  # forks the check; None: a new interpreter runs it

    def first(self, examined: Examined, replace: bool) -> bytes | None:
        """Check a search whose first stage has not begun.

        Args:
            examined: the search and its folder.
            replace: whether an older search of that name is about to be set aside.

        Returns:
            The note for the search's folder, or None if there is nothing to note.

        Raises:
            CheckFailedError: a check failed or could not be done.
        """
        search, folder = examined.search, examined.folder
        if folder.stage(search.stages[0].name).has_begun and not replace:
            return None
        print_ = fingerprint(search, examined.code, folder)
        if (noted := _read_note(folder, print_)) is not None:
            return noted
        by_hand = f"`worker check --search {search.name}` does them on a worker's machine"
        if find_spec("torch") is None or find_spec("worker") is None:
            self.say(
                "the checks before learning are left out: torch is not installed beside this "
                f"master; on a worker's machine: {by_hand}"
            )
            return None
        self.say("the checks before learning, on this machine (--skip-check leaves them out):")
        report = self._report()
        if report["no_data"] is not None:
            self.say(
                f"the checks are left out because there is no data: {report['no_data']}\n{by_hand}"
            )
            return None
        if not report["passed"]:
            raise CheckFailedError(_refusal(search, report))
        return json.dumps(
            {"format": FORMAT, "fingerprint": print_, "report": report}, indent=2
        ).encode()

    def _report(self) -> dict[str, Any]:
        """Run `worker check` and return its report. Its table goes to stderr as it is drawn."""
        words = ["check", *self.arguments, "--json", "--table"]
        done = (self.spawner.check(words) if self.spawner is not None else None) or subprocess.run(
            [sys.executable, "-P", "-m", "worker", *words], stdout=subprocess.PIPE, check=False
        )
        report = _read_report(done.stdout) if done.returncode in ENDED_WITH_REPORT else None
        if report is None:
            raise CheckFailedError(
                f"{_how_ended(done.returncode)} and without a report, so nothing was queued; fix "
                "the errors above, or launch with --skip-check"
            )
        return report


def _read_report(stdout: bytes) -> dict[str, Any] | None:
    """Return the report that was printed, or None if it is not one."""
    try:
        report = json.loads(stdout)
    except (ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) and report.keys() >= NEEDED else None


def _how_ended(exit_code: int) -> str:
    """Describe how the process of the checks ended, and what that suggests."""
    if exit_code in ENDED_WITH_REPORT:
        return f"the checks' process {how_ended(exit_code)}, as where the task calls os._exit,"
    killed = " (as where memory runs out)" if exit_code == -signal.SIGKILL else ""
    return f"the checks' process {how_ended(exit_code)}{killed}"


def fingerprint(search: Search, code: Code | None, folder: SearchFolder) -> str:
    """Return a digest of what a check looks at: the task's code, space, seed and metric."""
    digest = code.digest if code is not None else ""
    if search.task_file is not None and code is None:
        digest = store.launched_digest(folder)
    looked_at = [
        search.task,
        digest,
        search.space.plain(),
        search.seed,
        search.metric,
    ]
    return hashlib.sha256(json.dumps(looked_at).encode()).hexdigest()


def note(folder: SearchFolder, content: bytes) -> None:
    """Write the note that the checks passed.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    durable.replace(folder.check_file, content)


def _read_note(folder: SearchFolder, wanted: str) -> bytes | None:
    """Return the note that the checks passed on the same search.

    Return None if there is no readable one.
    """
    try:
        content = safe_read.read_bytes(folder.check_file, MAX_NOTE_BYTES)
        known = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return None  # no note, or a damaged one: check again
    same = isinstance(known, dict) and (known.get("format"), known.get("fingerprint")) == (
        FORMAT,
        wanted,
    )
    return content if same else None


def _refusal(search: Search, report: dict[str, Any]) -> str:
    failed = [f"{c['check']}: {c['found']}" for c in report["checks"] if c["status"] == "failed"]
    listed = "\n  ".join(failed)
    return (
        f"search {search.name!r} does not start, since a check failed:\n  {listed}\n"
        "fix it and launch again; if the check is wrong, launch with --skip-check. Nothing was "
        "queued"
    )

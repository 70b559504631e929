"""A process that has loaded `master` and `worker` once and forks them from then on.

A worker then starts in milliseconds instead of seconds. The forked processes are real: each is its
own session and runs the command line's ``main``. The nursery reads orders as lines of JSON on stdin
and answers each with a line. When stdin ends it kills every process that still lives.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Nursery:
    """The harness's side."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "160",
        }
        for name in ("REDIS_URL", "CHECKPOINT_DIR", "REDIS_PASSWORD_FILE"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.chaos.nursery"],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.codes: dict[int, int] = {}  # exit codes of what has ended, negative for a signal

    def start(
        self, command: list[str], log: Path, plan: dict[str, Any], environment: dict[str, str]
    ) -> int:
        """Forks a `master` or `worker`; its process id."""
        return int(
            self._ask(
                {"command": command, "log": str(log), "plan": plan, "environment": environment}
            )["pid"]
        )

    def look(self) -> None:
        """Reads who has ended."""
        self._ask({})

    def alive(self, pid: int) -> bool:
        self.look()
        return pid not in self.codes

    def close(self) -> None:
        """Kills what lives, and the nursery."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        self.codes |= {int(pid): code for pid, code in answer["ended"].items()}
        return answer


def serve() -> None:
    """The nursery's side."""
    from tests.chaos import child  # loads torch, scikit-learn and both programs

    children: set[int] = set()
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {}
        if "command" in asked:
            pid = os.fork()
            if pid == 0:
                child.become(asked["command"], asked["log"], asked["plan"], asked["environment"])
            children.add(pid)
            answer["pid"] = pid
        answer["ended"] = _ended(children)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in children:
        os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still theirs


def _ended(children: set[int]) -> dict[int, int]:
    codes = {}
    for child in list(children):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            children.remove(pid)
            codes[pid] = os.waitstatus_to_exitcode(status)
    return codes


if __name__ == "__main__":
    serve()

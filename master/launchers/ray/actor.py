"""The actor that runs a worker, on a node of Ray's.

Ray loads this module in its own Python there, so coarsefine has to be installed in it. The actor
starts the worker as a process, which ends with it. When the worker leaves, the actor notes how, and
leaves too. If the actor or its node dies, Ray starts it again elsewhere, and with it a worker.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from common.errors import ConfigError
from common.folder.durable import replace
from common.folder.json_file import read_model
from common.safe_read import open_to_append
from master.launchers.job_plan import JOB_VARIABLE, find_program, render_shell

MAX_FILE_BYTES = 1 << 16
# A process of Ray has threads, so it is the child that asks to end with its parent, once it runs.
# By SIGTERM, so that the worker saves its trials, and ends other workers that it has started.
BOUND = (
    "import os, signal, sys; from common.forking import die_with; "
    "die_with(int(sys.argv[1]), signal.SIGTERM); os.execvp(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True)
class Order:
    """What an actor is to run. Ray keeps it, so that it holds no password."""

    words: list[str]  # the command line of the worker, after the name of the program
    folder: str  # where the worker runs, if the node has this folder
    search: str  # the folder of the search, which the node must see
    logs: str  # the folder of the logs in it
    secrets: str  # a file of shell with the address of Redis; empty where the worker finds it
    setup: str  # lines of shell before the worker
    umask: int  # that of the launch
    gpus: int  # that the actor has

    def render(self) -> str:
        """Return the lines of shell that become the worker, on the node where this is called."""
        programs, program = find_program()
        place = [
            f"cd {shlex.quote(self.folder)} 2>/dev/null || cd {shlex.quote(self.search)} || exit",
            f'PATH={shlex.quote(str(programs))}:"$PATH"',
        ]
        # Ray hides the GPUs that an actor has not asked for, unless it is told not to.
        place += [] if self.gpus else ["export CUDA_VISIBLE_DEVICES="]
        secrets = Path(self.secrets) if self.secrets else None
        lines = render_shell(self.umask, place, self.setup, secrets, [*program, *self.words])
        return "\n".join([*lines, ""])


class Ended(BaseModel, frozen=True):
    """What an actor notes when its worker has ended."""

    node: str
    exit_code: int  # negative: the signal that ended it
    cancelled: bool = False


def read_ended(logs: Path, job: str) -> Ended | None:
    """Return how the worker of a job ended; None if it has not, or could not say so.

    Raises:
        CheckpointError: the file is damaged, or cannot be read.
    """
    return read_model(Ended, _name_ended(logs, job), MAX_FILE_BYTES, "delete it")


def _name_ended(logs: Path, job: str) -> Path:
    return logs / f"{job}.ended"


class RayWorker:
    """The actor. Ray calls its methods one after the other."""

    def __init__(self, job: str, order: dict[str, Any]) -> None:
        """Start the worker.

        Args:
            job: The id of the job.
            order: The fields of an ``Order``.

        Raises:
            ConfigError: the node does not see the folder of the search, or may not write there.
        """
        self._job = job
        self._order = Order(**order)
        self._logs = Path(self._order.logs)
        self._cancelled = False
        self._began = time.strftime("%H:%M:%S")
        self._again: str | None = None  # not yet known
        self._process = self._start()
        threading.Thread(target=self._wait, name="wait for the worker", daemon=True).start()

    def look(self) -> dict[str, str]:
        """Return the host, and when Ray started the actor again; empty if it did not."""
        import ray

        if self._again is None:
            again = ray.get_runtime_context().was_current_actor_reconstructed
            self._again = self._began if again else ""
        return {"node": socket.gethostname(), "again": self._again}

    def stop(self) -> None:
        """Tell the worker to save its trials, give them back, and leave."""
        self._cancelled = True
        self._process.terminate()

    def leave(self) -> None:
        """End the actor, so that Ray does not start it again."""
        import ray

        ray.actor.exit_actor()

    def _start(self) -> subprocess.Popen[bytes]:
        host = socket.gethostname()
        if not Path(self._order.search).is_dir():
            raise ConfigError(
                f"{host} does not see {self._order.search}; mount the checkpoint folder on every "
                "node of Ray under the same path"
            )
        try:
            log = open_to_append(self._logs / f"{self._job}.log")
        except OSError as error:
            raise ConfigError(
                f"on {host} {self._logs}: {error.strerror}; start Ray as the user that launches"
            ) from error
        bound = [sys.executable, "-P", "-c", BOUND, str(os.getpid())]
        inherited = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        with os.fdopen(log, "ab") as output:
            return subprocess.Popen(
                [*bound, "bash", "-c", self._order.render()],
                env={**inherited, "PYTHONUNBUFFERED": "1", JOB_VARIABLE: self._job},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _wait(self) -> None:
        """Wait for the end of the worker, note it, and have the actor leave."""
        import ray

        code = self._process.wait()
        ended = Ended(node=socket.gethostname(), exit_code=code, cancelled=self._cancelled)
        try:
            replace(_name_ended(self._logs, self._job), ended.model_dump_json().encode())
        finally:
            ray.get_runtime_context().current_actor.leave.remote()

"""Workers as actors of Ray, by orders to the process that speaks to it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.folder.records import SearchFolder
from master.launchers.calls import write_private
from master.launchers.cluster import ClusterError, Job
from master.launchers.job_plan import SECRETS, JobPlan, render_variables
from master.launchers.noted import Notes, find_number
from master.launchers.ray.actor import Order, read_ended
from master.launchers.ray.options import (
    ADDRESS,
    convert,
    count_gpus,
    parse_options,
    request_gpus,
)
from master.launchers.ray.states import Seen, describe

__all__ = ["NAME", "check", "count_gpus", "make", "parse_options", "request_gpus"]

NAME = "ray"
CALL_S = 60.0  # for an answer of Ray, which takes some seconds to connect to
MAX_SAID_BYTES = 1 << 12


class Ray:
    """The actors of one search in Ray. Implements ``Launcher``."""

    name = "Ray"

    def __init__(self, notes: Notes, plan: JobPlan | None = None) -> None:
        """Prepare the launcher without calling Ray.

        Args:
            notes: The notes of the search. Logs are in their folder.
            plan: The jobs. None to look at jobs and to cancel them.
        """
        self._notes = notes
        self._search = notes.folder.parents[1]
        self._plan = plan
        self._options = convert(plan.options) if plan is not None else {}
        self._speaker: Speaker | None = None

    @property
    def logs(self) -> str:
        """Where the logs of jobs are."""
        return f"logs in {self._notes.folder}"

    def preview(self, n: int) -> tuple[str, str]:
        """Return the shell that an actor runs here, and what would start ``n`` of them."""
        asked = " ".join(f"{key}={value}" for key, value in self._options.items())
        return self._order().render(), f"{n} detached actors of Ray with {asked} max_restarts=-1"

    def start(self, n: int) -> list[str]:
        """Have Ray start ``n`` actors and return their names.

        Raises:
            ClusterError: Ray refuses, or is not reached.
            ConfigError: Ray is not installed.
            CheckpointError: the folder cannot be read or written.
        """
        order = self._order()
        folder = self._notes.make_folder()
        if self._plan is not None and order.secrets:
            variables = render_variables(self._plan.variables)
            write_private(Path(order.secrets), variables.encode())
        used = [*self._notes.read(), *(log.stem for log in folder.glob("*.log"))]
        number = 1 + max(map(find_number, used), default=0)
        jobs = [f"{self._search.name}-{number}-{task}" for task in range(1, n + 1)]
        self._ask("start", jobs=jobs, order=asdict(order), options=self._options)
        return jobs

    def states(self, jobs: Collection[str]) -> dict[str, Job]:
        """Return how all of the jobs are.

        Raises:
            ClusterError: Ray does not answer, or is not reached.
            ConfigError: Ray is not installed.
            CheckpointError: what an actor has noted cannot be read.
        """
        found = self._ask("look", jobs=list(jobs), options=self._options)
        return {
            id: self._job(id, Seen(**seen), found["lacking"]) for id, seen in found["seen"].items()
        }

    def stop(self, jobs: Collection[str]) -> None:
        """Tell the workers of jobs to leave, and end jobs that have not begun.

        Raises:
            ClusterError: Ray refuses, or is not reached.
            ConfigError: Ray is not installed.
        """
        if jobs:
            self._ask("stop", jobs=list(jobs))

    def _order(self) -> Order:
        plan, logs = self._plan, self._notes.folder
        assert plan is not None
        gpus = count_gpus(plan.options)
        return Order(
            words=plan.words(gpus),
            folder=str(plan.folder),
            search=str(self._search),
            logs=str(logs),
            secrets=str(logs / SECRETS) if plan.variables else "",
            setup=plan.setup,
            umask=plan.umask,
            gpus=gpus,
        )

    def _ask(self, do: str, **order: Any) -> dict[str, Any]:
        if self._speaker is None:
            self._speaker = Speaker(_name_namespace(self._search))
        return self._speaker.ask(do, **order)

    def _job(self, id: str, seen: Seen, lacking: str) -> Job:
        ended = read_ended(self._notes.folder, id) if seen.state == "gone" else None
        phase, words, ending, moved = describe(seen, ended, lacking)
        log = self._notes.folder / f"{id}.log"
        return Job(id, phase, words, ending, log if log.exists() else None, moved)


def _name_namespace(folder: Path) -> str:
    """Return the namespace of a search's actors in Ray, which no other search has.

    Raises:
        CheckpointError: the search's folder cannot be read.
    """
    search = SearchFolder(folder.parent, folder.name).search()
    return f"coarsefine-{search.id if search is not None else folder.name}"


def make(notes: Notes, plan: JobPlan | None = None) -> Ray:
    """Return the launcher of a search; without a plan, one that looks at jobs and cancels them."""
    return Ray(notes, plan)


def check(options: Mapping[str, str]) -> None:
    """Check that a cluster is reached.

    Raises:
        ClusterError: no cluster is reached.
        ConfigError: Ray is not installed.
    """
    with closing(Speaker("coarsefine")) as speaker:
        speaker.ask("look", jobs=[], options={})


class Speaker:
    """The process that speaks to Ray, started when it is first needed or has ended."""

    def __init__(self, namespace: str) -> None:
        self._command = [sys.executable, "-P", "-m", "master.launchers.ray.process", namespace]
        self._process: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # its stderr

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Give an order, and return the answer.

        Raises:
            ClusterError: Ray refuses, is not reached, or does not answer in time.
            ConfigError: Ray is not installed.
        """
        process = self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline() if _is_ready(process.stdout.fileno()) else None
        except OSError:
            line = b""
        if not line:
            process.kill()
            process.wait()
            told = self._read_last_line()
            address = os.environ.get(ADDRESS)
            raise ClusterError(
                f"Ray{f' at {ADDRESS}={address}' if address else ''} has not answered for "
                f"{CALL_S:g} s"
                if line is None
                else f"the connection to Ray has ended{f': {told}' if told else ''}"
            )
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            self.close()
            raise ClusterError(said["error"])
        answer: dict[str, Any] = said["answer"]
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            if find_spec("ray") is None:
                raise ConfigError(
                    "--launcher ray: Ray is not installed here; install this program with its "
                    "extra `ray`, with the version of Ray that the cluster has"
                )
            environ = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
            self._process = subprocess.Popen(
                self._command,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                start_new_session=True,  # only the master receives Ctrl-C
            )
        return self._process

    def _read_last_line(self) -> str:
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - MAX_SAID_BYTES))
        lines = self._said.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _is_ready(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], CALL_S)[0])

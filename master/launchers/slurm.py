"""Workers as jobs of Slurm: arrays whose tasks are a worker each.

The text of the script and the reading of Slurm's answers are pure functions. The states of jobs
come from ``squeue`` and ``scontrol``: many clusters have no database for ``sacct``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import ConfigError
from common.folder.durable import replace
from master.launchers.cluster import ClusterError, Job, Phase
from master.launchers.noted import Notes
from master.launchers.slurm_states import describe

NAME = "slurm"
CALL_S = 60.0  # for an answer of Slurm, which may be busy
SCRIPT = "worker.sh"
SECRETS = "environment"  # the address of Redis, for its owner alone
OWNER_ONLY = 0o600
OWNER_ONLY_MASK = 0o077
SIGNAL = "B:USR1@90"  # the worker saves its trials and leaves before the time limit
# What the launcher itself decides.
OWN = ("array", "output", "error", "input", "wrap", "parsable", "test-only", "wait", "uid")
OPTION = re.compile(r"[a-z][a-z0-9-]+", re.ASCII)
GPU_OPTIONS = ("gpus", "gres", "gpus-per-node", "gpus-per-task")
FORMAT = "%i|%T|%r|%N"


def parse_options(words: Sequence[str]) -> dict[str, str]:
    """Read options for ``#SBATCH`` lines: ``key=value``, ``--key=value``, or ``--key`` alone.

    Returns:
        The values by key, empty where there is none. A later one replaces an earlier one.

    Raises:
        ConfigError: it is not an option, or one that the launcher decides.
    """
    found: dict[str, str] = {}
    for word in words:
        key, _, value = word.removeprefix("--").partition("=")
        if not OPTION.fullmatch(key) or not value.isprintable():
            raise ConfigError(
                f"--slurm-option {word}: not an option of sbatch; write its long name and the "
                "value, such as time=4:00:00"
            )
        if key in OWN:
            raise ConfigError(f"--slurm-option {word}: master decides --{key} itself; leave it out")
        found[key] = value
    return found


def count_gpus(options: Mapping[str, str]) -> int:
    """Return how many GPUs the options ask for in one job: ``gres=gpu:h100:2`` is 2."""
    for name in GPU_OPTIONS:
        for entry in options.get(name, "").split(","):
            kind, *others = entry.partition("(")[0].split(":")
            number = others[-1] if others else kind
            if entry and (name != "gres" or kind == "gpu"):
                return int(number) if number.isdecimal() else 1
    return 0


def choose_device(options: Mapping[str, str]) -> str:
    """Return the device of a job's worker, as for ``worker start``.

    A job that has asked for a GPU does not train on the CPU when it gets none.
    """
    gpus = count_gpus(options)
    return "auto" if not gpus else "cuda:0" if gpus == 1 else "all"


@dataclass(frozen=True)
class Script:
    """What the script of a job is made of."""

    job_name: str
    logs: Path  # the folder of its logs
    folder: Path  # where the worker runs
    programs: Path  # the folder with the program `worker`
    command: Sequence[str]  # the worker
    options: Mapping[str, str] = field(default_factory=dict)
    setup: str = ""  # lines of shell before the worker
    secrets: Path | None = None  # a file of shell with the address of Redis
    umask: int = 0o022  # that of the launch; Slurm would pass on the one that keeps logs private

    def render(self) -> str:
        """Return the text of the script."""
        logs = str(self.logs).replace("%", "%%")
        options = {
            "job-name": self.job_name,
            "output": f"{logs}/%A_%a.log",
            "open-mode": "append",
            "requeue": "",
            "signal": SIGNAL,
        } | dict(self.options)
        if "no-requeue" in self.options:
            del options["requeue"]
        head = [
            f"#SBATCH --{key}{f'={_quote(value)}' if value else ''}"
            for key, value in options.items()
        ]
        body = [
            f"umask {self.umask:04o}",
            f"cd {shlex.quote(str(self.folder))} || exit",
            f'PATH={shlex.quote(str(self.programs))}:"$PATH"',
            *(self.setup.rstrip("\n").split("\n") if self.setup.strip() else ()),
            *([f". {shlex.quote(str(self.secrets))}"] if self.secrets else ()),
            "# In place of this shell, so that the signals of Slurm reach it.",
            f"exec {shlex.join(self.command)}",
        ]
        return "\n".join(["#!/bin/bash", *head, "", *body, ""])


def _quote(value: str) -> str:
    """Return a value as a line of #SBATCH has it, where a space or # would end it."""
    if re.fullmatch(r"[^\s#\"'\\]+", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def render_secrets(environ: Mapping[str, str]) -> str:
    """Return a file of shell that sets these variables."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environ.items())


def submit_command(folder: Path, n: int) -> list[str]:
    """Return the command that submits the script in a folder as an array of ``n`` jobs."""
    return ["sbatch", "--parsable", f"--array=1-{n}", str(folder / SCRIPT)]


def parse_submitted(answer: str, n: int) -> list[str]:
    """Return the ids of an array of ``n`` jobs from the answer of ``sbatch --parsable``.

    The answer is ``17``, or ``17;cluster`` where there are several clusters.

    Raises:
        ClusterError: the answer is something else.
    """
    number = answer.strip().partition(";")[0]
    if not number.isdecimal():
        raise ClusterError(f"sbatch answered {answer.strip()!r} instead of the number of a job")
    return [f"{number}_{task}" for task in range(1, n + 1)]


def parse_queue(answer: str) -> dict[str, tuple[str, str, str]]:
    """Return state, reason and node of each job from the answer of ``squeue``, by its id.

    Lines that are something else are left out.
    """
    rows = (line.strip().split("|") for line in answer.splitlines())
    return {row[0]: (row[1], row[2], row[3]) for row in rows if len(row) == 4}


def parse_exit(answer: str) -> tuple[int, int]:
    """Return exit status and signal from the answer of ``scontrol show job``; 0 if not known."""
    found = re.search(r"\bExitCode=(\d+):(\d+)", answer)
    return (int(found[1]), int(found[2])) if found else (0, 0)


class Slurm:
    """The jobs of one search in Slurm. Implements ``Launcher``."""

    name = "Slurm"

    def __init__(
        self, notes: Notes, script: Script | None = None, secrets: Mapping[str, str] | None = None
    ) -> None:
        """Prepare the launcher without calling Slurm.

        Args:
            notes: The notes of the search. Script and logs are in their folder.
            script: The script of a job. None to look at jobs and to cancel them.
            secrets: The variables of the file ``Script.secrets``.
        """
        self._notes = notes
        self._script = script
        self._secrets = dict(secrets or {})

    def start(self, n: int) -> list[str]:
        """Submit an array of ``n`` jobs and return their ids.

        Raises:
            ClusterError: sbatch refuses.
            ConfigError: there is no sbatch.
            CheckpointError: the script cannot be written.
        """
        assert self._script is not None
        folder = self._notes.make_folder()
        if self._script.secrets is not None:
            _write_private(self._script.secrets, render_secrets(self._secrets))
        replace(folder / SCRIPT, self._script.render().encode())
        return parse_submitted(_call(submit_command(folder, n), "the job"), n)

    def states(self, jobs: Collection[str]) -> dict[str, Job]:
        """Return those of the jobs that Slurm still knows, which is some minutes after their end.

        Raises:
            ClusterError: squeue does not answer.
            ConfigError: there is no squeue.
        """
        user = str(os.getuid())
        answer = _call(
            ["squeue", "-h", "-r", "-t", "all", "-u", user, "-o", FORMAT], "the question"
        )
        rows = {id: row for id, row in parse_queue(answer).items() if id in jobs}
        return {id: self._job(id, *row) for id, row in rows.items()}

    def stop(self, jobs: Collection[str]) -> None:
        """Cancel jobs. Those that have ended are left out.

        Raises:
            ClusterError: scancel refuses.
            ConfigError: there is no scancel.
        """
        known = self.states(jobs)
        live = [id for id, job in known.items() if job.phase is not Phase.ENDED]
        if live:
            _call(["scancel", *live], "to cancel jobs")

    def _job(self, id: str, state: str, reason: str, node: str) -> Job:
        log = self._notes.folder / f"{id}.log"
        exit_status = (0, 0)
        if state == "FAILED":
            exit_status = parse_exit(_call(["scontrol", "show", "job", "-o", id], "the question"))
        phase, words, ending = describe(state, reason, node, *exit_status)
        return Job(id, phase, words, ending, log)


def check_commands() -> None:
    """Check that the commands of Slurm are there.

    Raises:
        ConfigError: they are not.
    """
    for program in ("sbatch", "squeue", "scancel", "scontrol"):
        if shutil.which(program) is None:
            raise _missing(program)


def _missing(program: str) -> ConfigError:
    return ConfigError(
        f"there is no {program} on the PATH: --launcher slurm needs the commands of Slurm; run "
        "this on a login node of the cluster, perhaps after `module load slurm`"
    )


def _call(command: Sequence[str], what: str) -> str:
    """Run a command of Slurm and return what it prints."""
    program = command[0]
    # Slurm copies the environment of sbatch into the job and keeps it in files of its own.
    environ = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    try:
        done = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CALL_S,
            check=False,
            umask=OWNER_ONLY_MASK,  # of the logs, which slurmd creates
        )
    except FileNotFoundError:
        raise _missing(program) from None
    except OSError as error:
        raise ClusterError(f"{program} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{program} has not answered for {CALL_S:g} s") from None
    if done.returncode:
        said = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise ClusterError(f"{program} refused {what}: {said or f'exit status {done.returncode}'}")
    return done.stdout


def _write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone may read."""
    path.unlink(missing_ok=True)
    path.touch(OWNER_ONLY)
    path.write_text(text)

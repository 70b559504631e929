"""Workers as jobs of Slurm: arrays whose tasks are a worker each.

The text of the script and the reading of Slurm's answers are pure functions. The states of jobs
come from ``squeue`` and ``scontrol``: many clusters have no database for ``sacct``.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import ConfigError
from common.folder.durable import replace
from master.launchers.calls import call, check_programs, write_private
from master.launchers.cluster import ClusterError, Job, Phase
from master.launchers.job_plan import (
    SECRETS,
    JobPlan,
    find_program,
    parse_words,
    render_shell,
    render_variables,
)
from master.launchers.noted import Notes
from master.launchers.slurm_states import describe

NAME = "slurm"
PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")
REMEDY = (
    "--launcher slurm needs the commands of Slurm; run this on a login node of the cluster, "
    "perhaps after `module load slurm`"
)
SCRIPT = "worker.sh"
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
    remedy = "sbatch; write its long name and the value, such as time=4:00:00"
    found = parse_words(words, OPTION, "--slurm-option", remedy)
    for key in OWN:
        if key in found:
            raise ConfigError(f"--slurm-option {key}: master decides --{key} itself; leave it out")
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


def request_gpus(n: int) -> str:
    """Return the option with which a job has ``n`` GPUs."""
    return f"--slurm-option gres=gpu:{n}"


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
        place = [
            f"cd {shlex.quote(str(self.folder))} || exit",
            f'PATH={shlex.quote(str(self.programs))}:"$PATH"',
        ]
        body = render_shell(self.umask, place, self.setup, self.secrets, self.command)
        return "\n".join(["#!/bin/bash", *head, "", *body, ""])


def _quote(value: str) -> str:
    """Return a value as a line of #SBATCH has it, where a space or # would end it."""
    if re.fullmatch(r"[^\s#\"'\\]+", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


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
            write_private(self._script.secrets, render_variables(self._secrets).encode())
        replace(folder / SCRIPT, self._script.render().encode())
        return parse_submitted(_call(submit_command(folder, n), "the job"), n)

    @property
    def logs(self) -> str:
        """Where the logs of jobs are."""
        return f"logs in {self._notes.folder}"

    def preview(self, n: int) -> tuple[str, str]:
        """Return the script, and the command that would submit ``n`` jobs."""
        assert self._script is not None
        return self._script.render(), shlex.join(submit_command(self._notes.folder, n))

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


def check(options: Mapping[str, str]) -> None:
    """Check that the commands of Slurm are there.

    Raises:
        ConfigError: they are not.
    """
    check_programs(PROGRAMS, REMEDY)


def make(notes: Notes, plan: JobPlan | None = None) -> Slurm:
    """Return the launcher of a search; without a plan, one that looks at jobs and cancels them."""
    if plan is None:
        return Slurm(notes)
    programs, program = find_program()
    script = Script(
        job_name=f"coarsefine-{plan.search}",
        logs=notes.folder,
        folder=plan.folder,
        programs=programs,
        command=[*program, *plan.words(count_gpus(plan.options))],
        options=plan.options,
        setup=plan.setup,
        secrets=notes.folder / SECRETS if plan.variables else None,
        umask=plan.umask,
    )
    return Slurm(notes, script, plan.variables)


def _call(command: Sequence[str], what: str) -> str:
    return call(command, what, REMEDY)

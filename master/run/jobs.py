"""What a launch gives to the scheduler of a cluster: its options, its workers, and their script."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.broker.connection import PASSWORD_FILE, Broker
from common.errors import ConfigError, SearchError
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.safe_read import read_bytes
from common.search.stage import NO_NEEDS, Resources
from common.search.trial import TrialState
from master.launchers import slurm
from master.launchers.cluster import Bounds, ClusterWorkers, Demand, Phase
from master.launchers.noted import Notes, find_notes
from master.launchers.slurm import Script, Slurm

LOCAL = "local"
LOCK_S = 120.0  # longer than a submission takes
MAX_SETUP_BYTES = 1 << 20
IDLE_EXIT_S = 60.0  # the next stage begins sooner than that
STOP_GRACE_S = 25.0  # Slurm waits 30 seconds, unless it is told otherwise (KillWait)
# Besides the URL: files that the user's own Redis needs.
REDIS_FILES = (PASSWORD_FILE, "REDIS_CA_FILE", "REDIS_CERT_FILE", "REDIS_KEY_FILE")


@dataclass(frozen=True)
class JobOptions:
    """The options of a launch whose workers are jobs of Slurm, checked."""

    bounds: Bounds
    options: Mapping[str, str]
    setup: str = ""


def read_job_options(
    launcher: str, workers: str, options: Sequence[str], setup: Path | None, dry_run: bool
) -> JobOptions | None:
    """Check the options of the command line; return None if the workers are local.

    Args:
        launcher: The value of ``--launcher``.
        workers: The value of ``--workers``.
        options: The values of ``--slurm-option``.
        setup: The value of ``--setup``.
        dry_run: Whether ``--dry-run`` is given.

    Raises:
        ConfigError: an option is wrong, or does not belong to the launcher.
    """
    if launcher == LOCAL:
        given = {"--slurm-option": options, "--setup": setup, "--dry-run": dry_run}
        for name, value in given.items():
            if value:
                raise ConfigError(f"{name}: belongs to --launcher slurm; add that, or leave it out")
        return None
    return JobOptions(
        Bounds.parse(workers, launcher),
        slurm.parse_options(options),
        _read_setup(setup) if setup is not None else "",
    )


def _read_setup(path: Path) -> str:
    try:
        return read_bytes(path, MAX_SETUP_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"--setup {path} cannot be read: {reason}; name a file with lines of shell"
        ) from error


def write_script(
    folder: SearchFolder,
    data: Path,
    job: JobOptions,
    secrets: bool,
    resources: Resources = NO_NEEDS,
) -> Script:
    """Return the script of a search's jobs.

    Args:
        folder: The folder of the search.
        data: The folder of built-in data sets.
        job: The options of the launch.
        secrets: Whether the jobs read the address of Redis from a file.
        resources: What a trial needs.
    """
    notes = Notes(folder.path.absolute(), slurm.NAME)
    programs = Path(sys.executable).parent
    program = (
        ["worker"] if (programs / "worker").exists() else [sys.executable, "-P", "-m", "worker"]
    )
    command = [
        *program,
        "start",
        "--search",
        folder.name,
        "--checkpoints",
        str(folder.root.absolute()),
        "--data-dir",
        str(data.absolute()),
        "--device",
        slurm.choose_device(job.options),
        "--idle-exit",
        f"{IDLE_EXIT_S:g}",
        "--stop-grace",
        f"{STOP_GRACE_S:g}",
    ]
    if resources.gpus > 1 and slurm.count_gpus(job.options):
        command += ["--gpus-per-trial", str(resources.gpus)]
    return Script(
        job_name=f"coarsefine-{folder.name}",
        logs=notes.folder,
        folder=Path.cwd(),
        programs=programs,
        command=command,
        options=job.options,
        setup=job.setup,
        secrets=notes.folder / slurm.SECRETS if secrets else None,
        umask=_read_umask(),
    )


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def dry_run(
    folder: SearchFolder,
    data: Path,
    job: JobOptions,
    secrets: bool,
    say: Callable[[str], None],
    resources: Resources = NO_NEEDS,
) -> int:
    """Print the script that a launch would submit, and return the exit code of the command.

    Args:
        folder: The folder of the search, which need not exist.
        data: The folder of built-in data sets.
        job: The options of the launch.
        secrets: Whether the jobs read the address of Redis from a file.
        say: Prints what the script is not: how it would be submitted.
        resources: What a trial needs.

    Raises:
        ConfigError: a job has too few GPUs for a trial.
    """
    _check_gpus(job, resources)
    script = write_script(folder, data, job, secrets, resources)
    command = slurm.submit_command(script.logs, job.bounds.most)
    print(script.render(), end="", flush=True)
    say(f"nothing is submitted; with enough trials this would be {shlex.join(command)}")
    return 0


def prepare_jobs(broker: Broker, job: JobOptions, resources: Resources) -> None:
    """Check that jobs can be submitted, reach the Redis of this launch, and have enough GPUs.

    Raises:
        ConfigError: they cannot.
    """
    slurm.check_commands()
    _check_gpus(job, resources)
    if broker.embedded:
        raise ConfigError(
            f"--launcher slurm: jobs on other hosts cannot reach {broker.where}; run `master redis "
            "start` first, or give --redis URL"
        )


def _check_gpus(job: JobOptions, resources: Resources) -> None:
    gpus = slurm.count_gpus(job.options)
    if not resources.fits(gpus):
        raise ConfigError(
            f"[resources] gpus = {resources.gpus}: a job has {gpus or 'no'} "
            f"{'GPU' if gpus == 1 else 'GPUs'}; add --slurm-option gres=gpu:{resources.gpus}"
        )


def cluster_workers(
    folder: SearchFolder,
    queue: TrialQueue,
    broker: Broker,
    data: Path,
    job: JobOptions,
    say: Callable[[str], None],
    resources: Resources = NO_NEEDS,
) -> ClusterWorkers:
    """Return the workers of a search that run as jobs of Slurm. None is submitted yet.

    Args:
        folder: The folder of the search.
        queue: The queue of the search.
        broker: The connection to its Redis.
        data: The folder of built-in data sets.
        job: The options of the launch.
        say: Prints messages about jobs.
        resources: What a trial needs.
    """
    notes = Notes(folder.path.absolute(), slurm.NAME)
    secrets = {} if broker.by_root else _gather_secrets(broker.url)
    script = write_script(folder, data, job, bool(secrets), resources)
    registry = WorkerRegistry(broker.client)

    def ask() -> Demand:
        counts = queue.counts().values()
        connected = [info for info in registry.list() if info.state not in ("lost", "quitting")]
        return Demand(
            waiting=sum(own[TrialState.PENDING] for own in counts),
            running=sum(own[TrialState.RUNNING] for own in counts),
            busy=frozenset(info.job for info in connected if info.trials),
            idle=frozenset(info.job for info in connected if not info.trials),
        )

    return ClusterWorkers(
        Slurm(notes, script, secrets),
        job.bounds,
        notes,
        ask,
        lambda: queue.lock("jobs", LOCK_S),
        say,
    )


def _gather_secrets(url: str) -> dict[str, str]:
    """Return the variables with which a worker finds a Redis that the user has named."""
    return {"REDIS_URL": url} | {
        name: os.environ[name] for name in REDIS_FILES if os.environ.get(name)
    }


def cancel_jobs(folder: SearchFolder) -> int:
    """Cancel the jobs of a search, and return how many there were.

    Raises:
        ClusterError: Slurm refuses.
        ConfigError: Slurm's commands are missing.
        CheckpointError: the notes cannot be read.
    """
    notes = Notes(folder.path.absolute(), slurm.NAME)
    live = [id for id, job in notes.read().items() if job.phase != Phase.ENDED.value]
    if not live:
        return 0
    launcher = Slurm(notes)
    known = launcher.states(live)
    live = [id for id, job in known.items() if job.phase is not Phase.ENDED]
    launcher.stop(live)
    return len(live)


def tell_cancelled(folder: SearchFolder) -> str:
    """Cancel the jobs of a search, and say what came of it; empty if there were none."""
    try:
        n = cancel_jobs(folder)
    except SearchError as error:
        return f"its jobs are not cancelled: {error}"
    return f"cancelled {n} {'job' if n == 1 else 'jobs'}" if n else ""


def describe_jobs(root: Path) -> list[str]:
    """Return lines about the jobs of all searches in a checkpoint root.

    Slurm is asked how they are. If it does not answer, its last known answer is told.
    """
    lines: list[str] = []
    for name, notes in find_notes(root.absolute(), slurm.NAME).items():
        lines += _describe_jobs_of(name, notes)
    return lines


def _describe_jobs_of(name: str, notes: Notes) -> list[str]:
    noted = notes.read()
    live = [id for id, job in noted.items() if job.phase != Phase.ENDED.value]
    told = {id: (Phase(job.phase), job.words) for id, job in noted.items()}
    trouble = []
    if live:
        try:
            known = Slurm(notes).states(live)
            told |= dict.fromkeys(live, (Phase.ENDED, ""))
            told |= {id: (job.phase, job.words) for id, job in known.items()}
        except SearchError as error:
            trouble = [f"search {name!r}: {error}"]
    n = {phase: sum(own is phase for own, _ in told.values()) for phase in Phase}
    return [
        f"search {name!r} has {n[Phase.RUNNING]} running and {n[Phase.QUEUED]} queued jobs in "
        f"Slurm, with logs in {notes.folder}",
        *trouble,
        *(f"job {id} {words}" for id, (_, words) in told.items() if words),
    ]

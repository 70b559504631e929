"""What a launch gives to the scheduler of a cluster: its options, its workers, and their script."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.broker.connection import PASSWORD_FILE, Broker
from common.errors import ConfigError, SearchError
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.safe_read import read_bytes
from common.search.stage import NO_NEEDS, Resources
from common.search.trial import TrialState
from common.shell_command import shell_command
from master.launchers import slurm
from master.launchers.cluster import Bounds, ClusterWorkers, Demand, Job, Launcher, Phase
from master.launchers.job_plan import JobPlan
from master.launchers.kubernetes import launcher as kubernetes
from master.launchers.noted import Notes, find_notes
from master.launchers.ray import launcher as ray

LOCAL = "local"
LOCK_S = 120.0  # longer than a submission takes
MAX_SETUP_BYTES = 1 << 20
# Besides the URL: files that the user's own Redis needs.
REDIS_FILES = (PASSWORD_FILE, "REDIS_CA_FILE", "REDIS_CERT_FILE", "REDIS_KEY_FILE")


class Scheduler(Protocol):
    """A kind of cluster. Its module has these."""

    NAME: str  # the value of --launcher

    def parse_options(self, words: Sequence[str]) -> dict[str, str]:
        """Read the values of ``--job-option``. Raises ConfigError for what is none."""

    def count_gpus(self, options: Mapping[str, str]) -> int:
        """Return how many GPUs a job has."""

    def request_gpus(self, n: int) -> str:
        """Return the option with which a job has ``n`` GPUs."""

    def check(self, options: Mapping[str, str]) -> None:
        """Check that jobs can be submitted. Raises ConfigError or ClusterError."""

    def make(self, notes: Notes, plan: JobPlan | None = None) -> Launcher:
        """Return the launcher of a search, without a plan one that only looks and cancels."""


SCHEDULERS: dict[str, Scheduler] = {
    slurm.NAME: slurm,
    kubernetes.NAME: kubernetes,
    ray.NAME: ray,
}


@dataclass(frozen=True)
class JobOptions:
    """The options of a launch whose workers are jobs of a cluster, checked."""

    launcher: str
    bounds: Bounds
    options: Mapping[str, str]
    setup: str = ""

    @property
    def scheduler(self) -> Scheduler:
        """The kind of cluster."""
        return SCHEDULERS[self.launcher]

    @property
    def gpus(self) -> int:
        """How many GPUs a job has."""
        return self.scheduler.count_gpus(self.options)


def read_job_options(
    launcher: str, workers: str, options: Sequence[str], setup: Path | None, dry_run: bool
) -> JobOptions | None:
    """Check the options of the command line; return None if the workers are local.

    Args:
        launcher: The value of ``--launcher``.
        workers: The value of ``--workers``.
        options: The values of ``--job-option``.
        setup: The value of ``--setup``.
        dry_run: Whether ``--dry-run`` is given.

    Raises:
        ConfigError: an option is wrong, or does not belong to the launcher.
    """
    if launcher == LOCAL:
        given = {"--job-option": options, "--setup": setup, "--dry-run": dry_run}
        others = " or ".join(SCHEDULERS)
        for name, value in given.items():
            if value:
                raise ConfigError(
                    f"{name}: belongs to --launcher {others}; add that, or leave it out"
                )
        return None
    return JobOptions(
        launcher,
        Bounds.parse(workers, launcher),
        SCHEDULERS[launcher].parse_options(options),
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


def make_launcher(
    folder: SearchFolder,
    data: Path,
    job: JobOptions,
    variables: Mapping[str, str],
    resources: Resources = NO_NEEDS,
) -> Launcher:
    """Return the launcher of a search's jobs.

    Args:
        folder: The folder of the search.
        data: The folder of built-in data sets.
        job: The options of the launch.
        variables: With these a worker finds Redis; none where it finds it by the checkpoint root.
        resources: What a trial needs.
    """
    plan = JobPlan(
        folder.name, folder.root, data, job.options, job.setup, variables, resources.gpus
    )
    return job.scheduler.make(Notes(folder.path.absolute(), job.launcher), plan)


def dry_run(
    folder: SearchFolder,
    data: Path,
    job: JobOptions,
    url: str | None,
    say: Callable[[str], None],
    resources: Resources = NO_NEEDS,
) -> int:
    """Print the script or manifest that a launch would submit, and return its exit code.

    Args:
        folder: The folder of the search, which need not exist.
        data: The folder of built-in data sets.
        job: The options of the launch.
        url: The URL of Redis; None where workers find it by the checkpoint root.
        say: Prints what the script is not: how it would be submitted.
        resources: What a trial needs.

    Raises:
        ConfigError: a job has too few GPUs for a trial.
    """
    _check_gpus(job, resources)
    launcher = make_launcher(folder, data, job, _gather_secrets(url) if url else {}, resources)
    text, command = launcher.preview(job.bounds.most)
    print(text, end="", flush=True)
    say(f"nothing is submitted; with enough trials this would be {command}")
    return 0


def prepare_jobs(broker: Broker, job: JobOptions, resources: Resources) -> None:
    """Check that jobs can be submitted, reach the Redis of this launch, and have enough GPUs.

    Raises:
        ConfigError: they cannot.
        ClusterError: the scheduler refuses an option.
    """
    job.scheduler.check(job.options)
    _check_gpus(job, resources)
    if broker.embedded:
        raise ConfigError(
            f"--launcher {job.launcher}: jobs on other hosts cannot reach {broker.where}; run "
            f"`{shell_command('master redis start')}` first, or give --redis URL"
        )


def _check_gpus(job: JobOptions, resources: Resources) -> None:
    if not resources.fits(job.gpus):
        raise ConfigError(
            f"[resources] gpus = {resources.gpus}: a job has {job.gpus or 'no'} "
            f"{'GPU' if job.gpus == 1 else 'GPUs'}; add "
            f"{job.scheduler.request_gpus(resources.gpus)}"
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
    """Return the workers of a search that run as jobs of a cluster. None is submitted yet.

    Args:
        folder: The folder of the search.
        queue: The queue of the search.
        broker: The connection to its Redis.
        data: The folder of built-in data sets.
        job: The options of the launch.
        say: Prints messages about jobs.
        resources: What a trial needs.
    """
    variables = {} if broker.by_root else _gather_secrets(broker.url)
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
        make_launcher(folder, data, job, variables, resources),
        job.bounds,
        Notes(folder.path.absolute(), job.launcher),
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
        ClusterError: the scheduler refuses.
        ConfigError: its commands are missing.
        CheckpointError: the notes cannot be read.
    """
    n = 0
    for name, scheduler in SCHEDULERS.items():
        notes = Notes(folder.path.absolute(), name)
        noted = [id for id, job in notes.read().items() if job.phase != Phase.ENDED.value]
        if noted:
            launcher = scheduler.make(notes)
            known = launcher.states(noted)
            live = [id for id, job in known.items() if job.phase is not Phase.ENDED]
            launcher.stop(live)
            n += len(live)
    return n


def tell_cancelled(folder: SearchFolder) -> str:
    """Cancel the jobs of a search, and say what came of it; empty if there were none."""
    try:
        n = cancel_jobs(folder)
    except SearchError as error:
        return f"its jobs are not cancelled: {error}"
    return f"cancelled {n} {'job' if n == 1 else 'jobs'}" if n else ""


def describe_jobs(root: Path) -> list[str]:
    """Return lines about the jobs of all searches in a checkpoint root.

    Their schedulers are asked how they are. If one does not answer, its last known answer is told.
    """
    return [
        line
        for scheduler in SCHEDULERS.values()
        for name, notes in find_notes(root.absolute(), scheduler.NAME).items()
        for line in _describe_jobs_of(name, notes, scheduler.make(notes))
    ]


def _describe_jobs_of(name: str, notes: Notes, launcher: Launcher) -> list[str]:
    noted = notes.read()
    live = [id for id, job in noted.items() if job.phase != Phase.ENDED.value]
    told = {id: (Phase(job.phase), job.words) for id, job in noted.items()}
    trouble = []
    if live:
        try:
            known = launcher.states(live)
            told |= dict.fromkeys(live, (Phase.ENDED, ""))
            told |= {id: (job.phase, _describe_job(job)) for id, job in known.items()}
        except SearchError as error:
            trouble = [f"search {name!r}: {error}"]
    n = {phase: sum(own is phase for own, _ in told.values()) for phase in Phase}
    return [
        f"search {name!r} has {n[Phase.RUNNING]} running and {n[Phase.QUEUED]} queued jobs in "
        f"{launcher.name}, with {launcher.logs}",
        *trouble,
        *(f"job {id} {words}" for id, (_, words) in told.items() if words),
    ]


def _describe_job(job: Job) -> str:
    """Return what there is to say of a job: how it is, or else why it was begun again."""
    return job.words or (f"{job.moved}, and was begun again" if job.moved else "")

"""What the command line asks of `master launch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from common.options import DATA_FOLDER, Shared
from common.shell_command import find_given
from master.launchers.forked import ForkServer
from master.run.jobs import LOCAL, JobOptions, read_job_options


@dataclass(frozen=True)
class Request:
    """Options of the command line."""

    stage: str
    redis: str | None
    checkpoints: Path
    config: Path | None = None
    search: str | None = None
    workers: str = "auto"
    ranges: Path | None = None
    new_name: str | None = None
    replace: bool = False
    detach: bool = False
    data: Path = DATA_FOLDER  # folder of built-in data sets, for the local workers
    skip_check: bool = False
    more: float | None = None
    launcher: str = LOCAL
    job_options: tuple[str, ...] = ()
    setup: Path | None = None
    dry_run: bool = False
    spawner: ForkServer | None = None  # forks the workers and the checks

    @property
    def repeated(self) -> dict[str, str | Sequence[str] | None]:
        """Options that the command for the next stage needs as well.

        What the environment names is not among them. A password in the URL of Redis is ``***``.
        """
        config = str(self.config) if self.config and not self.new_name else None
        folder = str(self.checkpoints) if self.checkpoints != Shared().checkpoints else None
        data = str(self.data) if self.data != DATA_FOLDER else None
        is_local = self.launcher == LOCAL
        return {
            "--config": config,
            "--search": self.new_name or self.search,
            "--checkpoints": folder,
            "--redis": find_given("--redis"),
            "--data-dir": data,
            "--launcher": None if is_local else self.launcher,
            "--workers": None if is_local else self.workers,
            "--job-option": self.job_options,
            "--setup": str(self.setup) if self.setup is not None else None,
        }

    @property
    def named(self) -> list[str]:
        """Options that name the same search and folders to `worker check`."""
        options = {
            "--config": self.config,
            "--search": self.search,
            "--checkpoints": self.checkpoints,
            "--data-dir": self.data,
        }
        return [
            str(part)
            for name, value in options.items()
            if value is not None
            for part in (name, value)
        ]

    @property
    def jobs(self) -> JobOptions | None:
        """Options of the jobs of a cluster; None if the workers are local.

        Raises:
            ConfigError: one of them is wrong.
        """
        return read_job_options(
            self.launcher, self.workers, self.job_options, self.setup, self.dry_run
        )

    @property
    def n_workers(self) -> int | None:
        """Number of local workers; None for ``auto``.

        Raises:
            ConfigError: ``--workers`` is neither ``auto`` nor a number.
        """
        if self.launcher != LOCAL:
            return 0
        if self.workers == "auto":
            return None
        if not self.workers.isdigit():
            raise ConfigError(
                f"--workers {self.workers}: not a number of workers; use auto, 0 or a number"
            )
        return int(self.workers)

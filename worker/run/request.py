"""What the command line asks of `worker start`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.broker.urls import parse
from common.errors import ConfigError
from common.options import DATA_FOLDER
from worker.training.compute.device_option import split_devices

# After SIGTERM or the order to quit, a worker that does not stop within this time exits hard.
# `--stop-grace` sets another.
STOP_GRACE_S = 8.0


@dataclass(frozen=True)
class Request:
    """The options of ``worker start``."""

    redis: str | None
    checkpoints: Path
    device: str
    array_width: str
    search: str | None
    burst: bool
    local: int  # number of workers that `master launch` started together; 0 if none
    data: Path = DATA_FOLDER
    gpus: int = 1  # that each worker owns, if it owns any
    idle_exit_s: float | None = None
    max_hours: float | None = None
    stop_grace_s: float = STOP_GRACE_S

    @property
    def width(self) -> int | None:
        """The array width, or None for auto.

        Raises:
            ConfigError: it is neither auto nor a positive number.
        """
        if self.array_width == "auto":
            return None
        if not self.array_width.isdigit() or int(self.array_width) < 1:
            raise ConfigError(
                f"--array-width {self.array_width}: not a width; use auto or a number of at least 1"
            )
        return int(self.array_width)

    def check(self) -> None:
        """Check what can be checked without torch.

        Raises:
            ConfigError: an option is not of its form.
        """
        _ = self.width
        if self.device not in ("auto", "cpu", "all"):
            split_devices(self.device)
        if self.redis is not None:
            parse(self.redis)

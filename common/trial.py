"""The words of a search as values: trial, fence, claim, result, and the states a trial passes through."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum

from common.space import Hyperparameters

STAGE_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")  # no '-' and no '.', which separate the parts of file names
TRIAL_PATTERN = re.compile(rf"(?P<stage>{STAGE_PATTERN.pattern})-\d{{4,9}}", re.ASCII)  # what names files: it can leave no folder

NO_PROGRESS = "no progress"  # opens the reason of a trial that its stage's patience has stopped


class TrialState(StrEnum):
    """Where a trial stands. See ``TRANSITIONS`` for the ways between them."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"  # trained to its budget
    EXPLODED = "exploded"  # loss not finite, or above the factor times its first loss: a result, not an error
    STOPPED = "stopped"  # by the stage's policy
    KILLED = "killed"  # by the master (straggler) or by the user
    FAILED = "failed"  # the task raised, or attempts ran out


ENDED = frozenset(TrialState) - {TrialState.PENDING, TrialState.RUNNING}
RETRYABLE = frozenset({TrialState.FAILED, TrialState.KILLED})
TRANSITIONS: dict[TrialState, frozenset[TrialState]] = {
    TrialState.PENDING: frozenset({TrialState.RUNNING, TrialState.KILLED}),
    TrialState.RUNNING: ENDED | {TrialState.PENDING},
    TrialState.COMPLETED: frozenset(),
    TrialState.EXPLODED: frozenset(),
    TrialState.STOPPED: frozenset(),
    TrialState.KILLED: frozenset({TrialState.PENDING}),  # `master retry`
    TrialState.FAILED: frozenset({TrialState.PENDING}),
}


@dataclass(frozen=True)
class Trial:
    """One configuration in one stage. ``seed`` gives its initial weights and its noise; ``epochs`` is its budget."""

    id: str  # coarse-0042
    stage: str
    index: int
    seed: int
    epochs: float
    hyperparameters: Hyperparameters
    group: str


@dataclass(frozen=True)
class Fence:
    """The proof of a lease: attempt number and the claimer's random token, compared in every word about the trial."""

    trial_id: str
    attempt: int
    token: str


@dataclass(frozen=True)
class Claim:
    """A trial with the lease to work on it. ``alone``: its last attempt was lost, so nothing may train beside it."""

    trial: Trial
    fence: Fence
    alone: bool = False


@dataclass(frozen=True)
class Result:
    """What Redis keeps of an ended attempt, a few hundred bytes; the record in the folder has the rest."""

    state: TrialState
    reason: str | None = None
    val_acc: float | None = None
    val_loss: float | None = None
    epochs: float = 0.0
    checkpoint: str | None = None  # file name in the stage's folder
    worker: str | None = None
    seconds: float = 0.0
    epoch_s: float | None = None  # median seconds of an epoch, the first left out
    device_model: str | None = None
    array_width: int = 1
    value: float | None = None  # of the search's metric, at the best epoch


@dataclass(frozen=True)
class Progress:
    """What a heartbeat says of one running trial. ``beat`` grows with every movement of the work, and with nothing else."""

    fence: Fence
    beat: int
    phase: str = "training"  # "waiting" | "loading" | "compiling" | "measuring" | "training" | "evaluating"
    phase_limit_s: float | None = None  # a named phase's own limit; None: the stage's stuck_s
    epoch: float = 0.0
    epoch_elapsed_s: float = 0.0  # in the current epoch
    last_epoch_s: float | None = None  # the last whole epoch's duration, the first and warm-up left out
    device_model: str = ""
    array_width: int = 1
    val_acc: float | None = None
    value: float | None = None  # of the search's metric, best so far


def trial_id(stage: str, index: int) -> str:
    """``coarse-0042``."""
    return f"{stage}-{index:04d}"


def trial_seed(search_seed: int, stage: str, index: int) -> int:
    """63 bits that depend on nothing but their arguments, on any platform and Python version."""
    return int.from_bytes(hashlib.sha256(f"trial/{search_seed}/{stage}/{index}".encode()).digest()[:8]) >> 1


@dataclass(frozen=True)
class Running:
    """A trial under lease, as the master sees it; durations by the server's clock."""

    trial: Trial
    fence: Fence
    worker: str
    claimed_s: float  # since the claim
    still_s: float  # since its beat last grew
    progress: Progress | None  # None: no heartbeat yet
    avoid: str | None = None  # the worker it was taken from for being slow: it has been passed on once


@dataclass(frozen=True)
class WorkerInfo:
    """One line of ``master workers``. ``state``: "idle" | "training" | "aside" | "slow" | "lost" | "quitting"."""

    worker: str
    host: str
    pid: int
    device: str
    device_model: str = ""
    state: str = "idle"
    array_width: int = 0
    trials: int = 0  # under lease now
    trials_done: int = 0
    last_seen_s: float = 0.0
    search: str = ""  # the only one it works for; empty: any
    backend: str = ""  # how steps are computed, and why: "compiled: 1.9 times as fast as eager"
    machine: str = ""  # boot id: workers in containers of one machine have different hosts, and share its cores
    reason: str = ""  # why it is aside

    @property
    def place(self) -> str:
        """What fails together: the machine, the host where that is not known."""
        return self.machine or self.host

"""The values of a search: trial, fence, claim, result, and the states of a trial."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from common.search.protocol import FIRST
from common.search.values import Hyperparameters

# No '-' and no '.', which separate the parts of file names.
STAGE_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")
# A trial's id is part of file names, so it must not lead out of a folder.
TRIAL_PATTERN = re.compile(rf"(?P<stage>{STAGE_PATTERN.pattern})-\d{{4,9}}", re.ASCII)

DRAWN = {  # how a configuration was drawn -> the text in tables
    "plain": "drawn from the whole range",
    "sobol": "a point of a Sobol sequence",
    "density": "drawn near good trials, away from bad ones",
    "child": "bred from two of the best trials",
    "grid": "a point of a grid",
    "suggested": "suggested by a library's sampler",
    "repeat": "the configuration of another trial",
    "heir": "another trial's weights, its configuration moved",
}
# The reason of a trial that its stage's patience stopped begins with this.
NO_PROGRESS = "no progress"
# The reason of a trial that ended well and violates a constraint of its search contains this.
VIOLATES = "violates "


class TrialState(StrEnum):
    """The state of a trial. ``TRANSITIONS`` lists the transitions."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"  # trained to its budget
    # The loss was not finite, or above the factor times its first value: a result, not an error.
    EXPLODED = "exploded"
    STOPPED = "stopped"  # by the stage's policy
    KILLED = "killed"  # by the master (straggler) or by the user
    FAILED = "failed"  # the task raised, or attempts ran out


ENDED = frozenset(TrialState) - {TrialState.PENDING, TrialState.RUNNING}
RETRYABLE = frozenset({TrialState.FAILED, TrialState.KILLED})
TRANSITIONS: dict[TrialState, frozenset[TrialState]] = {
    TrialState.PENDING: frozenset({TrialState.RUNNING, TrialState.KILLED}),
    TrialState.RUNNING: ENDED | {TrialState.PENDING},
    TrialState.COMPLETED: frozenset({TrialState.PENDING}),  # promoted: a longer budget
    TrialState.EXPLODED: frozenset(),
    TrialState.STOPPED: frozenset(),
    TrialState.KILLED: frozenset({TrialState.PENDING}),  # `master retry`
    TrialState.FAILED: frozenset({TrialState.PENDING}),
}


@dataclass(frozen=True)
class Trial:
    """One configuration, sampled by one stage.

    ``seed`` determines its initial weights and its noise. ``epochs`` is its current budget: a
    promoted trial keeps its id, its seed and its configuration, and gets a longer budget.
    """

    id: str  # coarse-0042
    stage: str
    index: int
    seed: int
    epochs: float
    hyperparameters: Hyperparameters
    group: str
    # The longest budget it may ever get, over which schedules run; 0 means ``epochs``.
    max_epochs: float = 0.0
    passed: tuple[float, ...] = ()  # shorter budgets that it was promoted from, ascending
    drawn: str = ""  # how its configuration was drawn, such as "child" (``DRAWN``)
    # Trials that its configuration was bred from, or whose configuration it repeats.
    parents: tuple[str, ...] = ()

    @property
    def rung(self) -> int:
        """How often it has been promoted."""
        return len(self.passed)

    @property
    def horizon(self) -> float:
        """Epochs over which learning-rate schedules run, whatever the current budget is."""
        return max(self.max_epochs, self.epochs)

    def promote(self, epochs: float) -> Trial:
        """Return the same trial with a longer budget.

        Raises:
            ValueError: the budget is not longer.
        """
        if epochs <= self.epochs:
            raise ValueError(
                f"{self.id}: a promotion from {self.epochs:g} to {epochs:g} epochs is not longer"
            )
        return replace(self, epochs=epochs, passed=(*self.passed, self.epochs))


@dataclass(frozen=True)
class Fence:
    """The proof of a lease: the attempt number and the claimer's random token.

    Every message about the trial carries it, and scripts compare it.
    """

    trial_id: str
    attempt: int
    token: str


@dataclass(frozen=True)
class Claim:
    """A trial with the lease to work on it.

    Args:
        trial: the trial.
        fence: the proof of the lease.
        alone: its last attempt was lost, so nothing may train beside it.
        resume: the state to go on from, or None for a new trial. The queue leaves it None; the
            worker adds what ``torch.load(..., weights_only=True)`` returned for a saved state, or
            what ``Outcome.resume`` returned.
        claimed_at: Unix time, s.
    """

    trial: Trial
    fence: Fence
    alone: bool = False
    resume: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    claimed_at: float = field(default_factory=time.time, compare=False, repr=False)

    @property
    def id(self) -> str:
        """The trial's id."""
        return self.trial.id


@dataclass(frozen=True)
class Result:
    """What Redis keeps of an ended attempt, a few hundred bytes. The record has the rest."""

    state: TrialState
    reason: str | None = None
    val_acc: float | None = None
    val_loss: float | None = None
    epochs: float = 0.0
    checkpoint: str | None = None  # file name in the stage's folder
    worker: str | None = None
    seconds: float = 0.0
    epoch_s: float | None = None  # median seconds of an epoch, without the first
    device_model: str | None = None
    array_width: int = 1
    value: float | None = None  # the search's metric at the best epoch
    rung: int = 0  # how often the trial had been promoted when the attempt began


@dataclass(frozen=True)
class Progress:
    """A heartbeat's account of one running trial.

    ``beat`` grows whenever the work advances, and at no other time.
    """

    fence: Fence
    beat: int
    # "waiting", "loading", "compiling", "measuring", "training", "evaluating" or "recording".
    phase: str = "training"
    phase_limit_s: float | None = None  # the phase's own limit; None: the stage's stuck_s
    epoch: float = 0.0
    epoch_elapsed_s: float = 0.0  # seconds of training in the current epoch
    # Seconds of the last whole epoch, not counting the first epoch and warm-up.
    last_epoch_s: float | None = None
    device_model: str = ""
    array_width: int = 1
    val_acc: float | None = None
    value: float | None = None  # the search's metric, best so far


def trial_id(stage: str, index: int) -> str:
    """Return the id of a trial, such as ``coarse-0042``."""
    return f"{stage}-{index:04d}"


def trial_seed(search_seed: int, stage: str, index: int) -> int:
    """Return a 63-bit seed that depends only on the arguments.

    It is the same on every platform and Python version.
    """
    return (
        int.from_bytes(hashlib.sha256(f"trial/{search_seed}/{stage}/{index}".encode()).digest()[:8])
        >> 1
    )


def violates(state: TrialState | None, reason: str | None) -> bool:
    """Return whether a trial with this end violates a constraint of its search."""
    return state in (TrialState.COMPLETED, TrialState.STOPPED) and VIOLATES in (reason or "")


def is_stopped_early(state: TrialState | None, reason: str | None) -> bool:
    """Return whether a trial with this end was stopped because its metric no longer improved."""
    return state is TrialState.STOPPED and (reason or "").startswith(NO_PROGRESS)


@dataclass(frozen=True)
class Running:
    """A trial under lease, as the master sees it. Durations are by the server's clock."""

    trial: Trial
    fence: Fence
    worker: str
    claimed_s: float  # since the claim
    still_s: float  # since its beat last grew
    progress: Progress | None  # None: no heartbeat yet


@dataclass(frozen=True)
class WorkerInfo:
    """One line of ``master workers``.

    ``state`` is "idle", "training", "aside", "slow", "lost" or "quitting".
    """

    worker: str
    host: str
    pid: int
    device: str  # "cpu", "cuda:0" or "cuda:0,cuda:1"
    device_model: str = ""
    state: str = "idle"
    array_width: int = 0
    trials: int = 0  # under lease now
    trials_done: int = 0
    last_seen_s: float = 0.0
    search: str = ""  # the only search that it works for; empty: any
    backend: str = ""  # how steps are computed, and why: "compiled: 1.9 times as fast as eager"
    # Boot id: workers in containers of one machine have different hosts, and share its cores.
    machine: str = ""
    reason: str = ""  # why it is aside
    protocol: int = FIRST  # the protocol that it speaks
    job: str = ""  # id of the scheduler's job that it runs in
    cores: str = ""  # which cores it uses: workers with equal ones share them
    gpus: str = ""  # the ids of its GPUs, joined by commas: "GPU-8f6a,MIG-5c6d"
    # The file of its messages, relative to the checkpoint root if it is in there. Empty: no file,
    # such as a terminal.
    log: str = ""

    @property
    def n_gpus(self) -> int:
        """The number of GPUs that it owns, each named in ``device``; 0 on the CPU."""
        return self.device.count("cuda")

    @property
    def place(self) -> str:
        """The failure domain: the machine, or the host where the machine is not known."""
        return self.machine or self.host

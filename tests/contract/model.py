"""An in-memory model of the queue.

It has the trials, the live workers, the strikes against machines, and the ends of leases.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from common.queue.second_tries import MAX_RAISED
from common.search.trial import ENDED, Claim, Fence, Trial, TrialState

PENDING, RUNNING, KILLED, FAILED = (
    TrialState.PENDING,
    TrialState.RUNNING,
    TrialState.KILLED,
    TrialState.FAILED,
)
COMPLETED = TrialState.COMPLETED
MAX_LOST = 2
MACHINES = {"w1": "A", "w2": "A", "w3": "B", "w4": "C"}
STRIKES = 3

# Time passes in steps. Their sums stay two minutes away from each of these limits, so that a test's
# own duration never decides on which side of a limit a moment is.
STEP_MS = 420_000
LEASE_MS = 3_600_000
GAP_MS = LEASE_MS // 2  # so long without a tick is an outage
LIVE_MS = 10_800_000
MOST_STEPS = (
    23 * 3_600_000 // STEP_MS
)  # in all: a worker that is silent for a day is forgotten, which is not modelled


@dataclass
class Known:
    """What a trial should be like."""

    trial: Trial
    state: TrialState = PENDING
    attempt: int = 0
    fence: Fence | None = None  # of the holder, or of the accepted finish
    accepted: list[Fence] = field(
        default_factory=list
    )  # whose finish was accepted before a promotion
    worker: str = ""
    deadline: tuple[int, int] = (0, 0)  # of the lease, at the earliest and at the latest
    alone: bool = False
    suspect: bool = False
    lost: int = 0
    settled: int = 0
    given: str = ""  # "released", "passed" or "lost": how its last holder gave it away
    raised: list[str] = field(default_factory=list)  # on which machines
    result: tuple[int, TrialState] | None = None


@dataclass
class Doubt:
    """What is held against a machine."""

    open: int = 0
    row: int = 0
    strikes: int = 0

    @property
    def waits(self) -> bool:
        return min(self.open, self.row) >= STRIKES


class Model:
    """The whole model.

    ``now`` is set by the caller. It is in ms of the server's clock and includes all time that
    passed without waiting.
    """

    def __init__(self) -> None:
        self.now = 0
        self.ticked = self.mastered = 0  # when somebody last ticked, and when a master
        self.known: dict[str, Known] = {}
        self.fences: list[Fence] = []
        self.endings = 0
        self.stages: list[str] = []  # in the order of their publishing
        self.seen: dict[str, int] = {}  # worker -> its last word
        self.met: set[str] = set()  # workers that have named their machine
        self.doubts: dict[str, Doubt] = {}

    # --- time ---

    @property
    def live(self) -> set[str]:
        return {worker for worker, at in self.seen.items() if self.now - at <= LIVE_MS}

    @property
    def gap(self) -> bool:
        return self.now - self.ticked > GAP_MS

    @property
    def expired(self) -> set[tuple[Fence, str]]:
        """The leases that are over, each with its holder."""
        return {
            (known.fence, known.worker)
            for known in self.running
            if known.fence and known.deadline[1] < self.now
        }

    @property
    def running(self) -> list[Known]:
        return [known for known in self.known.values() if known.state is RUNNING]

    def place(self, known: Known) -> tuple[int, int, int]:
        """Return the claim order of a trial.

        The earliest stage comes first, in it the longest budget, and among these the first trial.
        """
        return self.stages.index(known.trial.stage), -known.trial.rung, known.trial.index

    @property
    def waiting(self) -> list[Known]:
        return [known for known in self.known.values() if known.state is PENDING]

    def lease(self, known: Known, began: int) -> None:
        """A whole lease from a moment between ``began`` and now."""
        known.deadline = (began + LEASE_MS, self.now + LEASE_MS)

    def speaks(self, worker: str) -> None:
        self.seen[worker] = self.now

    # --- what becomes of a trial ---

    def holds(self, fence: Fence) -> bool:
        known = self.known[fence.trial_id]
        return known.state is RUNNING and known.fence == fence

    def gave(self, fence: Fence, how: str) -> bool:
        known = self.known[fence.trial_id]
        return (
            known.state is PENDING
            and known.fence == fence
            and known.given == how
            and known.attempt == fence.attempt
        )

    def claimed(self, claim: Claim, worker: str, began: int) -> None:
        known = self.known[claim.trial.id]
        known.state, known.attempt, known.fence, known.worker, known.alone = (
            RUNNING,
            known.attempt + 1,
            claim.fence,
            worker,
            claim.alone,
        )
        self.lease(known, began)
        self.fences.append(claim.fence)

    def given(self, known: Known, how: str) -> None:
        """Its fence stays known: saying so again is OK."""
        known.state, known.given = PENDING, how

    def passed(self, known: Known) -> None:
        """It raised, and another machine is to try."""
        self.given(known, "passed")
        machine = MACHINES[known.worker]
        known.raised.append(machine)
        doubt = self.doubts.setdefault(machine, Doubt())
        doubt.open, doubt.row = doubt.open + 1, doubt.row + 1

    def lost(self, known: Known) -> TrialState:
        """It is taken from its holder; where it stands then."""
        known.suspect, known.lost = True, known.lost + known.alone
        if known.alone and known.lost >= MAX_LOST:
            self.ended(known, FAILED, known.attempt + 1, None)
        else:
            self.given(known, "lost")
        return known.state

    def ended(self, known: Known, state: TrialState, attempt: int, fence: Fence | None) -> None:
        known.state, known.fence, known.result = state, fence, (attempt, state)
        known.attempt = max(known.attempt, attempt)
        self.endings += 1
        for machine in known.raised:
            if machine in self.doubts:
                self.doubts[machine].open = max(0, self.doubts[machine].open - 1)
                self._forget()

    def corrected(self, known: Known, state: TrialState, attempt: int) -> None:
        """Correct the end of a trial by its record.

        The record of a later attempt replaces an earlier end.
        """
        if attempt > known.attempt:
            known.attempt, known.fence = attempt, None
            self.endings += 1
        known.state, known.result = state, (attempt, state)

    def retried(self, known: Known) -> None:
        known.state, known.fence, known.lost, known.result = PENDING, None, 0, None
        known.settled, known.raised = known.attempt, []

    def promoted(self, known: Known, trial: Trial, floor: int) -> bool:
        """It gets a longer budget; whether it is to be asked for again, since it runs."""
        is_earlier = known.trial.rung < trial.rung
        if is_earlier and known.state is COMPLETED:
            known.accepted += [known.fence] if known.fence else []
            self.retried(known)
            known.suspect, known.given = False, ""
        if known.state is PENDING:
            if is_earlier and known.given == "lost":  # its end does not count for the later rung
                known.given, known.fence = "", None
            known.trial = trial if is_earlier else known.trial
            known.attempt = max(known.attempt, floor)
        return is_earlier and known.state is RUNNING

    # --- what raises, and where ---

    def comes(self, worker: str) -> None:
        """One that comes new clears its machine."""
        if worker not in self.met:
            self.met.add(worker)
            self.doubts.pop(MACHINES[worker], None)

    def may_try(self, known: Known, worker: str) -> bool:
        return not (MACHINES[worker] in known.raised and self._elsewhere(known, MACHINES[worker]))

    def passes(self, known: Known) -> bool:
        machine = MACHINES[known.worker]
        return (
            len(known.raised) + 1 < MAX_RAISED
            and {*known.raised} <= {machine}
            and self._elsewhere(known, machine)
        )

    def barred(self, machine: str) -> tuple[bool, bool]:
        """Whether for good, and whether at all."""
        if self.aside(machine):
            return True, True
        others = self._able() - {machine}
        waits = machine in self.doubts and self.doubts[machine].waits
        return False, waits and any(
            m not in self.doubts or not self.doubts[m].waits for m in others
        )

    def aside(self, machine: str) -> bool:
        return machine in self.doubts and self.doubts[machine].strikes >= STRIKES

    def judge(self, known: Known, state: TrialState) -> None:
        """What its end says of the machine it ended on, and of those on which it raised."""
        here = MACHINES[known.worker]
        if here in self.doubts and state is not FAILED:
            own = self.doubts[here]
            own.row, own.strikes = 0, max(0, own.strikes - 1)
            self._forget()
        for machine in known.raised:
            if machine != here and machine in self.doubts:
                if state is FAILED:
                    self.doubts[machine].row = 0
                elif not self.aside(here):
                    self.doubts[machine].strikes += 1

    def _able(self) -> set[str]:
        return {MACHINES[worker] for worker in self.live if not self.aside(MACHINES[worker])}

    def _elsewhere(self, known: Known, machine: str) -> bool:
        return bool(self._able() - {machine, *known.raised})

    def _forget(self) -> None:
        self.doubts = {
            machine: doubt for machine, doubt in self.doubts.items() if doubt.open or doubt.strikes
        }

    # --- whether it may stand still ---

    @property
    def somebody_could_go_on(self) -> bool:
        """Return whether a live worker may take a waiting trial while nothing runs.

        It is also true if all live workers are on machines that are set aside.
        """
        if not self.waiting or self.running:
            return True
        could = any(
            self.may_try(k, w) and not self.barred(MACHINES[w])[1]
            for k in self.waiting
            for w in self.live
        )
        return could or not {w for w in self.live if not self.aside(MACHINES[w])}

    @property
    def results(self) -> dict[str, tuple[int, TrialState] | None]:
        return {i: known.result for i, known in self.known.items() if known.state in ENDED}

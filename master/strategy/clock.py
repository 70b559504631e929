"""A simulation of how long a plan takes on a number of slots.

Jobs wait for the results that they depend on. No real clock is used: the unit of time is one epoch
of one trial.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from common.search.plan import StagePlan, plan

Job = TypeVar("Job")
Group = tuple[int, int]  # (stage, rung), both counted from 0
STEPS = 200  # number of budgets that are tried, each half a percent apart


@dataclass(frozen=True)
class Span:
    """The time that jobs took, and the time that the slots were busy."""

    time: float  # until the last job ended
    work: float  # busy time, summed over the slots

    def compute_use(self, slots: int, time: float | None = None) -> float:
        """Return the share of the slots' time that was busy, until the end or until ``time``."""
        whole = slots * (self.time if time is None else time)
        return self.work / whole if whole else 0.0


def run(
    slots: int,
    release: Callable[[], Sequence[Job]],
    end: Callable[[Job], None],
    length: Callable[[Job], float],
) -> Span:
    """Simulate jobs on ``slots`` slots. Of the jobs that are ready, the longest starts first.

    Args:
        slots: number of jobs that run at the same time.
        release: returns the jobs that became ready since its last call.
        end: called with each job that has ended.
        length: returns the length of a job, in epochs.
    """
    order, now, work = count(), 0.0, 0.0
    ready: list[tuple[float, int, Job]] = []
    running: list[tuple[float, int, Job]] = []
    while True:
        for job in release():
            heapq.heappush(ready, (-length(job), next(order), job))
        while ready and len(running) < slots:
            minus_length, number, job = heapq.heappop(ready)
            heapq.heappush(running, (now - minus_length, number, job))
            work -= minus_length
        if not running:
            return Span(now, work)
        now = running[0][0]
        while running and running[0][0] <= now:
            end(heapq.heappop(running)[2])


def waits_for(plans: Sequence[StagePlan], overlap: bool) -> dict[Group, set[Group]]:
    """Return the groups that each rung of each stage must wait for.

    A stage is frozen once the results of all stages before it are known. With ``overlap``, it does
    not wait for the last rung of the stage just before it. The promotions at a rung wait for all
    trials that may still reach the previous rung. These are trials of the same stage, and of the
    last rung of the stage that it overlaps with.
    """
    waits: dict[Group, set[Group]] = {}
    for stage, own in enumerate(plans):
        before = {
            (other, rung) for other in range(stage) for rung in range(len(plans[other].rungs))
        }
        beside = (
            {(stage - 1, len(plans[stage - 1].rungs) - 1)}
            if stage and overlap and len(plans[stage - 1].rungs) > 1
            else set()
        )
        waits[stage, 0] = before - beside
        for rung in range(1, len(own.rungs)):
            late = {
                group for group in beside if plans[group[0]].rungs[group[1]] == own.rungs[rung - 1]
            }
            waits[stage, rung] = {(stage, rung - 1)} | late
    return waits


def makespan(
    plans: Sequence[StagePlan], slots: int, overlap: bool = False, resumes: bool = True
) -> Span:
    """Return how long a plan takes, in epochs of one trial, and how long the slots are busy."""
    waits = waits_for(plans, overlap)
    left = {
        (stage, rung): own.keep[rung]
        for stage, own in enumerate(plans)
        for rung in range(len(own.rungs))
    }
    lengths = {
        (stage, rung): own.rungs[rung] - (own.rungs[rung - 1] if rung and resumes else 0.0)
        for stage, own in enumerate(plans)
        for rung in range(len(own.rungs))
    }
    waiting = dict(waits)

    def release() -> list[Group]:
        free = [group for group, needed in waiting.items() if not any(left[one] for one in needed)]
        for group in free:
            del waiting[group]
        return [group for group in free for _ in range(left[group])]

    def end(group: Group) -> None:
        left[group] -= 1

    return run(slots, release, end, lengths.__getitem__)


def budget_within(
    time: float, max_epochs: int, slots: int, overlap: bool = False, resumes: bool = True
) -> float:
    """Return the largest budget, in epochs, whose plan ends within ``time``.

    Args:
        time: in epochs of one trial.
        max_epochs: the largest number of epochs of one trial.
        slots: number of trials that train at the same time.
        overlap: whether the last rung of a stage runs beside the next stage.
        resumes: whether a promoted trial resumes from its saved state.
    """
    for step in range(STEPS, 0, -1):
        epochs = slots * time * step / STEPS
        if makespan(plan(epochs, max_epochs, slots, resumes), slots, overlap, resumes).time <= time:
            return epochs
    return float(max_epochs)

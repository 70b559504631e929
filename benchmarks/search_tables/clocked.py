"""Searches on several slots within a given time. One epoch of one trial takes one unit of time."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from benchmarks.search_tables.rivals import generator_of, uniform
from benchmarks.search_tables.tables import Task
from benchmarks.search_tables.trials import Job, Trials, staged
from common.search.plan import StagePlan, plan, rungs_of
from common.search.stage import Strategy
from common.search.values import Hyperparameters
from master.strategy.clock import Group, Span, budget_within, run, waits_for
from master.strategy.drawing import draw, draw_many
from master.strategy.freezing import Frozen, freeze
from master.strategy.promotion import Candidate, certain, promotable

# Configurations that an asynchronous search draws before anything is known.
LEAST_START = 8
REFREEZE = 8  # draws after which an asynchronous search updates what it knows

# The selected configuration, and the share of the slots' time that was used.
Outcome = tuple[Hyperparameters, float]


def random_search(task: Task, slots: int, time: int, seed: int, options: Strategy) -> Outcome:
    """Train random configurations to the end, as many as fit."""
    trials, n = Trials(task, seed), slots * (time // task.max_epochs)
    if not n:
        raise SystemExit(
            f"--time {time}: no training of {task.max_epochs} epochs fits; allow at least "
            f"{task.max_epochs}"
        )
    trials.train(trials.add(0, uniform(task.space, n, generator_of(seed))), task.max_epochs, 0, 0)
    return trials.chosen, trials.spent / (slots * time)


def ours(task: Task, slots: int, time: int, seed: int, options: Strategy) -> Outcome:
    """Run the default search with the largest plan that fits the time by its own clock."""
    overlap, resumes = options.overlap is True, options.resumes
    plans = plan(
        budget_within(time, task.max_epochs, slots, overlap, resumes),
        task.max_epochs,
        slots,
        resumes,
    )
    trials = staged(task, plans, seed, options)
    span = clock(trials, plans, slots, overlap)
    if span.time > time:
        raise SystemExit(
            f"--time {time}: the shortest plan on {slots} slots takes {span.time:g} epochs' time; "
            "allow that much"
        )
    return trials.chosen, span.compute_use(slots, time)


def clock(trials: Trials, plans: Sequence[StagePlan], slots: int, overlap: bool) -> Span:
    """Return how long a finished search takes on this many slots.

    Certain promotions do not wait for the barrier.
    """
    pending: dict[Group, dict[str, Job]] = {}
    for job in trials.jobs:
        pending.setdefault((job.stage, job.rung), {})[job.trial] = job
    waits = waits_for(plans, overlap)
    left = {group: len(jobs) for group, jobs in pending.items()}
    # Trials that have not yet reached the preceding rung.
    awaited = {group: set(rivals) for group, rivals in trials.rivals.items()}

    def release() -> list[Job]:
        ready = []
        for group, jobs in list(pending.items()):
            if not any(left[one] for one in waits[group]):
                ready += pending.pop(group).values()
            elif group in awaited and len(awaited[group]) < plans[group[0]].keep[group[1]]:
                ready += [
                    jobs.pop(name)
                    for name in _sure(trials, plans, group, awaited[group])
                    if name in jobs
                ]
        return ready

    def end(job: Job) -> None:
        left[job.stage, job.rung] -= 1
        reached = plans[job.stage].rungs[job.rung]
        for group, names in awaited.items():
            if plans[group[0]].rungs[group[1] - 1] == reached:
                names.discard(job.trial)

    return run(slots, release, end, lambda job: job.epochs)


def _sure(trials: Trials, plans: Sequence[StagePlan], group: Group, awaited: set[str]) -> list[str]:
    """Return trials that certainly go on in ``group``, while others are still awaited."""
    stage, rung = group
    at = plans[stage].rungs[rung - 1]
    known = [trials[name].candidate_at(at) for name in trials.rivals[group] if name not in awaited]
    return certain(known, len(awaited), plans[stage].keep[rung])


def asynchronous(task: Task, slots: int, time: int, seed: int, options: Strategy) -> Outcome:
    """Promote as soon as a third of a rung is known, and draw from what is known at that time.

    The slots are always busy, and the result depends on the timing.
    """
    rungs, trials = rungs_of(task.max_epochs), Trials(task, seed)
    start = draw_many(
        task.space,
        freeze(task.space, task.space, []),
        seed,
        "coarse",
        range(max(LEAST_START, 2 * slots)),
        options,
    )
    known: dict[float, list[Candidate]] = {epochs: [] for epochs in rungs}
    promoted: dict[float, set[str]] = {epochs: set() for epochs in rungs}
    running: list[tuple[float, int, str, int]] = []  # (end, order, trial, rung)
    frozen: Frozen | None = None
    now, n_drawn, n_jobs = 0.0, 0, 0
    while True:
        while len(running) < slots and now < time:
            name, rung = _next_promotion(rungs, known, promoted)
            if name is None:
                if n_drawn < len(start):
                    own = start[n_drawn].hyperparameters
                else:
                    if frozen is None or n_drawn % REFREEZE == 0:
                        frozen = freeze(task.space, task.space, trials.seen)
                    own = draw(task.space, frozen, seed, "middle", n_drawn, options).hyperparameters
                n_drawn += 1
                (name,) = trials.add(0, [own])
            ends = now + rungs[rung] - (rungs[rung - 1] if rung else 0)
            heapq.heappush(running, (ends, n_jobs, name, rung))
            n_jobs += 1
        if not running or running[0][0] > time:
            return trials.chosen, trials.spent / (slots * time)
        now, _, name, rung = heapq.heappop(running)
        trials.train([name], rungs[rung], 0, rung)
        known[rungs[rung]].append(trials[name].candidate)


def _next_promotion(
    rungs: Sequence[int], known: dict[float, list[Candidate]], promoted: dict[float, set[str]]
) -> tuple[str | None, int]:
    """Return the trial to be promoted to the highest possible rung, and that rung.

    If no trial can be promoted, return (None, 0), for a new trial.
    """
    for rung in range(len(rungs) - 1, 0, -1):
        ready = promotable(known[rungs[rung - 1]], promoted[rungs[rung - 1]])
        if ready:
            promoted[rungs[rung - 1]].add(ready[0])
            return ready[0], rung
    return None, 0


CLOCKED = {"ours": ours, "async": asynchronous, "random": random_search}

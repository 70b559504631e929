"""Budgets in minutes: the epochs and stages that they pay for.

Before the first stage the pace is measured. From then on it comes from the search's own records.
Just before a stage begins, that stage and the later ones are planned anew from the records of the
stages before. A stage that has begun keeps its trials and its rungs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from common.errors import ConfigError
from common.folder.record import Record
from common.search.plan import StagePlan, plan_rest
from common.search.search_file import Search
from common.search.stage import Stage
from master.launchers.gpus import auto_count
from master.results.usage import Interval, attempt_of
from master.run.progress import duration

START_S = 4.0  # seconds to start the processes and run the checks
RUNG_S = 0.2  # seconds between two rungs: records, decisions, claims
# Seconds of a worker for a trial at a rung, besides its steps: it builds a model and writes a
# checkpoint and a record.
TRIAL_S = 0.01
# Bounds on what a budget in minutes may come to: the lower in full trainings, the upper in epochs.
LEAST_EPOCHS, MOST_EPOCHS = 3.0, 1e7
# Share of the budget. A pause at least as long does not count, because nobody was at work.
PAUSE = 0.1
ENOUGH = 1.05  # the plan stays if no more than this multiple of its epochs fits


def epochs_within(search: Search, paces: Mapping[int, float]) -> float:
    """Return the epochs that a budget in minutes pays for on this machine.

    Raises:
        ConfigError: the duration of an epoch is unknown, or the time is too short for a search.
    """
    budget = search.budget
    assert budget is not None and budget.minutes is not None
    if not paces:
        raise ConfigError(
            f"[budget] minutes = {budget.minutes:g}: the time of an epoch is unknown until one "
            "has run; give epochs = or full_trainings = instead"
        )
    n_workers = max(1, auto_count(search.resources))
    low, high = LEAST_EPOCHS * budget.least_epochs, MOST_EPOCHS

    def seconds(epochs: float) -> float:
        tables = budget.stages(epochs, search.strategy.resumes, search.shape)
        return estimate_s(
            [Stage.model_validate(table).plan for table in tables], paces, n_workers, search
        )

    if seconds(low) > 60 * budget.minutes:
        again, also = budget.repeats_in_words
        raise ConfigError(
            f"[budget] minutes = {budget.minutes:g}: {LEAST_EPOCHS:g} trainings of max_epochs = "
            f"{budget.max_epochs}{again} already take about {duration(seconds(low))} here; allow "
            f"more, or lower max_epochs{also}"
        )
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if seconds(middle) <= 60 * budget.minutes else (low, middle)
    return float(round(low))


def replan(search: Search, begun: Sequence[Stage], records: Sequence[Record]) -> list[StagePlan]:
    """Return the stages that fit into the time left after those that have begun, at least one.

    The time spent and the seconds per epoch come from the records alone, so two masters plan alike.
    The current plan stays if it fits and is about as long as it could be.

    Args:
        search: a search whose budget is in minutes.
        begun: its stages that have begun.
        records: the last record of each of their trials.
    """
    budget, resumes = search.budget, search.strategy.resumes
    assert budget is not None and budget.minutes is not None
    planned = [stage.plan for stage in search.to_plan_anew([stage.name for stage in begun])]
    attempts = [
        (record.worker, attempt)
        for record in records
        if (attempt := attempt_of(record)) is not None
    ]
    paces = paces_of(records)
    if not attempts or not paces or not planned:
        return planned
    limit_s = 60 * budget.minutes - START_S
    spent_s = compute_spent(
        [(attempt.claimed, attempt.ended) for _, attempt in attempts], PAUSE * limit_s
    )
    n_workers = len({worker for worker, _ in attempts})
    done = [stage.plan for stage in begun if stage.rungs]
    # The share of the planned epochs that was trained: less than 1 if losses exploded.
    trained = min(1.0, sum(record.epochs for record in records) / _cost(done, resumes))

    def steps_s(plans: Sequence[StagePlan]) -> float:
        return estimate_s(plans, paces, n_workers, search) - START_S

    # Seconds spent per trial and rung beyond the estimate.
    start_s = max(0.0, spent_s - trained * steps_s(done)) / _n_starts(done)

    def fits(plans: Sequence[StagePlan]) -> bool:
        return steps_s(plans) + start_s * _n_starts(plans) <= limit_s - spent_s

    def rest(epochs: float) -> list[StagePlan]:
        return plan_rest(epochs, done, budget.max_epochs, budget.slots, resumes, budget.repeats)

    low, high = float(budget.least_epochs), MOST_EPOCHS
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(rest(middle)) else (low, middle)
    best = rest(low)
    return (
        planned
        if fits(planned) and _cost(best, resumes) < ENOUGH * _cost(planned, resumes)
        else best
    )


def _cost(plans: Sequence[StagePlan], resumes: bool) -> float:
    return sum(own.cost(resumes) for own in plans)


def _n_starts(plans: Sequence[StagePlan]) -> int:
    """Return how often a trial is started or resumed."""
    return sum(sum(own.keep) for own in plans)


def compute_spent(busy: Sequence[Interval], pause_s: float) -> float:
    """Return the seconds within any of the intervals, plus the gaps shorter than ``pause_s``."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(busy):
        begin = reached if start - reached < pause_s else start
        total += max(end - begin, 0.0)
        reached = max(reached, end)
    return total


def paces_of(records: Sequence[Record]) -> dict[int, float]:
    """Return the seconds per epoch of a whole array, by array width.

    Each is the median over the records of that width.
    """
    by_width: dict[int, list[float]] = {}
    for record in records:
        if record.seconds > 0 and record.epochs > 0:
            by_width.setdefault(max(1, record.array_width), []).append(
                record.seconds / record.epochs
            )
    return {width: median(seconds) for width, seconds in by_width.items()}


def estimate_s(
    plans: Sequence[StagePlan], paces: Mapping[int, float], n_workers: int, search: Search
) -> float:
    """Return the seconds that a plan takes with ``n_workers`` workers, one rung after another.

    Args:
        plans: plans of the stages.
        paces: seconds per epoch of a whole array, by array width.
        n_workers: workers that share the trials of a rung.
        search: its space says into how many structures the trials fall.
    """
    total = START_S
    for stage in plans:
        before = 0.0
        for rung, n in zip(stage.rungs, stage.keep, strict=True):
            own = math.ceil(n / n_workers)
            n_arrays = math.ceil(min(own, search.space.n_groups()))
            total += (
                n_arrays * (rung - before) * _epoch_s(paces, own / n_arrays)
                + own * TRIAL_S
                + RUNG_S
            )
            before = rung if search.strategy.resumes else 0.0
    return total


def _epoch_s(paces: Mapping[int, float], width: float) -> float:
    """Return the seconds per epoch of an array of this width.

    The time is interpolated between the measured widths. Beyond the widest, arrays follow one
    another.
    """
    known = sorted(paces)
    if width >= known[-1]:
        return paces[known[-1]] * width / known[-1]
    above = next(w for w in known if w >= width)
    below = max((w for w in known if w <= width), default=above)
    share = (width - below) / (above - below) if above > below else 0.0
    return paces[below] + share * (paces[above] - paces[below])

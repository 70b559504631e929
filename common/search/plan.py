"""Plan a search from its budget: the trials of each stage, and how many go on to each rung.

A stage is successive halving: its new trials train to the first rung, and at each rung the best
third resumes to the next. Each stage gets an equal share of the epochs. Later stages begin with
fewer trials and longer budgets.

Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
optimization", AISTATS 2016 (successive halving); Li et al., "Hyperband", JMLR 18 (2018) (several
trade-offs of trials against epochs). The table of stages is this project's own; docs/strategy.md
says how it was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ETA = 3  # one trial of three goes on; 2 and 4 gave the same within noise
FIRST_NAMES = ("coarse", "middle", "fine", "finer")

# The rungs of each stage, as (first, last + 1) of the four rungs of 20 epochs: 1, 2, 7 and 20.
TWO_STAGES = ((0, 3), (1, 4))
FOUR_STAGES = ((0, 2), (0, 3), (1, 4), (2, 4))
SIX_STAGES = ((0, 2), (0, 3), (0, 4), (1, 4), (1, 4), (2, 4))
TEN_STAGES = ((0, 2), (0, 3), (0, 4), (0, 4), (1, 4), (0, 4), (1, 4), (0, 4), (1, 4), (2, 4))
# Number of full trainings below which each table is used.
BY_TRAININGS = (
    (10, TWO_STAGES),
    (40, FOUR_STAGES),
    (80, SIX_STAGES),
)
# Number of full trainings one after the other below which each table is used.
BY_DEPTH = (
    (3, TWO_STAGES),
    (6, FOUR_STAGES),
    (15, SIX_STAGES),
)
MORE_STAGES = ((0, 4), (1, 4))  # the stages that --more adds, in turn
MORE_TRAININGS = 8  # full trainings that each such stage gets at least
# Generations of a population: often enough to adapt, and rarely enough for a change to take effect.
GENERATIONS = 10
LEAST_POPULATION = 4  # with fewer there is no worst trial to replace
TABLE_RUNGS = 4  # the tables above are written for this number of rungs


@dataclass(frozen=True)
class StagePlan:
    """One stage: ``keep[i]`` trials train to ``rungs[i]`` epochs. ``keep[0]`` of them are new.

    Each configuration is ``repeats`` of these trials, which are promoted together.
    """

    rungs: tuple[float, ...]
    keep: tuple[int, ...]
    repeats: int = 1

    def cost(self, resumes: bool = True) -> float:
        """Return the epochs that the stage takes.

        If the task cannot resume, a promoted trial trains its earlier epochs again.
        """
        before = (0.0, *self.rungs[:-1]) if resumes else (0.0,) * len(self.rungs)
        return sum(
            n * (rung - start) for n, rung, start in zip(self.keep, self.rungs, before, strict=True)
        )


def rungs_of(max_epochs: int) -> tuple[int, ...]:
    """Return the budgets at which trials are compared, each a third of the next.

    For 20 epochs they are 1, 2, 7 and 20.
    """
    rungs, rung = set(), float(max_epochs)
    while rung >= 0.6:
        rungs.add(max(1, round(rung)))
        rung /= ETA
    return tuple(sorted(rungs))


def plan(
    epochs: float,
    max_epochs: int,
    slots: int | None = None,
    resumes: bool = True,
    repeats: int = 1,
) -> list[StagePlan]:
    """Return the stages of a whole search.

    Args:
        epochs: the epochs that all trials together may train.
        max_epochs: the longest that one trial trains.
        slots: the number of trials that train at the same time. With None the number of stages
            depends only on the number of full trainings; otherwise also on the depth, which is how
            many of them fit one after the other.
        resumes: whether a promoted trial goes on from its saved state.
        repeats: the number of trials of each configuration. The plan is that of ``epochs /
            repeats``, with so many trials in the place of each.
    """
    table = _table(epochs, max_epochs, slots, repeats)
    return _share_out(epochs, table, max_epochs, resumes, repeats)


def plan_rest(
    epochs: float,
    done: Sequence[StagePlan],
    max_epochs: int,
    slots: int | None = None,
    resumes: bool = True,
    repeats: int = 1,
) -> list[StagePlan]:
    """Return the remaining stages, at least one, which take ``epochs`` after those in ``done``.

    The other arguments are those of ``plan``.
    """
    total = epochs + sum(stage.cost(resumes) for stage in done)
    table = _table(total, max_epochs, slots, repeats)
    return _share_out(epochs, table[len(done) :] or table[-1:], max_epochs, resumes, repeats)


def plan_full(epochs: float, max_epochs: int, repeats: int = 1) -> StagePlan:
    """Return one stage of full trainings, with at least one configuration."""
    n = max(1, int(epochs / max_epochs / repeats))
    return StagePlan((float(max_epochs),), (n * repeats,), repeats)


def plan_halving(epochs: float, max_epochs: int, resumes: bool = True) -> StagePlan:
    """Return one stage with all rungs, which takes the whole budget."""
    return halving(epochs, rungs_of(max_epochs), resumes)


def plan_population(epochs: float, max_epochs: int) -> StagePlan:
    """Return one stage whose trials train side by side, and are compared every tenth of the way."""
    step = max(1, round(max_epochs / GENERATIONS))
    rungs = tuple(float(rung) for rung in [*range(step, max_epochs, step), max_epochs])
    return StagePlan(rungs, (max(LEAST_POPULATION, int(epochs / max_epochs)),) * len(rungs))


def plan_more(
    epochs: float, max_epochs: int, resumes: bool = True, repeats: int = 1
) -> list[StagePlan]:
    """Return stages that continue a finished plan with ``epochs`` more."""
    n_stages = max(1, int(epochs / repeats / max_epochs / MORE_TRAININGS))
    table = (*(MORE_STAGES[n % len(MORE_STAGES)] for n in range(n_stages - 1)), TWO_STAGES[-1])
    return _share_out(epochs, table, max_epochs, resumes, repeats)


def stage_names(n: int, taken: Sequence[str] = ()) -> list[str]:
    """Return names for ``n`` more stages: coarse, middle, fine, finer, finer2, finer3, ...

    Two stages in all are coarse and fine.
    """
    if not taken and n == 2:
        return ["coarse", "fine"]
    candidates = [
        *FIRST_NAMES,
        *(f"{FIRST_NAMES[-1]}{number}" for number in range(2, len(taken) + n + 2)),
    ]
    after = max((candidates.index(name) + 1 for name in taken if name in candidates), default=0)
    return candidates[after : after + n]


def _table(
    epochs: float, max_epochs: int, slots: int | None, repeats: int
) -> tuple[tuple[int, int], ...]:
    """Return the rungs of each stage. The number of stages follows that of configurations."""
    trainings = epochs / max_epochs
    table = _choose_sizes(BY_TRAININGS, trainings / repeats)
    return (
        table if slots is None else min(table, _choose_sizes(BY_DEPTH, trainings / slots), key=len)
    )


def _choose_sizes(
    table: Sequence[tuple[float, tuple[tuple[int, int], ...]]], size: float
) -> tuple[tuple[int, int], ...]:
    return next((stages for below, stages in table if size < below), TEN_STAGES)


def _share_out(
    epochs: float, table: Sequence[tuple[int, int]], max_epochs: int, resumes: bool, repeats: int
) -> list[StagePlan]:
    """Give each stage an equal share of what is left. What rounding leaves goes to the next."""
    rungs, left, stages = rungs_of(max_epochs), epochs, list[StagePlan]()
    for number, (first, last) in enumerate(table):
        stage = halving(
            left / (len(table) - number),
            rungs[slice(*_fit_rungs(first, last, len(rungs)))],
            resumes,
            repeats,
        )
        stages.append(stage)
        left -= stage.cost(resumes)
    return stages


def _fit_rungs(first: int, last: int, n_rungs: int) -> tuple[int, int]:
    """Adapt a table's rungs to another number of rungs: later ends move up by the surplus."""
    if last > 2:
        last = min(n_rungs, last + max(n_rungs - TABLE_RUNGS, 0))
    last = max(1, min(last, n_rungs))
    return max(0, min(first, last - 2)), last


def halving(epochs: float, rungs: Sequence[float], resumes: bool, repeats: int = 1) -> StagePlan:
    """Return the largest successive halving over ``rungs`` that ``epochs`` allow.

    It has at least one configuration.
    """
    steps = [rung - before for rung, before in zip(rungs, (0.0, *rungs[:-1]), strict=True)]
    cost = repeats * sum(step / ETA**number for number, step in enumerate(steps))
    n = max(1, int(epochs / cost))
    while True:
        keep = tuple(repeats * max(1, round(n / ETA**i)) for i in range(len(rungs)))
        stage = StagePlan(tuple(map(float, rungs)), keep, repeats)
        if n == 1 or stage.cost(resumes) <= epochs:
            return stage
        n -= 1

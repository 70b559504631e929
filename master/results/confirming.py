"""The outcome of a stage that trains the best configurations again under new seeds.

It says which configuration is picked, and how certain that choice is. The best of many trials on
one validation part is flattered: it is the best partly by luck, for instance of its initial
weights. New seeds draw that luck again, so the mean over them is what the configuration is worth.
The luck of the validation examples remains, because they are the same.

Sources: Cawley and Talbot, "On Over-fitting in Model Selection", JMLR 11 (2010); Bouthillier et
al., "Accounting for Variance in Machine Learning Benchmarks", MLSys 2021.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.folder.record import ROUNDING_EPOCHS, Record, format_metric
from common.search.values import Value
from master.results import ranking
from master.results.ranking import TABLE_WIDTH, cell, find_varied

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

LEVEL = 0.95  # confidence level of the intervals


@dataclass(frozen=True)
class Gap:
    """The mean of the pick minus that of another configuration, with its 95 % interval over seeds.

    The unit is that of the metric, and the sign is set so that positive means the pick is better.
    """

    value: float
    low: float
    high: float

    @property
    def tied(self) -> bool:
        """Whether the interval contains zero, so that these seeds cannot distinguish the two."""
        return self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class Configuration:
    """A configuration that was trained again.

    ``gap`` is None for the pick. It is also None if there is only one seed per configuration, which
    says nothing about luck.
    """

    trial: str  # the trial that the configuration comes from
    hyperparameters: Mapping[str, Value]
    selected: float | None  # the metric by which it was selected
    selected_epochs: float | None  # the epochs that it had trained for when it was selected
    runs: Sequence[Record]  # all runs under new seeds, by number, however they ended
    gap: Gap | None = None

    @property
    def ended_well(self) -> Sequence[Record]:
        """The runs that ended well, best first."""
        return ranking.best(self.runs)

    @property
    def values(self) -> list[float]:
        """The metric of each run that ended well."""
        return [value for run in self.ended_well if (value := run.measured) is not None]

    @property
    def mean(self) -> float | None:
        """The mean of the metric over the runs that ended well."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None for fewer than two runs."""
        values = self.values
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None

    def best_run(self, checkpoints: Collection[str]) -> Record | None:
        """Return the run whose single model is the best one to use.

        It is the run with the best metric whose weights are among ``checkpoints``. If there is
        none, it is the best run of all.
        """
        runs = self.ended_well
        return next(
            (run for run in runs if run.checkpoint in checkpoints), runs[0] if runs else None
        )


@dataclass(frozen=True)
class Confirmed:
    """All configurations, best mean first.

    ``selected_over`` is the number of trials in the first selection.
    """

    configurations: Sequence[Configuration]
    selected_over: int
    metric: str

    @property
    def pick(self) -> Configuration | None:
        """The configuration with the best mean; None if no run ended well."""
        first = self.configurations[0] if self.configurations else None
        return first if first is not None and first.mean is not None else None

    @property
    def ties(self) -> list[Configuration]:
        """The other configurations that these seeds cannot distinguish from the pick."""
        return [one for one in self.configurations if one.gap is not None and one.gap.tied]


def confirm(records: Sequence[Record], parents: Sequence[Record], selected_over: int) -> Confirmed:
    """Rank configurations by the mean of the metric over new seeds.

    A configuration with fewer runs that ended well ranks below those with more, because the mean of
    the runs that did not explode is flattered.

    Args:
        records: the records of the stage, one per trial. The first of each record's ``parents`` is
            the trial whose configuration it repeats.
        parents: the records of those trials, from earlier stages.
        selected_over: number of trials among which they were the best.
    """
    metric, mode = ranking.metric_of([*records, *parents])
    sign = 1.0 if mode == "max" else -1.0
    known = {parent.trial: parent for parent in parents}
    runs: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.index):
        runs.setdefault(record.parents[0] if record.parents else "", []).append(record)
    found = [_configuration(trial, own, known.get(trial)) for trial, own in runs.items()]
    found.sort(key=lambda one: _order(one, sign))
    return Confirmed(_compare(found, sign), selected_over, metric)


def _configuration(trial: str, runs: Sequence[Record], parent: Record | None) -> Configuration:
    selected, epochs = (
        (parent.measured, parent.budget_epochs) if parent is not None else (None, None)
    )
    return Configuration(trial, runs[0].hyperparameters, selected, epochs, runs)


def _order(one: Configuration, sign: float) -> tuple[int, float, float]:
    """Return the sort key; the least is best. Of equal means, the better first selection wins."""
    mean, selected = one.mean, one.selected
    worst = math.inf
    return (
        -len(one.values),
        worst if mean is None else -sign * mean,
        worst if selected is None else -sign * selected,
    )


def _compare(found: Sequence[Configuration], sign: float) -> list[Configuration]:
    """Return the configurations, each with its gap to the first.

    The variance over seeds is pooled over all configurations, because the few seeds of one
    configuration say little about it. The intervals use Student's t. Its degrees of freedom are the
    number of runs minus the number of configurations.
    """
    groups = [one.values for one in found]
    freedom = sum(len(values) - 1 for values in groups if values)
    if not found or not groups[0] or freedom < 1:
        return list(found)
    squares = sum(
        statistics.pvariance(values) * len(values) for values in groups if len(values) > 1
    )
    point = _student(freedom)
    compared = [found[0]]
    for one, values in zip(found[1:], groups[1:], strict=True):
        if not values:
            compared.append(one)
            continue
        value = sign * (statistics.fmean(groups[0]) - statistics.fmean(values))
        half = point * math.sqrt(squares / freedom * (1 / len(groups[0]) + 1 / len(values)))
        compared.append(
            Configuration(
                one.trial,
                one.hyperparameters,
                one.selected,
                one.selected_epochs,
                one.runs,
                Gap(value, value - half, value + half),
            )
        )
    return compared


def _student(freedom: int) -> float:
    """Return the upper 97.5 % point of Student's t."""
    # This import takes half a second, so only stages of this kind pay for it.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def sentence(found: Confirmed) -> str:
    """Return one sentence with both numbers of the pick.

    For example: ``selected 0.9861 over 115 trials; trained again under 3 seeds: 0.9769 on
    average``.
    """
    pick = found.pick
    if pick is None:
        return "No run under a new seed ended well, so nothing is confirmed."
    n, own = len(pick.values), pick.runs[0].budget_epochs
    selected = f"selected {format_metric(pick.selected)} over {found.selected_over:,} trials"
    if pick.selected_epochs is not None and abs(pick.selected_epochs - own) > ROUNDING_EPOCHS:
        selected += (
            f" after {pick.selected_epochs:g} {'epoch' if pick.selected_epochs == 1 else 'epochs'}"
        )
    again = f"trained again under {n} {'seed' if n == 1 else 'seeds'}"
    error = (
        f" (standard error {format_metric(pick.error, pick.mean)})"
        if pick.error is not None
        else ""
    )
    start = f"{selected}; " if pick.selected is not None else ""
    return f"{start}{again}: {format_metric(pick.mean)} on average{error}"


def text(found: Confirmed, checkpoints: Collection[str] = ()) -> Text:
    """Return the text below the table: the pick, the ties, and the best single model.

    Args:
        found: the result of ``confirm``.
        checkpoints: names of the weight files that are in the stage's folder now; others are not
            named.
    """
    from rich.text import Text

    pick = found.pick
    if pick is None:
        return Text(sentence(found), style="yellow")
    told = Text(
        f"Confirmed: {pick.trial or 'the configuration'}, {found.metric} {sentence(found)}."
    )
    lost = len(pick.runs) - len(pick.values)
    if lost:
        told.append(
            f"\n{lost} of its {len(pick.runs)} runs did not end well and "
            f"{'is' if lost == 1 else 'are'} not in the mean.",
            style="yellow",
        )
    if len(found.configurations) > 1 and len(pick.values) > 1:
        ties = [one.trial for one in found.ties]
        names = ", ".join(ties)
        told.append(
            f"\n{len(pick.values)} seeds cannot distinguish it from {names}: the 95 % intervals "
            "of the differences contain zero."
            if ties
            else "\nAll others are worse: the 95 % intervals of the differences exclude zero."
        )
    run = pick.best_run(checkpoints)
    if run is not None:
        kept = f", {run.checkpoint}" if run.checkpoint in checkpoints else ""
        told.append(
            f"\nIts best single model: {run.trial}, {found.metric} "
            f"{format_metric(run.measured)}{kept}."
        )
    return told


def table(found: Confirmed, width: int = TABLE_WIDTH) -> Table:
    """Return the configurations as a table for the terminal, best mean first.

    A row shows the metric by which a configuration was selected and its mean under new seeds.

    Args:
        found: the result of ``confirm``.
        width: available characters. The hyperparameters that differ get columns if these fit.
    """
    from common.console import fit_columns, measure

    columns = dict(_columns(found))
    names = (
        find_varied([one.hyperparameters for one in found.configurations])
        if len(found.configurations) > 1
        else []
    )
    own = {
        name: [cell(one.hyperparameters.get(name)) for one in found.configurations]
        for name in names
    }
    if measure(columns | own) <= width:
        columns |= own
    spare = ("seeds", "± s.e.", "#", "selected")
    return fit_columns(columns, width, spare, [name for name in columns if name != "trial"])


def _columns(found: Confirmed) -> list[tuple[str, list[str]]]:
    """Return the header and the cells of each column of the outcome."""
    ranked = found.configurations
    return [
        ("#", [str(rank) for rank in range(1, len(ranked) + 1)]),
        ("trial", [one.trial for one in ranked]),
        ("selected", [format_metric(one.selected) for one in ranked]),
        ("again", [format_metric(one.mean) for one in ranked]),
        ("± s.e.", [format_metric(one.error, one.mean) for one in ranked]),
        ("seeds", [_seeds(one) for one in ranked]),
        (
            "behind (95 %)",
            [
                ""
                if one.gap is None
                else f"{one.gap.value:.4f} ({one.gap.low:+.4f} to {one.gap.high:+.4f})"
                for one in ranked
            ],
        ),
    ]


def _seeds(one: Configuration) -> str:
    n, of = len(one.values), len(one.runs)
    return str(n) if n == of else f"{n} of {of}"


def rows(found: Confirmed, checkpoints: Collection[str]) -> list[dict[str, Any]]:
    """Return the configurations as plain values for strict JSON.

    A value that is not finite or not known is None.

    Args:
        found: the result of ``confirm``.
        checkpoints: names of the weight files that are in the stage's folder now. Other files are
            gone, so they are not named.
    """
    return [
        _row(rank, one, found, frozenset(checkpoints))
        for rank, one in enumerate(found.configurations, start=1)
    ]


def _row(
    rank: int, one: Configuration, found: Confirmed, present: frozenset[str]
) -> dict[str, Any]:
    run = one.best_run(present)
    return {
        "rank": rank,
        "trial": one.trial,
        "metric": found.metric,
        "selected": _finite(one.selected),
        "selected_over": found.selected_over,
        "selected_epochs": one.selected_epochs,
        "mean": _finite(one.mean),
        "standard_error": _finite(one.error),
        "n": len(one.values),
        "values": one.values,
        "runs": [own.trial for own in one.runs],
        "behind": None
        if one.gap is None
        else {"value": one.gap.value, "low": one.gap.low, "high": one.gap.high},
        "tied": None if one.gap is None else one.gap.tied,
        "best_run": run.trial if run is not None else None,
        "checkpoint": run.checkpoint if run is not None and run.checkpoint in present else None,
        "hyperparameters": {name: _plain(value) for name, value in one.hyperparameters.items()},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(value: Value) -> Value | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value

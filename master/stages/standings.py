"""Standings of a search's trials: the budget of each now, and how it ended under that budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

from common.folder.record import ROUNDING_EPOCHS, Record
from common.search.constraint import Constraint, find_violation
from common.search.search_file import Search
from common.search.trial import Result, Trial, TrialState, is_stopped_early, violates
from master.results.repeats import configuration_of
from master.stages.promotions import Decision
from master.strategy.freezing import Seen
from master.strategy.promotion import Candidate

ENDED_WELL = (TrialState.COMPLETED, TrialState.STOPPED)
VERDICTS = frozenset({TrialState.KILLED, TrialState.FAILED})  # a master sets them at any rung


@dataclass
class Standing:
    """Standing of one trial. ``state`` is None while it waits or trains."""

    trial: Trial
    stage: int  # position of its stage in the search
    state: TrialState | None = None
    goodness: float | None = None  # the metric, where larger is better; None if not measured
    # (epochs, goodness) at the rungs that it was promoted from.
    measured: tuple[tuple[float, float], ...] = ()
    violates: bool = False  # a constraint of the search, at its budget now
    stopped_early: bool = False  # its metric no longer improved

    def goodness_at(self, epochs: float) -> float | None:
        """Return what it counts for at a rung, beside other runs of its configuration.

        A run that stopped early on its way to the rung counts with its best. None is a run that did
        not end well.
        """
        if self.state is TrialState.STOPPED and self.trial.epochs <= epochs + ROUNDING_EPOCHS:
            return self.goodness if self.stopped_early else None
        at = (own for rung, own in self.reached if abs(rung - epochs) <= ROUNDING_EPOCHS)
        goodness = next(at, None)
        return goodness if goodness is not None and math.isfinite(goodness) else None

    def is_at(self, epochs: float) -> bool:
        """Return whether this is its budget now."""
        return abs(self.trial.epochs - epochs) <= ROUNDING_EPOCHS

    @property
    def seen(self) -> tuple[tuple[float, float], ...]:
        """What the strategy learns of it: as ``reached``, but -inf if it violates a constraint."""
        if self.violates:
            return tuple((epochs, -math.inf) for epochs, _ in self.reached)
        return self.reached

    @property
    def reached(self) -> tuple[tuple[float, float], ...]:
        """(epochs, goodness) at each rung that it reached. An explosion counts as -inf."""
        if self.state is TrialState.EXPLODED:
            return (*self.measured, (self.trial.epochs, -math.inf))
        if self.state in ENDED_WELL and self.goodness is not None:
            return (*self.measured, (self.trial.epochs, self.goodness))
        return self.measured


class Standings:
    """Standings of all trials that a stage may promote: its own, and those of earlier stages."""

    def __init__(self, search: Search) -> None:
        self._positions = {stage.name: number for number, stage in enumerate(search.stages)}
        self._sign = 1.0 if search.mode == "max" else -1.0
        self._known: dict[str, Standing] = {}
        # The trials of each configuration, by its first.
        self._runs: dict[str, dict[str, None]] = {}
        # (trial, epochs) for each promotion that a decision contains.
        self._decided: set[tuple[str, float]] = set()
        # Endings at rungs to which another master has promoted, heard before that promotion was
        # known here. The keys are (trial, rung).
        self._ahead: dict[tuple[str, int], Result] = {}
        # By group: the sum over its trials of seconds per epoch divided by the array's width, and
        # the number of trials.
        self._costs: dict[str, tuple[float, int]] = {}

    def add(self, trial: Trial) -> None:
        """Add a trial that waits or trains. A trial that is known stays as it is."""
        self._add(Standing(trial, self._positions[trial.stage]))

    def _add(self, standing: Standing) -> None:
        trial = standing.trial
        self._known.setdefault(trial.id, standing)
        self._runs.setdefault(configuration_of(trial), {})[trial.id] = None

    def add_record(self, record: Record) -> None:
        """Add a trial by its last record."""
        trial = trial_of(record)
        values = ((epochs, record.value_at(epochs)) for epochs in record.passed)
        measured = tuple(
            (epochs, self._sign * value) for epochs, value in values if value is not None
        )
        self._add(Standing(trial, self._positions[trial.stage], measured=measured))
        self.note(record.trial, record.result())

    def promote(self, decision: Decision) -> list[Trial]:
        """Give the trials of a decision their longer budget.

        Returns:
            These trials, costliest first. Those that have the budget already are left out.
        """
        found = []
        self._decided |= {(trial_id, decision.epochs) for trial_id in decision.trials}
        for trial_id in decision.trials:
            standing = self._known.get(trial_id)
            if standing is not None and standing.trial.epochs < decision.epochs - ROUNDING_EPOCHS:
                promoted = standing.trial.promote(decision.epochs)
                # A verdict that came after the decision counts: a killed trial is not promoted.
                state = standing.state if standing.state in VERDICTS else None
                self._known[trial_id] = Standing(
                    promoted, standing.stage, state, measured=standing.reached
                )
                if (ahead := self._ahead.pop((trial_id, promoted.rung), None)) is not None:
                    self.note(trial_id, ahead)
                found.append(promoted)
        return self.costliest_first(found)

    def costliest_first(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials sorted by the seconds per epoch of their group so far, longest first.

        Trials of equal cost keep their order. A group that has not trained yet comes first. In this
        order the last arrays of a rung are short ones, so workers finish the rung at about the same
        time.
        """
        return sorted(trials, key=lambda trial: -self._cost_of(trial.group))

    def _cost_of(self, group: str) -> float:
        seconds, n = self._costs.get(group, (math.inf, 1))
        return seconds / n

    def note(self, trial_id: str, result: Result) -> None:
        """Note how a trial ended.

        The end of an earlier rung is ignored, because it says nothing about the budget now. KILLED
        and FAILED always count.
        """
        standing = self._known.get(trial_id)
        if standing is None or (result.rung < standing.trial.rung and result.state not in VERDICTS):
            return
        if result.rung > standing.trial.rung:
            self._ahead[trial_id, result.rung] = result
            return
        if result.seconds > 0 and result.epochs > 0:
            seconds, n = self._costs.get(standing.trial.group, (0.0, 0))
            own = result.seconds / result.epochs / max(1, result.array_width)
            self._costs[standing.trial.group] = seconds + own, n + 1
        known = result.value is not None and math.isfinite(result.value)
        standing.state = result.state
        standing.violates = violates(result.state, result.reason)
        standing.stopped_early = is_stopped_early(result.state, result.reason)
        standing.goodness = (
            self._sign * result.value if known and result.value is not None else None
        )

    def at(self, epochs: float) -> list[str]:
        """Return the ids of the trials with this budget."""
        return [one.trial.id for one in self._at(epochs)]

    def position(self, stage: str) -> int:
        """Return the position of a stage in the search."""
        return self._positions[stage]

    def candidates(self, epochs: float) -> list[Candidate]:
        """Return the trials that completed exactly ``epochs`` and wait there."""
        return [
            Candidate(one.trial.id, one.stage, one.trial.index, one.goodness, one.violates)
            for one in self._at(epochs)
            if one.state is TrialState.COMPLETED and one.goodness is not None
        ]

    def find_gone_on(self, epochs: float, to: float) -> list[Candidate]:
        """Return the trials that went on from ``epochs`` to ``to`` by a decision that is not known.

        That decision was lost, and only their records of the longer budget are left of it. They
        were among the best at that rung, so a new decision counts them in.
        """
        found = []
        for one in self._known.values():
            budgets = (*one.trial.passed, one.trial.epochs)
            steps = pairwise(budgets)
            here = any(
                abs(a - epochs) <= ROUNDING_EPOCHS and abs(b - to) <= ROUNDING_EPOCHS
                for a, b in steps
            )
            goodness = next(
                (own for rung, own in one.measured if abs(rung - epochs) <= ROUNDING_EPOCHS), None
            )
            if here and goodness is not None and (one.trial.id, to) not in self._decided:
                found.append(Candidate(one.trial.id, one.stage, one.trial.index, goodness))
        return found

    def join_runs(self, candidates: Sequence[Candidate], epochs: float) -> list[Candidate]:
        """Return the configurations of these candidates for promotion from a rung.

        A configuration is left out while one of its runs waits or trains there. Otherwise it has
        the mean of its runs that ended well.
        """
        able: dict[str, list[Candidate]] = {}
        for one in candidates:
            able.setdefault(configuration_of(self._known[one.trial].trial), []).append(one)
        joined = (self._join_runs(first, own, epochs) for first, own in able.items())
        return [one for one in joined if one is not None]

    def _join_runs(self, first: str, able: Sequence[Candidate], epochs: float) -> Candidate | None:
        runs = [self._known[trial] for trial in self._runs[first]]
        if any(one.state is None and one.is_at(epochs) for one in runs):
            return None
        here = [one for one in runs if one.trial.epochs <= epochs + ROUNDING_EPOCHS]
        values = [own for one in runs if (own := one.goodness_at(epochs)) is not None]
        lowest = min(able, key=lambda one: one.index)
        return replace(
            lowest,
            trial=first,
            goodness=fmean(values) if values else -math.inf,
            violates=any(one.violates for one in here) or any(one.violates for one in able),
            lost=len(runs) - len(values),
            runs=tuple(one.trial for one in sorted(able, key=lambda one: one.index)),
        )

    def n_configurations(self, trial_ids: Iterable[str]) -> int:
        """Return how many configurations these trials have."""
        known = (self._known.get(trial_id) for trial_id in trial_ids)
        return len({configuration_of(one.trial) for one in known if one is not None})

    def find_reached(self, epochs: float) -> list[str]:
        """Return the ids of the trials that were measured at this rung, best first.

        It does not matter where they are now.
        """
        found = []
        for one in self._known.values():
            for rung, goodness in one.reached:
                if abs(rung - epochs) <= ROUNDING_EPOCHS and math.isfinite(goodness):
                    found.append(
                        (one.violates, -goodness, one.stage, one.trial.index, one.trial.id)
                    )
        return [trial for *_, trial in sorted(found)]

    def n_unfinished(self, epochs: float, last_stage: int | None = None) -> int:
        """Return how many configurations still wait or train with the budget ``epochs``.

        Without repeats, each trial is one.

        Args:
            epochs: the budget.
            last_stage: position of the last stage whose trials count; None counts those of all
                stages.
        """
        waiting = (
            one
            for one in self._at(epochs)
            if one.state is None and (last_stage is None or one.stage <= last_stage)
        )
        return len({configuration_of(one.trial) for one in waiting})

    def read_seen(self) -> list[Seen]:
        """Return what is known of all trials now."""
        return [
            Seen(one.trial.id, one.stage, one.trial.index, one.trial.hyperparameters, one.seen)
            for one in self._known.values()
        ]

    def find_unfinished(self) -> list[Trial]:
        """Return the trials that wait or train."""
        return [one.trial for one in self._known.values() if one.state is None]

    @property
    def has_value(self) -> bool:
        """Whether any trial was measured."""
        return any(one.goodness is not None for one in self._known.values())

    def all_trials(self) -> list[Trial]:
        """Return all trials, with the budgets that they have now."""
        return [one.trial for one in self._known.values()]

    def of_stage(self, stage: str) -> list[Trial]:
        """Return the trials that a stage has sampled, by number."""
        own = (one.trial for one in self._known.values() if one.trial.stage == stage)
        return sorted(own, key=lambda trial: trial.index)

    def find_unfinished_besides(self, stage: str) -> list[Trial]:
        """Return the trials of other stages that wait or train."""
        return [trial for trial in self.find_unfinished() if trial.stage != stage]

    def states(self, trial_ids: Sequence[str]) -> Counter[str]:
        """Return how many of these trials ended in each state.

        Trials that wait or train are left out.
        """
        known = (self._known[trial_id] for trial_id in trial_ids if trial_id in self._known)
        return Counter(one.state.value for one in known if one.state is not None)

    def _at(self, epochs: float) -> list[Standing]:
        return [one for one in self._known.values() if one.is_at(epochs)]


def trial_of(record: Record) -> Trial:
    """Return the trial of a record, with the budget that the record's attempt had."""
    return Trial(
        record.trial,
        record.stage,
        record.index,
        record.seed,
        record.budget_epochs,
        dict(record.hyperparameters),
        record.group,
        record.max_epochs,
        record.passed,
        record.drawn,
        record.parents,
    )


def make_seen(
    records: Sequence[Record],
    positions: Mapping[str, int],
    sign: float,
    unseen: Mapping[str, float],
    constraints: Sequence[Constraint] = (),
) -> list[Seen]:
    """Return what the strategy learns from records: the metric of each trial at each of its rungs.

    A trial that exploded counts as the worst at its budget. A trial that failed or was killed there
    says nothing. A trial that violates a constraint at the last rung that may be known counts as
    the worst at all of its rungs.

    Args:
        records: the last record of each trial.
        positions: positions of the stages in the search, by name.
        sign: 1 if a larger metric is better, else -1.
        unseen: trial -> the budget from which on its outcomes are left out, because that rung runs
            beside the stage that is being frozen.
        constraints: those of the search.
    """
    found = []
    for record in records:
        measured = []
        for epochs in (*record.passed, record.budget_epochs):
            if epochs >= unseen.get(record.trial, math.inf) - ROUNDING_EPOCHS:
                break
            goodness = _goodness(record, epochs, sign)
            if goodness is not None:
                measured.append((epochs, goodness))
        if measured and constraints and _violates_at(record, measured[-1][0], constraints):
            measured = [(epochs, -math.inf) for epochs, _ in measured]
        found.append(
            Seen(
                record.trial,
                positions[record.stage],
                record.index,
                record.hyperparameters,
                tuple(measured),
            )
        )
    return _join_runs(records, found)


def _join_runs(records: Sequence[Record], seen: Sequence[Seen]) -> list[Seen]:
    """Return one entry for each configuration, with the mean over its runs at each rung.

    A run that says nothing does not count. One that exploded makes the mean -inf. A run that
    exploded or stopped early counts in the same way at the rungs that other runs went on to.
    """
    runs: dict[str, list[tuple[Seen, bool]]] = {}
    for record, one in zip(records, seen, strict=True):
        stays = record.state is TrialState.EXPLODED or record.stopped_early
        runs.setdefault(configuration_of(record), []).append((one, stays))
    return [own[0][0] if len(own) == 1 else _join(own) for own in runs.values()]


def _join(runs: Sequence[tuple[Seen, bool]]) -> Seen:
    first = min((one for one, _ in runs), key=lambda one: one.index)
    rungs = sorted({epochs for one, _ in runs for epochs, _ in one.measured})
    joined = []
    for rung in rungs:
        values = []
        for one, stays in runs:
            known = [own for own in one.measured if own[0] <= rung]
            if known and (known[-1][0] == rung or (stays and known[-1] is one.measured[-1])):
                values.append(known[-1][1])
        joined.append((rung, fmean(values)))
    return replace(first, measured=tuple(joined))


def _violates_at(record: Record, epochs: float, constraints: Sequence[Constraint]) -> bool:
    """Return whether a trial violated a constraint when it had trained so long.

    Before its last rung, only its curves tell. A metric that is in no curve tells nothing.
    """
    if epochs >= record.budget_epochs - ROUNDING_EPOCHS:
        return record.violates
    metrics = record.metrics_at(epochs)
    known = [one for one in constraints if metrics.keys() >= set(one.metrics)]
    return find_violation(known, metrics) is not None


def _goodness(record: Record, epochs: float, sign: float) -> float | None:
    value = record.value_at(epochs)
    if epochs < record.budget_epochs - ROUNDING_EPOCHS:
        return None if value is None else sign * value
    if record.state is TrialState.EXPLODED:
        return -math.inf
    ended_well = record.state is TrialState.COMPLETED or record.stopped_early
    return sign * value if ended_well and value is not None else None

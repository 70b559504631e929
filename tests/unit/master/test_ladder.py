"""Promotion from a rung.

The same trials are promoted, in whatever order they end and however often a master restarts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.folder.records import SearchFolder
from common.search.search_file import Search
from common.search.space import Space
from common.search.stage import Stage
from common.search.trial import NO_PROGRESS, Result, Trial, TrialState, trial_id
from master.stages.ladder import Ladder
from master.stages.promotions import Decision, read_decisions, write_part
from master.stages.standings import Standings
from tests.unit.master.made import ID, searching

SPACE = Space.parse({"x": {"uniform": [0.0, 1.0]}})
COMPLETED, EXPLODED, STOPPED = TrialState.COMPLETED, TrialState.EXPLODED, TrialState.STOPPED
KILLED, FAILED = TrialState.KILLED, TrialState.FAILED
RUNGS = (1.0, 3.0, 9.0)
Outcome = (
    float | TrialState
)  # of one trial on one rung: the metric where it completed, else how it ended
Outcomes = dict[tuple[str, float], Outcome]


def stage_of(name: str, *keep: int, first: int = 0, repeats: int = 1) -> Stage:
    """A planned stage with as many rungs as numbers of configurations, from rung ``first`` on."""
    rungs, trials = RUNGS[first : first + len(keep)], tuple(n * repeats for n in keep)
    return Stage(
        name=name, trials=trials[0], epochs=rungs[0], rungs=rungs, keep=trials, repeats=repeats
    )


def trials_of(stage: Stage) -> list[Trial]:
    found = []
    for i in range(stage.trials):
        own = Trial(trial_id(stage.name, i), stage.name, i, i, stage.epochs, {"x": 0.5}, "{}", 9.0)
        if i % stage.repeats:
            first = trial_id(stage.name, i - i % stage.repeats)
            own = replace(own, drawn="repeat", parents=(first,))
        found.append(own)
    return found


def result_of(trial: Trial, outcome: Outcome) -> Result:
    if isinstance(outcome, TrialState):
        return Result(
            outcome, value=0.99, rung=trial.rung
        )  # exploded late, say: the best value that was seen does not count
    return Result(COMPLETED, value=outcome, epochs=trial.epochs, rung=trial.rung)


class Place:
    """A search's folder with the decisions, and what Redis tells of each trial's end."""

    def __init__(self, root: Path, search: Search) -> None:
        self.search, self.folder = search, SearchFolder(root, "s")
        self.results: dict[str, Result] = {}  # the last of each trial

    def ladder(self, stage: Stage, holds_last: bool = False) -> Ladder:
        """Built from the files, as a master that begins anew builds it."""
        known = self.search.up_to(stage.name)
        decisions, standings = read_decisions(self.folder, ID, known), Standings(self.search)
        for own in known:
            for trial in trials_of(own):
                standings.add(trial)
        for decision in decisions:
            standings.promote(decision)
        ladder = Ladder(
            stage,
            standings,
            [own for own in decisions if own.stage == stage.name],
            self.write,
            holds_last,
        )
        for trial, result in self.results.items():
            ladder.note(trial, result)
        return ladder

    def write(self, known: Decision, trials: Sequence[str], complete: bool) -> Decision:
        return write_part(self.folder, ID, known, trials, complete)

    def decisions(self) -> dict[tuple[str, float], set[str]]:
        found = read_decisions(self.folder, ID, self.search.stages)
        assert all(own.complete for own in found)
        return {(own.stage, own.epochs): set(own.trials) for own in found}


@contextmanager
def place(*stages: Stage, **more: object) -> Iterator[Place]:
    with TemporaryDirectory() as root:
        yield Place(Path(root), searching(SPACE, *stages, **more))


def barrier(search: Search, outcomes: Outcomes) -> dict[tuple[str, float], set[str]]:
    """Promote by the rule in its simple form: when a rung's trials have ended, the best go on.

    The runs of a configuration count with the mean of those that completed. It comes after those of
    which more did.
    """
    sign = 1 if search.mode == "max" else -1
    budgets: dict[str, float] = {}
    found = {}
    for stage in search.stages:
        budgets |= dict.fromkeys([trial.id for trial in trials_of(stage)], stage.epochs)
        for rung, after, n in zip(
            stage.plan.rungs, stage.plan.rungs[1:], stage.plan.keep[1:], strict=False
        ):
            fit: dict[tuple[str, int], dict[str, float]] = {}
            for trial, epochs in budgets.items():
                value = outcomes[trial, rung]
                if epochs == rung and isinstance(value, float) and math.isfinite(value):
                    name, _, number = trial.rpartition("-")
                    fit.setdefault((name, int(number) // stage.repeats), {})[trial] = value
            best = sorted(
                fit.values(), key=lambda runs: (-len(runs), -sign * fmean(runs.values()))
            )  # stable: earlier stages and lower numbers first
            found[stage.name, after] = {
                trial for runs in best[: n // stage.repeats] for trial in runs
            }
            budgets |= dict.fromkeys(found[stage.name, after], after)
    return found


def play(here: Place, outcomes: Outcomes, chance: random.Random, overlap: bool) -> None:
    """End trials in random order while masters come and go.

    Some masters have old news. Some die between a decision and telling Redis.
    """
    ladder: Ladder | None = None
    waiting: dict[str, Trial] = {}
    for number, stage in enumerate(here.search.stages):
        holds = overlap and number + 1 < len(here.search.stages)
        released = ladder.release() if ladder is not None and overlap else []
        waiting |= {trial.id: trial for trial in released}
        waiting |= {trial.id: trial for trial in trials_of(stage)}
        ladder = here.ladder(stage, holds)
        waiting |= {trial.id: trial for trial in ladder.advance()}
        assert set(waiting) == {trial.id for trial in ladder.standings.find_unfinished()}
        while waiting:
            trial = waiting.pop(chance.choice(sorted(waiting)))
            here.results[trial.id] = result_of(trial, outcomes[trial.id, trial.epochs])
            ladder.note(trial.id, here.results[trial.id])
            assert not ladder.is_over or not waiting
            if chance.random() < 0.2:
                ladder.advance()  # decided and written, and then this master is killed
            if chance.random() < 0.3:
                ladder = here.ladder(stage, holds)
                waiting = {own.id: own for own in ladder.standings.find_unfinished()}
            promoted = ladder.advance()
            assert not {own.id for own in promoted} & set(waiting), "nobody is told twice"
            waiting |= {own.id: own for own in promoted}
            waiting |= {own.id: own for own in ladder.standings.find_unfinished()}
        assert ladder.is_over
    assert ladder is not None and not ladder.release(), "the last stage holds nothing"


OUTCOMES = (
    st.sampled_from([0.5, 0.6, 0.7])
    | st.floats(0, 1)
    | st.sampled_from([math.nan, EXPLODED, STOPPED, FAILED, KILLED])
)


@given(
    first=st.tuples(st.integers(1, 7), st.integers(1, 4)),
    second=st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 3)),
    mode=st.sampled_from(["max", "min"]),
    overlap=st.booleans(),
    repeats=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_in_whatever_order_trials_end_the_decisions_are_those_of_the_barrier(
    first: tuple[int, ...],
    second: tuple[int, ...],
    mode: str,
    overlap: bool,
    repeats: int,
    seed: int,
    data: st.DataObject,
) -> None:
    stages = [
        stage_of("coarse", *sorted(first, reverse=True), repeats=repeats),
        stage_of("middle", *sorted(second, reverse=True), repeats=repeats),
    ]
    third = stage_of("fine", 3, 2, first=1, repeats=repeats)
    outcomes = {
        (t.id, rung): data.draw(OUTCOMES)
        for own in (*stages, third)
        for t in trials_of(own)
        for rung in RUNGS
    }
    with place(*stages, third, mode=mode) as here:
        play(here, outcomes, random.Random(seed), overlap)
        assert here.decisions() == barrier(here.search, outcomes)


def ended(ladder: Ladder, trial: str, value: Outcome, rung: int = 0) -> list[str]:
    """One trial ends; who goes on now."""
    state, metric = (value, None) if isinstance(value, TrialState) else (COMPLETED, value)
    ladder.note(trial, Result(state, value=metric, rung=rung))
    return [own.id for own in ladder.advance()]


def test_who_is_among_the_best_whatever_the_others_do_goes_on_at_once() -> None:
    stage = stage_of("coarse", 4, 2)
    with place(stage) as here:
        ladder = here.ladder(stage)
        assert ended(ladder, "coarse-0002", 0.7) == ended(ladder, "coarse-0000", 0.5) == []
        assert ended(ladder, "coarse-0003", 0.9) == [
            "coarse-0003"
        ]  # one is left, who can push out but one of the two best
        (decision,) = read_decisions(here.folder, ID, [stage])
        assert (decision.trials, decision.complete) == (("coarse-0003",), False)
        assert ladder.awaited == [f"coarse-{i:04d}" for i in range(4)] and not ladder.is_over
        assert ended(ladder, "coarse-0001", 0.6) == ["coarse-0002"]
        assert (
            ladder.is_decided
            and not ladder.is_over
            and ladder.awaited == ["coarse-0003", "coarse-0002"]
        )
        assert (
            ended(ladder, "coarse-0003", 0.1, 1) == ended(ladder, "coarse-0002", EXPLODED, 1) == []
        )
        assert ladder.is_over


def test_runs_of_a_configuration_go_on_together_by_their_mean() -> None:
    stage = stage_of("coarse", 2, 1, repeats=2)
    with place(stage) as here:
        ladder = here.ladder(stage)
        assert ended(ladder, "coarse-0000", 0.9) == ended(ladder, "coarse-0002", 0.7) == []
        assert ended(ladder, "coarse-0001", 0.3) == []  # a lucky seed alone decides nothing
        assert ended(ladder, "coarse-0003", 0.6) == ["coarse-0002", "coarse-0003"]
        assert ladder.is_decided


def test_a_run_that_stopped_early_counts_for_its_configuration_and_stays() -> None:
    stage = stage_of("coarse", 3, 2, 1, repeats=2)
    early = Result(STOPPED, NO_PROGRESS, value=0.9)
    with place(stage) as here:
        ladder = here.ladder(stage)
        ladder.note("coarse-0000", early)
        assert ended(ladder, "coarse-0001", 0.3) == ended(ladder, "coarse-0002", 0.5) == []
        ended(ladder, "coarse-0003", 0.5)
        ended(ladder, "coarse-0004", 0.8)
        assert ended(ladder, "coarse-0005", EXPLODED) == ["coarse-0002", "coarse-0003"]
        assert ladder.standings.at(3.0) == ["coarse-0001", "coarse-0002", "coarse-0003"]
        ended(ladder, "coarse-0001", 0.2, 1)  # a mean of 0.55, with what stopped early
        ended(ladder, "coarse-0002", 0.5, 1)
        assert ended(ladder, "coarse-0003", 0.5, 1) == ["coarse-0001"]


@pytest.mark.parametrize("state", [EXPLODED, STOPPED, FAILED, KILLED])
def test_who_did_not_complete_never_goes_on_and_leaves_the_others_their_places(
    state: TrialState,
) -> None:
    stage = stage_of("coarse", 3, 2)
    with place(stage) as here:
        ladder = here.ladder(stage)
        assert ended(ladder, "coarse-0000", state) == [] and ended(ladder, "coarse-0001", 0.1) == [
            "coarse-0001"
        ]
        assert ended(ladder, "coarse-0002", state) == []
        assert here.decisions() == {("coarse", 3.0): {"coarse-0001"}}
        assert ended(ladder, "coarse-0001", state, 1) == [] and ladder.is_over


def test_of_equals_the_one_of_the_earlier_stage_goes_on_then_the_one_of_the_lower_number() -> None:
    coarse, middle = stage_of("coarse", 3, 1), stage_of("middle", 2, 2)
    with place(coarse, middle) as here:
        ladder = here.ladder(coarse)
        here.results = {f"coarse-{i:04d}": Result(COMPLETED, value=0.5) for i in range(3)}
        for trial, result in here.results.items():
            ladder.note(trial, result)
        assert [own.id for own in ladder.advance()] == ["coarse-0000"]
        here.results["coarse-0000"] = Result(COMPLETED, value=0.5, rung=1)
        ladder = here.ladder(middle)
        assert ended(ladder, "middle-0001", 0.5) == [
            "coarse-0001"
        ]  # whatever the last one does: equal is not better
        assert ended(ladder, "middle-0000", 0.5) == ["coarse-0002"]


def test_the_last_rung_waits_where_the_next_stage_runs_beside_it() -> None:
    stage = stage_of("coarse", 4, 2, 1)
    with place(stage) as here:
        ladder = here.ladder(stage, holds_last=True)
        for i in range(4):
            ended(ladder, f"coarse-{i:04d}", i / 10)
        assert ended(ladder, "coarse-0003", 0.3, 1) == ended(ladder, "coarse-0002", 0.4, 1) == []
        assert ladder.is_over, "so that the next stage can be frozen"
        assert [own.epochs for own in read_decisions(here.folder, ID, [stage]) if own.complete] == [
            3.0
        ]
        (released,) = ladder.release()
        assert (released.id, released.epochs, released.passed) == ("coarse-0002", 9.0, (1.0, 3.0))
        assert not ladder.is_over and here.decisions()["coarse", 9.0] == {"coarse-0002"}
        assert ladder.release() == []


def test_a_stage_of_one_rung_promotes_nobody() -> None:
    stage = Stage(name="coarse", trials=2, epochs=1.0)
    with place(stage) as here:
        for holds in (False, True):
            ladder = here.ladder(stage, holds)
            assert (ladder.is_decided, ladder.is_over, ladder.epochs) == (True, False, 1.0)
            assert (
                ended(ladder, "coarse-0000", 0.5) == ended(ladder, "coarse-0001", 0.5) == []
                and ladder.is_over
            )


def test_of_two_masters_that_see_ends_in_another_order_both_hear_of_all_that_go_on() -> None:
    stage = stage_of("coarse", 4, 2)
    with place(stage) as here:
        one, other = here.ladder(stage), here.ladder(stage)
        for trial, value in [("coarse-0000", 0.9), ("coarse-0001", 0.8), ("coarse-0002", 0.7)]:
            ended(one, trial, value)
        for trial, value in [("coarse-0003", 0.1), ("coarse-0002", 0.7)]:
            ended(other, trial, value)
        assert ended(other, "coarse-0001", 0.8) == [
            "coarse-0000"
        ]  # by the file: this master has not heard of its end
        assert ended(other, "coarse-0000", 0.9) == ["coarse-0001"]
        assert ended(one, "coarse-0003", 0.1) == ["coarse-0001"]
        assert here.decisions() == {("coarse", 3.0): {"coarse-0000", "coarse-0001"}}


def test_a_master_that_was_suspended_hears_at_once_of_rungs_that_others_decided_and_trained() -> (
    None
):
    """It reads all ends first, and only then who went on."""
    stage = stage_of("coarse", 4, 2, 1)
    with place(stage) as here:
        late, quick = here.ladder(stage), here.ladder(stage)
        told = [(f"coarse-{i:04d}", i / 10, 0) for i in range(4)] + [
            ("coarse-0003", 0.3, 1),
            ("coarse-0002", 0.4, 1),
        ]
        for trial, value, rung in told:
            ended(quick, trial, value, rung)
        for trial, value, rung in told:
            late.note(trial, Result(COMPLETED, value=value, rung=rung))
        assert [own.id for own in late.advance() if own.rung == 2] == ["coarse-0002"]
        assert [own.id for own in late.standings.find_unfinished()] == ["coarse-0002"]


def test_a_kill_after_a_promotion_that_a_master_has_not_heard_of_counts() -> None:
    """A verdict names no rung.

    The decision, part of which another master wrote, says which rung it was.
    """
    stage = stage_of("coarse", 4, 2)
    with place(stage) as here:
        late, quick = here.ladder(stage), here.ladder(stage)
        for i in (3, 2, 1):
            ended(quick, f"coarse-{i:04d}", i / 10)
        for i in (3, 2, 1):
            late.note(f"coarse-{i:04d}", Result(COMPLETED, value=i / 10))
        late.note("coarse-0003", Result(KILLED, "by hand"))
        assert ended(late, "coarse-0000", 0.0) == ["coarse-0003"]
        assert [own.id for own in late.advance()] == ["coarse-0002"]
        assert [own.id for own in late.standings.find_unfinished()] == ["coarse-0002"]

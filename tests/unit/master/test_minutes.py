"""A budget in minutes is met although it was measured badly.

Each stage gets the time that the records say is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.folder.chosen import Chosen
from common.folder.record import Record
from common.folder.records import SearchFolder
from common.search.plan import StagePlan
from common.search.search_file import Search, parse_search
from common.search.stage import Stage
from common.search.trial import TrialState, trial_id
from master.run import minutes
from master.run.minutes import compute_spent, epochs_within, paces_of, replan
from master.run.planning import resolve
from master.stages.prepare import Launched, plan_anew, settle
from master.strategy.ranges import write_frozen

TEXT = (
    'name = "s"\ntask = "digits"\n[space]\n'
    "learning_rate = { log_uniform = [1e-6, 1e1] }\n[budget]\nminutes = 10\n"
)
WIDTH, N_WORKERS = 8, 2
TOLD = {1: 1.0, 8: 2.0}  # seconds of an epoch of an array, as measured before the launch


@pytest.fixture(autouse=True)
def paced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "auto_count", lambda resources: N_WORKERS)


def played(
    search: Search, slower: float, exploded: float = 0.0, pause: tuple[int, float] = (-1, 0.0)
) -> tuple[float, list[int]]:
    """Play a whole search; what is left is planned anew before each stage.

    Args:
        search: as planned.
        slower: than what was measured.
        exploded: share of the new trials of a stage that end at once.
        pause: the number of a stage, and the seconds in which nobody works before it.

    Returns:
        The seconds in which somebody worked, and the numbers of stages as planned before each.
    """
    records: dict[str, Record] = {}
    begun: list[Stage] = []
    numbers, now, worked = [], 1000.0, 0.0
    while True:
        left = (
            replan(search, begun, list(records.values()))
            if begun
            else [stage.plan for stage in search.stages]
        )
        numbers.append(len(begun) + len(left))
        stages = [staged(f"s{len(begun) + number}", plan) for number, plan in enumerate(left)]
        search = search.model_copy(update={"stages": (*begun, *stages)})
        if not left:
            return worked, numbers
        began = now = now + (pause[1] if pause[0] == len(begun) else 0.0)
        for record, seconds in trained(stages[0].name, stages[0].plan, slower, exploded, now):
            records[record.trial] = record
            now = max(now, seconds)
        worked += now - began
        begun.append(stages[0])


def staged(name: str, plan: StagePlan) -> Stage:
    return Stage(
        name=name, trials=plan.keep[0], epochs=plan.rungs[0], rungs=plan.rungs, keep=plan.keep
    )


def trained(
    stage: str, plan: StagePlan, slower: float, exploded: float, now: float
) -> Iterator[tuple[Record, float]]:
    """Yield each record of a stage, and the moment at which it is written."""
    before = 0.0
    for rung, n in zip(plan.rungs, plan.keep, strict=True):
        alive = n if before else n - int(exploded * n)
        numbers = list(range(alive))
        ends = [now] * N_WORKERS
        for start in range(0, alive, WIDTH):
            own, worker = (
                numbers[start : start + WIDTH],
                min(range(N_WORKERS), key=ends.__getitem__),
            )
            pace = slower * (TOLD[1] + (TOLD[8] - TOLD[1]) * (len(own) - 1) / 7)
            claimed, ends[worker] = ends[worker], ends[worker] + (rung - before) * pace
            for number in own:
                yield (
                    record(stage, number, rung, pace, len(own), worker, claimed, ends[worker]),
                    ends[worker],
                )
        now, before = max(ends), rung


def record(
    stage: str,
    number: int,
    epochs: float,
    pace: float,
    width: int,
    worker: int,
    claimed: float,
    ended: float,
) -> Record:
    told: dict[str, Any] = {
        "search_id": "0" * 16,
        "trial": trial_id(stage, number),
        "stage": stage,
        "index": number,
        "seed": 1,
    }
    told |= {
        "budget_epochs": epochs,
        "epochs": epochs,
        "hyperparameters": {},
        "attempt": 1,
        "state": TrialState.COMPLETED,
    }
    times = {
        "seconds": epochs * pace,
        "array_width": width,
        "claimed_at": claimed,
        "began_at": claimed,
        "ended_at": ended,
    }
    return Record.model_validate({**told, **times, "worker": f"w{worker}"})


@pytest.mark.parametrize("slower", [0.1, 0.3, 1.0, 3.0, 10.0])
def test_the_minutes_are_met_though_epochs_take_longer_or_shorter_than_was_measured(
    slower: float,
) -> None:
    search = resolve(parse_search(TEXT), TOLD)
    worked, numbers = played(search, slower)
    assert (
        0.75 * 600 < worked < 1.1 * 600 or slower == 10.0
    )  # then the first stage alone takes as long
    assert numbers[0] == len(search.stages)
    assert (numbers[-1] > numbers[0], numbers[-1] < numbers[0]) == (False, slower > 1.0), (
        "fewer stages where there is time for fewer epochs"
    )


@pytest.mark.parametrize("exploded", [0.0, 0.3])
def test_what_explodes_takes_no_time_and_says_nothing_of_how_long_the_others_take(
    exploded: float,
) -> None:
    worked, _ = played(resolve(parse_search(TEXT), TOLD), 2.0, exploded)
    assert 0.75 * 600 < worked < 1.1 * 600


def test_a_night_in_which_nobody_trained_is_not_spent() -> None:
    search = resolve(parse_search(TEXT), TOLD)
    assert played(search, 2.0, pause=(2, 9 * 3600.0))[0] == pytest.approx(
        played(search, 2.0)[0], rel=0.05
    )


def test_where_the_time_is_up_one_last_stage_takes_what_there_is_to_its_end() -> None:
    search = resolve(parse_search(TEXT), TOLD)
    begun = search.stages[:1]
    late = [own for own, _ in trained("coarse", begun[0].plan, 60.0, 0.0, 0.0)]
    (last,) = replan(search, begun, late)[-1:]
    assert last.keep[-1] == 1 and last.rungs[-1] == 20.0


def test_what_was_planned_anew_stays_where_another_master_plans_again() -> None:
    search = resolve(parse_search(TEXT), TOLD)
    begun = search.stages[:1]
    late = [own for own, _ in trained("coarse", begun[0].plan, 2.0, 0.0, 0.0)]
    left = replan(search, begun, late)
    again = search.model_copy(
        update={"stages": (*begun, *(staged(f"s{n}", plan) for n, plan in enumerate(left)))}
    )
    assert replan(again, begun, late) == left != [own.plan for own in search.stages[1:]]


def test_records_without_times_change_nothing() -> None:
    search = resolve(parse_search(TEXT), TOLD)
    assert replan(search, search.stages[:1], []) == [own.plan for own in search.stages[1:]]


@pytest.mark.parametrize(
    ("busy", "pause_s", "found"),
    [
        ([], 5.0, 0.0),
        ([(0, 10), (2, 4)], 5.0, 10.0),
        ([(0, 10), (13, 20)], 5.0, 20.0),
        ([(13, 20), (0, 10)], 2.0, 17.0),
        ([(0, 10), (100, 110), (112, 115)], 5.0, 25.0),
    ],
)
def test_time_that_was_spent(
    busy: Sequence[tuple[float, float]], pause_s: float, found: float
) -> None:
    assert compute_spent(busy, pause_s) == found


def test_paces_are_those_of_whole_arrays() -> None:
    arrays = [(8, 1.0), (8, 3.0), (8, 2.0), (1, 0.5)]
    assert paces_of(
        [
            record("coarse", n, 2.0, pace, width, 0, 0.0, 1.0)
            for n, (width, pace) in enumerate(arrays)
        ]
    ) == {8: 2.0, 1: 0.5}


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_new_numbers_stand_in_the_folder_and_what_more_adds_is_no_part_of_the_minutes(
    tmp_path: Path, repeats: int
) -> None:
    text = TEXT + f"repeats = {repeats}\n"
    search = parse_search(text)
    chosen = Chosen(search, text, Path(), SearchFolder(tmp_path, "s"))
    launched = settle(chosen, None, None, print, epochs_within(search, TOLD))
    begun = launched.search.stages[:1]
    write_frozen(made(launched), launched.search.space)
    late = [own for own, _ in trained("coarse", begun[0].plan, 2.0, 0.0, 0.0)]
    left = replan(launched.search, begun, late)
    again = plan_anew(launched, left)
    assert again.search == launched.folder.search() and again.id == launched.id
    assert [own.plan for own in again.search.stages] == [begun[0].plan, *left]
    assert [own.name for own in again.search.stages][:4] == ["coarse", "middle", "fine", "finer"]
    longer = settle(chosen, None, None, print, more=60.0)
    assert all(n % repeats == 0 for own in longer.search.stages for n in own.plan.keep)
    (added,) = [own.name for own in longer.search.stages if own.more]
    assert added not in [own.name for own in again.search.stages]
    assert replan(longer.search, begun, late) == left
    assert [
        own.name for own in plan_anew(longer, [*left, *left[-2:]]).search.stages if own.more
    ] == [added]
    assert settle(chosen, None, None, print).search == longer.folder.search(), (
        "the same command attaches"
    )


def made(launched: Launched) -> Path:
    folder = launched.folder.stage("coarse")
    folder.make()
    return folder.ranges

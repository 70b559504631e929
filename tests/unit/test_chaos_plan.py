"""The plan of faults of `make chaos`.

A seed repeats it, every kind has its turn, and only faults that hit count.
"""

from __future__ import annotations

import itertools
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos import aim, faults, schedule
from tests.chaos.schedule import TRIES, Kind, Made, Planned, Running, planned

N_FAULTS = 200


def never(draw: random.Random) -> Made:
    yield from ()


KINDS = [Kind(name, never) for name in faults.ALL]


def plan(seed: str, n: int = N_FAULTS) -> list[tuple[float, str, int]]:
    return [(one.at_s, one.kind.name, one.seed) for one in planned(seed, KINDS, n, 1.0)]


def test_a_seed_repeats_the_plan_and_another_makes_another() -> None:
    assert plan("231") == plan("231")
    one, other = plan("231"), plan("232")
    for column in range(3):
        assert [row[column] for row in one] != [row[column] for row in other]


def test_what_a_fault_draws_and_draws_again_comes_from_the_plan() -> None:
    first, second = (planned("231", KINDS, 5, 1.0)[3] for _ in range(2))
    assert first.again(9.0) == second.again(9.0)
    assert first.again(9.0).seed != first.seed


def test_every_kind_has_its_turn_before_any_has_another() -> None:
    names = [name for _, name, _ in plan("231", 2 * len(KINDS))]
    assert set(names[: len(KINDS)]) == set(names[len(KINDS) :]) == set(faults.ALL)


class Hits:
    """A fault that hits at one of its tries."""

    def __init__(self, at_try: int) -> None:
        self.at_try, self.tries = at_try, 0

    def __call__(self, draw: random.Random) -> Made:
        self.tries += 1
        hit = self.tries == self.at_try
        yield 0.0
        return hit


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes by half a second at each look."""
    looks = itertools.count()
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: next(looks) / 2))


def run(*kinds: Kind) -> Running:
    running = Running([Planned(0.0, kind, seed) for seed, kind in enumerate(kinds)], _began=0.0)
    for _ in range(100):
        if running.over:
            return running
        running.step()
    raise AssertionError("does not come to an end")


@pytest.mark.usefixtures("clock")
def test_a_fault_that_hits_nothing_is_made_again_within_a_limit() -> None:
    late, never_hits = Hits(TRIES), Hits(TRIES + 1)
    running = run(Kind("late", late, "redis"), Kind("never", never_hits, "redis"))
    assert dict(running.made) == {
        "late": 1
    }  # a kind that never hit does not even stand there with a nought
    assert (late.tries, never_hits.tries) == (TRIES, TRIES)


def arena(n_ended: int) -> Any:
    return SimpleNamespace(
        ended=lambda: n_ended, calm=SimpleNamespace(n_ends=3), trials=[None] * 2
    )  # one of them is promoted


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("n_ended", [2, 3])
def test_a_fault_counts_only_while_trials_have_yet_to_end(n_ended: int) -> None:
    def hit(arena: Any, draw: random.Random) -> Made:
        yield 0.0

    running = run(Kind("hit", partial(aim.while_it_runs, hit, arena(n_ended))))
    assert dict(running.made) == ({"hit": 1} if n_ended < 3 else {})


class Crew(SimpleNamespace):
    """Two workers: the first has ended a trial, the second holds one."""

    def __init__(self, path: Path, *codes: int) -> None:
        workers = [SimpleNamespace(pid=pid, reserved=False) for pid in (1, 2)]
        super().__init__(
            crew=SimpleNamespace(workers=workers),
            nursery=SimpleNamespace(alive=lambda pid: pid not in codes),
            ledger=path / "ledger.jsonl",
            record=lambda trial, attempt: path / f"{trial}-try={attempt}.json",
            ended=lambda: 1,
            calm=SimpleNamespace(n_ends=3),
        )
        self.claims("coarse-0001", 1, 1)
        self.ends("coarse-0001", 1)
        self.claims("coarse-0002", 1, 2)

    def claims(self, trial: str, attempt: int, pid: int) -> None:
        with self.ledger.open("a") as file:
            file.write(
                f'{{"event": "claim", "pid": {pid}, "trial": "{trial}", "attempt": '
                f'{attempt}, "token": "x"}}\n'
            )

    def ends(self, trial: str, attempt: int) -> None:
        self.record(trial, attempt).touch()


def chosen(arena: Any, seed: int) -> int:
    try:
        next(aim.worker(arena, random.Random(seed)))
    except StopIteration as over:
        return int(over.value.pid)
    raise AssertionError("nobody was found")


@pytest.mark.parametrize("seed", range(8))
def test_a_worker_that_holds_trials_is_hit_and_an_idle_one_only_where_none_does(
    tmp_path: Path, seed: int
) -> None:
    assert chosen(Crew(tmp_path), seed) == 2
    assert chosen(Crew(tmp_path, 2), seed) == 1


@pytest.mark.parametrize("seed", range(8))
def test_whoever_has_a_trial_after_its_promotion_holds_it(tmp_path: Path, seed: int) -> None:
    arena = Crew(tmp_path)
    arena.ends("coarse-0002", 1)
    arena.claims("coarse-0002", 2, 1)
    assert aim.holders(arena) == {1} and chosen(arena, seed) == 1
    arena.ends("coarse-0002", 2)
    assert aim.holders(arena) == set()

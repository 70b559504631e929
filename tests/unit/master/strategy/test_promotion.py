from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from master.strategy.promotion import Candidate, certain, choose

GOODNESS = st.sampled_from(
    [0.1, 0.2, 0.2, 0.3, 0.5, -1.0, math.nan, math.inf, -math.inf]
) | st.floats(-1, 1)


def candidates(*goodness: float, stage: int = 0) -> list[Candidate]:
    return [Candidate(f"{'ab'[stage]}{i}", stage, i, own) for i, own in enumerate(goodness)]


def test_the_best_go_on_best_first() -> None:
    assert choose(candidates(0.1, 0.9, 0.5, 0.7), 2) == ["a1", "a3"]


def test_of_equals_the_earlier_stage_goes_on_then_the_lower_number() -> None:
    both = [*candidates(0.5, 0.5, 0.5, stage=1), *candidates(0.5, 0.5)]
    random.Random(0).shuffle(both)
    assert choose(both, 4) == ["a0", "a1", "b0", "b1"]


def test_more_places_than_candidates_take_all_and_none_takes_none() -> None:
    assert choose(candidates(0.1, 0.2), 5) == ["a1", "a0"]
    assert choose(candidates(0.1, 0.2), 0) == [] and choose(candidates(0.1, 0.2), -3) == []


def test_a_metric_that_is_no_number_never_goes_on() -> None:
    assert choose(candidates(math.nan, 0.1, math.inf, -math.inf), 4) == ["a1"]


def test_while_more_are_unfinished_than_may_go_on_nobody_is_certain() -> None:
    assert certain(candidates(*range(20)), n_unfinished=5, k=5) == []
    assert certain(candidates(0.1, 0.9, 0.5), n_unfinished=1, k=2) == ["a1"]


@given(
    goodness=st.lists(GOODNESS, max_size=30),
    k=st.integers(0, 12),
    order=st.randoms(use_true_random=False),
)
def test_who_is_certain_at_any_time_is_chosen_in_the_end_whatever_the_order(
    goodness: list[float], k: int, order: random.Random
) -> None:
    everyone = candidates(*goodness)
    ended = everyone[:]
    order.shuffle(ended)
    chosen, gone = choose(everyone, k), list[str]()
    for n in range(len(ended) + 1):
        sure = certain(ended[:n], len(ended) - n, k)
        assert set(gone) <= set(sure)  # nobody that went on is called back
        gone = sure
    assert set(gone) == set(chosen)

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.records import CheckpointName
from worker.recording import within_keep

ACCURACIES = st.lists(st.integers(0, 360).map(lambda correct: correct / 360))


def name(value: float, index: int, attempt: int = 1) -> CheckpointName:
    return CheckpointName(value, f"coarse-{index:04d}", 1, attempt)


def test_only_what_ranks_within_keep_is_written() -> None:
    existing = [name(0.9, 1), name(0.8, 2), name(0.1, 3)]
    new = {n.trial_id: n for n in [name(0.85, 4), name(0.05, 5)]}
    assert within_keep(new, existing, 3) == {"coarse-0004"}
    assert within_keep(new, existing, 5) == {"coarse-0004", "coarse-0005"}
    assert within_keep(new, existing, 1) == set()


def test_an_older_attempt_of_the_same_trial_does_not_count() -> None:
    assert within_keep({"coarse-0001": name(0.5, 1, attempt=2)}, [name(0.9, 1)], 1) == {"coarse-0001"}


@given(ACCURACIES, ACCURACIES, st.integers(1, 10))
def test_never_more_than_keep(new: list[float], existing: list[float], keep: int) -> None:
    fresh = {n.trial_id: n for n in (name(v, i) for i, v in enumerate(new))}
    kept = within_keep(fresh, [name(v, 1000 + i) for i, v in enumerate(existing)], keep)
    assert len(kept) <= keep
    better = sorted([*new, *existing], reverse=True)[:keep]
    assert all(fresh[t].value >= better[-1] for t in kept)

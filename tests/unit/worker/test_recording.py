from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from common.folder.checkpoint_name import CheckpointName
from common.search.constraint import Constraint
from common.search.trial import NO_PROGRESS, Claim, Fence, Trial, TrialState
from worker.run.recorder import checkpoint_name, is_worth_keeping, judge, within_keep
from worker.training.types import Outcome

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
    assert within_keep({"coarse-0001": name(0.5, 1, attempt=2)}, [name(0.9, 1)], 1) == {
        "coarse-0001"
    }


def test_where_the_smallest_is_best_the_smallest_are_written() -> None:
    new = {n.trial_id: n for n in [name(0.85, 4), name(0.05, 5)]}
    assert within_keep(new, [name(0.1, 1), name(12.0, 2)], 2, "min") == {"coarse-0005"}


def outcome(**more: Any) -> Outcome:
    trial = Trial("coarse-0001", "coarse", 1, 1, 4.0, {}, "{}")
    values: dict[str, Any] = {
        "best_epoch": 2.5,
        "checkpoint": lambda: b"weights",
        "metrics": {"val_acc": 0.5, "val_loss": 0.7} | more.pop("metrics", {}),
    }
    return Outcome(
        Claim(trial, Fence(trial.id, 3, "token")), TrialState.COMPLETED, **{**values, **more}
    )


def test_a_file_is_named_by_the_search_s_own_metric() -> None:
    found = judge(outcome(metrics={"val_f1": 0.25}), "val_f1")
    assert found.state is TrialState.COMPLETED and found.value == 0.25
    assert (
        str(checkpoint_name(found, "val_f1"))
        == "val_f1=0.2500-trial=coarse-0001-epoch=003-try=3.pt"
    )
    assert judge(outcome(), "val_acc").value == 0.5 and judge(outcome(), "val_loss").value == 0.7


def test_who_violates_a_constraint_says_so_and_keeps_no_weights() -> None:
    constraints = [Constraint.parse("latency_ms < 20"), Constraint.parse("val_loss < 1")]
    found = judge(outcome(metrics={"latency_ms": 31.0}), "val_acc", constraints)
    assert found.state is TrialState.COMPLETED and found.value == 0.5
    assert found.reason == "violates latency_ms < 20 (latency_ms = 31)"
    assert not is_worth_keeping(found)
    fine = judge(outcome(metrics={"latency_ms": 3.0}), "val_acc", constraints)
    assert fine.reason is None and is_worth_keeping(fine)
    early = replace(outcome(), state=TrialState.STOPPED, reason=f"{NO_PROGRESS} for 2 epochs")
    told = judge(early, "val_acc", constraints).reason
    assert told == (
        f"{NO_PROGRESS} for 2 epochs; violates latency_ms < 20 (latency_ms was not reported)"
    )
    exploded = replace(outcome(), state=TrialState.EXPLODED, reason="loss above 3 x its first")
    assert judge(exploded, "val_acc", constraints).reason == "loss above 3 x its first"


def test_a_trial_that_was_never_measured_has_failed() -> None:
    found = judge(outcome(metrics={"val_f1": 0.25}), "val_auc")
    assert found.state is TrialState.FAILED and found.checkpoint is None
    assert found.reason == (
        'metric = "val_auc" was never measured; measured was val_acc, val_loss, val_f1. '
        "Report it, or name one of these in the search file"
    )
    exploded = replace(
        outcome(),
        metrics={"val_loss": 0.7},
        state=TrialState.EXPLODED,
        reason="loss 9 above 3 x its first loss 2",
    )
    assert judge(exploded, "val_acc").reason == exploded.reason


@given(ACCURACIES, ACCURACIES, st.integers(1, 10))
def test_never_more_than_keep(new: list[float], existing: list[float], keep: int) -> None:
    fresh = {n.trial_id: n for n in (name(v, i) for i, v in enumerate(new))}
    kept = within_keep(fresh, [name(v, 1000 + i) for i, v in enumerate(existing)], keep)
    assert len(kept) <= keep
    better = sorted([*new, *existing], reverse=True)[:keep]
    assert all(fresh[t].value >= better[-1] for t in kept)

"""Pauses inside an epoch, so that its work is not lost with its worker."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from tests.unit.training.helpers import boundaries, job, outcomes, state
from worker.training.engine import array

MEASURED = ("train_loss", "train_acc", "val_loss", "val_acc", "grad_norm", "wiggle")


def jobs(resume: dict[str, Any] | None = None) -> list[Any]:
    return [
        job(i, 2, (resume or {}).get(f"coarse-{i:04d}"), learning_rate=0.05 * (i + 1), dropout=0.2)
        for i in range(3)
    ]


def test_a_long_epoch_pauses_and_trains_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = outcomes(jobs())
    monkeypatch.setattr(array, "PAUSE_S", 0.0)
    seen = list(boundaries(jobs()))
    assert [boundary.within for boundary in seen] == [True] * 4 + [False] + [True] * 4 + [False]
    steps = [[round(view.epoch * 5) for view in boundary.running] for boundary in seen[:-1]]
    assert steps == [[step] * 3 for step in range(1, 10)]
    for outcome in seen[-1].ended:
        for name in MEASURED:
            curve = whole[outcome.claim.id].curves[name]
            assert outcome.curves[name] == pytest.approx(curve, rel=1e-9), name


def test_a_trial_resumes_from_a_pause_with_the_rest_of_its_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = outcomes(jobs())
    with monkeypatch.context() as patched:
        patched.setattr(array, "PAUSE_S", 0.0)
        seventh = next(islice(boundaries(jobs()), 6, None))
        states = {view.claim.id: state(view) for view in seventh.running}
    assert {content["steps"] for content in states.values()} == {7}
    for name, outcome in outcomes(jobs(states)).items():
        for curve in MEASURED:
            assert outcome.curves[curve] == pytest.approx(whole[name].curves[curve], rel=1e-9)


def test_no_trial_joins_inside_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array, "PAUSE_S", 0.0)
    asked: list[bool] = []
    seen: list[Any] = []

    def refill(room: int) -> list[Any]:
        asked.append(seen[-1].within)
        return []

    training = iter(boundaries(jobs()[:2], refill=refill, width=4))
    while boundary := next(training, None):
        seen.append(boundary)
    assert any(boundary.within for boundary in seen) and asked and True not in asked

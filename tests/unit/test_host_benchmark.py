"""`benchmarks/host.py`: its worker trains and records as a worker does, and its parts add up."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks import host
from common.folder.records import SearchFolder
from common.search.trial import TrialState


def test_a_part_within_another_interrupts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    used = [0.0]
    monkeypatch.setattr(host.time, "process_time", lambda: used[0])

    def work(seconds: float) -> None:
        used[0] += seconds

    clock = host.Clock()
    inner = clock.time(work, "inner")

    def outer() -> None:
        work(1.0)
        inner(2.0)
        work(3.0)

    clock.time(outer, "outer")()
    assert (clock.spent["outer"], clock.spent["inner"]) == (4.0, 2.0)


def test_its_parts_are_functions_of_this_program() -> None:
    for module, kind, name, _ in host.PARTS:
        assert callable(getattr(getattr(importlib.import_module(module), kind), name))


def test_each_trial_of_a_claim_is_trained_and_recorded(tmp_path: Path) -> None:
    worker = host.Worker(tmp_path, 3)
    worker.work(worker.claim())
    records = SearchFolder(tmp_path, "host3").stage(host.STAGE).records(print)
    assert [one.state for one in records] == [TrialState.COMPLETED] * 3
    assert {one.epochs for one in records} == {host.EPOCHS}

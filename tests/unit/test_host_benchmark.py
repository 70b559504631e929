"""`benchmarks/host.py`: its worker trains and records as a worker does, and its parts add up."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import pytest

from benchmarks import host
from common.folder.records import SearchFolder
from common.search.trial import TrialState


def spin(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_a_part_within_another_interrupts_it() -> None:
    clock = host.Clock()
    inner = clock.time(lambda: spin(0.02), "inner")

    def work() -> None:
        spin(0.01)
        inner()
        spin(0.01)

    clock.time(work, "outer")()
    assert clock.spent["outer"] == pytest.approx(0.02, rel=0.4)
    assert clock.spent["inner"] == pytest.approx(0.02, rel=0.4)


def test_its_parts_are_functions_of_this_program() -> None:
    for module, kind, name, _ in host.PARTS:
        assert callable(getattr(getattr(importlib.import_module(module), kind), name))


def test_each_trial_of_a_claim_is_trained_and_recorded(tmp_path: Path) -> None:
    worker = host.Worker(tmp_path, 3)
    worker.work(worker.claim())
    records = SearchFolder(tmp_path, "host3").stage(host.STAGE).records(print)
    assert [one.state for one in records] == [TrialState.COMPLETED] * 3
    assert {one.epochs for one in records} == {host.EPOCHS}

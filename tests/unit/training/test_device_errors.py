"""What errors say of the device, without one: errors and a device are simulated."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.training.helpers import SmallDigits, boundaries, job, outcomes
from worker.training.device_errors import Poisoned, is_out_of_memory, is_poisoned
from worker.training.engine.array import TrialArray
from worker.training.engine.session import Session
from worker.training.stacked.stack import Stack

ASSERTION = torch.AcceleratorError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: out of memory",
        "HIP out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
        "DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_memory_that_ran_out_is_told_in_many_words_and_poisons_nothing(message: str) -> None:
    for kind in (RuntimeError, torch.AcceleratorError):
        assert is_out_of_memory(kind(message)) and not is_poisoned(kind(message))
    assert not is_out_of_memory(ValueError(message)), "a task may say what it likes"


def test_without_a_device_in_use_the_error_or_its_cause_tells() -> None:
    try:
        try:
            raise ASSERTION
        except RuntimeError as error:
            raise ValueError("the task's own words") from error
    except ValueError as wrapped:
        assert is_poisoned(ASSERTION) and is_poisoned(wrapped)
    assert not is_poisoned(RuntimeError("CUDA is no word of ours"))


def test_a_device_in_use_is_asked_whatever_the_error_says(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | None] = [None, ASSERTION, RuntimeError("CUDA error: out of memory")]

    def synchronize() -> None:
        if (error := answers.pop(0)) is not None:
            raise error

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    invalid = torch.AcceleratorError("CUDA error: invalid configuration argument")
    assert [is_poisoned(error) for error in (invalid, ValueError("late"), ASSERTION)] == [
        False,
        True,
        False,
    ]


def poisoned_at(place: str, monkeypatch: pytest.MonkeyPatch) -> Poisoned:
    """What four trials end with, if the device raises for the first time at a place."""
    genuine = getattr(TrialArray, place)
    calls: list[int] = []

    def raising(self: TrialArray, *given: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise ASSERTION
        return genuine(self, *given)

    monkeypatch.setattr(TrialArray, place, raising)
    with pytest.raises(Poisoned) as told:
        list(boundaries([job(number, 2) for number in range(4)]))
    return told.value


@pytest.mark.parametrize("place", ["_train", "_evaluate", "_settle", "leave", "views"])
def test_wherever_a_device_raises_no_trial_is_blamed_and_those_that_were_computed_are_named(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned = poisoned_at(place, monkeypatch)
    assert [claim.id for claim in poisoned.claims] == [f"coarse-000{n}" for n in range(4)]
    assert poisoned.reason == "AcceleratorError: CUDA error: device-side assert triggered"
    assert "raise ASSERTION" in poisoned.traceback


def test_a_model_that_cannot_be_built_since_the_device_is_gone_is_not_blamed() -> None:
    class Building(SmallDigits):
        def model(self, hp: Any) -> Any:
            raise ASSERTION

    with pytest.raises(Poisoned):
        outcomes([job(0), job(1)], task=Building())


def test_a_step_that_ran_out_of_memory_holds_nothing_while_the_array_is_halved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    arrays: list[weakref.ref[Tensor]] = []
    step, limit, assemble = Stack.step, Session._limit, Session._assemble

    def failing(self: Stack, *given: Any) -> Any:
        if self.width < 8:
            return step(self, *given)
        outputs = torch.zeros(1000)
        held.append(weakref.ref(outputs))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def limiting(self: Session, array: TrialArray, width: int) -> None:
        alive.append(held[0]() is not None)
        arrays.append(weakref.ref(array.stack.rows["flat"]))
        limit(self, array, width)

    def assembling(self: Session) -> TrialArray | None:
        gc.collect()
        alive.extend(array() is not None for array in arrays)
        return assemble(self)

    monkeypatch.setattr(Stack, "step", failing)
    monkeypatch.setattr(Session, "_limit", limiting)
    monkeypatch.setattr(Session, "_assemble", assembling)
    # All boundaries are kept, as a worker keeps the last one, with its views.
    kept = list(boundaries([job(number, 2) for number in range(8)]))
    assert alive and not any(alive)
    assert len([one for boundary in kept for one in boundary.ended]) == 8

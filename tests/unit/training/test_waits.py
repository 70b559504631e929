"""How often the host waits for a device that is not there, and what goes to it and from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from common.search.stage import Stage
from tests.unit.training.helpers import SEARCH_SEED, FreeWatch, SmallDigits, engine, job, load
from tests.unit.training.pretended import META, Pretended
from worker.tasks.digits import Digits
from worker.training.engine.array import TrialArray
from worker.training.engine.builder import Builder
from worker.training.outcome.validation import Validation
from worker.training.stacked import explosion
from worker.training.stacked.stack import Stack
from worker.training.stacked.training_data import TrainingOptions

MANY = ({}, {"dropout": 0.2, "optimizer": "adam"}, {"augment_noise": 0.1, "schedule": "cosine"})


def array(
    width: int, options: Mapping[str, Any] | None = None, task: Any = None, **hp: Any
) -> tuple[TrialArray, Pretended]:
    """An array on the pretended device, and what it cost to build it."""
    given = TrainingOptions(
        META, SEARCH_SEED, "digits", lambda _: None, explosion=False, **(options or {})
    )
    with Pretended() as mode:
        builder = Builder(task or SmallDigits(), given, None)
        entries = [builder.entry(job(number, 6, **hp)) for number in range(width)]
        return TrialArray(entries, builder.shapes(entries[0].model), builder.setting()), mode


def train(of: TrialArray) -> Pretended:
    """Train an epoch with its evaluation, and let go who has ended."""
    with Pretended() as mode:
        of.advance(FreeWatch())
        of.leave()
    return mode


def evaluate(of: TrialArray) -> Pretended:
    with Pretended() as mode:
        of.validation(of.stack, of.monitor, FreeWatch())
        for position in range(of.width):
            of.monitor.points(position)
    return mode


@pytest.mark.parametrize("hp", MANY, ids=str)
def test_the_waits_of_an_epoch_depend_on_neither_its_steps_nor_the_width(
    monkeypatch: pytest.MonkeyPatch, hp: dict[str, Any]
) -> None:
    monkeypatch.setattr(explosion, "LOOK_S", 1e9)  # however slow this machine is
    waits = set()
    for width, batch_size in ((2, 64), (12, 64), (2, 16)):  # 5, 5 and 20 steps
        one, built = array(width, batch_size=batch_size, **hp)
        epochs = [train(one) for _ in range(2)]
        in_evaluation = evaluate(one).waits
        waits |= {epoch.waits - in_evaluation for epoch in epochs}
        assert built.mixed == {} and all(epoch.mixed == {} for epoch in epochs)
    assert len(waits) == 1 and waits.pop() <= 4


def test_a_long_epoch_is_read_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = array(2, batch_size=4)
    monkeypatch.setattr(explosion, "LOOK_S", 1e9)  # however slow this machine is
    usual = train(one).waits
    monkeypatch.setattr(explosion, "LOOK_S", 0.0)  # as if each step took long
    assert train(one).waits == usual + 80 // explosion.LOOK_EVERY - 1


def test_steps_are_timed_once_the_device_has_done_them() -> None:
    one, _ = array(2)
    waits = list[int]()

    class Timing:
        def equip(self, *_: object) -> None:
            """Prepare nothing."""

        def note(self, *_: object) -> None:
            waits.append(mode.waits)

    one._backends = Timing()  # type: ignore[assignment]
    with Pretended() as mode:
        one.advance(FreeWatch())
    assert len(waits) == 1 and waits[0] >= 1


def test_all_states_of_an_array_take_one_transfer_a_tensor() -> None:
    found = []
    for width in (2, 12):
        one, _ = array(width)
        train(one)
        with Pretended() as mode:
            for view in one.views():
                assert view.state()
        found.append((mode.waits, len(one.stack.rows)))
    assert len(set(found)) == 1 and found[0][0] <= found[0][1]


def test_trials_that_leave_together_and_their_snapshots_take_one_transfer_a_tensor() -> None:
    found = []
    for width in (2, 12):
        stage = Stage(name="coarse", trials=width, epochs=6, snapshots=6)
        one, _ = array(width, {"stages": {"coarse": stage}})
        for _ in range(5):
            train(one)
        assert all(len(slot.moments) == 5 for slot in one.slots)
        found.append(train(one).waits)
        assert one.slots == []
    assert found[0] == found[1]


def test_trials_that_explode_together_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read, reads = list[int](), list[int]()
    settle, genuine = TrialArray._settle, torch.Tensor.tolist

    def reading(self: torch.Tensor) -> Any:
        read.append(1)
        return genuine(self)

    def settling(self: TrialArray, results: Any) -> None:
        before = len(read)
        settle(self, results)
        reads.append(len(read) - before)

    monkeypatch.setattr(torch.Tensor, "tolist", reading)
    monkeypatch.setattr(TrialArray, "_settle", settling)
    jobs = [job(number, 2, learning_rate=1e4) for number in range(8)]
    ended = [one for b in engine().train(jobs, lambda n: [], FreeWatch()) for one in b.ended]
    assert [str(one.state) for one in ended] == ["exploded"] * 8
    assert max(reads) == 2, "the losses of all, and the costs of all that explode"


def test_the_test_part_is_preprocessed_and_uploaded_once() -> None:
    one, _ = array(1, task=Digits())
    recipe, setting = one.slots[0].model.recipe, one._setting
    with Pretended() as first:
        part = setting.test(recipe)
    with Pretended() as again:
        assert setting.test(recipe) is part
    assert first.uploads and not again.uploads


def test_pieces_of_an_evaluation_are_larger_on_a_gpu_and_halved_where_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, _ = array(8)
    assert Validation._at_once(one.validation, one.stack) == (1 << 20) // 8
    predict, sizes = Stack.predict, list[int]()

    def short(self: Stack, inputs: Any, *more: Any) -> Any:
        sizes.append(len(inputs))
        if len(inputs) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, inputs, *more)

    jobs = [job(number, 2, dropout=0.2) for number in range(8)]
    trained = engine()
    expected = {
        o.trial.id: o.metrics
        for b in trained.train(jobs, lambda n: [], FreeWatch())
        for o in b.ended
    }
    monkeypatch.setattr(Stack, "predict", short)
    said = list[str]()
    trained = engine(log=said.append)
    ended = [o for b in trained.train(jobs, lambda n: [], FreeWatch()) for o in b.ended]
    assert {o.array_width for o in ended} == {8} and said == [], "the array is as wide as before"
    for one_ended in ended:
        assert one_ended.metrics == pytest.approx(expected[one_ended.trial.id])
    assert max(sizes[-4:]) <= 100 < max(sizes) and sizes.count(max(sizes)) < 16


def test_memory_that_does_not_suffice_for_one_example_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short(self: Stack, *given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stack, "predict", short)
    ended = [o for b in engine().train([job(0, 1)], lambda n: [], FreeWatch()) for o in b.ended]
    assert [o.reason for o in ended] == ["OutOfMemoryError: CUDA out of memory"]


def test_states_of_many_views_are_each_slots_own() -> None:
    jobs = [job(number, 2, learning_rate=0.01 * (number + 1)) for number in range(6)]
    for boundary in engine().train(jobs, lambda n: [], FreeWatch()):
        states = [(view.trial.id, load(view.state())) for view in boundary.running]
        assert [state["trial"] for _, state in states] == [name for name, _ in states]
        flats = [state["row"]["flat"] for _, state in states]
        assert all(not torch.equal(flats[0], other) for other in flats[1:])
        assert all(flat.untyped_storage().nbytes() == flat.nbytes for flat in flats), "no more"

"""Parts that are loaded batch by batch: datasets, loaders, samplers and iterables."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler

from common.errors import TaskError
from common.folder.chosen import Chosen
from common.folder.records import SearchFolder
from common.search.search_file import parse_search
from common.search.stage import Stage
from common.search.trial import TrialState
from tests.unit.training.helpers import SEARCH_SEED, StopAfter, boundaries, job, outcomes, state
from worker.checks.run import Run
from worker.checks.training import load_first
from worker.tasks import Data, Part
from worker.tasks.loading import Loaded
from worker.training.outcome.evaluate import load as load_saved
from worker.training.outcome.evaluate import predict_test_part
from worker.training.stacked.batches import shuffle
from worker.training.stacked.feed import _seed

SEARCH = """
name = "loaded"
task = "my_task.py:Task"
[space]
learning_rate = { log_uniform = [1e-3, 1.0] }
[stages.coarse]
trials = 3
epochs = 2
"""
N, N_VAL, SIZE = 75, 22, 16  # 4 batches an epoch, and a rest
HP: dict[str, Any] = {"learning_rate": 0.05, "batch_size": SIZE, "momentum": 0.9}
INPUTS = torch.randn(N + N_VAL, 2, 4, 4, generator=torch.Generator().manual_seed(1))
CLASSES = (INPUTS.mean((1, 2, 3)) > 0).long()


class Images(Dataset[Any]):
    """Some of the examples. With ``noisy`` each is changed at random."""

    def __init__(self, start: int, end: int, noisy: bool = False) -> None:
        self.rows, self.noisy = range(start, end), noisy

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        noise = torch.rand(()) + random.random() + np.random.rand() if self.noisy else 0.0
        row = self.rows[place]
        return INPUTS[row] + 0.1 * noise, int(CLASSES[row])


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            row = int(torch.randint(N, ()))
            yield INPUTS[row], int(CLASSES[row])


class Task:
    """A net with batch normalisation, whose parts are given."""

    def __init__(self, train: Any, val: Any = None, test: Any = None) -> None:
        self.parts = (train, val if val is not None else Images(N, N + N_VAL), test)

    def data(self) -> Data:
        return Data(*self.parts, n_classes=2)

    def model(self, hp: Any) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(32, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)
        )


def in_memory() -> Task:
    parts = [Part(INPUTS[rows], CLASSES[rows]) for rows in (slice(N), slice(N, None))]
    return Task(*parts, test=parts[1])


def jobs(n: int = 3, epochs: float = 2, **more: Any) -> list[Any]:
    return [job(i, epochs, **{**HP, "learning_rate": 0.02 * (i + 1), **more}) for i in range(n)]


def trained(task: Any, ones: list[Any], **more: Any) -> dict[str, Any]:
    found = outcomes(ones, task=task, width=len(ones), metric="val_loss", mode="min", **more)
    assert multiprocessing.active_children() == [], "a loading process outlived its trial"
    return found


def plain(of: Any, batches: Any, epochs: int) -> dict[str, Tensor]:
    """Return the weights and statistics after a loop of plain PyTorch."""
    trial = of.trial
    torch.manual_seed(trial.seed)
    module = in_memory().model(trial.hyperparameters).double()
    rate = trial.hyperparameters["learning_rate"]
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9)
    for epoch in range(epochs):
        for inputs, targets in batches(epoch):
            if len(targets) == SIZE:
                loss = nn.functional.cross_entropy(module(inputs.double()), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return dict(module.state_dict())


def weights(outcome: Any) -> dict[str, Tensor]:
    row = outcome.resume()["row"]
    first, last = torch.split(row["flat"][: 96 + 6], [96, 6])  # what decays comes first
    return {"1.weight": first, "4.weight": last, "2.running_var": row["buffer.2.running_var"]}


def agree(outcome: Any, reference: dict[str, Tensor]) -> None:
    assert outcome.state is TrialState.COMPLETED, outcome.reason
    for name, own in weights(outcome).items():
        assert torch.allclose(own.flatten(), reference[name].flatten(), atol=1e-6, rtol=0), name


def in_order(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in shuffle(N, SEARCH_SEED, epoch).split(SIZE):
        yield INPUTS[rows], CLASSES[rows]


def stacked(examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in examples]), torch.tensor([y for _, y in examples])


@pytest.mark.parametrize(
    "how", [{}, {"num_workers": 2}, {"collate_fn": stacked}], ids=["here", "processes", "collate"]
)
def test_a_dataset_trains_as_a_loop_of_plain_pytorch(how: dict[str, Any]) -> None:
    ones = jobs()
    found = trained(Task(Loaded(Images(0, N), **how)), ones)
    memory = trained(in_memory(), ones)
    for one in ones:
        outcome = found[one.id]
        assert outcome.array_width == 3 and outcome.epoch_steps == N // SIZE
        agree(outcome, plain(one, in_order, 2))
        for name in ("train_loss", "val_loss", "val_acc"):
            assert outcome.curves[name] == pytest.approx(memory[one.id].curves[name], rel=1e-6)
        assert outcome.batches.endswith("a function of the search's seed and the epoch")
        assert memory[one.id].batches is None and outcome.n_val == N_VAL


def make_loader(**more: Any) -> DataLoader[Any]:
    return DataLoader(Images(0, N, noisy=True), batch_size=SIZE, shuffle=True, **more)


@pytest.mark.parametrize(
    "more",
    [{}, {"num_workers": 2, "persistent_workers": True}, {"generator": torch.Generator()}],
    ids=["plain", "persistent", "generator"],
)
def test_a_loader_of_ones_own_trains_as_the_same_loader_in_a_plain_loop(more: Any) -> None:
    ones = jobs(2)
    found = trained(Task(make_loader(**more)), ones)
    theirs = make_loader(**{**more, "persistent_workers": False})

    def batches(epoch: int) -> Any:
        seed = _seed(SEARCH_SEED, epoch, 0)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        if theirs.generator is not None:
            theirs.generator.manual_seed(seed)
        return theirs

    for one in ones:
        agree(found[one.id], plain(one, batches, 2))
        assert found[one.id].batches.endswith("of the task's loader, seeded for each epoch")


@pytest.mark.parametrize("beats", [8, 12], ids=["first epoch", "second epoch"])
@pytest.mark.parametrize(
    "source",
    [
        lambda: Loaded(Images(0, N)),
        lambda: Loaded(Images(0, N), num_workers=2),
        make_loader,
        lambda: Loaded(Endless(), epoch_steps=4),
        lambda: Loaded(Images(0, N), epoch_steps=4, sampler=WeightedRandomSampler([1.0] * N, N)),
    ],
    ids=["dataset", "processes", "loader", "endless", "sampler"],
)
def test_a_stopped_trial_goes_on_where_it_was(source: Any, beats: int) -> None:
    ones = jobs(2)
    whole = trained(Task(source()), ones)
    how = {"metric": "val_loss", "mode": "min", "width": 2}
    last = list(boundaries(ones, StopAfter(beats), task=Task(source()), **how))[-1]
    assert multiprocessing.active_children() == []
    states = {view.claim.id: state(view) for view in last.running}
    per_epoch = whole[ones[0].id].epoch_steps
    assert all(0 < content["steps"] < 2 * per_epoch for content in states.values())
    again = [job(i, 2, states[one.id], **one.trial.hyperparameters) for i, one in enumerate(ones)]
    resumed = trained(Task(source()), again)
    for one in ones:
        mine, other = weights(resumed[one.id]), weights(whole[one.id])
        assert all(torch.allclose(mine[name], other[name]) for name in mine)


def test_loading_changes_neither_weights_nor_noise() -> None:
    task = Task(Loaded(Images(0, N, noisy=True)))
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate()
    assert task.data().count("train") == N
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_trials_of_another_step_do_not_share_an_array() -> None:
    ones = jobs(2, epochs=1)
    first = trained(Task(Loaded(Images(0, N))), ones)
    resumed = job(0, 2, first[ones[0].id].resume(), **ones[0].trial.hyperparameters)
    both = [resumed, *jobs(2)[1:]]
    found = trained(Task(Loaded(Images(0, N))), both)
    assert [found[one.id].array_width for one in both] == [1, 1]
    agree(found[both[0].id], plain(both[0], in_order, 2))
    agree(found[both[1].id], plain(both[1], in_order, 2))


def test_parts_in_memory_and_loaded_ones_go_together() -> None:
    val = Part(INPUTS[N:], CLASSES[N:])
    ones = jobs(1)
    mixed = trained(Task(Loaded(Images(0, N)), val), ones)[ones[0].id]
    memory = trained(in_memory(), ones)[ones[0].id]
    assert mixed.curves["val_acc"] == memory.curves["val_acc"]
    assert mixed.guess_acc == memory.guess_acc


def test_predictions_and_the_test_part_are_of_all_batches(tmp_path: Any) -> None:
    val = DataLoader(Images(N, N + N_VAL), batch_size=5)
    ones = jobs(1)
    outcome = trained(Task(Loaded(Images(0, N)), val, test=val), ones)[ones[0].id]
    memory = trained(in_memory(), ones)[ones[0].id]
    for own, other in zip(
        outcome.predictions().values(), memory.predictions().values(), strict=True
    ):
        assert np.allclose(own, other, atol=1e-6) and len(own) == N_VAL
    path = tmp_path / "best.pt"
    path.write_bytes(outcome.checkpoint())
    task = Task(Loaded(Images(0, N)), val, test=val)
    saved = load_saved(path, task, "digits", torch.device("cpu"))
    outputs, targets = predict_test_part(saved, task)
    assert outputs.shape == (N_VAL, 2) and torch.equal(targets, CLASSES[N:])
    assert saved.form == {"shape": [2, 4, 4], "floating": True}


class Broken(Images):
    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        if place == N - 1:
            raise ValueError("file 74 is damaged")
        return super().__getitem__(place)


def test_an_example_that_raises_fails_its_trials_and_ends_its_processes() -> None:
    ones = jobs(2, epochs=3)
    found = trained(Task(Loaded(Broken(0, N), num_workers=1)), ones)
    assert {outcome.state for outcome in found.values()} == {TrialState.FAILED}
    assert all("file 74 is damaged" in outcome.reason for outcome in found.values())


@pytest.mark.parametrize(
    ("hp", "told"),
    [
        ({"batch_size": 8}, "batch_size = 8: the loader of data() has batches of 16; remove"),
        ({"preprocess": "centre"}, "preprocess = 'centre': a part is loaded batch by batch"),
    ],
)
def test_what_a_loader_does_not_do_is_told(hp: dict[str, Any], told: str) -> None:
    ones = jobs(1, **hp)
    outcome = trained(Task(make_loader()), ones)[ones[0].id]
    assert outcome.state is TrialState.FAILED and told in outcome.reason


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Loaded(iter([1])), "cannot be iterated again in each epoch"),
        (lambda: Loaded(make_loader(), num_workers=2), "yields batches already"),
        (lambda: Loaded(Endless(), sampler=WeightedRandomSampler([1.0], 1)), "a sampler is for"),
        (lambda: Loaded(Images(0, N), epoch_steps=0), "epoch_steps = 0: at least 1"),
        (lambda: Loaded(Endless()).steps(4), r"epoch_steps=1000"),
        (lambda: Loaded([(1, 2, 3)] * 4).first(), r"is a list of 3 items; each example or batch"),
        (lambda: Loaded(Images(0, 0)).first(), "gives no batch"),
        (lambda: Task(7).data(), r"train is a int; wrap it: Part\(inputs, targets\), or Loaded"),
    ],
)
def test_what_cannot_be_loaded_is_told(make: Any, told: str) -> None:
    with pytest.raises(TaskError, match=told):
        make()


def test_a_loading_process_that_is_stopped_with_its_worker_fails_no_trial() -> None:
    watch = StopAfter(10**6)

    class Stopped(Images):
        def __getitem__(self, place: int) -> tuple[Tensor, int]:
            if place == N - 1:
                watch.limit = 0
                raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated")
            return super().__getitem__(place)

    how = {"metric": "val_loss", "mode": "min", "width": 2}
    last = list(boundaries(jobs(2, epochs=3), watch, task=Task(Loaded(Stopped(0, N))), **how))[-1]
    assert not last.ended and len(last.running) == 2
    assert all(state(view)["trial"] == view.claim.id for view in last.running)


def test_the_checks_take_the_first_examples_into_memory(tmp_path: Any) -> None:
    chosen = Chosen(parse_search(SEARCH), "", tmp_path, SearchFolder(tmp_path, "loaded"))
    run = Run(chosen, tmp_path)
    data = run._in_memory(Task(Loaded(Images(0, N)), test=make_loader()).data())
    assert not data.loaded and (len(data.train), len(data.val)) == (N, N_VAL)
    assert torch.equal(data.train.targets, CLASSES[:N])
    assert run._notes == [
        f"of the parts that are loaded, the first examples are checked: {N} of train, {N_VAL} of "
        f"val, {N} of test"
    ]
    assert len(load_first(Loaded(Images(0, N)), 10, 60.0)) == 10


def test_nothing_is_distilled_from_loaded_examples() -> None:
    stages = {"coarse": Stage(name="coarse", trials=4, epochs=3, kind="distill")}
    ones = jobs(1)
    found = trained(Task(Loaded(Images(0, N))), ones, stages=stages)
    assert "the task has a part that is loaded batch by batch" in found[ones[0].id].reason


class Counting(Task):
    """Each forward depends on how many there were."""

    def model(self, hp: Any) -> nn.Module:
        class Net(nn.Sequential):
            count = 0

            def forward(self, inputs: Tensor) -> Tensor:
                self.count += 1
                found: Tensor = super().forward(inputs)
                return found * (1 + self.count / 50)

        return Net(nn.Flatten(), nn.Linear(32, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.mark.parametrize("kind", [Task, Counting])
def test_a_stop_while_validation_loads_is_heeded_and_it_is_done_after_the_resume(
    kind: type,
) -> None:
    val = DataLoader(Images(N, N + N_VAL), batch_size=4)
    ones = jobs(2 if kind is Task else 1)  # a counter trains alone
    whole = trained(kind(Loaded(Images(0, N)), val), ones)

    class During(StopAfter):
        """Stops at the second batch of the first validation."""

        def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
            super().beat(phase, limit_s)
            if loads.count >= 3:  # the first was looked at by data()
                self.limit = 0

    class Slow:
        """The same batches, counted."""

        batch_size, count = 4, 0

        def __iter__(self) -> Iterator[Any]:
            for batch in val:
                self.count += 1
                yield batch

    loads = Slow()
    task = kind(Loaded(Images(0, N)), Loaded(loads))
    how = {"metric": "val_loss", "mode": "min", "width": 2}
    last = list(boundaries(ones, During(10**6), task=task, **how))[-1]
    states = {view.claim.id: state(view) for view in last.running}
    assert {(one["steps"], one["evaluated"]) for one in states.values()} == {(4, 0)}
    again = [job(i, 2, states[one.id], **one.trial.hyperparameters) for i, one in enumerate(ones)]
    resumed = trained(kind(Loaded(Images(0, N)), val), again)
    for one in ones:
        assert resumed[one.id].curves["val_loss"] == whole[one.id].curves["val_loss"]

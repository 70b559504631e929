"""An array of three trials of each example of a class agrees with three loops of plain PyTorch.

Both have the same initial weights, batches and noise. Precision is double, so that 1e-6 is far
above what the order of a sum changes, and far below what an error would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.search.search_file import load_search
from common.search.trial import Claim
from tests.unit.training.helpers import SEARCH_SEED, engine, job, states_of_one_array
from tests.unit.training.plain import NoisyLoop
from worker.checks.plan import centre
from worker.tasks import Data, Part, load_task
from worker.training.stacked.feed import Feed

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[3] / "examples"
AGREEMENT = 1e-6  # relative
# Epochs that are compared. The budget is a little longer, so that the trials still run at their
# end.
EPOCHS = {
    "class_task": 3,
    "autoencoder": 2,
    "tabular": 5,
    "image_files": 1,
    "nanogpt": 1,
    "resnet": 1,
}
MORE = 0.2
# The numbers that the space samples are the middle of their range times one of these.
FACTORS = (0.5, 1.0, 2.0)


class Prepared:
    """The task, with the inputs of its parts normalised if it asks for that."""

    def __init__(self, task: Any) -> None:
        self.task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def data(self) -> Data:
        data = self.task.data()
        if getattr(self.task, "preprocess", "none") != "normalise":
            return data
        inputs = data.train.inputs.double()
        normal = (inputs - inputs.mean(0)) / inputs.std(0, correction=0)
        train = Part(normal.to(data.train.inputs.dtype), data.train.targets)
        return Data(train, data.val, data.test, data.n_classes)


def three(search: Any, epochs: float) -> list[Claim]:
    """Trials around the middle of the space, which differ in all numbers that it samples."""
    middle = centre(search.space)
    sampled = [
        name
        for name, parameter in search.space.parameters.items()
        if isinstance(middle[name], float) and parameter.from_unit(0.1) != parameter.from_unit(0.9)
    ]
    return [
        replace(
            one := job(i, epochs),
            trial=replace(
                one.trial,
                hyperparameters=middle | {name: factor * middle[name] for name in sampled},
            ),
        )
        for i, factor in enumerate(FACTORS)
    ]


def loaded(setting: Any, size: int, kept: dict[int, list[Any]]) -> Any:
    """Return the batches of each epoch as a worker loads them, or None if they are in memory.

    ``kept`` has those that were loaded before.
    """
    if "train" not in setting.loaded:
        return None
    source = setting.loaded["train"]

    def batches(epoch: int) -> Iterator[Any]:
        if epoch not in kept:
            feed = Feed(source, size, SEARCH_SEED, torch.device("cpu"), torch.float64)
            first = epoch * source.steps(size)
            kept[epoch] = [feed.take(first + step) for step in range(source.steps(size))]
            feed.close()
        yield from kept[epoch]

    return batches


def assert_close(found: Any, expected: Any, what: str) -> None:
    found, expected = (torch.as_tensor(one, dtype=torch.float64) for one in (found, expected))
    assert expected.isfinite().all(), f"{what}: shows nothing, its reference is not finite"
    gap = float((found - expected).abs().max() / expected.abs().max())
    assert gap <= AGREEMENT, f"{what} differs by {gap:.2g} of its largest number"


@pytest.mark.parametrize("name", EPOCHS)
def test_three_trials_of_an_example_are_three_plain_loops(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # files that an example makes
    search, epochs = load_search(EXAMPLES / name / "search.toml"), EPOCHS[name]
    task = load_task(search.task, EXAMPLES / name, tmp_path)
    ones, logged = three(search, epochs + MORE), []
    own = engine(task=task, width=3, metric=search.metric, mode=search.mode, log=logged.append)
    found = states_of_one_array(own, ones, epochs)
    assert not logged, logged
    setting, kept = own.builder.setting(), {}
    for one in ones:
        state = found[one.id]
        size = int(one.trial.hyperparameters.get("batch_size", 0))
        n_steps = epochs * setting.batches(size).per_epoch
        loop = NoisyLoop(one, Prepared(task), n_steps, loaded(setting, size, kept))
        assert loop.module.state_dict().keys() == state["model"].keys()
        for tensor, expected in loop.weights().items():
            assert_close(state["model"][tensor], expected, f"{one.id}: {tensor}")
        losses = torch.tensor(loop.losses, dtype=torch.float64).view(epochs, -1).mean(1)
        assert_close(state["history"]["curves"]["train_loss"], losses, f"{one.id}: the loss")

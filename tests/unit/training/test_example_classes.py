"""Each example of a class trains in the engine, and its search file fits it.

``tests/integration/test_examples.py`` runs examples as commands, and ``test_example_agreement.py``
compares these with plain PyTorch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.search.search_file import load_search
from common.search.trial import Claim, TrialState
from tests.unit.training.helpers import job, outcomes
from worker.checks.plan import centre
from worker.tasks import load_task

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[3] / "examples"


def trial_of(search: Any, index: int) -> Claim:
    """Return a trial at the middle of the space, or a little above its learning rate."""
    middle = centre(search.space)
    rate = {"learning_rate": float(middle["learning_rate"]) * (1 + 0.1 * index)}
    one = job(index, 2)
    return replace(one, trial=replace(one.trial, hyperparameters=middle | rate))


@pytest.mark.parametrize("name", ["autoencoder", "tabular", "nanogpt", "image_files", "resnet"])
def test_it_learns_and_is_ranked_by_its_metric(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # files that an example makes
    search = load_search(EXAMPLES / name / "search.toml")
    task = load_task(search.task, EXAMPLES / name, tmp_path)
    ones = [trial_of(search, i) for i in range(2)]
    logged: list[str] = []
    found = outcomes(
        ones,
        task=task,
        metric=search.metric,
        mode=search.mode,
        dtype=torch.float32,
        width=2,
        log=logged.append,
    )
    for outcome in found.values():
        assert outcome.state is TrialState.COMPLETED, outcome.reason
        values = [value for value in outcome.curves["val_loss"] if value is not None]
        assert values[-1] < values[0] and outcome.value is not None
        # Convolutions are timed, and train one by one where that is faster.
        assert outcome.array_width == 2 or name in ("image_files", "resnet")
    assert not any("alone" in line for line in logged), logged

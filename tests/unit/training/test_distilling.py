"""Distillation.

The loss is compared with torch's, and whole trials with a plain loop. The tests also cover which
trials may distill.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from common.search.search_file import parse_search
from common.search.stage import Stage
from common.search.trial import TrialState
from tests.unit.training.helpers import (
    SEARCH_SEED,
    FreeWatch,
    SmallDigits,
    engine,
    job,
    load,
    outcomes,
    states_at,
    weights,
)
from tests.unit.training.references import covers
from tests.unit.worker.looped import own_of
from worker.training.math.distilling import Distilling, pack_targets
from worker.training.math.losses import CrossEntropy, Hinge
from worker.training.stacked.batches import shuffle

K, B, C = 8, 12, 5
STAGES = {"coarse": Stage(name="coarse", trials=4, epochs=3, kind="distill")}
SOFT = [
    {"distill_temperature": 1.0 + 2 * i, "distill_mix": 0.3 * i, "learning_rate": 0.05 + 0.02 * i}
    for i in range(4)
]
TEMPERATURES = torch.logspace(-0.9, 1, K, dtype=torch.float64).unsqueeze(-1)
MIXES = torch.linspace(0, 1, K, dtype=torch.float64).unsqueeze(-1)


def drawn(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(outputs, logs, targets, temperature, mix, hard):
    """As the paper has it, by torch's own KL divergence."""
    soft = nn.functional.kl_div(
        (outputs / temperature).log_softmax(-1),
        (logs / temperature).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - mix) * hard(outputs, targets) + mix * temperature**2 * soft


SMOOTHING = torch.full((K, 1), 0.2, dtype=torch.float64)
HARD = {
    "cross_entropy": (CrossEntropy(C), {}, nn.CrossEntropyLoss()),
    "smoothed": (
        CrossEntropy(C),
        {"label_smoothing": SMOOTHING},
        nn.CrossEntropyLoss(label_smoothing=0.2),
    ),
    "hinge": (Hinge(C), {}, lambda s, t: C * nn.functional.multi_margin_loss(s, t)),
}


@covers("distill_temperature", "distill_mix")
@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("shared", [True, False])
def test_the_loss_and_its_gradient_are_those_of_torch_in_every_slot(shared, hard):
    objective, values, of_torch = HARD[hard]
    outputs, logs = (
        5 * drawn(K, B, C),
        (3 * drawn(*(() if shared else (K,)), B, C, seed=2)).log_softmax(-1),
    )
    y = torch.randint(C, logs.shape[:-1], generator=torch.Generator().manual_seed(3))
    values = {**values, "distill_temperature": TEMPERATURES, "distill_mix": MIXES}
    found = Distilling(objective)(
        outputs, pack_targets(logs, y, torch.float64) if shared else _packed(logs, y), values
    )
    for slot in range(K):
        leaf = outputs[slot].clone().requires_grad_()
        own_logs, own_y = (logs, y) if shared else (logs[slot], y[slot])
        loss = reference(
            leaf, own_logs, own_y, float(TEMPERATURES[slot]), float(MIXES[slot]), of_torch
        )
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert float(found.mean[slot]) == pytest.approx(float(loss.detach()), rel=1e-12)
        assert (found.gradient[slot] - gradient).abs().max() <= 1e-12 * gradient.abs().max()
        assert int(found.correct[slot]) == int((outputs[slot].argmax(-1) == own_y).sum())


def _packed(logs, y):
    return torch.stack(
        [pack_targets(one, classes, torch.float64) for one, classes in zip(logs, y, strict=True)]
    )


def test_a_class_that_model_and_teacher_rule_out_costs_nothing():
    outputs, logs = drawn(1, B, C), drawn(B, C, seed=2).log_softmax(-1)
    outputs[..., 4], logs[:, 4] = -math.inf, -1e4
    values = {"distill_temperature": torch.tensor([[2.0]]), "distill_mix": torch.tensor([[0.5]])}
    found = Distilling(CrossEntropy(C))(
        outputs, pack_targets(logs, torch.zeros(B, dtype=torch.int64), torch.float64), values
    )
    assert found.mean.isfinite().all() and found.gradient.isfinite().all()


def teacher(n=320, classes=10):
    """What an ensemble might say: near the truth, and sure of little."""
    data = SmallDigits().data()
    scores = drawn(n, classes, seed=5)
    scores[torch.arange(n), data.train.targets] += 2
    return scores.log_softmax(-1)


def teach(stage, data, beat):
    assert stage == "coarse" and len(data.train) == 320
    beat()
    return teacher().float()


def plain(of, epochs=3):
    """The same trial by plain PyTorch; its weights and losses."""
    hp, data = of.trial.hyperparameters, SmallDigits().data()
    torch.manual_seed(of.trial.seed)
    module = SmallDigits().model(hp).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=hp["learning_rate"])
    inputs, logs, losses = data.train.inputs.double(), teacher().float().double(), []
    for epoch in range(epochs):
        for rows in shuffle(320, SEARCH_SEED, epoch).split(64):
            loss = reference(
                module(inputs[rows]),
                logs[rows],
                data.train.targets[rows],
                hp["distill_temperature"],
                hp["distill_mix"],
                nn.CrossEntropyLoss(),
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return torch.cat([tensor.flatten() for tensor in module.state_dict().values()]), losses


@pytest.mark.parametrize("width", [1, 4])
def test_trials_that_distill_are_those_of_a_plain_loop(width):
    jobs = [job(i, **hp) for i, hp in enumerate(SOFT)]
    found = outcomes(jobs, stages=STAGES, teach=teach, width=width, backend="eager")
    for one in jobs:
        expected, losses = plain(one)
        assert found[one.id].array_width == width
        content = load(found[one.id].checkpoint()) if found[one.id].best_epoch == 3 else None
        means = torch.tensor(losses).view(3, -1).mean(1).tolist()
        assert found[one.id].curves["train_loss"] == pytest.approx(means, rel=1e-6)
        assert content is None or (weights(content) - expected).abs().max() <= 1e-10
    assert any(outcome.best_epoch == 3 for outcome in found.values()), (
        "shows nothing of the weights"
    )


WAYS = [
    "traced",
    pytest.param(
        "compiled",
        marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_prepared_steps_are_the_eager_ones(way):
    jobs = [job(i, 2, dropout=0.1, **hp) for i, hp in enumerate(SOFT)]
    through = engine(stages=STAGES, teach=teach, backend=way)
    found = {
        o.trial.id: o
        for boundary in through.train(jobs, lambda n: [], FreeWatch())
        for o in boundary.ended
    }
    assert through.backend.startswith(f"{way}: "), through.backend
    for name, eager in outcomes(jobs, stages=STAGES, teach=teach, backend="eager").items():
        assert found[name].curves["train_loss"] == pytest.approx(
            eager.curves["train_loss"], rel=1e-9
        )
        assert found[name].curves["val_loss"] == pytest.approx(eager.curves["val_loss"], rel=1e-9)


def test_slots_at_different_batches_learn_each_from_its_own_examples():
    jobs = [job(i, 1 + i, **hp) for i, hp in enumerate(SOFT[1:])]
    late = iter([[job(7, 2, **SOFT[3])]])
    ended = {}
    for boundary in engine(stages=STAGES, teach=teach, width=3, backend="eager").train(
        jobs, lambda n: next(late, []), FreeWatch()
    ):
        ended |= {o.trial.id: o for o in boundary.ended}
    alone = outcomes([job(7, 2, **SOFT[3])], stages=STAGES, teach=teach, width=1)["coarse-0007"]
    assert ended["coarse-0007"].array_width > 1
    assert ended["coarse-0007"].curves["train_loss"] == pytest.approx(
        alone.curves["train_loss"], rel=1e-10
    )


def test_without_a_share_of_the_teacher_nothing_is_different():
    own = {"learning_rate": 0.1, "label_smoothing": 0.1}
    distilled = outcomes(
        [job(0, **own, distill_mix=0.0, distill_temperature=3.0)], stages=STAGES, teach=teach
    )["coarse-0000"]
    usual = outcomes([job(0, **own)])["coarse-0000"]
    assert (
        distilled.curves["train_loss"] == usual.curves["train_loss"]
        and distilled.curves["val_loss"] == usual.curves["val_loss"]
    )


def test_validation_is_that_of_all_trials():
    found = outcomes(
        [job(0, learning_rate=1e-9, distill_mix=1.0, distill_temperature=5.0)],
        stages=STAGES,
        teach=teach,
    )["coarse-0000"]
    usual = outcomes([job(0, learning_rate=1e-9)])["coarse-0000"]
    assert (
        found.val_loss == pytest.approx(usual.val_loss, abs=1e-6)
        and found.guess_loss == usual.guess_loss
    )


def test_a_stage_that_distills_shares_no_array_with_one_that_searches():
    stages = {**STAGES, "fine": Stage(name="fine", trials=4, epochs=3)}
    other = job(1)
    other = replace(other, trial=replace(other.trial, id="fine-0001", stage="fine"))
    found = outcomes([job(0, **SOFT[1]), other], stages=stages, teach=teach)
    assert {outcome.array_width for outcome in found.values()} == {1}


def test_a_resumed_trial_goes_on_as_if_nothing_had_been():
    more = {"stages": STAGES, "teach": teach, "backend": "eager"}
    whole = outcomes([job(0, **SOFT[2])], **more)["coarse-0000"]
    half = states_at([job(0, **SOFT[2])], 1, **more)["coarse-0000"]
    again = outcomes([job(0, resume=half, **SOFT[2])], **more)["coarse-0000"]
    assert again.curves["train_loss"] == whole.curves["train_loss"]


class OwnLossDigits(SmallDigits):
    def loss(self, outputs, targets, hp):
        return nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("task", "given", "why"),
    [
        (OwnLossDigits(), teach, "and the task has a loss of its own; remove [stages.coarse]"),
        (SmallDigits(), None, "and no ensemble is available here"),
    ],
)
def test_what_cannot_be_distilled_fails_with_one_message(task, given, why):
    found = outcomes([job(0, **SOFT[1])], task=task, stages=STAGES, teach=given)["coarse-0000"]
    assert found.state is TrialState.FAILED
    assert why in (found.reason or "")


SEARCH = """
name = "own"
task = "mine.py:train"
[space]
learning_rate = 0.1
[stages.first]
trials = 1
epochs = 1
[stages.coarse]
kind = "distill"
trials = 1
epochs = 1
"""


def test_a_loop_of_ones_own_is_refused():
    def train(trial):
        raise AssertionError("called")

    loop = own_of(train, parse_search(SEARCH))
    boundaries = list(loop.train([job(0, 1)], lambda n: [], FreeWatch()))
    (ended,) = [outcome for boundary in boundaries for outcome in boundary.ended]
    assert ended.state is TrialState.FAILED and "a loop of its own; remove [stages.coarse]" in (
        ended.reason or ""
    )

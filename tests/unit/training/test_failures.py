"""What raises costs the trial that raises, and no other."""

import copy

import pytest
import torch
from torch import nn

from common.search.trial import TrialState
from tests.unit.training.helpers import SmallDigits, boundaries, job, outcomes
from tests.unit.training.test_slots import assert_same
from worker.tasks.digits import Digits
from worker.training.stacked.stack import Stack


class Fragile(nn.Module):
    """Raises in training once its step count, a buffer, passes its limit."""

    def __init__(self, chain, limit):
        super().__init__()
        self.chain, self.limit = chain, limit

    def forward(self, inputs):
        if self.training and self.limit[0] <= 0:
            raise ValueError("the ice is thin")
        self.limit[0] -= self.training
        return self.chain(inputs)


class FragileDigits(SmallDigits):
    def model(self, hp):
        return Fragile(Digits().model(hp), [hp.get("limit", 10**6)])


class BrokenModel(SmallDigits):
    def model(self, hp):
        if hp["hidden"] == 13:
            raise RuntimeError("thirteen is not a width")
        return super().model(hp)


def test_a_model_that_cannot_be_built_fails_its_own_trial_with_the_traceback():
    found = outcomes([job(0), job(1, hidden=13), job(2)], task=BrokenModel())
    assert found["coarse-0001"].state == TrialState.FAILED
    assert found["coarse-0001"].reason == "RuntimeError: thirteen is not a width"
    assert 'raise RuntimeError("thirteen is not a width")' in found["coarse-0001"].traceback
    assert [found[f"coarse-000{i}"].state for i in (0, 2)] == [TrialState.COMPLETED] * 2


class NoModule(SmallDigits):
    def model(self, hp):
        return lambda inputs: inputs


class Missing(SmallDigits):
    def model(self, hp):
        assert "width" not in hp and hp.get("width", 3) == 3
        return nn.Linear(64, hp["width"])


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (NoModule, "model(hp) returned <function NoModule.model"),
        (Missing, 'hp["width"]: [space] has no width (hidden, depth'),
    ],
)
def test_a_model_that_is_none_or_reads_what_is_not_there_is_told_with_the_remedy(task, says):
    reason = outcomes([job(0)], task=task())["coarse-0000"].reason
    assert reason.startswith(
        f"TaskError: {says}" if task is NoModule else f"MissingHyperparameterError: {says}"
    )
    assert ("return a torch.nn.Module" if task is NoModule else 'hp.get("width", ...)') in reason


def test_ranking_by_an_average_that_no_trial_keeps_is_told():
    reason = outcomes([job(0)], metric="ema_val_acc")["coarse-0000"].reason
    assert "running average" in reason and "add ema = 0.99 to [space]" in reason


def test_data_that_cannot_be_loaded_fails_every_trial():
    class NoData(SmallDigits):
        def data(self):
            raise OSError("the disk is gone")

    found = outcomes([job(0), job(1)], task=NoData())
    assert {outcome.state for outcome in found.values()} == {TrialState.FAILED}
    assert found["coarse-0000"].reason == "data() raised OSError: the disk is gone"


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (
            nn.Linear(16, 7),
            (
                "TaskError: the model returns (64, 7) for 64 examples; logits of shape (64, 10) "
                "are needed"
            ),
        ),
        (nn.Linear(15, 10), "mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_told(last, reason):
    class Misfit(SmallDigits):
        def model(self, hp):
            return nn.Sequential(*Digits().model(hp)[:-1], copy.deepcopy(last))

    found = outcomes([job(0), job(1)], task=Misfit())
    assert {outcome.state for outcome in found.values()} == {TrialState.FAILED}
    assert all(reason in outcome.reason for outcome in found.values())


def test_a_model_without_parameters_is_told():
    class Empty(SmallDigits):
        def model(self, hp):
            return nn.Identity()

    assert "has no parameter to train" in outcomes([job(0)], task=Empty())["coarse-0000"].reason


@pytest.mark.parametrize(
    ("hp", "reason"),
    [
        (
            {"optimizer": "sgdd"},
            "optimizer = 'sgdd': use one of sgd, adagrad, rmsprop, adam, adamw",
        ),
        ({"learning_rate": -1.0}, "learning_rate = -1.0: a number in [0, inf) is needed"),
        ({"momentum": 1.0}, "momentum = 1.0"),
        ({"nesterov": True}, "nesterov = true looks ahead along the momentum, which is 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"hidden": "wide"}, "hidden = 'wide'"),
        ({"dropout": 1.0}, "dropout = 1.0"),
    ],
)
def test_a_hyperparameter_that_cannot_be_used_is_named(hp, reason):
    found = outcomes([job(0, **hp)])["coarse-0000"]
    assert found.state == TrialState.FAILED
    assert reason in found.reason


def test_a_hyperparameter_that_nobody_reads_is_told_once():
    said = []
    outcomes([job(i, 1, weight_dcay=0.1) for i in range(3)], log=said.append)
    assert said == [
        (
            "hyperparameter weight_dcay is used by neither the task nor the training; remove "
            "it from [space] or read it in model()"
        )
    ]


def test_where_a_stacked_step_raises_the_trials_go_on_alone_and_only_the_guilty_fails():
    jobs = [job(0, 2), job(1, 2, limit=5), job(2, 2)]
    found = outcomes(jobs, task=FragileDigits())
    assert found["coarse-0001"].state == TrialState.FAILED
    assert "ValueError: the ice is thin" in found["coarse-0001"].reason
    assert "the ice is thin" in found["coarse-0001"].traceback
    assert [found[f"coarse-000{i}"].state for i in (0, 2)] == [TrialState.COMPLETED] * 2


def test_a_trial_whose_forward_always_raises_fails_and_the_engine_lives():
    found = outcomes([job(0, 2, limit=0), job(1, 2)], task=FragileDigits())
    assert {outcome.trial.id: outcome.state for outcome in found.values()} == {
        "coarse-0000": TrialState.FAILED,
        "coarse-0001": TrialState.COMPLETED,
    }


def raising_in_step(monkeypatch, error, wider_than, after):
    """Makes steps of wide arrays raise once there have been some."""
    genuine, done = Stack.step, []

    def step(self, *arguments):
        done.append(self.width)
        if self.width > wider_than and len(done) > after:
            raise error
        return genuine(self, *arguments)

    monkeypatch.setattr(Stack, "step", step)
    return done


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_goes_on_at_half_the_width_from_where_it_was(monkeypatch, error):
    jobs = [job(i, 2, dropout=0.2, momentum=0.9) for i in range(8)]
    expected = outcomes(jobs)
    said = []
    widths = raising_in_step(monkeypatch, error, wider_than=2, after=7)
    found = outcomes(jobs, log=said.append)
    assert_same(found, expected)
    assert widths[0] == 8 and widths[-1] == 2 and 4 in widths
    assert "out of memory with 8 trials at a time: going on with 4" in said
    assert len([w for w in widths if w == 2]) <= 4 * 10, "no step is done twice"


def test_a_step_that_raises_in_an_array_only_loses_nothing(monkeypatch):
    jobs = [job(i, 2, dropout=0.2) for i in range(3)]
    expected = outcomes(jobs)
    raising_in_step(monkeypatch, RuntimeError("no such kernel"), wider_than=1, after=6)
    said = []
    assert_same(outcomes(jobs, log=said.append), expected)
    assert len(said) == 1 and "a stacked step raised RuntimeError: no such kernel" in said[0]


def test_out_of_memory_alone_fails_the_trial(monkeypatch):
    raising_in_step(
        monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), wider_than=0, after=0
    )
    found = outcomes([job(0, 2), job(1, 2)])
    assert {outcome.state for outcome in found.values()} == {TrialState.FAILED}
    assert "out of memory" in found["coarse-0000"].reason


def test_trials_between_two_arrays_are_handed_back_as_running(monkeypatch):
    raising_in_step(monkeypatch, RuntimeError("no such kernel"), wider_than=1, after=7)
    first = list(boundaries([job(i, 3) for i in range(3)]))[1]
    assert {view.trial.id for view in first.running} == {
        "coarse-0000",
        "coarse-0001",
        "coarse-0002",
    }
    assert all(view.epoch > 1 and view.state() for view in first.running)
    assert first.waiting == []

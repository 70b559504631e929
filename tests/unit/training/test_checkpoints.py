"""A weights file is a plain model's, and says what it holds."""

import pytest
import torch

from common.errors import CheckpointError, TaskError
from tests.unit.training.helpers import SmallDigits, digits, job, load, outcomes
from tests.unit.training.test_structure import NormDigits, WrappedDigits
from worker.tasks.base import Data
from worker.training.outcome.evaluate import load as load_saved
from worker.training.outcome.evaluate import n_correct, read_checkpoint, read_test_part

CPU = torch.device("cpu")


@pytest.mark.parametrize("task", [SmallDigits, NormDigits, WrappedDigits])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_it_loads_into_the_plain_model_and_reproduces_the_validation_accuracy(
    task, optimizer, tmp_path
):
    jobs = [
        job(
            i,
            6,
            dropout=0.4,
            learning_rate=0.01 if optimizer == "adam" else 0.5,
            optimizer=optimizer,
        )
        for i in range(3)
    ]
    for outcome in outcomes(jobs, task=task(), dtype=torch.float32).values():
        content = load(outcome.checkpoint())
        trial = outcome.trial
        model = task().model(content["hyperparameters"])
        model.load_state_dict(content["model"], strict=True)
        model.eval()
        val = digits().val
        accuracy = float((model(val.inputs).argmax(-1) == val.targets).double().mean())
        assert accuracy == pytest.approx(outcome.val_acc) and accuracy == max(
            outcome.curves["val_acc"]
        )
        assert content["epoch"] == outcome.best_epoch == outcome.curves["epoch"][
            outcome.curves["val_acc"].index(outcome.val_acc)
        ] or (outcome.curves["val_acc"].count(outcome.val_acc) > 1)
        assert (content["trial"], content["attempt"], content["seed"], content["task"]) == (
            trial.id,
            1,
            trial.seed,
            "digits",
        )
        assert content["hyperparameters"] == trial.hyperparameters
        assert content["optimizer"]["name"] == optimizer
        path = tmp_path / f"{trial.id}.pt"
        path.write_bytes(outcome.checkpoint())
        assert n_correct(load_saved(path, task(), "digits", CPU), val) == round(
            outcome.val_acc * len(val)
        )


def test_it_holds_one_trial_and_not_the_whole_array():
    jobs = [job(i, 1) for i in range(16)]
    sizes = {len(outcome.checkpoint()) for outcome in outcomes(jobs, dtype=torch.float32).values()}
    parameters = sum(
        p.numel() for p in SmallDigits().model(jobs[0].trial.hyperparameters).parameters()
    )
    assert max(sizes) < 2 * 4 * parameters + 8000  # weights and momentum in single precision


def test_it_is_the_same_after_the_slot_has_been_given_to_another():
    kept = outcomes([job(i, 1 + i % 2) for i in range(6)], width=2)
    fresh = outcomes([job(0, 1)])
    assert kept["coarse-0000"].checkpoint() == fresh["coarse-0000"].checkpoint() or torch.allclose(
        load(kept["coarse-0000"].checkpoint())["model"]["0.weight"],
        load(fresh["coarse-0000"].checkpoint())["model"]["0.weight"],
        atol=1e-12,
    )


def test_a_saved_model_is_measured_on_the_test_part(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(
        outcomes([job(0, 10, learning_rate=0.3, hidden=64)])["coarse-0000"].checkpoint()
    )
    part = read_test_part(SmallDigits())
    assert (
        len(part) == 360
        and n_correct(load_saved(path, SmallDigits(), "digits", CPU), part) / 360 > 0.7
    )


def test_what_cannot_be_evaluated_is_told(tmp_path):
    class NoTest(SmallDigits):
        def data(self):
            data = super().data()
            return Data(data.train, data.val, None, data.n_classes)

    good, cut, other = tmp_path / "good.pt", tmp_path / "cut.pt", tmp_path / "other.pt"
    content = outcomes([job(0, 1)])["coarse-0000"].checkpoint()
    good.write_bytes(content)
    cut.write_bytes(content[: len(content) // 2])
    torch.save({"weights": 1}, other)
    with pytest.raises(TaskError, match="no test part"):
        read_test_part(NoTest())
    with pytest.raises(CheckpointError, match=r"cut\.pt: is damaged or no checkpoint"):
        load_saved(cut, SmallDigits(), "digits", CPU)
    with pytest.raises(CheckpointError, match=r"other\.pt: holds no model"):
        load_saved(other, SmallDigits(), "digits", CPU)
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="does not fit the task's model"):
        load_saved(good, WrappedDigits(), "digits", CPU)
    with pytest.raises(CheckpointError, match=r"is a checkpoint of task 'digits', not of 'mnist'"):
        load_saved(good, SmallDigits(), "mnist", CPU)

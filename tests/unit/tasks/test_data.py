import pytest
import torch

from common.errors import TaskError
from worker.tasks import Data, Part


def part(targets, inputs=None):
    return Part(torch.zeros(len(targets), 2) if inputs is None else inputs, targets)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(2, 2), [0, 1], "targets are a list, not a torch.Tensor"),
        (torch.zeros(2, 2), torch.tensor([0.0, 1.0]), r"targets are torch.float32 of shape \(2,\)"),
        (torch.zeros(3, 2), torch.tensor([0, 1]), "3 inputs and 2 targets"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "0 inputs and 0 targets"),
    ],
)
def test_a_part_that_does_not_fit_together_is_told(inputs, targets, message):
    with pytest.raises(TaskError, match=message):
        Part(inputs, targets)


def test_a_target_that_is_no_class_is_told():
    good, bad = part(torch.tensor([0, 1])), part(torch.tensor([1, 2]))
    assert Data(good, good, None, 2).n_classes == 2
    with pytest.raises(TaskError, match="val targets run from 1 to 2; with n_classes = 2 they lie in 0 to 1"):
        Data(good, bad, None, 2)

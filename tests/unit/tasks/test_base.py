import math
import re

import pytest
import torch

from common.errors import TaskError
from worker.tasks import Data, Part
from worker.tasks.base import check_metric, data_of, find_metrics, model_of, own_loss, own_metrics


def part(targets, inputs=None):
    return Part(torch.zeros(len(targets), 2) if inputs is None else inputs, targets)


CLASSES = part(torch.tensor([0, 1]))
VALUES = part(torch.tensor([0.5, -1.5]))


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(2, 2), [0, 1], "targets are a list, not a torch.Tensor"),
        (torch.zeros(3, 2), torch.tensor([0, 1]), "3 inputs and 2 targets"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "0 inputs and 0 targets"),
        (torch.zeros(()), torch.zeros(2), "inputs are a single number"),
        (
            torch.tensor([[0.0, 1.0], [math.nan, 2.0]]),
            torch.tensor([0, 1]),
            r"1 of 4 inputs are not finite, the first in example 1 \(nan\)",
        ),
        (
            torch.zeros(2, 2),
            torch.tensor([math.inf, 0.0]),
            r"1 of 2 targets are not finite, the first in example 0 \(inf\)",
        ),
    ],
)
def test_a_part_that_does_not_fit_together_is_told(inputs, targets, message):
    with pytest.raises(TaskError, match=message):
        Part(inputs, targets)


def test_large_values_are_no_fault():
    assert (
        len(
            Part(
                torch.full((4, 2), 60000.0, dtype=torch.float16), torch.zeros(4, dtype=torch.int64)
            )
        )
        == 4
    )


def test_a_target_that_is_no_class_is_told():
    assert Data(CLASSES, CLASSES, None, 2).n_classes == 2
    with pytest.raises(
        TaskError, match="val targets run from 1 to 2; with n_classes = 2 they lie in 0 to 1"
    ):
        Data(CLASSES, part(torch.tensor([1, 2])), None, 2)


@pytest.mark.parametrize(
    ("parts", "n_classes", "message"),
    [
        (
            (VALUES, VALUES, None),
            2,
            (
                r"train targets are torch.float32 of shape \(2,\); \(n,\) class numbers as "
                r"int64 .* or n_classes=None"
            ),
        ),
        ((CLASSES, CLASSES, None), 1, "n_classes = 1: a whole number of at least 2"),
        ((CLASSES, CLASSES, None), 2.0, "n_classes = 2.0: a whole number"),
        (
            (CLASSES, part(torch.tensor([0, 1]), torch.zeros(2, 3)), None),
            2,
            r"val inputs have the shape \(2, 3\), train inputs \(2, 2\)",
        ),
        (
            (VALUES, VALUES, part(torch.zeros(2, 3))),
            None,
            r"test targets have the shape \(2, 3\), train targets \(2,\)",
        ),
        (
            (CLASSES, part(torch.tensor([0, 1], dtype=torch.int32)), None),
            2,
            "val targets are torch.int32, train targets torch.int64",
        ),
        (
            (CLASSES, (torch.zeros(2), torch.zeros(2)), None),
            2,
            r"val is a tuple; wrap it: Part\(inputs, targets\)",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other_are_told(parts, n_classes, message):
    with pytest.raises(TaskError, match=message):
        Data(*parts, n_classes)


class Regression:
    metrics = {"val_mae": lambda outputs, targets: (outputs - targets).abs().mean()}  # noqa: RUF012

    def data(self):
        return Data(VALUES, VALUES, None, None)

    def model(self, hp):
        return torch.nn.Linear(2, 1)

    def loss(self, outputs, targets, hp):
        return (outputs - targets).square().mean()


class NoLoss(Regression):
    loss = None


class Tuple(Regression):
    def data(self):
        return VALUES, VALUES


def test_targets_may_be_anything_where_the_task_brings_its_own_loss():
    task = Regression()
    assert data_of(task).n_classes is None and own_loss(task) is not None
    assert list(own_metrics(task)) == ["val_mae"]
    assert find_metrics(task, None) == ("val_loss", "val_mae")
    assert find_metrics(task, 3) == ("val_loss", "val_acc", "val_mae")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (NoLoss(), r"n_classes is None, so the task needs a loss\(outputs, targets, hp\)"),
        (Tuple(), "data.. returned a tuple; return Data"),
    ],
)
def test_data_that_nothing_can_be_trained_on_is_told(task, message):
    with pytest.raises(TaskError, match=message):
        data_of(task)


def test_a_metric_that_is_not_measured_is_told_with_those_that_are():
    check_metric("val_mae", find_metrics(Regression(), None))
    with pytest.raises(
        TaskError,
        match=(
            r'metric = "val_acc": the task does not measure it; it measures val_loss, '
            r"val_mae\. Name one"
        ),
    ):
        check_metric("val_acc", find_metrics(Regression(), None))


@pytest.mark.parametrize(
    ("method", "told"), [(data_of, "data()"), (lambda task: model_of(task, {}), "model(hp)")]
)
def test_a_task_that_exits_does_not_end_the_process(method, told):
    class Leaving:
        def data(self):
            raise SystemExit("no data today")

        def model(self, hp):
            raise SystemExit(3)

    with pytest.raises(
        TaskError, match=rf"{re.escape(told)} called exit\(.*; raise an exception that says why"
    ):
        method(Leaving())

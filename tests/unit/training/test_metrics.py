import pytest
import torch
from sklearn.metrics import f1_score

from common.errors import TaskError
from worker.training.math.metrics import measure, stacking


def outputs_and_targets(n_slots=5, n=40):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n_slots, n, 3, generator=generator, dtype=torch.float64), torch.randint(
        3, (n,), generator=generator
    )


def error_rate(outputs, targets):
    return (outputs.argmax(-1) != targets).double().mean()


def macro_f1(outputs, targets):
    return f1_score(targets.numpy(), outputs.argmax(-1).numpy(), average="macro")


def worst_margin(outputs, targets):
    rows = [
        row for row in range(len(targets)) if outputs[row, targets[row]] < 1
    ]  # depends on the data: vmap cannot
    return outputs[rows, targets[rows]].min()


def in_batch(outputs, targets):
    return outputs.shape[0] + 0.0 * outputs.sum()


@pytest.mark.parametrize("function", [error_rate, macro_f1, worst_margin, in_batch])
def test_each_trial_gets_what_it_would_get_alone_at_every_evaluation(function):
    outputs, targets = outputs_and_targets()
    metrics = stacking({"own": function})
    for factor in (1.0, -1.0, 0.5):
        found = measure(metrics, outputs * factor, targets)["own"]
        assert found.tolist() == pytest.approx(
            [float(function(one * factor, targets)) for one in outputs]
        )
    assert measure(metrics, outputs[:1], targets)["own"].shape == (1,)


def test_plain_torch_is_computed_for_all_trials_at_once():
    calls = []

    def counted(outputs, targets):
        calls.append(1)
        return error_rate(outputs, targets)

    outputs, targets = outputs_and_targets(n_slots=30)
    metrics = stacking({"error": counted})
    measure(metrics, outputs, targets)
    calls.clear()
    measure(metrics, outputs, targets)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            lambda o, t: o.mean(0),
            r"metric own gives a tensor of shape \(3,\); one number is needed",
        ),
        (lambda o, t: "good", "gives 'good'"),
    ],
)
def test_what_is_not_one_number_is_told(value, message):
    with pytest.raises(TaskError, match=message):
        measure({"own": value}, *outputs_and_targets())


def test_regression_targets_of_any_shape():
    outputs, targets = torch.zeros(4, 10, 2, 2), torch.ones(10, 2, 2)
    assert (
        measure({"mae": lambda o, t: (o - t).abs().mean()}, outputs, targets)["mae"].tolist()
        == [1.0] * 4
    )

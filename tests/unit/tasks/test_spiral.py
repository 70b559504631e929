import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from common.errors import TaskError
from worker.tasks.spiral import Spiral


def test_the_parts_are_the_same_for_ever_and_share_no_point():
    data = Spiral().data()
    parts = [data.train, data.val, data.test]
    assert [len(part) for part in parts] == [300, 300, 600] and data.n_classes == 3
    assert all(part.targets.bincount().tolist() == [len(part) // 3] * 3 for part in parts)
    points = torch.cat([part.inputs for part in parts])
    assert points.shape == (1200, 2) and len(points.unique(dim=0)) == 1200
    assert float(points.norm(dim=1).max()) == pytest.approx(1)
    known = [[0.4850, -0.1577], [-0.3022, 0.4109], [-0.2658, -0.4353]]
    assert torch.allclose(data.train.inputs[[50, 150, 250]], torch.tensor(known), atol=1e-4)
    assert torch.allclose(
        torch.stack([data.val.inputs[50], data.test.inputs[-1]]),
        torch.tensor([[0.4646, -0.2103], [-0.6845, 0.7290]]),
        atol=1e-4,
    )


def test_no_line_tells_the_arms_apart_but_neighbours_do():
    data = Spiral().data()
    train, test = ((part.inputs.numpy(), part.targets.numpy()) for part in (data.train, data.test))
    assert LogisticRegression().fit(*train).score(*test) < 0.65
    assert KNeighborsClassifier(5).fit(*train).score(*test) > 0.95


def test_the_model_is_a_perceptron_of_two_inputs():
    assert Spiral().model({"hidden": 7, "depth": 1})(torch.zeros(4, 2)).shape == (4, 3)
    with pytest.raises(TaskError, match="hidden = 0"):
        Spiral().model({"hidden": 0})

"""The built-in models: their initial weights against torch's, and what they refuse."""

import math

import pytest
import torch
from torch import nn

from common.errors import TaskError
from common.search.hyperparameters import CONVNET, PERCEPTRON, Kind
from tests.unit.training.references import covers
from worker.tasks.digits import Digits
from worker.tasks.layers import GaussianDropout, Maxout
from worker.tasks.models import (
    ACTIVATIONS,
    DROPOUTS,
    INITS,
    convnet,
    mean_square_of_largest,
    perceptron,
)


def test_the_registries_are_what_a_search_file_accepts():
    for name, registry in (
        ("activation", ACTIVATIONS),
        ("init", INITS),
        ("dropout_kind", DROPOUTS),
    ):
        entry = PERCEPTRON[name]
        assert isinstance(entry, Kind) and set(entry.options) == set(registry)


STARTS = {
    "he": {
        "relu": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
        "leaky_relu": lambda w: nn.init.kaiming_normal_(w, a=0.3, nonlinearity="leaky_relu"),
        "prelu": lambda w: nn.init.kaiming_normal_(w, a=0.3, nonlinearity="leaky_relu"),
        "tanh": lambda w: nn.init.kaiming_normal_(w, nonlinearity="tanh"),
        "sigmoid": lambda w: nn.init.kaiming_normal_(w, nonlinearity="sigmoid"),
    },
    "xavier": {"relu": nn.init.xavier_normal_, "tanh": nn.init.xavier_normal_},
    "gaussian": {
        "relu": lambda w: nn.init.normal_(w, std=0.05),
        "tanh": lambda w: nn.init.normal_(w, std=0.05),
    },
}


@covers("init_scale", init=INITS)
@pytest.mark.parametrize(
    ("init", "activation"),
    [(init, activation) for init, kinds in STARTS.items() for activation in kinds],
)
def test_weights_start_as_torch_starts_them(init, activation):
    hp = {
        "init": init,
        "activation": activation,
        "negative_slope": 0.3,
        "init_scale": 0.05,
        "hidden": 7,
    }
    torch.manual_seed(1)
    found = [layer for layer in perceptron(hp, 11, 3) if isinstance(layer, nn.Linear)]
    torch.manual_seed(1)
    for layer in found:
        expected = nn.Linear(layer.in_features, layer.out_features)
        STARTS[init][activation](expected.weight)
        assert torch.allclose(layer.weight, expected.weight, rtol=1e-6)
        assert not layer.bias.any()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "maxout"])
def test_hes_start_keeps_the_spread_through_many_layers(activation):
    torch.manual_seed(2)
    model = perceptron(
        {"activation": activation, "depth": 8, "hidden": 400, "pieces": 3, "negative_slope": 0.5},
        400,
        10,
    )
    logits = model(torch.randn(200, 400))
    assert 0.5 < float(logits.detach().std()) < 2.5


def test_the_largest_of_two_normal_numbers_has_a_mean_square_of_one():
    assert mean_square_of_largest(1) == pytest.approx(1)
    assert mean_square_of_largest(2) == pytest.approx(1)
    drawn = (
        torch.randn(400_000, 4, generator=torch.Generator().manual_seed(1)).amax(1).square().mean()
    )
    assert mean_square_of_largest(4) == pytest.approx(float(drawn), rel=0.01)


def test_the_default_perceptron_draws_what_it_always_drew():
    torch.manual_seed(9)
    found = Digits().model({"hidden": 12, "depth": 2, "dropout": 0.4})
    torch.manual_seed(9)
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((64, 12), (12, 12), (12, 10)):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU(), nn.Dropout(0.4)]
    expected = nn.Sequential(*layers[:-2])
    assert str(found) == str(expected)
    assert all(
        torch.equal(a, b)
        for a, b in zip(found.state_dict().values(), expected.state_dict().values(), strict=True)
    )
    assert found.state_dict().keys() == expected.state_dict().keys()


def test_maxout_takes_the_largest_and_gaussian_dropout_keeps_the_mean():
    inputs = torch.tensor([[1.0, 2.0, 3.0, -1.0, 5.0, 0.0]])
    assert Maxout(2)(inputs).tolist() == [[1.0, 5.0, 3.0]]
    assert Maxout(3)(inputs.view(1, 6, 1, 1)).shape == (1, 2, 1, 1)
    layer = GaussianDropout(0.5)
    noisy = layer(torch.ones(100_000))
    assert float(noisy.mean()) == pytest.approx(1, abs=0.02) and float(
        noisy.std()
    ) == pytest.approx(1, abs=0.02)
    assert torch.equal(layer.eval()(inputs), inputs)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\)"):
        GaussianDropout(1.0)


def test_every_kind_of_convolutional_net_makes_a_logit_a_class():
    images = torch.randn(2, 3, 9, 12)
    for activation in ACTIVATIONS:
        model = convnet(
            {
                "activation": activation,
                "batch_norm": True,
                "filters": 2,
                "blocks": 3,
                "hidden": 5,
                "input_dropout": 0.1,
            },
            (3, 9, 12),
            7,
        )
        assert model(images).shape == (2, 7)
        assert [
            m.out_channels // (2 if activation == "maxout" else 1)
            for m in model
            if isinstance(m, nn.Conv2d)
        ] == [2, 4, 8]


@pytest.mark.parametrize(
    ("hp", "told"),
    [
        ({"hidden": 0}, "hidden = 0: a whole number of at least 1 is needed"),
        ({"dropout": 1.0}, "dropout = 1.0: a number in [0, 1) is needed"),
        ({"activation": "swish"}, "activation = 'swish': use one of relu, leaky_relu"),
        ({"init": "zero"}, "init = 'zero': use one of he, xavier, gaussian"),
        ({"batch_norm": 1}, "batch_norm = 1: use one of false, true"),
        (
            {"activation": "maxout", "pieces": 1},
            "pieces = 1: a whole number of at least 2 is needed",
        ),
        ({"blocks": 4}, "blocks = 4: each halves the image, and 8x8 pixels are too few"),
    ],
)
def test_what_no_model_has_is_refused_with_the_remedy(hp, told):
    with pytest.raises(TaskError) as caught:
        convnet(hp, (1, 8, 8), 10)
    assert str(caught.value).startswith(told) and str(caught.value).endswith("correct [space]")


def test_all_names_of_the_vocabulary_are_read():
    read = set()

    class Spy(dict):
        def get(self, name, default=None):
            read.add(name)
            return super().get(name, default)

        def __contains__(self, name):
            read.add(name)
            return super().__contains__(name)

    for hp in (
        {"activation": "leaky_relu", "init": "gaussian"},
        {"activation": "elu"},
        {"activation": "maxout"},
    ):
        convnet(Spy(hp), (1, 8, 8), 10)
        perceptron(Spy(hp), 8, 10)
    assert read == {*PERCEPTRON, *CONVNET} - {"model"}  # which of the two: the image tasks choose
    assert math.isclose(float(PERCEPTRON["negative_slope"].default or 0), 0.01)

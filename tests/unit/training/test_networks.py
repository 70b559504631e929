"""Stacked models compared with plain modules and torch.autograd in double precision.

The tests compare outputs, gradients and running statistics.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.unit.training.helpers import (
    SmallDigits,
    digits,
    dropout_mask,
    job,
    outcomes,
    states_at,
    weights,
)
from tests.unit.training.references import covers
from worker.tasks.layers import GaussianDropout, Maxout
from worker.tasks.models import ACTIVATIONS, convnet, perceptron
from worker.training.math.noise import DropoutMasks, active_layers, noise_keys
from worker.training.math.recipe import read_recipe
from worker.training.model.look import look
from worker.training.model.networks import ChainNetwork, network_for
from worker.training.model.structure import chain_of, prepare
from worker.training.model.vmap_networks import LoneNetwork, RecurrentNetwork, StackedNetwork
from worker.training.stacked.rows import fresh_rows

K, B, N, C = 8, 10, 6, 4
CPU = torch.device("cpu")


class Masked(nn.Module):
    """Dropout with the noise that it is given."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, inputs):
        return inputs * self.mask if self.training else inputs


class Trial:
    """Plain modules, and the same stacked."""

    def __init__(self, build, configurations, shape=(N,), network=None, targets_shape=(C,)):
        modules = []
        for seed, hp in enumerate(configurations):
            torch.manual_seed(seed)
            modules.append(build(hp).double())
        self.plain = copy.deepcopy(modules)
        recipe = read_recipe({"learning_rate": 0.1})
        self.models = [prepare(module, recipe, alone=False) for module in modules]
        self.model = self.models[0]
        generator = torch.Generator().manual_seed(5)
        self.inputs = torch.randn(B, *shape, dtype=torch.float64, generator=generator)
        self.gradient = torch.randn(
            len(modules), B, *targets_shape, dtype=torch.float64, generator=generator
        )
        self.rows = fresh_rows(self.models, range(len(self.models)), CPU, torch.float64)
        self.flat = self.rows["flat"]
        self.gradients = torch.full_like(self.flat, torch.nan)
        self.buffers = {
            name.removeprefix("buffer."): t
            for name, t in self.rows.items()
            if name.startswith("buffer.")
        }
        shapes = look(self.model, self.inputs, None).shapes
        self.masks = self._masks(shapes)
        self.network = (network or StackedNetwork)(self.model)
        self.network.bind(self.flat, self.gradients, self.buffers)
        for slot, module in enumerate(self.plain):
            for name, mask in zip(self.model.dropouts, self.masks, strict=True):
                parent, _, child = name.rpartition(".")
                setattr(
                    module.get_submodule(parent),
                    child,
                    Masked(mask[slot]) if mask.numel() else nn.Identity(),
                )

    def _masks(self, shapes):
        keys = noise_keys(
            self.rows["seed"], torch.zeros(1, len(self.models), dtype=torch.int64), len(shapes)
        )[0]
        active = active_layers(self.rows["scale"], self.model.noises)
        masks = DropoutMasks(
            len(self.models), shapes, CPU, torch.float64, self.model.noises, active
        )
        return masks.fill(keys, self.rows["threshold"], self.rows["scale"])

    def check(self):
        """Compare two training batches, since batch norm remembers, then evaluation.

        Evaluation is compared with noise as well.
        """
        for shared in (True, False):
            self._check_training(
                self.inputs
                if shared
                else self.inputs
                * torch.linspace(0.5, 2, len(self.plain)).view(-1, *[1] * self.inputs.ndim)
            )
        before = {name: tensor.clone() for name, tensor in self.buffers.items()}
        close(
            self.network.predict(self.inputs),
            torch.stack([module.eval()(self.inputs) for module in self.plain]),
        )
        for module in self.plain:
            for one in module.modules():
                one.training = isinstance(one, Masked)
        close(
            self.network.sample(self.inputs, self.masks),
            torch.stack([module(self.inputs) for module in self.plain]),
        )
        assert all(torch.equal(before[name], tensor) for name, tensor in self.buffers.items()), (
            "evaluation moved a running statistic"
        )

    def _check_training(self, inputs):
        shared = inputs.ndim == self.inputs.ndim
        kept = inputs.clone()
        outputs = self.network.forward(inputs, shared, self.masks)
        expected = [
            module.train()(inputs if shared else inputs[slot])
            for slot, module in enumerate(self.plain)
        ]
        close(outputs, torch.stack(expected))
        self.network.backward(self.gradient.clone())
        assert torch.equal(inputs, kept), "the data was written over"
        views = self.model.layout.views(self.gradients)
        for slot, (module, output) in enumerate(zip(self.plain, expected, strict=True)):
            named = dict(module.named_parameters())
            found = torch.autograd.grad(output, list(named.values()), self.gradient[slot])
            for name, gradient in zip(named, found, strict=True):
                close(views[name][slot], gradient, name)
            for name, buffer in module.named_buffers():
                close(self.buffers[name][slot], buffer, name)


def close(found: Tensor, expected: Tensor, what: str = "outputs"):
    assert found.shape == expected.shape, what
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1e-3), what


def numbers(**same):
    """A configuration a slot, each with numbers of its own; the first has no dropout at all."""
    spread = [slot / K for slot in range(K)]
    return [
        {
            "hidden": 5,
            "dropout": s,
            "input_dropout": s / 2,
            "negative_slope": 1.5 * s,
            "elu_alpha": 0.1 + s,
            "init_scale": 0.3 + s,
            **same,
        }
        for s in spread
    ]


@covers(
    "dropout",
    "input_dropout",
    "negative_slope",
    "elu_alpha",
    "hidden",
    "depth",
    "pieces",
    activation=ACTIVATIONS,
    batch_norm=(False, True),
)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_perceptron_by_hand_agrees_with_autograd(activation, batch_norm):
    configurations = numbers(activation=activation, batch_norm=batch_norm, pieces=3)
    trial = Trial(lambda hp: perceptron(hp, N, C), configurations, network=ChainNetwork)
    assert len({model.structure for model in trial.models}) == 1, "a number has split the array"
    trial.check()


@covers(dropout_kind=("bernoulli", "gaussian"))
@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "leaky_relu"])
@pytest.mark.parametrize("network", [ChainNetwork, StackedNetwork])
def test_both_kinds_of_dropout(kind, activation, network):
    Trial(
        lambda hp: perceptron(hp, N, C),
        numbers(activation=activation, dropout_kind=kind),
        network=network,
    ).check()


@covers("filters", "blocks", model=("perceptron", "convnet"))
@pytest.mark.parametrize("activation", ["relu", "maxout", "elu", "prelu"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_convolutional_net_stacked_by_vmap(activation, batch_norm):
    configurations = numbers(activation=activation, batch_norm=batch_norm, filters=2)
    trial = Trial(lambda hp: convnet(hp, (2, 4, 5), C), configurations, (2, 4, 5))
    assert len({model.structure for model in trial.models}) == 1
    assert isinstance(network_for(trial.model, lone=False), StackedNetwork)
    trial.check()


class Recurrent(nn.Module):
    """Reads a sequence, with all that may stand around it."""

    def __init__(self, kind):
        super().__init__()
        self.reader, self.norm, self.drop = (
            kind(4, 5, batch_first=True),
            nn.BatchNorm1d(5),
            nn.Dropout(0.3),
        )
        self.squash, self.out = nn.Tanh(), nn.Linear(5, C)

    def forward(self, inputs):
        return self.out(self.squash(self.drop(self.norm(self.reader(inputs)[0][:, -1]))))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_nets_are_stacked_too(kind):
    trial = Trial(lambda hp: Recurrent(kind), [{}] * K, (3, 4), RecurrentNetwork)
    assert isinstance(network_for(trial.model, lone=False), RecurrentNetwork)
    trial.check()
    ((name, found, activations),) = trial.network.observe(trial.inputs)
    assert (name, found, activations.shape) == ("squash", "tanh", (K, B, 5))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_one_alone_computes_the_same(batch_norm):
    configurations = numbers(activation="leaky_relu", batch_norm=batch_norm)[3:4]
    Trial(lambda hp: perceptron(hp, N, C), configurations, network=LoneNetwork).check()


ODD_CHAINS = {
    "one linear layer": lambda hp: nn.Linear(N, C),
    "nested, without biases": lambda hp: nn.Sequential(
        nn.Sequential(nn.Linear(N, 5, bias=False), nn.ReLU()), nn.Identity(), nn.Linear(5, C)
    ),
    "activation on activation": lambda hp: nn.Sequential(
        nn.Linear(N, 5), nn.LeakyReLU(-0.5), nn.Tanh(), nn.ReLU(), nn.GELU(), nn.Linear(5, C)
    ),
    "dropout on dropout": lambda hp: nn.Sequential(
        nn.Linear(N, 5),
        nn.ReLU(),
        nn.Dropout(0.2),
        GaussianDropout(0.3),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(5, C),
        nn.Sigmoid(),
    ),
    "dropout before the activation": lambda hp: nn.Sequential(
        nn.Linear(N, 5), nn.Dropout(0.3), nn.Sigmoid(), nn.Dropout(0.3), nn.Linear(5, C)
    ),
    "normalisation first and last": lambda hp: nn.Sequential(
        nn.BatchNorm1d(N),
        nn.ReLU(),
        nn.Linear(N, C),
        nn.BatchNorm1d(C, affine=False, momentum=0.3),
        nn.ELU(),
    ),
    "an activation before all": lambda hp: nn.Sequential(
        nn.ReLU(), nn.PReLU(N), nn.Linear(N, C), nn.GELU(approximate="tanh")
    ),
    "a maxout of everything": lambda hp: nn.Sequential(
        Maxout(2), nn.Linear(N // 2, 2 * C), nn.ReLU(), Maxout(2), nn.BatchNorm1d(C)
    ),
}


@pytest.mark.parametrize("name", ODD_CHAINS)
def test_chains_of_all_sorts_by_hand(name):
    Trial(ODD_CHAINS[name], [{}] * K, network=ChainNetwork).check()


def test_images_and_sequences_pass_through_a_chain():
    flat = lambda hp: nn.Sequential(  # noqa: E731
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, C)
    )
    Trial(flat, [{}] * K, (3, 4), ChainNetwork).check()
    along = lambda hp: nn.Sequential(  # noqa: E731
        nn.Linear(4, 5),
        nn.PReLU(),
        nn.Dropout(0.2),
        nn.Linear(5, C),
    )
    Trial(along, [{}] * K, (3, 4), ChainNetwork, (3, C)).check()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Softplus(),
        nn.LayerNorm(5),
        nn.BatchNorm1d(5, momentum=None),
        nn.BatchNorm1d(5, track_running_stats=False),
        nn.Flatten(0),
    ],
)
def test_what_has_no_backward_by_hand_is_no_chain(layer):
    assert chain_of(nn.Sequential(nn.Linear(N, 5), layer, nn.Linear(5, C))) is None


def test_batch_norm_of_one_example_is_told():
    trial = Trial(
        lambda hp: nn.Sequential(nn.Linear(N, C), nn.BatchNorm1d(C)), [{}] * 2, network=ChainNetwork
    )
    with pytest.raises(ValueError, match="use a larger batch_size"):
        trial.network.forward(trial.inputs[:1], True, [])


@pytest.mark.parametrize("network", [ChainNetwork, StackedNetwork, LoneNetwork])
def test_activations_are_observed_in_evaluation(network):
    configurations = numbers(activation="tanh", batch_norm=True)[
        : 1 if network is LoneNetwork else K
    ]
    trial = Trial(lambda hp: perceptron(hp, N, C), configurations, network=network)
    seen = trial.network.observe(trial.inputs)
    assert [(name, kind) for name, kind, _ in seen] == [("3", "tanh"), ("7", "tanh")]
    for slot, module in enumerate(trial.plain):
        close(seen[1][2][slot], module.eval()[:8](trial.inputs))
    assert trial.network.layers == {"1": ["1.weight"], "5": ["5.weight"], "9": ["9.weight"]}


def test_an_activation_in_two_places_is_observed_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.relu = (
                nn.Linear(N, N),
                nn.Linear(N, C),
                nn.ReLU(inplace=True),
            )

        def forward(self, inputs):
            return self.second(self.relu(self.first(self.relu(inputs + 0))))

    trial = Trial(lambda hp: Twice(), [{}] * K)
    seen = trial.network.observe(trial.inputs)
    assert [(name, kind, activations.shape) for name, kind, activations in seen] == [
        ("relu", "relu", (K, B, N)),
        ("relu#2", "relu", (K, B, N)),
    ]
    assert not any(module._forward_hooks for module in trial.model.module.modules())


@pytest.mark.parametrize(
    ("compiler", "activation", "batch_norm"),
    [
        *(("traced", activation, False) for activation in ("gelu", "elu", "prelu", "maxout")),
        *(
            ("traced", "leaky_relu", True),
            ("compiled", "leaky_relu", True),
            ("compiled", "maxout", False),
        ),
    ],
)
def test_a_step_by_hand_can_be_traced(compiler, activation, batch_norm):
    trial = Trial(
        lambda hp: perceptron(hp, N, C),
        numbers(activation=activation, batch_norm=batch_norm),
        network=ChainNetwork,
    )

    def step(inputs, gradient, *masks):
        outputs = trial.network.forward(inputs, True, masks)
        trial.network.backward(gradient.clone())
        return outputs.clone()

    arguments = (trial.inputs, trial.gradient, *trial.masks)
    kept = {name: tensor.clone() for name, tensor in trial.buffers.items()}
    expected, gradients = step(*arguments), trial.gradients.clone()
    if compiler == "traced":
        traced = torch.fx.experimental.proxy_tensor.make_fx(step)(*arguments)
    else:
        traced = torch.compile(step, backend="eager", fullgraph=True)
    for name, tensor in kept.items():
        trial.buffers[name].copy_(tensor)
    trial.gradients.fill_(torch.nan)
    close(traced(*arguments), expected)
    close(trial.gradients, gradients)
    traced(2 * trial.inputs, *arguments[1:])
    again = trial.gradients.clone()
    step(2 * trial.inputs, *arguments[1:])
    close(again, trial.gradients)


class Rectified(SmallDigits):
    """A model of each kind of number that is lifted, reached through the engine."""

    def model(self, hp):
        return perceptron({**hp, "hidden": 8, "depth": 1}, 64, 10)


def test_trials_of_any_rate_and_slope_share_an_array_and_learn_as_they_do_alone():
    said = []
    jobs = [
        job(
            i,
            2,
            activation="leaky_relu",
            negative_slope=0.1 * i,
            dropout=0.15 * i,
            input_dropout=0.1 * i,
        )
        for i in range(5)
    ]
    together = states_at(jobs, 1, task=Rectified(), width=5, log=said.append)
    alone = states_at(jobs, 1, task=Rectified(), width=1)
    assert said == [] and len(together) == 5
    for name, one in alone.items():
        assert (weights(together[name]) - weights(one)).abs().max() < 1e-10
        assert one["model"].keys() == Rectified().model({"input_dropout": 0.0}).state_dict().keys()
    assert {o.array_width for o in outcomes(jobs, task=Rectified(), width=5).values()} == {5}


@covers("val_passes")
def test_stochastic_validation_averages_the_probabilities_of_its_passes():
    passes, task = 3, SmallDigits()
    jobs = [
        job(i, 1, dropout=rate, val_passes=passes, learning_rate=0.0)
        for i, rate in enumerate([0.0, 0.3, 0.6])
    ]
    found = outcomes(jobs, task=task, width=3)
    val = digits().val
    for one in jobs:
        hp, seed = one.trial.hyperparameters, one.trial.seed
        torch.manual_seed(seed)
        model = task.model(hp).double().eval()
        probabilities = []
        for inputs in val.inputs.double().split(64):
            total = 0
            for number in range(passes):  # counted backwards from the step before the first
                noise = [
                    torch.from_numpy(
                        dropout_mask(
                            seed,
                            (-1 - number) % 2**64 if number else -1,
                            layer,
                            hp["dropout"],
                            64 * 16,
                        )
                    )
                    for layer in (0, 1)
                ]
                hidden = model[1](model[0](inputs)) * noise[0].view(64, 16)[: len(inputs)]
                hidden = model[4](model[3](hidden)) * noise[1].view(64, 16)[: len(inputs)]
                total = total + model[6](hidden).softmax(-1) / passes
            probabilities.append(total.detach())
        expected = nn.functional.nll_loss(torch.cat(probabilities).log(), val.targets)
        assert found[one.id].val_loss == pytest.approx(float(expected), rel=1e-9)
        accuracy = (torch.cat(probabilities).argmax(-1) == val.targets).double().mean()
        assert found[one.id].curves["val_acc"] == [pytest.approx(float(accuracy))]

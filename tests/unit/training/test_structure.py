"""Which models share an array, and what happens to those that cannot."""

import numpy as np
import pytest
import torch
from torch import nn

from common.search.trial import TrialState
from tests.unit.training.helpers import SmallDigits, engine, job, outcomes, states_at, weights
from worker.tasks.digits import Digits
from worker.tasks.layers import GaussianDropout
from worker.training.compute.width import CPU_DEFAULT
from worker.training.model.functional_noise import drawing, noting
from worker.training.model.structure import signature


class Wrapped(nn.Module):
    """A perceptron behind a forward of its own, so that it is stacked by torch.func."""

    def __init__(self, chain):
        super().__init__()
        self.layers = chain

    def forward(self, inputs):
        return self.layers(inputs)


class WrappedDigits(SmallDigits):
    def model(self, hp):
        return Wrapped(Digits().model(hp))


class NormDigits(SmallDigits):
    def model(self, hp):
        chain = Digits().model(hp)
        return nn.Sequential(chain[0], nn.BatchNorm1d(16), *chain[1:])


class Scaled(nn.Module):
    """Its output is scaled by a value that no attribute shows."""

    def __init__(self, chain, scale):
        super().__init__()
        self.layers = chain
        self.scaled = lambda logits: logits * scale

    def forward(self, inputs):
        return self.scaled(self.layers(inputs))


class HiddenDigits(SmallDigits):
    def model(self, hp):
        return Scaled(Digits().model(hp), hp["scale"])


class OpenDigits(SmallDigits):
    """The same model with the scale where it can be seen: a structure for each scale."""

    def model(self, hp):
        model = Wrapped(Digits().model(hp))
        model.scale = hp["scale"]
        model.layers.append(_Scale(hp["scale"]))
        return model


class _Scale(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, inputs):
        return inputs * self.scale


class NoisyDigits(SmallDigits):
    """Draws its own noise in forward, as torch.vmap refuses."""

    def model(self, hp):
        model = Digits().model(hp)
        return nn.Sequential(*model[:-1], _Noise(), model[-1])


class _Noise(nn.Module):
    def forward(self, inputs):
        return nn.functional.alpha_dropout(inputs, 0.3, self.training)


class TwiceDigits(SmallDigits):
    """One dropout layer in two places."""

    def model(self, hp):
        chain = Digits().model({**hp, "dropout": 0.0})
        drop = nn.Dropout(0.3)
        return nn.Sequential(chain[0], chain[1], drop, chain[3], chain[4], drop, chain[6])


JOBS = [
    {"learning_rate": 10.0**-i, "dropout": 0.1 * i, "weight_decay": 1e-3, "momentum": 0.9}
    for i in range(1, 5)
]


@pytest.mark.parametrize("width", [1, 4])
def test_a_module_of_any_shape_computes_the_same_as_the_perceptron(width):
    jobs = [job(i, 4, **hp) for i, hp in enumerate(JOBS)]
    plain, wrapped = states_at(jobs, 3), states_at(jobs, 3, task=WrappedDigits(), width=width)
    assert len(plain) == len(wrapped) == len(jobs)
    for trial_id, one in plain.items():
        assert (weights(wrapped[trial_id]) - weights(one)).abs().max() < 1e-9


@pytest.mark.parametrize("task", [NormDigits, WrappedDigits])
def test_a_trial_is_the_same_alone_and_in_an_array(task):
    jobs = [job(i, 3, **hp) for i, hp in enumerate(JOBS)]
    together, alone = outcomes(jobs, task=task(), width=4), outcomes(jobs, task=task(), width=1)
    assert {outcome.array_width for outcome in together.values()} == {4}
    assert {outcome.array_width for outcome in alone.values()} == {1}
    for trial_id, one in alone.items():
        assert together[trial_id].curves["val_loss"] == pytest.approx(
            one.curves["val_loss"], rel=1e-9
        )


def test_a_hidden_value_is_caught_and_the_trial_trains_alone():
    said = []
    jobs = [job(i, 2, scale=scale) for i, scale in enumerate([1.0, 1.0, 0.5, 1.0])]
    found = outcomes(jobs, task=HiddenDigits(), log=said.append, width=4)
    assert [found[one.id].array_width for one in jobs] == [3, 3, 1, 3]
    assert (
        len(said) == 1 and "coarse-0002" in said[0] and "differs from its own module's" in said[0]
    )
    seen = outcomes(jobs, task=OpenDigits())
    for one in jobs:
        assert found[one.id].curves["val_loss"] == pytest.approx(
            seen[one.id].curves["val_loss"], rel=1e-9
        )


def test_a_hidden_value_that_comes_with_a_refill_is_caught_too():
    jobs = [job(0, 1, scale=1.0), job(1, 3, scale=1.0), job(2, 2, scale=0.5), job(3, 2, scale=1.0)]
    found = outcomes(jobs, task=HiddenDigits(), width=2)
    assert found["coarse-0002"].array_width == 1
    assert found["coarse-0003"].array_width == 2
    assert found["coarse-0002"].curves["val_loss"] == pytest.approx(
        outcomes(jobs[2:3], task=OpenDigits())["coarse-0002"].curves["val_loss"], rel=1e-9
    )


def test_modules_that_cannot_be_stacked_train_alone_and_the_reason_is_said_once():
    said = []
    found = outcomes([job(i, 2) for i in range(3)], task=NoisyDigits(), log=said.append, width=3)
    assert {outcome.array_width for outcome in found.values()} == {1}
    assert {outcome.state for outcome in found.values()} == {TrialState.COMPLETED}
    assert len([message for message in said if "alone" in message]) == 1


class CalledDigits(SmallDigits):
    """Dropout by functions, at a rate of each trial."""

    def model(self, hp):
        return _Called(hp["rate"])


class _Called(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.first, self.rate = nn.Linear(64, 16), rate
        self.heads = nn.MultiheadAttention(16, 2, dropout=0.2, batch_first=True)
        self.last, self.never = nn.Linear(16, 10), nn.Dropout(rate)

    def forward(self, inputs):
        h = nn.functional.dropout(self.first(inputs), self.rate, self.training).view(-1, 1, 16)
        h = torch.cat([h, h.square()], dim=1)
        h, _ = self.heads(h, h, h, need_weights=False)
        scores = nn.functional.scaled_dot_product_attention(
            h, h, h, dropout_p=self.rate if self.training else 0
        )
        return self.last(nn.functional.dropout(scores.sum(1), 0.1, self.training))


@pytest.mark.parametrize("task", [TwiceDigits, CalledDigits])
def test_dropout_is_stacked_wherever_it_is_called_and_does_what_it_does_alone(task):
    said = []
    jobs = [job(i, 2, rate=rate) for i, rate in enumerate([0.1, 0.0, 0.4])]
    together, alone = (
        outcomes(jobs, task=task(), log=said.append, width=width) for width in (3, 1)
    )
    assert not [line for line in said if "used by neither" not in line]
    assert {outcome.array_width for outcome in together.values()} == {3}
    for trial_id, one in alone.items():
        assert together[trial_id].curves["train_loss"] == pytest.approx(
            one.curves["train_loss"], rel=1e-9
        )


def test_called_dropout_drops_at_the_trial_s_rate():
    module = _Called(0.25)
    values = torch.ones(64, 64)
    masks = [torch.full((64, 16), 2.0), torch.full((64, 2, 2, 2), 0.5)]
    with noting(module) as calls:
        module(values)
    assert [(call.rate, call.shape) for call in calls] == [
        (0.25, (64, 16)),
        (0.2, (64, 2, 2, 2)),
        (0.25, (64, 2, 2)),
        (0.1, (64, 16)),
    ]
    with drawing(module, calls):
        quiet = module(values)
    masks += [torch.full((64, 2, 2), 3.0), torch.ones(64, 16)]
    for call, mask in zip(calls, masks, strict=True):
        call.mask = mask
    with drawing(module, calls):
        noisy = module(values)
    assert not torch.allclose(quiet, noisy)
    doubled = module.first(values) * 2
    h = torch.stack([doubled, doubled.square()], dim=1)
    module.heads.dropout = 0.0
    heads, _ = module.heads(h, h, h, need_weights=False)
    bias = module.heads.out_proj.bias
    halved = (heads - bias) * 0.5 + bias
    plain = nn.functional.scaled_dot_product_attention(halved, halved, halved) * 3
    assert torch.allclose(noisy, module.last(plain.sum(1)), atol=1e-5)


class Branching(nn.Linear):
    def forward(self, inputs):
        logits = super().forward(inputs)
        return logits if logits.sum() > 0 else -logits


class Counting(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs) * float(inputs.abs().max() + self.weight.abs().max())


class Writing(nn.Linear):
    def forward(self, inputs):
        out = torch.zeros(len(inputs), self.out_features, dtype=inputs.dtype)
        out[:] = super().forward(inputs)
        return out


class Picking(nn.Linear):
    def forward(self, inputs):
        logits = super().forward(inputs)
        return logits + logits[logits > 0].sum() / 100


class Hooked(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_full_backward_hook(lambda *_: None)


UNSTACKABLE = {
    "branches on data; torch.where": Branching,
    "reads a number out of a tensor": Counting,
    "writes in place into a tensor": Writing,
    "picks by a mask": Picking,
    "has a backward hook": Hooked,
    "draws random numbers; nn.Dropout and": lambda n, m: nn.Sequential(_Noise(), nn.Linear(n, m)),
    "layer 0 is a BatchNorm1d with momentum=None": lambda n, m: nn.Sequential(
        nn.BatchNorm1d(n, momentum=None), nn.Linear(n, m)
    ),
    "layer 0 is a AlphaDropout, which draws its own noise": lambda n, m: nn.Sequential(
        nn.AlphaDropout(0.1), nn.Linear(n, m)
    ),
}


@pytest.mark.parametrize("reason", UNSTACKABLE)
def test_what_cannot_be_stacked_trains_alone_and_says_why_and_what_to_do(reason):
    class Odd(SmallDigits):
        def model(self, hp):
            return UNSTACKABLE[reason](64, 10)

    said = []
    found = outcomes([job(i, 1) for i in range(2)], task=Odd(), log=said.append, width=2)
    assert {outcome.array_width for outcome in found.values()} == {1}
    assert {outcome.state for outcome in found.values()} == {TrialState.COMPLETED}
    assert len(said) == 1 and "alone" in said[0] and reason in said[0]


def test_signatures_tell_apart_what_may_not_be_stacked():
    def chain(width=4, activation=nn.ReLU, bias=True, rate=0.5):
        return nn.Sequential(
            nn.Linear(3, width, bias=bias), activation(), nn.Dropout(rate), nn.Linear(width, 2)
        )

    same = signature(chain())
    assert signature(chain(rate=0.2)) == signature(chain(rate=0.0)) == same
    for numbered in (nn.LeakyReLU, nn.ELU, GaussianDropout, lambda start: nn.PReLU(init=start)):
        assert signature(nn.Sequential(nn.Linear(3, 4), numbered(0.1))) == signature(
            nn.Sequential(nn.Linear(3, 4), numbered(0.2))
        )
    frozen = chain()
    frozen[0].weight.requires_grad_(False)
    hooked = chain()
    hooked.register_forward_hook(lambda *_: None)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    untied = signature(tied)
    tied[1].weight = tied[0].weight
    others = [
        chain(5),
        chain(activation=nn.Tanh),
        chain(bias=False),
        frozen,
        hooked,
        chain().double(),
    ]
    assert all(signature(other) != same for other in others)
    assert signature(tied) != untied


def test_frozen_and_tied_parameters_stay_frozen_and_tied():
    class Tied(SmallDigits):
        def model(self, hp):
            first, second = nn.Linear(64, 64), nn.Linear(64, 64)
            second.weight = first.weight
            second.bias.requires_grad_(False)
            return Wrapped(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(64, 10)))

    jobs = [job(i, 2) for i in range(2)]
    reached = states_at(jobs, 1, task=Tied())
    for one in jobs:
        model = reached[one.id]["model"]
        assert torch.equal(model["layers.0.weight"], model["layers.2.weight"])
        torch.manual_seed(one.trial.seed)
        assert torch.equal(model["layers.2.bias"], Tied().model({}).double().layers[2].bias)


def test_width_is_known_for_a_configuration_that_cannot_be_built():
    assert engine().width({"hidden": "wide"}) == CPU_DEFAULT


def test_stochastic_validation_of_a_module_that_draws_its_own_noise_is_the_same_each_time():
    class Own(SmallDigits):
        def model(self, hp):
            return nn.Sequential(nn.Linear(64, 32), nn.AlphaDropout(0.4), nn.Linear(32, 10))

    jobs = [job(i, 1, val_passes=2) for i in range(2)]
    first, second = (outcomes(jobs, task=Own()) for _ in range(2))
    plain = outcomes([job(0, 1)], task=Own())
    assert {i: o.val_loss for i, o in first.items()} == {i: o.val_loss for i, o in second.items()}
    assert plain["coarse-0000"].val_loss != first["coarse-0000"].val_loss


class Constants(nn.Module):
    """Carries arrays as plain attributes."""

    def __init__(self, chain):
        super().__init__()
        self.layers, self.shift, self.scale = chain, torch.full((64,), 0.5), np.ones(64)

    def forward(self, inputs):
        return self.layers((inputs - self.shift) * torch.from_numpy(self.scale))


class ConstantDigits(SmallDigits):
    def model(self, hp):
        return Constants(Digits().model(hp))


def test_arrays_as_plain_attributes_are_no_obstacle():
    jobs = [job(i, 2) for i in range(3)]
    found = outcomes(jobs, task=ConstantDigits(), width=3)
    assert [(found[one.id].state, found[one.id].array_width) for one in jobs] == [
        (TrialState.COMPLETED, 3)
    ] * 3


class LocalDigits(SmallDigits):
    """A class within ``model``, as many write it: another one for each trial."""

    def model(self, hp):
        class Local(Wrapped):
            pass

        return Local(Digits().model(hp))


def test_a_class_that_is_made_within_model_does_not_keep_trials_apart():
    jobs = [job(i, 2) for i in range(3)]
    assert {
        outcome.array_width for outcome in outcomes(jobs, task=LocalDigits(), width=3).values()
    } == {3}


class Reader(nn.Module):
    """Nothing in it is watched: it has no layer of activations."""

    def __init__(self, kind):
        super().__init__()
        self.reader, self.out = kind(8, 4, batch_first=True), nn.Linear(4, 10)

    def forward(self, inputs):
        return self.out(self.reader(inputs.view(-1, 8, 8))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_net_trains_in_arrays_in_single_precision(kind):
    class Reading(SmallDigits):
        def model(self, hp):
            return Reader(kind)

    jobs = [job(i, 1, learning_rate=0.1 * (i + 1)) for i in range(3)]
    together, alone = (
        outcomes(jobs, task=Reading(), width=width, dtype=torch.float32) for width in (3, 1)
    )
    assert {outcome.array_width for outcome in together.values()} == {3}
    for one in jobs:
        assert together[one.id].curves["val_loss"] == pytest.approx(
            alone[one.id].curves["val_loss"], rel=1e-4
        )

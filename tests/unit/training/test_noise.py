"""Dropout noise: right in the mean, a function of its key alone."""

import numpy as np
import pytest
import torch
from scipy import stats

from tests.unit.training.helpers import dropout_mask
from tests.unit.training.references import covers
from worker.training.math.noise import DropoutMasks, active_layers, level, noise_keys, quantise

CPU = torch.device("cpu")


def masks(seeds, rates, step=0, shape=(64, 100), n_layers=1, dtype=torch.float64):
    keys = noise_keys(torch.tensor(seeds), torch.full((1, len(seeds)), step), n_layers)[0]
    levels = [quantise(rate) for rate in rates]
    thresholds = torch.tensor([[level] * n_layers for level, _ in levels], dtype=torch.int16)
    scales = torch.tensor([[scale] * n_layers for _, scale in levels], dtype=dtype)
    made = DropoutMasks(len(seeds), [shape] * n_layers, CPU, dtype).fill(keys, thresholds, scales)
    return [mask.clone() for mask in made]


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.8, 0.99])
def test_the_share_kept_and_the_mean_are_right(rate):
    (mask,) = masks([5, 6, 7, 8], [rate] * 4, shape=(100, 1000))
    kept = (mask > 0).double().mean()
    error = (rate * (1 - rate) / mask.numel()) ** 0.5
    assert abs(float(kept) - (1 - rate)) < 5 * error + 1 / 65536
    assert float(mask.mean()) == pytest.approx(1.0, abs=6 * error / (1 - rate))
    assert float(mask.max()) == pytest.approx(1 / (1 - rate), rel=0.02)


def test_no_position_and_no_neighbourhood_is_favoured():
    drawn = torch.stack(
        [masks([3], [0.5], step)[0].view(-1) > 0 for step in range(400)]
    ).double()  # (steps, positions)
    share = drawn.mean(0)
    assert float((share - 0.5).abs().max()) < 5.5 * 0.5 / 400**0.5
    centred = (drawn - 0.5) * 2
    for lag in (1, 2, 3, 4, 5, 8, 64, 100):
        assert abs(float((centred[:, lag:] * centred[:, :-lag]).mean())) < 0.005
    assert abs(float((centred[1:] * centred[:-1]).mean())) < 0.005


def test_noise_depends_on_trial_step_layer_and_position_and_on_nothing_else():
    first, second = masks([11, 12], [0.5, 0.5], n_layers=2)
    alone = masks([12], [0.5], n_layers=2)
    assert torch.equal(first[1:], alone[0]) and torch.equal(second[1:], alone[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    assert not torch.equal(masks([11], [0.5], step=1)[0], first[:1])


@pytest.mark.parametrize(
    ("seed", "step", "layer", "rate", "n"),
    [(1, 0, 0, 0.5, 64), (2**62 + 5, 1000, 2, 0.13, 4099), (77, 3, 1, 0.8, 1)],
)
def test_it_is_the_hash_that_is_written_down(seed, step, layer, rate, n):
    made = masks([seed], [rate], step, (n,), layer + 1)[layer][0]
    assert np.array_equal(made.numpy(), dropout_mask(seed, step, layer, rate, n))


def gaussian(seed, rate, step=0, n=200_000, dtype=torch.float64):
    scale = torch.tensor([[level("gaussian", rate)[1]]], dtype=dtype)
    keys = noise_keys(torch.tensor([seed]), torch.full((1, 1), step), 1)[0]
    return (
        DropoutMasks(1, [(n,)], CPU, dtype, ["gaussian"])
        .fill(keys, torch.zeros(1, 1, dtype=torch.int16), scale)[0][0]
        .clone()
    )


@covers(dropout_kind="gaussian")
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_noise_has_the_moments_of_bernoulli_noise_and_the_shape_of_a_bell(rate, dtype):
    n, spread = 200_000, (rate / (1 - rate)) ** 0.5
    noise = gaussian(3, rate, n=n, dtype=dtype).double()
    assert float(noise.mean()) == pytest.approx(1, abs=5 * spread / n**0.5)
    standard = ((noise - 1) / spread).numpy()
    assert stats.kstest(standard, "norm").pvalue > 1e-3
    assert standard.var() == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert (standard**4).mean() == pytest.approx(3, abs=5 * (96 / n) ** 0.5)
    assert abs((standard[1:] * standard[:-1]).mean()) < 5 / n**0.5
    assert np.isfinite(standard).all()


def test_gaussian_noise_is_a_function_of_its_key():
    assert torch.equal(gaussian(3, 0.5), gaussian(3, 0.5))
    assert torch.allclose(
        gaussian(3, 0.5), gaussian(3, 0.5, dtype=torch.float32).double(), atol=1e-5
    )
    for other in (gaussian(4, 0.5), gaussian(3, 0.5, step=1)):
        assert abs(float(((other - 1) * (gaussian(3, 0.5) - 1)).mean())) < 5 / 200_000**0.5
    assert torch.equal(gaussian(3, 0.0), torch.ones(200_000, dtype=torch.float64))


def test_layers_that_do_nothing_cost_nothing_and_change_no_other():
    kinds, rates = ["bernoulli", "gaussian", "bernoulli"], [[0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]
    levels = [[level(kind, rate) for kind, rate in zip(kinds, row, strict=True)] for row in rates]
    scales = torch.tensor([[scale for _, scale in row] for row in levels])
    thresholds = torch.tensor(
        [[threshold for threshold, _ in row] for row in levels], dtype=torch.int16
    )
    active = active_layers(scales, kinds)
    assert active == [False, False, True]
    keys, shapes = (
        noise_keys(torch.tensor([1, 2]), torch.zeros(1, 2, dtype=torch.int64), 3)[0],
        [(8, 100)] * 3,
    )
    idle = [
        mask.clone()
        for mask in DropoutMasks(2, shapes, CPU, torch.float32, kinds, active).fill(
            keys, thresholds, scales
        )
    ]
    full = DropoutMasks(2, shapes, CPU, torch.float32, kinds).fill(keys, thresholds, scales)
    assert [mask.numel() for mask in idle] == [0, 0, 1600]
    assert torch.equal(idle[2], full[2])
    assert all(torch.equal(mask, torch.ones(2, 8, 100)) for mask in full[:2])
    assert torch.equal(full[2][1], torch.ones(8, 100)), "a rate of 0 is not exactly neutral"


def test_a_rate_of_almost_one_keeps_almost_nothing_and_one_keeps_nothing():
    assert quantise(1.0)[1] == 0.0
    (mask,) = masks([1], [0.9999])
    assert 0 <= float((mask > 0).double().mean()) < 0.01

"""Dropout noise: right in the mean, a function of its key alone."""

import numpy as np
import pytest
import torch

from tests.unit.training.helpers import dropout_mask
from worker.training.noise import DropoutMasks, noise_keys, quantised

CPU = torch.device("cpu")


def masks(seeds, rates, step=0, shape=(64, 100), n_layers=1, dtype=torch.float64):
    keys = noise_keys(torch.tensor(seeds), torch.full((1, len(seeds)), step), n_layers)[0]
    levels = [quantised(rate) for rate in rates]
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
    drawn = torch.stack([masks([3], [0.5], step)[0].view(-1) > 0 for step in range(400)]).double()  # (steps, positions)
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


@pytest.mark.parametrize(("seed", "step", "layer", "rate", "n"), [(1, 0, 0, 0.5, 64), (2**62 + 5, 1000, 2, 0.13, 4099), (77, 3, 1, 0.8, 1)])
def test_it_is_the_hash_that_is_written_down(seed, step, layer, rate, n):
    made = masks([seed], [rate], step, (n,), layer + 1)[layer][0]
    assert np.array_equal(made.numpy(), dropout_mask(seed, step, layer, rate, n))


def test_a_rate_of_almost_one_keeps_almost_nothing_and_one_keeps_nothing():
    assert quantised(1.0)[1] == 0.0
    (mask,) = masks([1], [0.9999])
    assert 0 <= float((mask > 0).double().mean()) < 0.01

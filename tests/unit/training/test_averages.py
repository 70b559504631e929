"""The running average of 16 slots with different decays, against 16 averaged models of torch."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.unit.training.landscape import N_STEPS, K, Plain, agree, spread, starts
from tests.unit.training.references import covers
from worker.training.math import averages

DECAYS = spread(0.0, 0.9999)


@covers("ema")
def test_sixteen_averages_are_those_of_sixteen_averaged_models():
    flat = starts()
    average = flat.clone()
    plain = [Plain(row) for row in flat]
    averaged = [
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(float(d)))
        for model, d in zip(plain, DECAYS, strict=True)
    ]
    decays = averages.decays(DECAYS, torch.arange(N_STEPS).unsqueeze(1).expand(-1, K))
    for step in range(N_STEPS):
        moved = torch.randn(
            flat.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64
        )
        flat += moved
        averages.update(average, flat, decays[step].unsqueeze(1))
        for model, reference, row in zip(plain, averaged, flat, strict=True):
            model.load_state_dict(Plain(row).state_dict())
            reference.update_parameters(model)
    agree(average, [reference.module.weights() for reference in averaged])


def test_without_a_decay_the_average_is_the_parameters():
    flat, average = starts(), torch.zeros_like(starts())
    averages.update(average, flat, torch.zeros(K, 1, dtype=torch.float64))
    assert torch.equal(average, flat)

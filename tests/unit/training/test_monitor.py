"""What the monitor measures, against plain modules one at a time and against counting by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from tests.unit.training.helpers import job, outcomes
from worker.training.model.layout import Layout
from worker.training.stacked.monitor import (
    MOST_LOOKS,
    SAMPLE,
    Monitor,
    is_watched,
    sample_size,
    silent_share,
    step_figures,
    weight_spans,
)
from worker.training.types import Outcome

WIDTH = 3
LAYERS = {"0": ["0.weight", "0.bias"], "1": ["1.weight", "1.bias"], "3": ["3.weight", "3.bias"]}


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4)).double()


def flat(layout: Layout, modules: Sequence[nn.Module], gradients: bool = False) -> Tensor:
    rows = [{n: p.grad if gradients else p for n, p in m.named_parameters()} for m in modules]
    return torch.stack(
        [layout.row({name: tensor.detach() for name, tensor in row.items()}) for row in rows]
    )


def monitor_of(layout: Layout, width: int = WIDTH) -> Monitor:
    return Monitor(layout, LAYERS, width, torch.device("cpu"))


def test_ratio_and_gradient_norm_are_those_of_plain_models() -> None:
    modules = [model(seed) for seed in range(WIDTH)]
    layout = Layout.of(modules[0])
    optimizers = [torch.optim.Adam(m.parameters(), lr=10.0**-k) for k, m in enumerate(modules, 1)]
    monitor = monitor_of(layout)
    ratios: list[list[list[float]]] = []
    norms: list[list[float]] = []
    for step in range(4):
        before = flat(layout, modules)
        weights = [
            {layer: m.get_parameter(f"{layer}.weight").detach().clone() for layer in ("0", "3")}
            for m in modules
        ]
        for m, optimizer in zip(modules, optimizers, strict=True):
            optimizer.zero_grad()
            inputs = torch.randn(
                6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step)
            )
            nn.functional.cross_entropy(m(inputs), torch.arange(6) % 4).backward()
            optimizer.step()
        monitor.after_step(before, flat(layout, modules), flat(layout, modules, gradients=True))
        ratios.append(
            [
                [
                    (
                        (m.get_parameter(f"{layer}.weight") - old[layer]).norm() / old[layer].norm()
                    ).item()
                    for layer in ("0", "3")
                ]
                for m, old in zip(modules, weights, strict=True)
            ]
        )
        norms.append(
            [
                nn.utils.get_total_norm(
                    [p.grad for p in m.parameters() if p.grad is not None]
                ).item()
                for m in modules
            ]
        )
    for position in range(WIDTH):
        points = monitor.points(position)
        for place, layer in enumerate(("0", "3")):
            assert points[f"update_ratio.{layer}"] == pytest.approx(
                np.mean([r[position][place] for r in ratios]), rel=1e-10
            )
        assert points["grad_norm"] == pytest.approx(
            np.mean([n[position] for n in norms]), rel=1e-10
        )
        assert "update_ratio.1" not in points  # normalisation has no weights


def test_norms_of_parts_make_the_norm_of_the_gradient() -> None:
    gradients = torch.randn(WIDTH, 20, dtype=torch.float64)
    parts = torch.stack([gradients[:, :7].norm(dim=1), gradients[:, 7:].norm(dim=1)], dim=1)
    ones = torch.ones(WIDTH, 20, dtype=torch.float64)
    torch.testing.assert_close(
        step_figures(ones, ones, parts, []),
        step_figures(ones, ones, gradients, []),
        rtol=1e-12,
        atol=0,
    )


def test_a_layer_with_several_weights_has_one_ratio() -> None:
    layout = Layout.of(nn.LSTM(2, 3))
    before = torch.randn(1, layout.size, dtype=torch.float64)
    after = before + torch.randn(1, layout.size, dtype=torch.float64)
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    (ratio, _), views = (
        step_figures(
            before.clone(), after, before, list(weight_spans(layout, {"": names}).values())
        )[0],
        layout.views,
    )
    old = torch.cat([views(before)[name].flatten() for name in names[:2]])
    new = torch.cat([views(after)[name].flatten() for name in names[:2]])
    assert ratio.item() == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-12)


def test_a_step_counts_only_for_those_that_watch_it() -> None:
    layout = Layout.of(model(0))
    monitor = monitor_of(layout)
    before = torch.ones(WIDTH, layout.size, dtype=torch.float64)
    monitor.after_step(before.clone(), before * 1.01, before)
    monitor.after_step(
        before.clone(), before * 1.03, before * 3, counted=torch.tensor([True, False, True])
    )
    norm = math.sqrt(layout.size)
    assert [monitor.points(p)["update_ratio.0"] for p in range(WIDTH)] == pytest.approx(
        [0.02, 0.01, 0.02]
    )
    assert [monitor.points(p)["grad_norm"] for p in range(WIDTH)] == pytest.approx(
        [2 * norm, norm, 2 * norm]
    )


def test_dead_units_are_counted_by_hand() -> None:
    values = torch.tensor(
        [[[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]], [[0.0] * 4, [0.0] * 4]]
    )  # (2 slots, 2 examples, 4 units)
    assert silent_share("relu", values).tolist() == [0.5, 1.0]


def test_saturated_units_are_counted_by_hand() -> None:
    examples = torch.tensor(
        [[0.97, 0.5, 0.01, 0.94], [0.96, 0.99, 0.02, 0.06], [0.10, 0.5, 0.99, 0.5]]
    )
    assert silent_share("sigmoid", examples.unsqueeze(0)).tolist() == [
        0.5
    ]  # the first and the third in most examples
    assert silent_share("tanh", (2 * examples - 1).unsqueeze(0)).tolist() == [0.5]


def test_a_filter_is_judged_over_all_positions() -> None:
    maps = torch.zeros(1, 2, 3, 4, 4)  # (slots, examples, channels, height, width)
    maps[0, 1, 2, 3, 0] = 1.0
    assert silent_share("relu", maps).tolist() == pytest.approx([2 / 3])


def test_wiggle_is_the_noise_about_a_trend() -> None:
    monitor = monitor_of(Layout.of(model(0)))
    steps, noise = torch.arange(4000, dtype=torch.float64), torch.Generator().manual_seed(1)
    losses = torch.stack(
        [3 - steps / 2000, 2 * torch.exp(-steps / 400) + 0.1, torch.full_like(steps, 2.0)], dim=1
    )
    losses[:, 2] += 0.2 * torch.randn(4000, generator=noise, dtype=torch.float64)
    for chunk in losses.split(7):
        monitor.note_losses(chunk)
    straight, curved, noisy = (monitor.points(p)["wiggle"] for p in range(WIDTH))
    assert straight == pytest.approx(0, abs=1e-12)
    assert curved == pytest.approx(0, abs=1e-4)
    assert noisy == pytest.approx(0.1, rel=0.05)


def test_wiggle_agrees_with_its_definition_however_the_steps_are_cut() -> None:
    losses = torch.rand(16, WIDTH, dtype=torch.float64)
    expected = (
        np.sqrt((np.diff(losses.numpy(), 2, axis=0) ** 2).mean(0) / 6) / losses.numpy().mean(0)
    ).tolist()
    for size in (1, 3, 8, 16):
        monitor = monitor_of(Layout.of(model(0)))
        for chunk in losses.split(size):
            monitor.note_losses(chunk)
        assert [monitor.points(p)["wiggle"] for p in range(WIDTH)] == pytest.approx(
            expected, rel=1e-10
        )


def test_a_slot_that_was_read_begins_anew_and_the_others_go_on() -> None:
    monitor = monitor_of(Layout.of(model(0)))
    losses = torch.rand(8, WIDTH, dtype=torch.float64)
    monitor.note_losses(losses)
    first = monitor.points(0)["wiggle"]
    monitor.note_losses(losses)
    whole = monitor_of(Layout.of(model(0)))
    whole.note_losses(torch.cat([losses, losses]))
    assert monitor.points(0)["wiggle"] == pytest.approx(first)
    assert monitor.points(1)["wiggle"] == pytest.approx(whole.points(1)["wiggle"])


def test_slots_come_and_go() -> None:
    layout = Layout.of(model(0))
    monitor = monitor_of(layout)
    before = torch.ones(WIDTH, layout.size, dtype=torch.float64)
    monitor.after_step(before, before * torch.tensor([[1.1], [1.2], [1.3]]), before)
    monitor.observe(
        [("2", "relu", torch.zeros(WIDTH, 2, 7)), ("4", "other", torch.zeros(WIDTH, 2, 7))]
    )
    monitor.keep([0, 2])
    monitor.append(1)
    kept, new = monitor.points(1), monitor.points(2)
    assert kept["update_ratio.3"] == pytest.approx(0.3)
    assert kept["dead.2"] == 1.0
    assert set(new) == set(kept) and set(new.values()) == {None}  # nothing was measured of it yet


def test_sums_survive_a_stop_in_the_middle_of_an_epoch() -> None:
    layout = Layout.of(model(0))
    whole, parts = monitor_of(layout), monitor_of(layout)
    before, losses = (
        torch.rand(WIDTH, layout.size, dtype=torch.float64),
        torch.rand(9, WIDTH, dtype=torch.float64),
    )
    for monitor in (whole, parts):
        monitor.after_step(before.clone(), before * 1.5, before)
        monitor.note_losses(losses[:5])
    resumed = monitor_of(layout, 1)
    resumed.restore(0, parts.state(2))
    whole.note_losses(losses[5:])
    resumed.note_losses(losses[5:, 2:])
    assert resumed.points(0) == whole.points(2)
    with pytest.raises(ValueError, match="instead of"):
        resumed.restore(0, [0.0])


def test_what_is_not_finite_is_not_told() -> None:
    layout = Layout.of(model(0))
    monitor = monitor_of(layout)
    zeros = torch.zeros(WIDTH, layout.size, dtype=torch.float64)
    monitor.after_step(zeros, zeros + 1, zeros * math.nan)
    monitor.note_losses(torch.full((8, WIDTH), math.inf, dtype=torch.float64))
    points = monitor.points(0)
    assert points["update_ratio.0"] is points["grad_norm"] is points["wiggle"] is None


def test_a_few_steps_of_each_epoch_are_watched() -> None:
    assert [step for step in range(16) if is_watched(step, 16)] == [4]
    assert [step for step in range(64) if is_watched(step, 64)] == [4, 20, 36, 52]
    assert [step for step in range(1) if is_watched(step, 1)] == [0]
    assert sum(is_watched(step, 1000) for step in range(1000)) == MOST_LOOKS


def test_looking_in_passing_is_looking_at_a_sample() -> None:
    monitor, other = monitor_of(Layout.of(model(0))), monitor_of(Layout.of(model(0)))
    values = torch.randn(WIDTH, SAMPLE + 50, 7).relu()
    values[:, :SAMPLE, 0] = 0.0  # what comes after the sample is not looked at
    monitor.observe([("2", "relu", values[:, :SAMPLE])])
    other.begin_sample()
    other.note_activation("2", "relu", values)
    assert monitor.points(1)["dead.2"] == other.points(1)["dead.2"] == pytest.approx(1 / 7)


def test_the_sample_is_small_where_the_data_are_few() -> None:
    assert sample_size(1078, 359) == 67
    assert sample_size(50_000, 10_000) == SAMPLE
    assert sample_size(100, 20) == 20


def test_a_step_can_be_traced() -> None:
    spans = [[(0, 6)], [(6, 8), (8, 10)]]
    rows = [torch.rand(2, 12) for _ in range(3)]
    traced = make_fx(lambda a, b, g: step_figures(a, b, g, spans))(*rows)
    others = [torch.rand(2, 12) for _ in range(3)]
    torch.testing.assert_close(
        traced(*(row.clone() for row in others)), step_figures(*others, spans)
    )


# -- through the engine ----------------------------------------------------------------------------

WATCHED_CURVES = {
    "learning_rate",
    "grad_norm",
    "wiggle",
    "dead.1",
    "dead.4",
    "update_ratio.0",
    "update_ratio.3",
    "update_ratio.6",
}


def watched_curves(outcome: Outcome) -> dict[str, list[float | None]]:
    return {name: values for name, values in outcome.curves.items() if name in WATCHED_CURVES}


def test_the_curves_of_a_trial_do_not_depend_on_its_neighbours() -> None:
    own = {"dropout": 0.1, "learning_rate": 0.03, "momentum": 0.5}
    [alone] = outcomes([job(0, epochs=2, **own)]).values()
    beside = [
        job(0, epochs=2, **own),
        job(1, epochs=0.5, dropout=0.2),
        job(2, epochs=3, dropout=0.3, learning_rate=1e-5),
    ]
    together = outcomes(beside, width=2)[
        "coarse-0000"
    ]  # the third takes the place of the second in the middle of an epoch
    assert set(watched_curves(alone)) == WATCHED_CURVES
    for name, values in watched_curves(alone).items():
        assert values == pytest.approx(watched_curves(together)[name], rel=1e-9)
        assert len(values) == 2 and None not in values


def test_not_watching_leaves_the_training_as_it_is() -> None:
    watched_run, plain = (
        outcomes([job(0, epochs=2)], watching=on)["coarse-0000"] for on in (True, False)
    )
    assert watched_run.curves["val_loss"] == plain.curves["val_loss"]
    assert "grad_norm" not in plain.curves

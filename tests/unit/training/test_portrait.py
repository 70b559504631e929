"""Histograms and pictures of kept models: counted by hand, and against plain autograd."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.unit.training.helpers import job, outcomes
from worker.training.outcome.histograms import (
    BINS,
    GAP_PIXELS,
    NEGATIVE,
    PAPER,
    POSITIVE,
    ZERO,
    histogram,
    picture,
    tiles,
    weight_gradients,
)
from worker.training.types import Outcome


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_histogram_counts_every_value() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).relu()
    found = histogram(values.view(10, 100))
    expected, edges = np.histogram(values.double().numpy(), BINS)
    assert found["counts"] == expected.tolist()
    assert (found["low"], found["high"]) == (edges[0], edges[-1])
    assert found["mean"] == pytest.approx(values.double().mean().item())
    assert found["std"] == pytest.approx(values.double().numpy().std())
    assert found["zeros"] == pytest.approx((values == 0).double().mean().item())


def test_a_histogram_of_one_value_and_of_none() -> None:
    assert sum(histogram(torch.zeros(7))["counts"]) == 7
    assert histogram(torch.tensor([1.0, float("nan")]))["counts"][0] == 1
    assert sum(histogram(torch.tensor([float("inf")]))["counts"]) == 0


def test_gradients_are_those_of_a_plain_backward_without_noise() -> None:
    torch.manual_seed(0)
    module = (
        nn.Sequential(
            nn.Linear(5, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)
        )
        .double()
        .train()
    )
    inputs, targets = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 3

    def output_gradient(outputs: Tensor) -> Tensor:
        leaf = outputs.requires_grad_()
        (found,) = torch.autograd.grad(nn.functional.cross_entropy(leaf, targets), leaf)
        return found

    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    found = weight_gradients(
        module, tensors, {"0": ["0.weight"], "4": ["4.weight"]}, inputs, output_gradient
    )
    assert module.training
    module.eval()
    nn.functional.cross_entropy(module(inputs), targets).backward()
    for layer in ("0", "4"):
        torch.testing.assert_close(
            found[layer], module.get_parameter(f"{layer}.weight").grad.flatten(), rtol=1e-12, atol=0
        )


def test_tiles_show_units_as_images() -> None:
    weights = torch.arange(2 * 12, dtype=torch.float32).view(2, 12)
    found = tiles(weights, (3, 4))
    assert found is not None and found.shape == (2, 1, 3, 4)
    assert found[1, 0, 2, 3] == weights[1, 11]
    colours = tiles(weights, (3, 2, 2))
    assert colours is not None and colours.shape == (2, 3, 2, 2)
    many, kernels = tiles(torch.zeros(100, 12), (3, 4)), tiles(torch.zeros(5, 3, 3, 3), (3, 32, 32))
    assert many is not None and len(many) == 64
    assert kernels is not None and kernels.shape == (5, 3, 3, 3)


@pytest.mark.parametrize(
    "weights",
    [torch.zeros(2, 13), torch.zeros(4, 2, 3, 3), torch.zeros(4, 1, 1, 1), torch.zeros(3)],
)
def test_what_is_no_image_has_no_tiles(weights: Tensor) -> None:
    assert tiles(weights, (3, 4)) is None


def test_signs_are_colours_and_each_tile_has_its_own_scale() -> None:
    images = torch.zeros(2, 1, 2, 2)
    images[0, 0, 0, 0], images[0, 0, 1, 1] = 5.0, -5.0
    images[1, 0, 0, 1] = 1e-3
    sheet = pixels(picture(images))
    side = (sheet.shape[0] - 2 * GAP_PIXELS) // 2  # of a weight
    first, second = GAP_PIXELS, 2 * GAP_PIXELS + 2 * side
    assert tuple(sheet[0, 0]) == PAPER
    assert tuple(sheet[first, first]) == POSITIVE
    assert tuple(sheet[first + 2 * side - 1, first + 2 * side - 1]) == NEGATIVE
    assert tuple(sheet[first, first + side]) == ZERO
    assert tuple(sheet[first, second + side]) == POSITIVE


def test_colour_filters_keep_their_colours_and_a_unit_of_zeros_is_drawn() -> None:
    images = torch.zeros(2, 3, 2, 2)
    images[0, 0] = 1.0  # red
    sheet = pixels(picture(images))
    assert sheet[GAP_PIXELS, GAP_PIXELS].tolist() == [255, 128, 128]
    assert sheet[GAP_PIXELS, -GAP_PIXELS - 1].tolist() == [128, 128, 128]


@pytest.fixture(scope="module")
def kept() -> Outcome:
    [outcome] = outcomes([job(0, epochs=2, weight_decay=1e-4)]).values()
    return outcome


def test_a_kept_trial_has_histograms_of_each_layer(kept: Outcome) -> None:
    assert kept.portrait is not None
    found = kept.portrait()
    assert all(
        entry["kind"] == "relu" and 0 < entry["zeros"] < 1
        for entry in found["activations"].values()
    )
    assert len(found["activations"]) == 2 and len(found["gradients"]) == 3
    assert all(sum(entry["counts"]) and entry["std"] > 0 for entry in found["gradients"].values())


def test_a_kept_trial_of_images_has_a_picture_of_its_first_layer(kept: Outcome) -> None:
    assert kept.picture is not None
    png = kept.picture()
    assert png is not None
    assert pixels(png).shape == (
        4 * (56 + GAP_PIXELS) + GAP_PIXELS,
        4 * (56 + GAP_PIXELS) + GAP_PIXELS,
        3,
    )  # 16 units of 8 x 8


def test_principal_components_are_no_picture() -> None:
    [outcome] = outcomes([job(0, epochs=1, preprocess="pca")]).values()
    assert outcome.picture is not None and outcome.picture() is None

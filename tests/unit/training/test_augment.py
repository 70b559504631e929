import math
from itertools import pairwise

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import affine_grid, grid_sample

from common.errors import TaskError
from common.search.trial import TrialState
from tests.unit.training.helpers import boundaries, job, load, outcomes, state, weights
from tests.unit.training.references import covers
from worker.tasks.digits import Digits
from worker.training.math.augment import HASHES_AN_IMAGE, STRENGTHS, Augmentation
from worker.training.math.noise import noise_keys

CPU = torch.device("cpu")
B, C, H, W = 40, 2, 6, 9
ALL = {
    "augment_noise": 0.3,
    "augment_flip": 0.5,
    "augment_rotate": 30.0,
    "augment_zoom": 0.2,
    "augment_shift": 1.5,
}


@pytest.fixture
def images():
    return torch.rand(B, C, H, W, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def columns(slots, dtype=torch.float64):
    """Strengths (K, 1) by name, of slots given as dicts."""
    return {
        name: torch.tensor([[slot.get(name, 0.0)] for slot in slots], dtype=dtype)
        for name in STRENGTHS
    }


def keys_of(seeds, step=3):
    return noise_keys(torch.tensor(seeds), torch.full((1, len(seeds)), step), 1)[0, :, 0]


def augmented(inputs, slots, seeds, step=3, shared=True, image_shape=(C, H, W), names=STRENGTHS):
    shape = tuple(inputs.shape if shared else inputs.shape[1:])
    return Augmentation(shape, image_shape, names, CPU)(
        inputs, columns(slots, inputs.dtype), keys_of(seeds, step)
    )


def only(**strengths):
    return [{f"augment_{name}": value for name, value in strengths.items()}]


def test_a_slot_does_not_depend_on_its_place_its_neighbours_or_what_they_use(images):
    slots = [ALL, {}, only(shift=2.0)[0], only(noise=0.1)[0], {**ALL, "augment_rotate": 5.0}]
    seeds = [11, 12, 13, 14, 15]
    together = augmented(images, slots, seeds)
    backwards = augmented(images, slots[::-1], seeds[::-1]).flip(0)
    assert torch.equal(together, backwards)
    for place, (slot, seed) in enumerate(zip(slots, seeds, strict=True)):
        alone = augmented(images, [slot], [seed], names=tuple(slot))
        assert torch.allclose(alone[0], together[place], atol=1e-12)


def test_the_same_step_is_the_same_again_and_others_differ(images):
    first = augmented(images, [ALL], [5])
    assert torch.equal(first, augmented(images, [ALL], [5]))
    assert not torch.allclose(first, augmented(images, [ALL], [5], step=4))
    assert not torch.allclose(first, augmented(images, [ALL], [6]))


def test_strengths_of_zero_leave_a_slot_bit_for_bit_alone(images):
    pixels = images.float()
    out = augmented(pixels, [ALL, {}, ALL], [1, 2, 3])
    assert torch.equal(out[1], pixels) and not torch.equal(out[0], pixels)


def test_batches_of_each_slots_own_and_flat_inputs_are_as_good(images):
    own = torch.stack([images, images.flip(0)])
    apart = augmented(own, [ALL, ALL], [1, 2], shared=False)
    assert torch.equal(apart[0], augmented(images, [ALL], [1])[0])
    assert torch.equal(apart[1], augmented(images.flip(0), [ALL], [2])[0])
    flat = augmented(images.flatten(1), [ALL], [1])
    assert flat.shape == (1, B, C * H * W) and torch.equal(flat.view(1, B, C, H, W), apart[:1])
    grey = augmented(images[:, 0], [ALL], [1], image_shape=(H, W))
    assert grey.shape == (1, B, H, W)


@covers("augment_noise")
def test_noise_is_gaussian_of_its_deviation_and_independent():
    zeros = torch.zeros(500, 1000)
    sigma = 0.25
    out = (
        augmented(zeros, only(noise=sigma), [9], names=("augment_noise",), image_shape=None)[0]
        / sigma
    )
    later = (
        augmented(
            zeros, only(noise=sigma), [9], step=4, names=("augment_noise",), image_shape=None
        )[0]
        / sigma
    )
    n = out.numel()
    assert out.dtype == torch.float32 and out.isfinite().all()
    assert abs(float(out.mean())) < 5 / math.sqrt(n)
    assert abs(float(out.var()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float((out**3).mean())) < 5 * math.sqrt(15 / n)
    assert abs(float((out**4).mean()) - 3) < 5 * math.sqrt(96 / n)
    half = out.view(2, -1)  # the two numbers of each hash
    for one, other in (
        (out[:, 1:], out[:, :-1]),
        (out[1:], out[:-1]),
        (half[0], half[1]),
        (out, later),
    ):
        assert abs(float((one * other).mean())) < 6 / math.sqrt(n)
        assert abs(float((one.square() * other.square()).mean()) - 1) < 6 * math.sqrt(8 / n)
    within = [
        float(((out > a) & (out <= b)).double().mean())
        for a, b in pairwise([-3.0, -2, -1, 0, 1, 2, 3])
    ]
    expected = [
        torch.special.ndtr(torch.tensor(b)) - torch.special.ndtr(torch.tensor(a))
        for a, b in pairwise([-3.0, -2, -1, 0, 1, 2, 3])
    ]
    assert within == pytest.approx([float(e) for e in expected], abs=0.003)


@covers("augment_flip")
def test_a_flip_mirrors_the_share_that_it_is_told(images):
    many = images[:1].expand(4000, C, H, W)
    out = augmented(many, [{"augment_flip": 0.3}, {"augment_flip": 1.0}, {}], [1, 2, 3])
    mirrored = (out[0] == many.flip(-1)).flatten(1).all(1)
    assert ((out[0] == many).flatten(1).all(1) | mirrored).all()
    assert float(mirrored.double().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(out[1], many.flip(-1)) and torch.equal(out[2], many)


def moved_reference(images, angle, size, right, down):
    """The images turned, zoomed and shifted by torch's affine grids; all (B,)."""
    a, b = angle.cos() / size, -angle.sin() / size
    c, d = angle.sin() / size, angle.cos() / size
    theta = torch.stack(
        [
            torch.stack([a, b * H / W, -(a * right + b * down) * 2 / W], -1),
            torch.stack([c * W / H, d, -(c * right + d * down) * 2 / H], -1),
        ],
        1,
    )
    return grid_sample(
        images, affine_grid(theta, list(images.shape), align_corners=False), align_corners=False
    )


@covers("augment_shift", "augment_rotate", "augment_zoom")
@pytest.mark.parametrize(
    "strengths",
    [{"rotate": 40.0}, {"zoom": 0.4}, {"shift": 2.5}, {"rotate": 40.0, "zoom": 0.4, "shift": 2.5}],
)
def test_moves_are_the_affine_maps_of_torch_with_uniform_numbers(images, strengths):
    augmentation = Augmentation(tuple(images.shape), (C, H, W), STRENGTHS, CPU)
    drawn = []
    sampled = augmentation._sample
    augmentation._sample = lambda *given: drawn.append(given[-1]) or sampled(*given)
    out = augmentation(images, columns(only(**strengths)), keys_of([7]))[0]
    turn, zoom, right, down = drawn[0][0].unbind(-1)
    full = {"rotate": 0.0, "zoom": 0.0, "shift": 0.0, **strengths}
    reference = moved_reference(
        images,
        torch.deg2rad(full["rotate"] * turn),
        1 + full["zoom"] * zoom,
        full["shift"] * right,
        full["shift"] * down,
    )
    assert torch.allclose(out, reference, atol=1e-10) and not torch.allclose(out, images)


def test_the_numbers_of_an_image_are_uniform_and_independent(images):
    many = images[:1].expand(20000, C, H, W)
    augmentation = Augmentation(tuple(many.shape), (C, H, W), STRENGTHS, CPU)
    drawn = []
    augmentation._sample = lambda given, _values, numbers: drawn.append(numbers) or given
    augmentation(many, columns(only(shift=1.0)), keys_of([7]))
    numbers = drawn[0][0]
    assert numbers.shape == (20000, 4) and HASHES_AN_IMAGE * 2 >= 5
    assert float(numbers.min()) > -1 and float(numbers.max()) <= 1
    assert torch.allclose(numbers.mean(0), torch.zeros(4, dtype=torch.float64), atol=0.02)
    assert torch.allclose(numbers.T.cov(), torch.eye(4, dtype=torch.float64) / 3, atol=0.02)


def test_a_whole_shift_moves_pixels_and_brings_zeros(images, monkeypatch):
    augmentation = Augmentation(tuple(images.shape), (C, H, W), STRENGTHS, CPU)
    sampled = augmentation._sample
    numbers = torch.tensor([0.0, 0.0, 1.0, -1.0], dtype=torch.float64)  # to the right, upwards
    monkeypatch.setattr(
        augmentation,
        "_sample",
        lambda given, values, _: sampled(given, values, numbers.expand(1, B, 4)),
    )
    out = augmentation(images, columns(only(shift=2.0)), keys_of([7]))[0]
    assert torch.allclose(out[:, :, : H - 2, 2:], images[:, :, 2:, : W - 2], atol=1e-10)
    assert (
        float(out[:, :, :, :2].abs().max()) < 1e-10
        and float(out[:, :, H - 2 :].abs().max()) < 1e-10
    )


def test_it_can_be_traced_and_replayed_with_other_numbers(images):
    augmentation = Augmentation(tuple(images.shape), (C, H, W), STRENGTHS, CPU)
    traced = make_fx(augmentation)(images, columns([ALL, {}]), keys_of([1, 2]))
    other = columns([{}, {**ALL, "augment_shift": 0.7}])
    assert torch.equal(
        traced(images.flip(0), other, keys_of([8, 9], 5)),
        augmentation(images.flip(0), other, keys_of([8, 9], 5)),
    )


def test_what_is_no_image_cannot_be_turned():
    with pytest.raises(
        TaskError,
        match=(
            r"augment_rotate is for images, and inputs of shape \(7,\) are none; remove it "
            r"from \[space\]"
        ),
    ):
        Augmentation((4, 7), None, ["augment_noise", "augment_rotate"], CPU)
    with pytest.raises(TaskError, match="augment_flip is for images"):
        Augmentation((4, 7), (2, 3), ["augment_flip"], CPU)
    assert Augmentation((4, 7), None, ["augment_noise"], CPU).names == ("augment_noise",)


STRENGTHS_OF_SLOTS = [
    {},
    {"augment_noise": 0.2, "augment_shift": 1.0},
    {"augment_rotate": 20.0, "augment_zoom": 0.2},
    ALL,
]


def test_trials_of_different_strengths_share_an_array_and_train_as_they_do_alone():
    jobs = [job(i, epochs=2, **hp) for i, hp in enumerate(STRENGTHS_OF_SLOTS)]
    together = outcomes(jobs, task=Digits(), width=4)
    assert {o.array_width for o in together.values()} == {4}
    for one in jobs:
        alone = outcomes([one], task=Digits(), width=1)[one.id]
        assert torch.allclose(trained(together[one.id]), trained(alone), atol=1e-9)
    plain = outcomes([job(3, epochs=2)], task=Digits())["coarse-0003"]
    assert not torch.allclose(trained(together["coarse-0003"]), trained(plain), atol=1e-3)


def test_validation_sees_the_images_as_they_are():
    still = [job(0, epochs=1, learning_rate=0.0), job(0, epochs=1, learning_rate=0.0, **ALL)]
    plain, noisy = (outcomes([one], task=Digits())["coarse-0000"] for one in still)
    assert (
        noisy.val_loss == pytest.approx(plain.val_loss, rel=1e-12)
        and noisy.curves["train_loss"] != plain.curves["train_loss"]
    )


def test_a_resumed_trial_sees_the_same_noise_again():
    whole = outcomes([job(0, epochs=2, **ALL)])["coarse-0000"]
    saved = next(
        state(view)
        for boundary in boundaries([job(0, epochs=2, **ALL)])
        for view in boundary.running
        if view.epoch == 1
    )
    resumed = outcomes([job(0, epochs=2, resume=saved, **ALL)])["coarse-0000"]
    assert torch.equal(trained(resumed), trained(whole))


def test_principal_components_cannot_be_turned():
    ended = outcomes([job(0, epochs=1, preprocess="pca", augment_rotate=5.0)], task=Digits())[
        "coarse-0000"
    ]
    assert (
        ended.state == TrialState.FAILED
        and "augment_rotate is for images, and inputs of shape (64,) are none" in ended.reason
    )


def trained(outcome):
    return weights(load(outcome.checkpoint()))

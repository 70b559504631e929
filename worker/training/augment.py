"""Augmentation on the device: every step sees its training examples a little changed, each slot by its own strengths.

An image is mirrored, then turned, zoomed and shifted in one bilinear sampling, then noise is added. What is random comes from a
counter hash (see ``noise.py``), so that it depends neither on a slot's place nor on its neighbours, and is the same after a resume.
A slot whose strengths are all 0 sees its examples exactly as they are. Validation never passes through here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from common.errors import TaskError
from common.practice import DATA
from worker.training.noise import STIR, position_table, scrambled

NOISE, FLIP, ROTATE, ZOOM, SHIFT = "augment_noise", "augment_flip", "augment_rotate", "augment_zoom", "augment_shift"
STRENGTHS = tuple(name for name in DATA if name.startswith("augment_"))
OF_IMAGES = (FLIP, ROTATE, ZOOM, SHIFT)
MOVES = (ROTATE, ZOOM, SHIFT)  # what needs sampling between pixels
LEVELS = 1 << 24  # of a number: as many as single precision tells apart; a 64-bit hash holds two
FIRST_OF_IMAGES = 1 << 40  # counters of what is drawn once an image, far from those of the noise
HASHES_AN_IMAGE = 3  # flip, angle, size, and two directions: five numbers


class Augmentation:
    """Augments batches of one shape by the strengths that are in use; the tables are made here, outside of any traced step."""

    def __init__(
        self, batch_shape: tuple[int, ...], image_shape: tuple[int, ...] | None, names: Collection[str], device: torch.device
    ) -> None:
        """Prepares.

        Args:
            batch_shape: (B, ...) of one slot's inputs.
            image_shape: (H, W) or (C, H, W), into which the elements of an input can be folded; None where it is no image.
            names: the strengths that any slot uses; the others cost nothing.
            device: of the inputs.

        Raises:
            TaskError: a strength of images, and the inputs are none.
        """
        self.batch_shape = tuple(batch_shape)
        self.names = tuple(name for name in STRENGTHS if name in names)
        self._size = math.prod(self.batch_shape[1:])
        self._image = self._folded(image_shape)
        n_hashes = -(-self.batch_shape[0] * self._size // 2) if NOISE in names else 1
        self._noise_table = position_table(4 * n_hashes, device)  # (1, ceil(B d / 2)), two numbers a hash
        counters = torch.arange(HASHES_AN_IMAGE * self.batch_shape[0], device=device)
        self._image_table = scrambled(counters + FIRST_OF_IMAGES).unsqueeze(0)  # (1, 3 B)
        height, width = self._image[1:] if self._image else (1, 1)
        self._x = torch.arange(width, device=device) - (width - 1) / 2  # (W,) pixels right of the middle
        self._y = (torch.arange(height, device=device) - (height - 1) / 2).unsqueeze(1)  # (H, 1) pixels below the middle

    def __call__(self, inputs: Tensor, values: Mapping[str, Tensor], keys: Tensor) -> Tensor:
        """The batch as each slot sees it in this step.

        Args:
            inputs: (B, ...) where all slots share them, else (K, B, ...); preprocessed, of a floating type.
            values: by name the strengths (K, 1) in the type of the inputs; those in ``names`` are read.
            keys: (K, 2) int64 of this step, an odd factor and an offset, as ``noise_keys`` makes them for one more layer.

        Returns:
            (K, B, ...).
        """
        shared = inputs.ndim == len(self.batch_shape)
        out = inputs.unsqueeze(0).expand(len(keys), *self.batch_shape) if shared else inputs
        if any(name in self.names for name in OF_IMAGES):
            out = self._moved(out, values, _hashed(self._image_table, keys)).view(len(keys), *self.batch_shape)
        if NOISE in self.names:
            normal = _normal(_hashed(self._noise_table, keys), out.dtype)[:, : self.batch_shape[0] * self._size]
            out = out + (values[NOISE] * normal).view(len(keys), *self.batch_shape)
        return out

    def _folded(self, image_shape: tuple[int, ...] | None) -> tuple[int, int, int] | None:
        wanted = [name for name in self.names if name in OF_IMAGES]
        if not wanted:
            return None
        if image_shape is None or len(image_shape) not in (2, 3) or math.prod(image_shape) != self._size:
            raise TaskError(
                f"{wanted[0]} is for images, and inputs of shape {self.batch_shape[1:]} are none; remove it from [space], "
                "or give the task image_shape = (channels, height, width) and preprocess = none, centre or normalise"
            )
        *channels, height, width = image_shape
        return math.prod(channels), height, width

    def _moved(self, inputs: Tensor, values: Mapping[str, Tensor], hashed: Tensor) -> Tensor:
        """Images (K, B, C, H, W) mirrored and sampled elsewhere."""
        assert self._image is not None
        n_slots, n_images = len(inputs), self.batch_shape[0]
        images = inputs.reshape(n_slots, n_images, *self._image)
        drawn = _uniform(hashed, inputs.dtype).view(n_slots, n_images, 2 * HASHES_AN_IMAGE)  # in (0, 1]
        if FLIP in self.names:
            mirrored = drawn[..., 0] <= values[FLIP]  # (K, B), all for 1 and none for 0
            images = torch.where(mirrored[..., None, None, None], images.flip(-1), images)
        moves = [values[name] for name in MOVES if name in self.names]
        if moves:
            still = torch.stack(moves).sum(0) == 0  # (K, 1)
            sampled = self._sampled(images, values, 2 * drawn[..., 1:5] - 1)
            images = torch.where(still[..., None, None, None], images, sampled)
        return images

    def _sampled(self, images: Tensor, values: Mapping[str, Tensor], drawn: Tensor) -> Tensor:
        """Each pixel p, from the middle, comes from R(angle) (p - shift) / size; outside of the image there is 0. ``drawn`` in [-1, 1]."""
        assert self._image is not None
        _, height, width = self._image
        zero = drawn.new_zeros(len(drawn), 1)
        strength = {name: values[name] if name in self.names else zero for name in MOVES}
        angle, size = torch.deg2rad(strength[ROTATE] * drawn[..., 0]), 1 + strength[ZOOM] * drawn[..., 1]  # (K, B)
        right, down = strength[SHIFT] * drawn[..., 2], strength[SHIFT] * drawn[..., 3]
        cosine, sine = ((value / size)[..., None, None] for value in (angle.cos(), angle.sin()))  # (K, B, 1, 1)
        x = self._x.to(images.dtype) - right[..., None, None]  # (K, B, 1, W)
        y = self._y.to(images.dtype) - down[..., None, None]  # (K, B, H, 1)
        from_x, from_y = cosine * x - sine * y, sine * x + cosine * y  # (K, B, H, W) pixels from the middle
        grid = torch.stack([from_x * (2 / width), from_y * (2 / height)], -1)  # from -1 to 1 between the outer edges
        sampled = grid_sample(images.flatten(0, 1), grid.flatten(0, 1), mode="bilinear", padding_mode="zeros", align_corners=False)
        return sampled.view(images.shape)


def _hashed(table: Tensor, keys: Tensor) -> Tensor:
    """(K, n) int64: the constants (1, n) of the counters, stirred by each slot's key (K, 2)."""
    words = table * keys[:, 0:1] + keys[:, 1:2]
    words = (words ^ (words >> 29)) * STIR
    return words ^ ((words >> 32) & 0xFFFFFFFF)


def _uniform(hashed: Tensor, dtype: torch.dtype) -> Tensor:
    """(K, 2 n) numbers in (0, 1], never 0, whose logarithm is infinite."""
    bits = (hashed.view(torch.int32) >> 8) & (LEVELS - 1)
    return (bits.to(dtype) + 0.5) / LEVELS


def _normal(hashed: Tensor, dtype: torch.dtype) -> Tensor:
    """(K, 2 n) numbers of mean 0 and variance 1.

    Source: Box and Muller, "A Note on the Generation of Random Normal Deviates", Annals of Mathematical Statistics 29 (1958).
    """
    radius, turn = _uniform(hashed, dtype).view(*hashed.shape, 2).unbind(-1)
    radius, turn = (-2 * radius.log()).sqrt(), 2 * math.pi * turn
    return torch.cat([radius * turn.cos(), radius * turn.sin()], 1)

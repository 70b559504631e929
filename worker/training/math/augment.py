"""Data augmentation on the device: each step changes its training examples at random.

Each slot has its own strengths. An image is mirrored. Then it is rotated, zoomed and shifted in one
bilinear sampling. Then noise is added. Random numbers come from a counter hash (see ``noise.py``).
They depend neither on a slot's place in the array nor on its neighbours, and they are the same
after a resume. A slot whose strengths are all 0 sees its examples unchanged. Validation examples
are never augmented.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from common.errors import TaskError
from common.search.hyperparameters import DATA
from worker.training.math.noise import STIR, position_table, scramble

NOISE, FLIP, ROTATE, ZOOM, SHIFT = (
    "augment_noise",
    "augment_flip",
    "augment_rotate",
    "augment_zoom",
    "augment_shift",
)
STRENGTHS = tuple(name for name in DATA if name.startswith("augment_"))
OF_IMAGES = (FLIP, ROTATE, ZOOM, SHIFT)
MOVES = (ROTATE, ZOOM, SHIFT)  # strengths that need sampling between pixels
# Random numbers have 24 bits, as many as single precision distinguishes. A 64-bit hash holds two
# numbers.
LEVELS = 1 << 24
# First counter of the numbers drawn once per image, far from the counters of the noise.
FIRST_OF_IMAGES = 1 << 40
HASHES_AN_IMAGE = 3  # flip, angle, zoom and two shifts: five numbers


class Augmentation:
    """Augmentation of batches of one shape, by the strengths that are in use.

    The tables are made on construction, outside of any traced step.
    """

    def __init__(
        self,
        batch_shape: tuple[int, ...],
        image_shape: tuple[int, ...] | None,
        names: Collection[str],
        device: torch.device,
    ) -> None:
        """Make the tables.

        Args:
            batch_shape: (B, ...), the inputs of one slot.
            image_shape: (H, W) or (C, H, W), into which an input can be reshaped. None if inputs
                are no images.
            names: the strengths that any slot uses. The others cost nothing.
            device: where the inputs are.

        Raises:
            TaskError: an image strength is used, but the inputs are no images.
        """
        self.batch_shape = tuple(batch_shape)
        self.names = tuple(name for name in STRENGTHS if name in names)
        self._size = math.prod(self.batch_shape[1:])
        self._image = self._fold(image_shape)
        n_hashes = -(-self.batch_shape[0] * self._size // 2) if NOISE in names else 1
        # (1, ceil(B d / 2)); each hash gives two numbers
        self._noise_table = position_table(4 * n_hashes, device)
        counters = torch.arange(HASHES_AN_IMAGE * self.batch_shape[0], device=device)
        self._image_table = scramble(counters + FIRST_OF_IMAGES).unsqueeze(0)  # (1, 3 B)
        height, width = self._image[1:] if self._image else (1, 1)
        # (W,) pixels to the right of the centre
        self._x = torch.arange(width, device=device) - (width - 1) / 2
        # (H, 1) pixels below the centre
        self._y = (torch.arange(height, device=device) - (height - 1) / 2).unsqueeze(1)

    def __call__(self, inputs: Tensor, values: Mapping[str, Tensor], keys: Tensor) -> Tensor:
        """Return the batch as each slot sees it in this step.

        Args:
            inputs: (B, ...) if all slots share them, else (K, B, ...). Preprocessed, of a floating
                type.
            values: the strengths (K, 1) by name, in the dtype of the inputs. Those in ``names`` are
                read.
            keys: (K, 2) int64 of this step: an odd factor and an offset, as ``noise_keys`` makes
                them for one more layer.

        Returns:
            (K, B, ...).
        """
        shared = inputs.ndim == len(self.batch_shape)
        out = inputs.unsqueeze(0).expand(len(keys), *self.batch_shape) if shared else inputs
        if any(name in self.names for name in OF_IMAGES):
            out = self._move(out, values, _hash(self._image_table, keys)).view(
                len(keys), *self.batch_shape
            )
        if NOISE in self.names:
            normal = _normal(_hash(self._noise_table, keys), out.dtype)[
                :, : self.batch_shape[0] * self._size
            ]
            out = out + (values[NOISE] * normal).view(len(keys), *self.batch_shape)
        return out

    def _fold(self, image_shape: tuple[int, ...] | None) -> tuple[int, int, int] | None:
        wanted = [name for name in self.names if name in OF_IMAGES]
        if not wanted:
            return None
        if (
            image_shape is None
            or len(image_shape) not in (2, 3)
            or math.prod(image_shape) != self._size
        ):
            raise TaskError(
                f"{wanted[0]} is for images, and inputs of shape {self.batch_shape[1:]} are none; "
                "remove it from [space], or give the task image_shape = (channels, height, width) "
                "and preprocess = none, centre or normalise"
            )
        *channels, height, width = image_shape
        return math.prod(channels), height, width

    def _move(self, inputs: Tensor, values: Mapping[str, Tensor], hashed: Tensor) -> Tensor:
        """Mirror images (K, B, C, H, W) and resample them."""
        assert self._image is not None
        n_slots, n_images = len(inputs), self.batch_shape[0]
        images = inputs.reshape(n_slots, n_images, *self._image)
        # In (0, 1]
        drawn = _uniform(hashed, inputs.dtype).view(n_slots, n_images, 2 * HASHES_AN_IMAGE)
        if FLIP in self.names:
            mirrored = drawn[..., 0] <= values[FLIP]  # (K, B): all for a strength of 1, none for 0
            images = torch.where(mirrored[..., None, None, None], images.flip(-1), images)
        moves = [values[name] for name in MOVES if name in self.names]
        if moves:
            still = torch.stack(moves).sum(0) == 0  # (K, 1)
            sampled = self._sample(images, values, 2 * drawn[..., 1:5] - 1)
            images = torch.where(still[..., None, None, None], images, sampled)
        return images

    def _sample(self, images: Tensor, values: Mapping[str, Tensor], drawn: Tensor) -> Tensor:
        """Rotate, zoom and shift images by bilinear sampling.

        The output at pixel p, measured from the centre, is the input at R(angle) (p - shift) /
        size. Outside of the image the input is 0. ``drawn`` is in [-1, 1].
        """
        assert self._image is not None
        _, height, width = self._image
        zero = drawn.new_zeros(len(drawn), 1)
        strength = {name: values[name] if name in self.names else zero for name in MOVES}
        # (K, B) each
        angle, size = (
            torch.deg2rad(strength[ROTATE] * drawn[..., 0]),
            1 + strength[ZOOM] * drawn[..., 1],
        )
        right, down = strength[SHIFT] * drawn[..., 2], strength[SHIFT] * drawn[..., 3]
        # (K, B, 1, 1) each
        cosine, sine = ((value / size)[..., None, None] for value in (angle.cos(), angle.sin()))
        x = self._x.to(images.dtype) - right[..., None, None]  # (K, B, 1, W)
        y = self._y.to(images.dtype) - down[..., None, None]  # (K, B, H, 1)
        # (K, B, H, W) each, pixels from the centre
        from_x, from_y = (cosine * x - sine * y, sine * x + cosine * y)
        # -1 and 1 are the outer edges of the image
        grid = torch.stack([from_x * (2 / width), from_y * (2 / height)], -1)
        sampled = grid_sample(
            images.flatten(0, 1),
            grid.flatten(0, 1),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        return sampled.view(images.shape)


def _hash(table: Tensor, keys: Tensor) -> Tensor:
    """Return (K, n) int64 hashes of constants (1, n), mixed with each slot's key (K, 2)."""
    words = table * keys[:, 0:1] + keys[:, 1:2]
    words = (words ^ (words >> 29)) * STIR
    return words ^ ((words >> 32) & 0xFFFFFFFF)


def _uniform(hashed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (K, 2 n) uniform numbers in (0, 1]. 0 is excluded: its logarithm is infinite."""
    bits = (hashed.view(torch.int32) >> 8) & (LEVELS - 1)
    return (bits.to(dtype) + 0.5) / LEVELS


def _normal(hashed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (K, 2 n) normal numbers of mean 0 and variance 1.

    Source: Box and Muller, "A Note on the Generation of Random Normal Deviates", Annals of
    Mathematical Statistics 29 (1958).
    """
    radius, turn = _uniform(hashed, dtype).view(*hashed.shape, 2).unbind(-1)
    radius, turn = (-2 * radius.log()).sqrt(), 2 * math.pi * turn
    return torch.cat([radius * turn.cos(), radius * turn.sin()], 1)

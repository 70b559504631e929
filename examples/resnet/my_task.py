"""Digits in files, for a small ResNet: a ``DataLoader`` and transforms as in any training script.

The loader loads each batch once, and the batch serves all trials of an array.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from resnet import ResNet
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset
from write_images import write_images

from coarsefine import Data

BATCH_SIZE = 50
N_CLASSES = 10


class ImageFolder(Dataset):
    """The images of a folder, in one folder a class. Each example is (1, 8, 8) and a class."""

    def __init__(self, folder, transform=None):
        self.paths = sorted(folder.glob("*/[0-9]*.png"))
        self.transform = transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, place):
        path = self.paths[place]
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image, dtype=np.float32)).unsqueeze(0)
        pixels = (pixels / 255 - 0.3) / 0.38  # about the mean and deviation of all pixels
        if self.transform is not None:
            pixels = self.transform(pixels)
        return pixels, int(path.parent.name)


class Augment:
    """Move an image by up to a pixel each way, and change its contrast.

    The engine seeds torch's generator for each epoch, so this needs no seed.
    """

    def __call__(self, pixels):
        """Return an image of the same size (1, 8, 8)."""
        height, width = pixels.shape[1:]
        top, left = torch.randint(0, 3, (2,)).tolist()
        moved = pad(pixels, (1, 1, 1, 1), mode="replicate")[:, top:, left:]
        return moved[:, :height, :width] * (0.8 + 0.4 * torch.rand(()))


class Digits:
    """The class of a digit. Loss and accuracy are the engine's own."""

    def data(self):
        """Return the parts, each as a loader. The loaders choose the batch size."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir())
        folder = home / f"coarsefine-digits-{os.getuid()}"
        write_images(folder)
        train = ImageFolder(folder / "train", transform=Augment())
        val = ImageFolder(folder / "val")
        return Data(
            train=DataLoader(train, batch_size=BATCH_SIZE, shuffle=True, num_workers=1),
            val=DataLoader(val, batch_size=200),
            test=None,
            n_classes=N_CLASSES,
        )

    def model(self, hp):
        """Return a new ResNet of two stages."""
        return ResNet(layers=[1, hp["blocks"]], width=hp["width"], num_classes=N_CLASSES)

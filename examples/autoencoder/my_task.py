"""A variational autoencoder of handwritten digits, with a classifier on its code.

The model returns a dict of outputs, the targets are a dict, and the loss has three parts. Each part
is measured for itself: ``train_image`` and ``val_image``, and so on.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from coarsefine import Data, Part

SPLIT_SEED = 7  # fixed, so that every worker sees the same parts
N_CODE = 8


class Autoencoder(nn.Module):
    """An encoder to a distribution of codes; its mean is decoded and classified."""

    def __init__(self, hidden):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 2 * N_CODE)
        )
        self.decoder = nn.Sequential(nn.Linear(N_CODE, hidden), nn.Tanh(), nn.Linear(hidden, 64))
        self.classifier = nn.Linear(N_CODE, 10)

    def forward(self, inputs):
        """Return images, classes, and the mean and the logarithm of the variance of the codes."""
        mean, log_variance = self.encoder(inputs).chunk(2, dim=-1)
        return {
            "image": self.decoder(mean),
            "digit": self.classifier(mean),
            "code": (mean, log_variance),
        }


def accuracy(outputs, targets):
    """Return the share of digits that one trial recognises in the whole validation part."""
    return (outputs["digit"].argmax(-1) == targets["digit"]).double().mean()


class Digits:
    """With outputs and targets in dicts there is no ``n_classes``, so accuracy is a metric here."""

    metrics = {"val_right": accuracy}  # noqa: RUF012

    def data(self):
        """Return the parts: 1,200 images for training, 300 for validation, 297 for the test."""
        digits = load_digits()
        order = torch.randperm(
            len(digits.data), generator=torch.Generator().manual_seed(SPLIT_SEED)
        )
        images = torch.tensor(digits.data / 16, dtype=torch.float32)[order]
        labels = torch.tensor(digits.target, dtype=torch.int64)[order]
        parts = [
            Part(images[rows], {"image": images[rows], "digit": labels[rows]})
            for rows in (slice(1200), slice(1200, 1500), slice(1500, None))
        ]
        return Data(*parts, n_classes=None)

    def model(self, hp):
        """Return a new autoencoder."""
        return Autoencoder(hp["hidden"])

    def loss(self, outputs, targets, hp):
        """Return the parts of the loss. Their sum is trained."""
        mean, log_variance = outputs["code"]
        prior = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        return {
            "image": (outputs["image"] - targets["image"]).square().sum(-1).mean(),
            "digit": hp["digit_weight"] * cross_entropy(outputs["digit"], targets["digit"]),
            "prior": hp["prior_weight"] * prior,
        }

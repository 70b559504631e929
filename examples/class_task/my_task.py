"""A regression as a class: how far diabetes will have progressed in a year, from ten measurements of 442 patients.

The engine owns the loop and trains many of these small networks at once; loss and metric are the task's own.
"""

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import nn

from worker.tasks import Data, Part

SPLIT_SEED = 7  # fixed: every worker has to see the same parts
MEAN, DEVIATION = 152.0, 77.0  # of the targets, which run from 25 to 346; networks like them around zero


def mean_absolute_error(outputs, targets):
    """In deviations of the data. Outputs and targets of the whole validation part, of one trial; one number comes back."""
    return (outputs - targets).abs().mean()


class Diabetes:
    """``data`` and ``model`` are needed, ``loss`` and ``metrics`` may be left out by classifiers."""

    metrics = {"val_mae": mean_absolute_error}  # noqa: RUF012
    preprocess = "normalise"  # with the mean and deviation of the training part; [space] may say otherwise

    def data(self):
        """60 % for training, 20 % to choose by, 20 % for the very end. ``n_classes=None``: no classification."""
        inputs, targets = load_diabetes(return_X_y=True)
        parts = [torch.tensor(inputs, dtype=torch.float32), torch.tensor((targets - MEAN) / DEVIATION, dtype=torch.float32).unsqueeze(1)]
        rest_x, test_x, rest_y, test_y = train_test_split(*parts, test_size=0.2, random_state=SPLIT_SEED)
        train_x, val_x, train_y, val_y = train_test_split(rest_x, rest_y, test_size=0.25, random_state=SPLIT_SEED)
        return Data(Part(train_x, train_y), Part(val_x, val_y), Part(test_x, test_y), n_classes=None)

    def model(self, hp):
        """Any ``nn.Module``; the trial's own seed has been set."""
        return nn.Sequential(nn.Linear(10, hp["hidden"]), nn.Tanh(), nn.Dropout(hp["dropout"]), nn.Linear(hp["hidden"], 1))

    def loss(self, outputs, targets, hp):
        """The mean over the batch of one trial. ``hp["delta"]`` is a tensor here: it differs within an array of trials."""
        error = (outputs - targets).abs()
        huber = torch.where(error < hp["delta"], 0.5 * error**2, hp["delta"] * (error - 0.5 * hp["delta"]))
        return huber.mean()

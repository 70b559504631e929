"""A regression task: the progression of diabetes within a year.

The inputs are ten measurements of 442 patients. The task is a class, so the engine runs the
training loop and trains many of these small networks at once. The task has its own loss and metric.
"""

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import nn

from coarsefine import Data, Part

SPLIT_SEED = 7  # fixed, so that every worker sees the same parts
# Mean and standard deviation of the targets, which run from 25 to 346. A network trains better
# on targets around zero.
MEAN, DEVIATION = 152.0, 77.0


def mean_absolute_error(outputs, targets):
    """Return the mean absolute error, in standard deviations of the targets.

    Args:
        outputs: the outputs of one trial on the whole validation part.
        targets: the targets of that part.
    """
    return (outputs - targets).abs().mean()


class Diabetes:
    """A task needs ``data`` and ``model``.

    Classifiers may leave out ``loss`` and ``metrics``.
    """

    metrics = {"val_mae": mean_absolute_error}  # noqa: RUF012
    # With the mean and standard deviation of the training part. [space] may set another.
    preprocess = "normalise"

    def data(self):
        """Return the parts: 60 % for training, 20 % for validation, 20 % for the final test.

        ``n_classes=None`` says that this is not a classification.
        """
        inputs, targets = load_diabetes(return_X_y=True)
        parts = [
            torch.tensor(inputs, dtype=torch.float32),
            torch.tensor((targets - MEAN) / DEVIATION, dtype=torch.float32).unsqueeze(1),
        ]
        rest_x, test_x, rest_y, test_y = train_test_split(
            *parts, test_size=0.2, random_state=SPLIT_SEED
        )
        train_x, val_x, train_y, val_y = train_test_split(
            rest_x, rest_y, test_size=0.25, random_state=SPLIT_SEED
        )
        return Data(
            Part(train_x, train_y), Part(val_x, val_y), Part(test_x, test_y), n_classes=None
        )

    def model(self, hp):
        """Return a new model for the configuration ``hp``.

        It may be any ``nn.Module``. torch has been seeded with the trial's own seed.
        """
        return nn.Sequential(
            nn.Linear(10, hp["hidden"]),
            nn.Tanh(),
            nn.Dropout(hp["dropout"]),
            nn.Linear(hp["hidden"], 1),
        )

    def loss(self, outputs, targets, hp):
        """Return the mean Huber loss of one trial's batch.

        ``hp["delta"]`` is a tensor here, since it differs between the trials of an array.
        """
        error = (outputs - targets).abs()
        huber = torch.where(
            error < hp["delta"], 0.5 * error**2, hp["delta"] * (error - 0.5 * hp["delta"])
        )
        return huber.mean()

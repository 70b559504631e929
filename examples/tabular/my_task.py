"""A table with columns of two kinds: numbers, and whole numbers that stand for categories.

The inputs are a dict of tensors. ``forward`` gets one batch of that dict.
"""

import torch
from sklearn.datasets import load_wine
from torch import nn

from coarsefine import Data, Part

SPLIT_SEED = 7  # fixed, so that every worker sees the same parts
N_BINS = 8


class Table(nn.Module):
    """An embedding for each column of categories, beside the numbers."""

    def __init__(self, n_columns, n_numbers, width, hidden):
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(N_BINS, width) for _ in range(n_columns))
        self.head = nn.Sequential(
            nn.Linear(n_columns * width + n_numbers, hidden), nn.ReLU(), nn.Linear(hidden, 3)
        )

    def forward(self, inputs):
        """Return the logits (n, 3)."""
        columns = inputs["categories"].unbind(-1)
        embedded = [layer(ids) for layer, ids in zip(self.embeddings, columns, strict=True)]
        return self.head(torch.cat([*embedded, inputs["numbers"]], dim=-1))


class Wine:
    """The grape of a wine: a classification, so the engine's own loss and accuracy are used."""

    def data(self):
        """Return 108 wines for training and 70 for validation.

        The colour and the hue are put into bins, so that they are categories. The other eleven
        measurements stay numbers, and are normalised here, since ``preprocess`` is for a single
        tensor.
        """
        wine = load_wine()
        order = torch.randperm(len(wine.data), generator=torch.Generator().manual_seed(SPLIT_SEED))
        values = torch.tensor(wine.data, dtype=torch.float32)[order]
        labels = torch.tensor(wine.target, dtype=torch.int64)[order]
        train = values[:108]
        values = (values - train.mean(0)) / train.std(0)
        edges = torch.linspace(-2, 2, N_BINS - 1)
        inputs = {
            "categories": torch.bucketize(values[:, 9:11].contiguous(), edges),
            "numbers": torch.cat([values[:, :9], values[:, 11:]], dim=-1),
        }
        parts = [
            Part({name: column[rows] for name, column in inputs.items()}, labels[rows])
            for rows in (slice(108), slice(108, None))
        ]
        return Data(*parts, test=None, n_classes=3)

    def model(self, hp):
        """Return a new model."""
        return Table(n_columns=2, n_numbers=11, width=hp["width"], hidden=hp["hidden"])

    def param_groups(self, model, hp):
        """Give the embeddings a learning rate of their own, and no weight decay."""
        embeddings = {"learning_rate": hp["embedding_rate"], "weight_decay": 0.0}
        return [{"params": model.embeddings.parameters(), **embeddings}]

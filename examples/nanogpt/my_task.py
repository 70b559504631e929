"""A GPT that writes the next character, trained on the descriptions of scikit-learn's data sets.

The model is in ``model.py``, as it would be published. It is stacked: trials that differ in their
rates and their dropout train in one array.
"""

import torch
from model import GPT, GPTConfig
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from torch.nn import functional as F

from coarsefine import Data, Part

BLOCK_SIZE = 16
TEXTS = (load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine)
TEXT = "\n".join(load().DESCR for load in TEXTS)
CHARACTERS = sorted(set(TEXT))


def windows(tokens, step):
    """Return pieces of the text as inputs, and as targets the same pieces one character later.

    Args:
        tokens: (n,) the numbers of the characters.
        step: characters between the starts of two pieces.
    """
    pieces = tokens.unfold(0, BLOCK_SIZE + 1, step)
    return Part(pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous())


def accuracy(outputs, targets):
    """Return the share of characters that one trial predicts in the whole validation part."""
    return (outputs.argmax(-1) == targets).double().mean()


class Characters:
    """There is a class at each position and not one a piece of text, so the loss is our own."""

    metrics = {"val_right": accuracy}  # noqa: RUF012

    def data(self):
        """Return the first nine tenths of the text for training, and the rest for validation."""
        tokens = torch.tensor([CHARACTERS.index(character) for character in TEXT])
        n = len(tokens) * 9 // 10
        return Data(
            windows(tokens[:n], BLOCK_SIZE),
            windows(tokens[n:], BLOCK_SIZE),
            test=None,
            n_classes=None,
        )

    def model(self, hp):
        """Return a new GPT."""
        return GPT(
            GPTConfig(
                block_size=BLOCK_SIZE,
                vocab_size=len(CHARACTERS),
                n_layer=hp["n_layer"],
                n_head=hp["n_head"],
                n_embd=hp["n_embd"],
                dropout=hp["dropout"],
            )
        )

    def param_groups(self, model, hp):
        """Return what the model's own code would give to ``torch.optim.AdamW``."""
        return model.optim_groups(hp["weight_decay"])

    def loss(self, outputs, targets, hp):
        """Return the mean cross-entropy of a character, in nats."""
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

"""A Lightning module and trainer: handwritten digits."""

import math

import lightning as L
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from coarsefine.companions.lightning import Report

SPLIT_SEED = 7  # fixed, so that every trial is measured on the same part


class Classifier(L.LightningModule):
    """A small network. What it logs is reported: train_loss, val_loss and val_acc."""

    def __init__(self, hidden, learning_rate):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
        self.learning_rate = learning_rate

    def training_step(self, batch, batch_index):
        """Return the loss of a batch."""
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self.layers(inputs), targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_index):
        """Log loss and accuracy of a batch. Lightning takes the means over the epoch."""
        inputs, targets = batch
        outputs = self.layers(inputs)
        self.log("val_loss", nn.functional.cross_entropy(outputs, targets))
        self.log("val_acc", (outputs.argmax(1) == targets).float().mean())

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def loaders():
    """Return batches of the training and the validation part."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    train, val = train_test_split(
        range(len(labels)), test_size=0.2, stratify=labels, random_state=SPLIT_SEED
    )
    return (
        DataLoader(TensorDataset(images[train], labels[train]), batch_size=64, shuffle=True),
        DataLoader(TensorDataset(images[val], labels[val]), batch_size=len(val)),
    )


def train(trial):
    """Train one trial, from where it was saved last."""
    L.seed_everything(trial.seed % 2**32)
    report = Report(trial)
    trainer = L.Trainer(
        max_epochs=math.ceil(trial.max_epochs),  # it ends earlier, at trial.epochs
        callbacks=[report],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Classifier(trial.hp["hidden"], trial.hp["learning_rate"])
    trainer.fit(model, *loaders(), ckpt_path=report.resume)

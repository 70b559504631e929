"""A skorch classifier: which of three growers made a wine."""

import math

import torch
from sklearn.datasets import load_wine
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from skorch.dataset import ValidSplit
from torch import nn

from coarsefine.companions.skorch import Report


def train(trial):
    """Train one trial, from where it was saved last."""
    torch.manual_seed(trial.seed)
    inputs, targets = load_wine(return_X_y=True)
    hidden = trial.hp["hidden"]
    net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(13, hidden), nn.ReLU(), nn.Linear(hidden, 3)),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=trial.hp["learning_rate"],
        batch_size=16,
        max_epochs=math.ceil(trial.max_epochs),  # it ends earlier, at trial.epochs
        train_split=ValidSplit(3, stratified=True),  # the same part for every trial
        callbacks=[Report(trial)],
        verbose=0,
    )
    net.fit(StandardScaler().fit_transform(inputs).astype("float32"), targets)

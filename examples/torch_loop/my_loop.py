"""A training loop in plain PyTorch: which of three growers made a wine.

The inputs are thirteen chemical measurements. The loop trains one trial at a time, so it may do
anything. With each ``trial.report`` coarsefine checks for an explosion, an early stop and a kill,
and saves the state for a checkpoint and a resume.
"""

import math

import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from torch import nn

SPLIT_SEED = 7  # fixed, so that every trial is measured on the same part


def parts():
    """Return training inputs, training targets, validation inputs and validation targets.

    Inputs are scaled by the mean and standard deviation of the training part. A quarter of the
    wines is left out, for a test at the very end.
    """
    inputs, targets = load_wine(return_X_y=True)
    rest_x, _, rest_y, _ = train_test_split(
        inputs, targets, test_size=0.25, stratify=targets, random_state=SPLIT_SEED
    )
    train_x, val_x, train_y, val_y = train_test_split(
        rest_x, rest_y, test_size=0.3, stratify=rest_y, random_state=SPLIT_SEED
    )
    mean, deviation = train_x.mean(0), train_x.std(0)
    scaled = [torch.tensor((x - mean) / deviation, dtype=torch.float32) for x in (train_x, val_x)]
    return scaled[0], torch.tensor(train_y), scaled[1], torch.tensor(val_y)


def train(trial):
    """Train one trial.

    This may be called again for the same trial: if a worker was lost, or if the trial is promoted
    to more epochs. ``trial.resume`` is then the state that was reported last.
    """
    torch.manual_seed(trial.seed)
    device = torch.device(trial.device)
    train_x, train_y, val_x, val_y = (part.to(device) for part in parts())
    model = nn.Sequential(
        nn.Linear(13, trial.hp["hidden"]), nn.ReLU(), nn.Linear(trial.hp["hidden"], 3)
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=trial.hp["learning_rate"])
    if trial.resume is not None:
        model.load_state_dict(trial.resume["model"])
        optimizer.load_state_dict(trial.resume["optimizer"])

    for epoch in range(round(trial.epoch) + 1, math.ceil(trial.epochs) + 1):
        order = torch.randperm(
            len(train_x), generator=torch.Generator().manual_seed(trial.seed + epoch)
        ).to(device)
        losses = []
        for rows in order.split(16):
            loss = nn.functional.cross_entropy(model(train_x[rows]), train_y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            outputs = model(val_x)
        trial.report(
            epoch,
            # If it exceeds three times its first value, the trial ends as EXPLODED.
            train_loss=sum(losses) / len(losses),
            val_loss=nn.functional.cross_entropy(outputs, val_y),
            val_acc=(outputs.argmax(1) == val_y).float().mean(),
            state={"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        )

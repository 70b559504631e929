"""A loop of one's own in plain PyTorch: which of three growers made a wine, from thirteen chemical measurements.

Nothing of it is stacked, so it may do what it likes; each report brings explosion, early stop, kill, checkpoint and resume.
"""

import math

import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from torch import nn

SPLIT_SEED = 7  # fixed: every trial has to be measured on the same part


def parts():
    """Training and validation part on the scale of the training part; a quarter of the wines is left for a test at the very end."""
    inputs, targets = load_wine(return_X_y=True)
    rest_x, _, rest_y, _ = train_test_split(inputs, targets, test_size=0.25, stratify=targets, random_state=SPLIT_SEED)
    train_x, val_x, train_y, val_y = train_test_split(rest_x, rest_y, test_size=0.3, stratify=rest_y, random_state=SPLIT_SEED)
    mean, deviation = train_x.mean(0), train_x.std(0)
    scaled = [torch.tensor((x - mean) / deviation, dtype=torch.float32) for x in (train_x, val_x)]
    return scaled[0], torch.tensor(train_y), scaled[1], torch.tensor(val_y)


def train(trial):
    """Called once a trial, and again with ``trial.resume`` where an earlier worker was lost."""
    torch.manual_seed(trial.seed)
    device = torch.device(trial.device)
    train_x, train_y, val_x, val_y = (part.to(device) for part in parts())
    model = nn.Sequential(nn.Linear(13, trial.hp["hidden"]), nn.ReLU(), nn.Linear(trial.hp["hidden"], 3)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=trial.hp["learning_rate"])
    if trial.resume is not None:
        model.load_state_dict(trial.resume["model"])
        optimizer.load_state_dict(trial.resume["optimizer"])

    for epoch in range(round(trial.epoch) + 1, math.ceil(trial.epochs) + 1):
        order = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(trial.seed + epoch)).to(device)
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
            train_loss=sum(losses) / len(losses),  # above three times its first value, the trial has exploded
            val_loss=nn.functional.cross_entropy(outputs, val_y),
            val_acc=(outputs.argmax(1) == val_y).float().mean(),
            state={"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        )

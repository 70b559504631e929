"""A program that trains by itself: softmax regression on the digits, by plain gradient descent.

It runs alone as well: ``python train.py --lr 0.5``.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from coarsefine import report


def main() -> None:
    """Train from the checkpoint, if there is one, to the number of epochs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--decay", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=".")
    parser.add_argument("--resume", default="")
    given = parser.parse_args()

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.3, stratify=labels, random_state=7)
    train_x, val_x, train_y, val_y = parts
    weights, done = np.zeros((64, 10)), 0
    if given.resume:
        saved = np.load(given.resume, allow_pickle=False)
        weights, done = saved["weights"], int(saved["epoch"])
    for epoch in range(done + 1, given.epochs + 1):
        order = np.random.default_rng([given.seed, epoch]).permutation(len(train_y))
        losses = []
        for rows in np.array_split(order, 20):
            scores = train_x[rows] @ weights
            shares = np.exp(scores - scores.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            losses.append(-np.log(shares[np.arange(len(rows)), train_y[rows]] + 1e-300).mean())
            shares[np.arange(len(rows)), train_y[rows]] -= 1
            gradient = train_x[rows].T @ shares / len(rows) + given.decay * weights
            weights -= given.lr * gradient
        accuracy = np.mean((val_x @ weights).argmax(1) == val_y)
        print(f"epoch {epoch}: loss {np.mean(losses):.4f}, accuracy {accuracy:.4f}")
        checkpoint = f"{given.out}/model.npz"
        np.savez(checkpoint, weights=weights, epoch=epoch)
        report(epoch, train_loss=np.mean(losses), val_acc=accuracy, checkpoint=checkpoint)


if __name__ == "__main__":
    main()

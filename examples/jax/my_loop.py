"""A training loop in JAX: handwritten digits. Arrays of JAX are reported and saved as they are."""

import math

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLIT_SEED = 7  # fixed, so that every trial is measured on the same part
BATCH_SIZE = 64


def initial(key, hidden):
    """Return the weights of a network with one hidden layer, and zeros for their momentum."""
    first, second = jax.random.split(key)
    weights = {
        "first": {"w": jax.random.normal(first, (64, hidden)) / 8, "b": jnp.zeros(hidden)},
        "second": {"w": jax.random.normal(second, (hidden, 10)) / hidden**0.5, "b": jnp.zeros(10)},
    }
    return weights, jax.tree.map(jnp.zeros_like, weights)


def outputs_of(weights, inputs):
    """Return the logits, (examples, 10)."""
    hidden = jax.nn.relu(inputs @ weights["first"]["w"] + weights["first"]["b"])
    return hidden @ weights["second"]["w"] + weights["second"]["b"]


def loss_of(weights, inputs, targets):
    """Return the mean cross-entropy."""
    shares = jax.nn.log_softmax(outputs_of(weights, inputs))
    return -jnp.take_along_axis(shares, targets[:, None], 1).mean()


@jax.jit
def step(weights, momentum, inputs, targets, learning_rate):
    """Return weights and momentum after a step, and the loss before it."""
    loss, gradient = jax.value_and_grad(loss_of)(weights, inputs, targets)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
    return jax.tree.map(lambda w, m: w - learning_rate * m, weights, momentum), momentum, loss


def train(trial):
    """Train one trial, from where it was saved last."""
    images, labels = load_digits(return_X_y=True)
    train_x, val_x, train_y, val_y = map(
        jnp.asarray,
        train_test_split(
            images / 16, labels, test_size=0.2, stratify=labels, random_state=SPLIT_SEED
        ),
    )
    key = jax.random.key(trial.seed % 2**32)
    weights, momentum = initial(key, trial.hp["hidden"])
    if trial.resume is not None:  # numpy arrays, which JAX takes as they are
        weights, momentum = trial.resume["weights"], trial.resume["momentum"]
    for epoch in range(round(trial.epoch) + 1, math.ceil(trial.epochs) + 1):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), len(train_x))
        losses = []
        for begin in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            rows = order[begin : begin + BATCH_SIZE]
            weights, momentum, loss = step(
                weights, momentum, train_x[rows], train_y[rows], trial.hp["learning_rate"]
            )
            losses.append(loss)
        trial.report(
            epoch,
            train_loss=jnp.stack(losses).mean(),
            val_loss=loss_of(weights, val_x, val_y),
            val_acc=(outputs_of(weights, val_x).argmax(1) == val_y).mean(),
            state={"weights": weights, "momentum": momentum},
        )

"""A Keras model: handwritten digits. The backend is torch; JAX works as well."""

import math
import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from coarsefine.companions.keras import Report

SPLIT_SEED = 7  # fixed, so that every trial is measured on the same part


def train(trial):
    """Train one trial, from where it was saved last."""
    keras.utils.set_random_seed(trial.seed % 2**32)
    images, labels = load_digits(return_X_y=True)
    train_x, val_x, train_y, val_y = train_test_split(
        images / 16, labels, test_size=0.2, stratify=labels, random_state=SPLIT_SEED
    )
    model = keras.Sequential(
        [
            keras.layers.Dense(trial.hp["hidden"], activation="relu"),
            keras.layers.Dropout(trial.hp["dropout"]),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(trial.hp["learning_rate"]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        train_x,
        train_y,
        validation_data=(val_x, val_y),
        epochs=math.ceil(trial.max_epochs),  # it ends earlier, at trial.epochs
        batch_size=64,
        callbacks=[Report(trial)],
        verbose=0,
    )

"""A loop of one's own without torch: handwritten digits by scikit-learn's linear classifier, an epoch a ``partial_fit``."""

import math

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import train_test_split

CLASSES = np.arange(10)
SPLIT_SEED = 7  # fixed: every trial has to be measured on the same part


def train(trial):
    """Called once a trial, and again with ``trial.resume`` where an earlier worker was lost."""
    images, labels = load_digits(return_X_y=True)
    rest_x, _, rest_y, _ = train_test_split(images / 16, labels, test_size=0.2, stratify=labels, random_state=SPLIT_SEED)
    train_x, val_x, train_y, val_y = train_test_split(rest_x, rest_y, test_size=0.25, stratify=rest_y, random_state=SPLIT_SEED)
    model = SGDClassifier(
        loss="log_loss",
        learning_rate="constant",
        eta0=trial.hp["learning_rate"],
        alpha=trial.hp["weight_decay"],
        penalty=trial.hp["penalty"],
        random_state=trial.seed % 2**32,
    )
    if trial.resume is not None:
        model.classes_ = CLASSES
        model.coef_, model.intercept_, model.t_ = trial.resume["coef"], trial.resume["intercept"], trial.resume["t"]

    for epoch in range(round(trial.epoch) + 1, math.ceil(trial.epochs) + 1):
        order = np.random.default_rng([trial.seed, epoch]).permutation(len(train_x))
        model.partial_fit(train_x[order], train_y[order], classes=CLASSES)
        guesses = model.predict(val_x)
        trial.report(
            epoch,
            train_loss=log_loss(train_y, model.predict_proba(train_x), labels=CLASSES),
            val_loss=log_loss(val_y, model.predict_proba(val_x), labels=CLASSES),
            val_acc=np.mean(guesses == val_y),
            val_f1=f1_score(val_y, guesses, average="macro"),  # any name of small letters; the search file ranks by it
            state={"coef": model.coef_, "intercept": model.intercept_, "t": model.t_},  # arrays come back as arrays
        )

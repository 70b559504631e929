"""A training loop without torch: handwritten digits with a linear classifier of scikit-learn.

One epoch is one call of ``partial_fit``.
"""

import math

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import train_test_split

CLASSES = np.arange(10)
SPLIT_SEED = 7  # fixed, so that every trial is measured on the same part


def train(trial):
    """Train one trial.

    This may be called again for the same trial: if a worker was lost, or if the trial is promoted
    to more epochs. ``trial.resume`` is then the state that was reported last.
    """
    images, labels = load_digits(return_X_y=True)
    rest_x, _, rest_y, _ = train_test_split(
        images / 16, labels, test_size=0.2, stratify=labels, random_state=SPLIT_SEED
    )
    train_x, val_x, train_y, val_y = train_test_split(
        rest_x, rest_y, test_size=0.25, stratify=rest_y, random_state=SPLIT_SEED
    )
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
        model.coef_, model.intercept_, model.t_ = (
            trial.resume["coef"],
            trial.resume["intercept"],
            trial.resume["t"],
        )

    for epoch in range(round(trial.epoch) + 1, math.ceil(trial.epochs) + 1):
        order = np.random.default_rng([trial.seed, epoch]).permutation(len(train_x))
        model.partial_fit(train_x[order], train_y[order], classes=CLASSES)
        guesses = model.predict(val_x)
        trial.report(
            epoch,
            train_loss=log_loss(train_y, model.predict_proba(train_x), labels=CLASSES),
            val_loss=log_loss(val_y, model.predict_proba(val_x), labels=CLASSES),
            val_acc=np.mean(guesses == val_y),
            # Any name of small letters, digits and _ will do. The search file ranks by this one.
            val_f1=f1_score(val_y, guesses, average="macro"),
            # `trial.resume` will hold the same: arrays stay arrays.
            state={"coef": model.coef_, "intercept": model.intercept_, "t": model.t_},
        )

"""Gradient boosting with LightGBM: whether a tumour is malignant.

An epoch of the search is a boosting round. There is one report, after the last round.
"""

import math

import lightgbm as lgb
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split

SPLIT_SEED = 7  # fixed, so that every trial is measured on the same part


def train(trial):
    """Train one trial. A promoted one adds rounds to those that it has."""
    inputs, targets = load_breast_cancer(return_X_y=True)
    train_x, val_x, train_y, val_y = train_test_split(
        inputs, targets, test_size=0.3, stratify=targets, random_state=SPLIT_SEED
    )
    model = lgb.train(
        {
            "objective": "binary",
            "learning_rate": trial.hp["learning_rate"],
            "num_leaves": trial.hp["leaves"],
            "min_data_in_leaf": 5,
            "seed": trial.seed % 2**31,
            "num_threads": 1,
            "verbosity": -1,
        },
        lgb.Dataset(train_x, train_y),
        num_boost_round=math.ceil(trial.epochs) - round(trial.epoch),
        init_model=trial.resume and lgb.Booster(model_str=trial.resume["model"]),
        callbacks=[lambda _: trial.beat()],  # a trial that is killed ends here
    )
    chances = model.predict(val_x)
    trial.report(
        val_acc=accuracy_score(val_y, chances > 0.5),
        val_loss=log_loss(val_y, chances),
        state={"model": model.model_to_string()},
    )

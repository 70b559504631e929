"""A small vision transformer with transformers' Trainer: handwritten digits.

The model is made from a configuration, so nothing is downloaded.
"""

import math

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from coarsefine.companions.transformers import Report

SPLIT_SEED = 7  # fixed, so that every trial is measured on the same part


def parts():
    """Return the training and the validation part, as lists of examples."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 1, 8, 8)
    examples = [
        {"pixel_values": image, "labels": label}
        for image, label in zip(images, labels.tolist(), strict=True)
    ]
    return train_test_split(examples, test_size=0.2, stratify=labels, random_state=SPLIT_SEED)


def accuracy(predicted):
    """Return what the Trainer logs as eval_accuracy and the search knows as val_acc."""
    return {"accuracy": (predicted.predictions.argmax(-1) == predicted.label_ids).mean()}


def train(trial):
    """Train one trial, from where it was saved last."""
    report = Report(trial)
    width = trial.hp["width"]
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * width,
        num_labels=10,
    )
    arguments = TrainingArguments(
        output_dir=report.folder,
        num_train_epochs=math.ceil(trial.max_epochs),  # it ends earlier, at trial.epochs
        learning_rate=trial.hp["learning_rate"],
        per_device_train_batch_size=32,
        per_device_eval_batch_size=256,
        eval_strategy="epoch",
        seed=trial.seed % 2**32,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    train_part, val_part = parts()
    trainer = Trainer(
        model_init=lambda: ViTForImageClassification(config),
        args=arguments,
        train_dataset=train_part,
        eval_dataset=val_part,
        compute_metrics=accuracy,
        callbacks=[report],
    )
    trainer.train(resume_from_checkpoint=report.resume)

"""Phrases for the sentences of a diagnosis: figures with their names."""

from __future__ import annotations

from worker.training.history.curve_reader import Evidence


def standing(e: Evidence) -> str:
    """Return the last figures, as ``val_acc 0.957, val_loss 0.21 after 20 epochs``.

    The search's metric is included if it is another.
    """
    names = ["val_acc", "val_loss"] if e.curve("val_loss") or e.curve("val_acc") else [e.metric]
    names += [e.metric] if e.metric not in names else []
    told = [f"{name} {last:.3g}" for name in names if (last := e.last(name)) is not None]
    return f"{', '.join(told)} {after(e)}" if told else after(e)


def after(e: Evidence) -> str:
    """Return the time of the last evaluation, as ``after 20 epochs``."""
    return f"after {length(e)}"


def length(e: Evidence) -> str:
    """Return the epochs trained, as ``20 epochs``."""
    return f"{e.epochs:.3g} epoch{'' if e.epochs == 1 else 's'}"


def of_value(e: Evidence, name: str) -> str:
    """Return the value of a hyperparameter, as `` (0.05)``, or nothing if it is not a number."""
    number = e.number(name)
    return f" ({number:.3g})" if number is not None else ""


def with_accuracy(e: Evidence) -> str:
    """Return the validation accuracy, as `` (val_acc 0.957)``, or nothing if not measured."""
    last = e.last("val_acc")
    return f" (val_acc {last:.3g})" if last is not None else ""


def what_falls(e: Evidence) -> str:
    """Return a name for ``Evidence.costs``, to begin a sentence."""
    if e.cost == e.metric and e.mode == "max":
        return f"1 - {e.metric}"
    return {"val_loss": "Validation loss", "train_loss": "Training loss"}.get(e.cost, e.cost)

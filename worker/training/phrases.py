"""Pieces of the sentences of a diagnosis: figures with their names."""

from __future__ import annotations

from worker.training.evidence import Evidence


def standing(e: Evidence) -> str:
    """``val_acc 0.957, val_loss 0.21 after 20 epochs``; the search's metric too where it is another."""
    names = ["val_acc", "val_loss"] if e.curve("val_loss") or e.curve("val_acc") else [e.metric]
    names += [e.metric] if e.metric not in names else []
    told = [f"{name} {last:.3g}" for name in names if (last := e.last(name)) is not None]
    return f"{', '.join(told)} {after(e)}" if told else after(e)


def after(e: Evidence) -> str:
    """``after 20 epochs``."""
    return f"after {length(e)}"


def length(e: Evidence) -> str:
    """``20 epochs``."""
    return f"{e.epochs:.3g} epoch{'' if e.epochs == 1 else 's'}"


def of_value(e: Evidence, name: str) -> str:
    """`` (0.05)``, the value of a hyperparameter; nothing if it has none."""
    number = e.number(name)
    return f" ({number:.3g})" if number is not None else ""


def with_accuracy(e: Evidence) -> str:
    """`` (val_acc 0.957)``; nothing if it was not measured."""
    last = e.last("val_acc")
    return f" (val_acc {last:.3g})" if last is not None else ""


def what_falls(e: Evidence) -> str:
    """What ``Evidence.costs`` is, to begin a sentence."""
    if e.cost == e.metric and e.mode == "max":
        return f"1 - {e.metric}"
    return {"val_loss": "Validation loss", "train_loss": "Training loss"}.get(e.cost, e.cost)

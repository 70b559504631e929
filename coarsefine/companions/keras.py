"""A callback for Keras: ``model.fit(..., callbacks=[Report(trial)])``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras.callbacks import Callback

from coarsefine.companions.reporter import Reporter, Trial


class Report(Callback):
    """Reports the logs of ``fit`` after every epoch.

    Where training is resumed, it loads weights and the optimizer's state before the first batch,
    and ``fit`` goes on with the epoch after. Training ends with the trial: ``stop_training`` is set
    at the end of the budget, and TrialEnded passes through ``fit`` where the trial was ended.
    """

    def __init__(self, trial: Trial | None = None, **names: str) -> None:
        """Initialise.

        Args:
            trial: of a loop. A program gives none.
            names: what Keras logs for a metric, such as ``val_acc="val_top1"``. ``loss``,
                ``accuracy`` and ``val_accuracy`` are train_loss, train_acc and val_acc. Any other
                metric has ``train_`` before its name, where it is not of the validation part.
        """
        super().__init__()
        self._reporter = Reporter(trial, "keras.weights.h5", names, _rename)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Load what the last report has saved."""
        path, model = self._reporter.resume, self.model
        if path is None:
            return
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
        # As keras.callbacks.BackupAndRestore does: `fit` reads it next.
        model._initial_epoch = self._reporter.epoch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Give a sign of life."""
        self._reporter.beat()

    def on_test_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Give a sign of life."""
        self._reporter.beat()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Report the epoch."""
        self._reporter.report(epoch + 1, logs or {}, self.model.save_weights)
        if self._reporter.is_over(epoch + 1):
            self.model.stop_training = True


def _rename(name: str) -> str | None:
    known = {"accuracy": "train_acc", "val_accuracy": "val_acc", "learning_rate": "learning_rate"}
    return known.get(name) or (name if name.startswith("val_") else f"train_{name}")

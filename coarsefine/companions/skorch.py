"""A callback for skorch: ``NeuralNetClassifier(..., callbacks=[Report(trial)])``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

from skorch.callbacks import Callback

from coarsefine.companions.reporter import Reporter, Trial

PARTS = ("params", "optimizer", "criterion")  # what a net saves and loads


class Report(Callback):
    """Reports the last row of the net's history after every epoch.

    Where training is resumed, it loads the module, the optimizer and the criterion before the first
    batch, and leaves out the epochs that are done. Training ends with the trial: quietly at the end
    of the budget, and TrialEnded passes through ``fit`` where the trial was ended.
    """

    # skorch counts attributes as parameters of the callback, except those that end with "_".

    def __init__(self, trial: Trial | None = None, **names: str) -> None:
        """Initialise.

        Args:
            trial: of a loop. A program gives none.
            names: what the history has for a metric, such as ``val_f1="f1"``. ``valid_loss`` and
                ``valid_acc`` are val_loss and val_acc.
        """
        self.reporter_ = Reporter(trial, "skorch.zip", names, _rename)
        self.epoch_ = 0

    def on_train_begin(self, net: Any, *_: Any, **__: Any) -> None:
        """Load what the last report has saved."""
        path, self.epoch_ = self.reporter_.resume, 0
        if path is None:
            return
        with ZipFile(path) as file:
            net.load_params(**{f"f_{part}": io.BytesIO(file.read(part)) for part in PARTS})
        self.epoch_ = self.reporter_.epoch

    def on_batch_end(self, *_: Any, **__: Any) -> None:
        """Give a sign of life."""
        self.reporter_.beat()

    def on_epoch_end(self, net: Any, *_: Any, **__: Any) -> None:
        """Report the epoch."""
        self.epoch_ += 1
        row = {name: value for name, value in net.history[-1].items() if type(value) is not bool}
        self.reporter_.report(self.epoch_, row, lambda path: _save(net, path))
        if self.reporter_.is_over(self.epoch_) or self.epoch_ >= net.max_epochs:
            raise KeyboardInterrupt  # as skorch's EarlyStopping does: `fit` returns


def _save(net: Any, path: Path) -> None:
    buffers = {part: io.BytesIO() for part in PARTS}
    net.save_params(**{f"f_{part}": buffer for part, buffer in buffers.items()})
    with ZipFile(path, "w", ZIP_STORED) as file:
        for part, buffer in buffers.items():
            file.writestr(part, buffer.getvalue())


def _rename(name: str) -> str | None:
    if name == "dur" or name.endswith("_batch_count"):
        return None
    return name.replace("valid_", "val_", 1)

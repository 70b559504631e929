"""A callback for Lightning: ``L.Trainer(callbacks=[Report(trial)])``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from coarsefine.companions.reporter import Reporter, Trial


class Report(Checkpoint):
    """Reports what a LightningModule logs, after every epoch that ends with a validation.

    It counts as the trainer's checkpoint callback, so Lightning calls it after all others, and
    writes no checkpoints of its own. Training ends with the trial: ``trainer.should_stop`` is set
    at the end of the budget, and TrialEnded passes through ``fit`` where the trial was ended.

    Attributes:
        resume: the checkpoint that was saved with the last report, for ``fit(ckpt_path=...)``.
            None at the beginning.
    """

    def __init__(self, trial: Trial | None = None, **names: str) -> None:
        """Initialise.

        Args:
            trial: of a loop. A program gives none.
            names: what the module logs for a metric, such as ``val_acc="valid/accuracy"``. All
                else is reported under the name that it is logged with, in small letters, with ``_``
                in place of other characters.
        """
        super().__init__()
        self._reporter = Reporter(trial, "lightning.ckpt", names, _rename)
        self._validated = False

    @property
    def resume(self) -> str | None:
        """The checkpoint to resume from."""
        path = self._reporter.resume
        return None if path is None else str(path)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Give a sign of life."""
        self._reporter.beat()

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """Give a sign of life."""
        self._reporter.beat()

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Note that there are new metrics."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Report the epoch."""
        epoch = trainer.current_epoch + 1
        if self._validated or not trainer.enable_validation:
            self._reporter.report(epoch, trainer.callback_metrics, trainer.save_checkpoint)
        self._validated = False
        if self._reporter.is_over(epoch):
            trainer.should_stop = True


def _rename(name: str) -> str | None:
    """Leave out the copies that Lightning makes of what is logged by step and epoch."""
    return None if name.endswith(("_step", "_epoch")) else name

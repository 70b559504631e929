"""A callback for transformers' Trainer: ``Trainer(callbacks=[Report(trial)])``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from coarsefine.companions.reporter import Reporter, Trial

# Logged by the Trainer, and no measures of the model.
NO_METRICS = ("runtime", "per_second", "total_flos", "num_input_tokens_seen")


class Report(TrainerCallback):
    """Reports what the Trainer logs and evaluates, after every epoch.

    It has the Trainer log and save at the end of an epoch. That it evaluates then is up to the
    arguments: ``eval_strategy="epoch"``. Losses that are not finite are logged as they are, so that
    an explosion is seen. Training ends with the trial: at the end of the budget, and TrialEnded
    passes through ``train`` where the trial was ended.

    Attributes:
        folder: a temporary folder, for ``output_dir``. Each checkpoint in it is removed when it was
            reported.
        resume: the checkpoint that was saved with the last report, for
            ``train(resume_from_checkpoint=...)``. None at the beginning.
    """

    def __init__(self, trial: Trial | None = None, **names: str) -> None:
        """Initialise.

        Args:
            trial: of a loop. A program gives none.
            names: what the Trainer logs for a metric, such as ``val_acc="eval_top1"``. ``loss``,
                ``eval_loss`` and ``eval_accuracy`` are train_loss, val_loss and val_acc, and any
                other ``eval_f1`` is val_f1.
        """
        self._reporter = Reporter(trial, "transformers.zip", names, _rename)
        self._logs: dict[str, float] = {}
        self._losses: list[tuple[float, int]] = []  # training losses, and over how many steps
        self._logged_step = 0
        self._epoch_ends = False
        self._resumed: Path | None = None

    @property
    def folder(self) -> str:
        """A folder for the Trainer's output."""
        return str(self._reporter.folder)

    @property
    def resume(self) -> str | None:
        """The checkpoint to resume from, a folder."""
        packed = self._reporter.resume
        if packed is None:
            return None
        self._resumed = self._reporter.folder / "resume"
        with ZipFile(packed) as file:
            file.extractall(self._resumed)
        return str(self._resumed)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Let losses be logged that are not finite, and load weights that the Trainer missed.

        It saves those of some models, such as ViT, under the names of published checkpoints, and
        resumes only what has the names in the model. ``from_pretrained`` knows both.
        """
        args.logging_nan_inf_filter = False
        self._logged_step = state.global_step
        if self._resumed is not None and isinstance(model, PreTrainedModel):
            model.load_state_dict(type(model).from_pretrained(self._resumed).state_dict())

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Forget the last epoch."""
        self._logs, self._losses, self._epoch_ends = {}, [], False

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Give a sign of life."""
        self._reporter.beat()

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        """Give a sign of life."""
        self._reporter.beat()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Have the Trainer log and save."""
        self._epoch_ends = control.should_log = control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        """Keep what is logged. The training loss is a mean since it was logged last."""
        self._logs |= logs
        if "loss" in logs and state.global_step > self._logged_step:
            self._losses.append((float(logs["loss"]), state.global_step - self._logged_step))
            self._logged_step = state.global_step
            total = sum(loss * steps for loss, steps in self._losses)
            self._logs["loss"] = total / sum(steps for _, steps in self._losses)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Report the epoch, if it has ended: the Trainer saves after it has evaluated."""
        if not self._epoch_ends:
            return
        assert args.output_dir is not None and state.epoch is not None
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        epoch = round(state.epoch)
        self._reporter.report(epoch, self._logs, lambda path: _pack(checkpoint, path))
        if args.output_dir == self.folder and not args.load_best_model_at_end:
            shutil.rmtree(checkpoint)
        if self._reporter.is_over(epoch):
            control.should_training_stop = True


def _pack(folder: Path, path: Path) -> None:
    with ZipFile(path, "w", ZIP_STORED) as file:
        for one in sorted(folder.rglob("*")):
            file.write(one, one.relative_to(folder))


def _rename(name: str) -> str | None:
    if name.endswith(NO_METRICS):
        return None
    short = {"loss": "train_loss", "eval_accuracy": "val_acc"}.get(name)
    return short or name.replace("eval_", "val_", 1)

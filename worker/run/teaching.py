"""The outputs of a stage's teacher on the training examples.

They are computed once per stage and kept in the stage's folder.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from common.errors import CheckpointError, DamagedFileError, TaskError
from common.folder import durable
from common.folder.records import SearchFolder, StageFolder
from common.folder.teacher import LEAST_LOG, Taught, Teacher, read_taught, read_teacher
from common.search.search_file import Search
from common.shell_command import shell_command
from worker.tasks.base import Data, Task
from worker.training.outcome.evaluate import find_ranked_weights, load


class Teachers:
    """The teachers of one search, one for each stage of kind ``distill``."""

    def __init__(
        self,
        folder: SearchFolder,
        search: Search,
        task: Task,
        device: torch.device,
        log: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._search = search
        self._task = task
        self._device = device
        self._log = log

    def of(self, stage: str, data: Data, beat: Callable[[], None]) -> Tensor:
        """Return the log-probabilities that a stage's teacher gives for ``data.train``.

        The first worker that asks computes and writes them. All other workers read that file, so
        all trials learn from the same numbers.

        Args:
            stage: name of the stage.
            data: the task's data.
            beat: called after each model.

        Returns:
            Log-probabilities (n, C), float32 on the CPU.

        Raises:
            TaskError: the training part is not the one that the teacher has seen.
            CheckpointError: the list of models, or one of the models, is missing or damaged, or the
                folder cannot be written.
        """
        folder = self._folder.stage(stage)
        try:
            teacher = read_teacher(folder.teacher)
        except FileNotFoundError:
            told = (
                f"no such file, so there is no teacher; `{shell_command('master launch')}` writes "
                "it when the stage begins"
            )
            raise CheckpointError(f"{folder.teacher}: {told}") from None
        found = self._read_written(folder, teacher)
        if found is None:
            durable.write_new({folder.taught: self._ask(teacher, data, beat).content()})
            found = self._read_written(folder, teacher)
            if found is None:
                raise CheckpointError(
                    f"{folder.taught}: vanished as soon as it was written; does something clean up "
                    f"{folder.path}?"
                )
        if not np.array_equal(found.targets, data.train.targets.numpy()):
            raise TaskError(
                f"the training part is not the one that the teacher of stage {stage!r} has seen "
                f"({folder.taught}): the data have changed; restore the data, or remove that file "
                "so that the teacher predicts again"
            )
        return torch.from_numpy(found.log_probabilities)

    def _read_written(self, folder: StageFolder, teacher: Teacher) -> Taught | None:
        """Return the written outputs if they are of this teacher, else None.

        A file that is damaged or of another teacher is set aside.
        """
        try:
            found = read_taught(folder.taught)
        except FileNotFoundError:
            return None
        except DamagedFileError as error:
            self._log(f"{error}: set aside")
        else:
            if found.digest == teacher.digest:
                return found
            self._log(f"{folder.taught}: is of other models than {folder.teacher} lists; set aside")
        durable.set_aside(folder.taught)
        return None

    def _ask(self, teacher: Teacher, data: Data, beat: Callable[[], None]) -> Taught:
        """Compute the logarithm of the weighted mean of the models' probabilities.

        The models get raw inputs, and each applies its own preprocessing.
        """
        weights = find_ranked_weights(self._search)
        total, n = None, sum(member.weight for member in teacher.members)
        for member in teacher.members:
            model = load(
                self._folder.path / member.checkpoint,
                self._task,
                self._search.task,
                self._device,
                weights,
            )
            if model.n_classes != data.n_classes:
                raise CheckpointError(
                    f"{model.path}: has {model.n_classes} classes, the task {data.n_classes}; it "
                    "cannot be a teacher"
                )
            logs = model.outputs(data.train.inputs).double().log_softmax(-1)
            if bool(logs.isnan().any()):
                raise CheckpointError(
                    f"{model.path}: its outputs for the training part are not finite; it cannot "
                    "be a teacher"
                )
            own = logs + float(np.log(member.weight / n))
            total = own if total is None else torch.logaddexp(total, own)
            beat()
        assert total is not None  # `read_teacher` refuses a list without models
        return Taught(
            total.clamp(min=LEAST_LOG).float().numpy(), data.train.targets.numpy(), teacher.digest
        )

"""`worker pace`: the time of an epoch at several array widths, for the middle of the space.

`master plan` computes its expected time from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from common.errors import TaskError
from common.folder.chosen import Chosen
from worker.checks.plan import centre
from worker.commands.profile import build_claim, build_engine
from worker.tasks import Loop
from worker.tasks.loader import load_chosen


def measure_pace(
    chosen: Chosen, data_dir: Path, widths: Sequence[int], device: str = "cpu"
) -> dict[str, float]:
    """Return the seconds of one epoch of so many trials, by their number as text (as in JSON).

    The trials train as a worker trains them, in one array or several. Some steps are timed and
    extrapolated to an epoch. Compiled steps may be faster. Evaluation and writing are not included.

    Raises:
        TaskError: the task cannot be loaded, or it is a loop of its own, whose epochs cannot be
            timed in advance.
    """
    torch.set_num_threads(1)
    task = load_chosen(chosen, data_dir)
    if isinstance(task, Loop):
        raise TaskError(
            f"task {chosen.search.task!r} is a loop of its own, so the time of an epoch is unknown "
            "until one has run"
        )
    engine = build_engine(chosen.search, task, "eager", None, torch.device(device))
    model = engine.builder.entry(build_claim(0, centre(chosen.search.space))).model
    widest = 1 if model.structure.alone else engine.builder.widths.guess(model)
    n_steps = engine.builder.setting().batches(model.recipe.batch_size).per_epoch
    return {
        str(width): engine.builder.slot_step_s(model, min(width, widest)) * width * n_steps
        for width in widths
    }

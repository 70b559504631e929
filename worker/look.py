"""A look at the test part: counted, since each one that guides a choice makes the next less honest."""

from __future__ import annotations

import json
import time
from pathlib import Path

from common import durable
from common.errors import CheckpointError
from common.intervals import wilson
from common.records import CheckpointName, SearchFolder
from worker.tasks import load_task
from worker.training.evaluate import test_accuracy

LEDGER = "test_looks.jsonl"  # in the search's folder, a line a look


def look(checkpoint: Path) -> str:
    """Measures a checkpoint on the test part of its search's task, and notes that it was done.

    Raises:
        CheckpointError: the file is missing, damaged, not in a search's folder, or the folder cannot be written.
        TaskError: the task has no test part, or cannot be loaded.
    """
    path = checkpoint.resolve()
    name, home = CheckpointName.parse(path.name), path.parent.parent
    folder = SearchFolder(home.parent, home.name)
    search = folder.search()
    if name is None or search is None:
        raise CheckpointError(f"{checkpoint}: not a checkpoint in a search's folder; give one that `master rank` names")
    task = load_task(search.task_in_folder, folder.path)
    correct, n = test_accuracy(path, task)
    ledger = folder.path / LEDGER
    looks = _lines(ledger)
    entry = {"checkpoint": str(path.relative_to(home)), "correct": correct, "n": n, "at": time.time()}
    durable.replace(ledger, "".join(f"{line}\n" for line in [*looks, json.dumps(entry)]).encode())
    low, high = wilson(correct, n)
    count = len(looks) + 1
    times = f"look {count} at the test part of search {search.name!r}" + ("; only the first was unbiased" if count > 1 else "")
    return f"{name.trial_id}: test accuracy {correct / n:.4f}, 95 % interval {low:.4f} to {high:.4f} ({correct} of {n}); {times}"


def _lines(ledger: Path) -> list[str]:
    try:
        return ledger.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise durable.explained(error, ledger) from error

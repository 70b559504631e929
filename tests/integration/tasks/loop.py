"""A loop that takes its time and no CPU. Files beside the search file say what it does besides.

While there is a file ``wait``, the last trials do not end, so that the search lasts until the test
has done all that it wants. A trial of a search NAME that finds a file ``hungry-NAME`` uses up the
memory of its job.
"""

import time
from pathlib import Path

EPOCH_S = 0.5
MUCH_BYTES = 3 << 30  # more than a job may use


def train(trial):
    folder = Path(trial.hp["folder"])
    hungry = folder / f"hungry-{trial.hp['search']}"
    waits = int(trial.id.rpartition("-")[2]) >= trial.hp["first_to_wait"]
    for epoch in range(round(trial.epoch) + 1, round(trial.epochs) + 1):
        time.sleep(EPOCH_S)
        while waits and epoch == trial.epochs and (folder / "wait").exists():
            eat(hungry)
            trial.beat()
            time.sleep(EPOCH_S)
        eat(hungry)
        trial.report(epoch, val_loss=trial.hp["x"] / epoch, state={})


def eat(hungry: Path) -> None:
    """Use up the memory of the job if this trial is the first to find the file."""
    try:
        hungry.unlink()
    except FileNotFoundError:
        return
    taken = bytearray(b"1") * MUCH_BYTES
    time.sleep(600)
    del taken

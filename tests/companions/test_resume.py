"""A trial of each library whose worker leaves in the middle, and that goes on in another."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.integration.commands import DEADLINE_S, Place, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"
SPACES = {
    "lightning": "learning_rate = 0.01\nhidden = 16",
    "transformers": "learning_rate = 0.003\nwidth = 32",
    "keras": "learning_rate = 0.01\nhidden = 16\ndropout = 0.1",
    "skorch": "learning_rate = 0.01\nhidden = 16",
    "jax": "learning_rate = 0.1\nhidden = 16",
}
SEARCH = """
name = "resumed"
task = "held.py:train"
[space]
{space}
[stages.coarse]
trials = 1
epochs = 4
"""
# The example's loop, held after its second report until the test has seen it.
HELD = """
import time
from pathlib import Path

import my_loop

HERE = Path("PLACE")


def train(trial):
    (HERE / f"began-at-{trial.epoch:g}").touch()
    report = trial.report

    def held(epoch, **given):
        report(epoch, **given)
        (HERE / f"reported-{epoch:g}").touch()
        while epoch == 2 and not (HERE / "go").exists():
            time.sleep(0.01)
            trial.beat()

    trial.report = held
    trial.max_epochs = 6  # as where it may be promoted
    try:
        my_loop.train(trial)
        (HERE / "returned").touch()
    finally:
        (HERE / "tidied").touch()
"""


@pytest.mark.parametrize("name", list(SPACES))
def test_training_goes_on_where_it_was_and_ends_with_the_budget(name: str, here: Place) -> None:
    signs = here.path / "signs"
    signs.mkdir()
    shutil.copy(EXAMPLES / name / "my_loop.py", here.path)
    (here.path / "held.py").write_text(HELD.replace("PLACE", str(signs)))
    (here.path / "resumed.toml").write_text(SEARCH.format(space=SPACES[name]))
    launch = ("master", "launch", "--config", "resumed.toml", "--stage", "coarse")
    launched = here.run(*launch, "--workers", "0", "--detach")
    assert launched.returncode == 0, launched.stderr
    worker = here.start("worker", "start", "--device", "cpu", log="first.log")
    wait_for(lambda: (signs / "reported-2").exists() or worker.poll() is not None, "two reports")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=DEADLINE_S) == 143, here.output("first.log")
    assert (signs / "tidied").exists() and not (signs / "returned").exists()
    (signs / "go").touch()
    again = here.start("worker", "start", "--device", "cpu", "--burst", log="again.log")
    assert again.wait(timeout=DEADLINE_S) == 0, here.output("again.log")
    assert {path.name for path in signs.glob("began-*")} == {"began-at-0", "began-at-2"}
    assert (signs / "returned").exists() and not (signs / "reported-5").exists()
    (record,) = here.records("resumed")
    assert (record["state"], record["epochs"], record["curves"]["epoch"]) == (
        "completed",
        4,
        [1, 2, 3, 4],
    ), record
    # Fresh weights would begin as the first epoch did.
    losses = record["curves"]["train_loss"]
    assert losses[2] < (losses[0] + losses[1]) / 2

"""Programs with a companion: the command has the configuration, and nothing else of the search."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.commands import DEADLINE_S, Place, wait_for

ROOT = Path(__file__).parents[2]
# `python` of the program's own environment: here the only one with the libraries.
PATH = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
SEARCH = """
name = "program"
task = { command = "python train.py {learning_rate}" }
[space]
learning_rate = 0.01
[stages.coarse]
trials = 1
epochs = 3
"""
# Held after the first report until the test has seen it.
HELD = """
import os, sys, time
from pathlib import Path
from coarsefine.companions.reporter import Reporter

plain = Reporter.report

def held(self, epoch, *given):
    plain(self, epoch, *given)
    Path(f"reported-{epoch}").touch()
    while epoch == 1 and "COARSEFINE_REPORTS" in os.environ and not Path("go").exists():
        time.sleep(0.01)

Reporter.report = held
"""
LIGHTNING = """
import lightning as L
from coarsefine.companions.lightning import Report
from my_loop import Classifier, loaders

report = Report()
print("resumes from", report.resume)
trainer = L.Trainer(max_epochs=6, callbacks=[report], accelerator="cpu", logger=False)
trainer.fit(Classifier(16, float(sys.argv[1])), *loaders(), ckpt_path=report.resume)
"""
KERAS = """
os.environ["KERAS_BACKEND"] = "torch"
import keras
from coarsefine.companions.keras import Report
from sklearn.datasets import load_digits

images, labels = load_digits(return_X_y=True)
model = keras.Sequential([keras.layers.Dense(16, "relu"), keras.layers.Dense(10, "softmax")])
optimizer = keras.optimizers.Adam(float(sys.argv[1]))
model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
print("resumes from", os.environ.get("COARSEFINE_RESUME") or None)
model.fit(
    images / 16, labels, validation_split=0.2, epochs=6, verbose=0, callbacks=[Report()]
)
"""


@pytest.mark.parametrize(
    ("file", "code"), [("lightning.ckpt", LIGHTNING), ("keras.weights.h5", KERAS)]
)
def test_a_program_goes_on_in_another_worker_and_ends_with_the_budget(
    file: str, code: str, here: Place
) -> None:
    shutil.copy(ROOT / "examples" / "lightning" / "my_loop.py", here.path)
    (here.path / "train.py").write_text(HELD + code)
    (here.path / "search.toml").write_text(SEARCH)
    launch = ("master", "launch", "--config", "search.toml", "--stage", "coarse")
    launched = here.run(*launch, "--workers", "0", "--detach", **PATH)
    assert launched.returncode == 0, launched.stderr
    worker = here.start("worker", "start", "--device", "cpu", log="first.log", **PATH)
    ended = lambda: worker.poll() is not None or here.records("program")  # noqa: E731
    wait_for(lambda: (here.path / "reported-1").exists() or ended(), "a report")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=DEADLINE_S) == 143, here.output("first.log")
    (here.path / "go").touch()
    again = here.start("worker", "start", "--device", "cpu", "--burst", log="again.log", **PATH)
    assert again.wait(timeout=DEADLINE_S) == 0, here.output("again.log")
    (record,) = here.records("program")
    assert (record["state"], record["curves"]["epoch"]) == ("completed", [1, 2, 3]), record
    assert record["val_acc"] > 0.5 and not (here.path / "reported-4").exists()
    outputs = [one.read_text() for one in sorted(here.root.glob("program/coarse/output/*"))]
    assert "resumes from None" in outputs[0] and f"/resume/{file}" in outputs[1], outputs


def test_outside_of_a_search_a_program_trains_as_it_is_and_prints(here: Place) -> None:
    shutil.copy(ROOT / "examples" / "lightning" / "my_loop.py", here.path)
    (here.path / "train.py").write_text(HELD + LIGHTNING.replace("max_epochs=6", "max_epochs=2"))
    done = subprocess.run(
        [sys.executable, "train.py", "0.01"],
        cwd=here.path,
        env=here.environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one["epoch"] for one in reports] == [1, 2] and "val_acc" in reports[0]

"""`cf.search(...).launch(...)` from scripts, as a user runs them: `python script.py`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.commands import DEADLINE_S, Place, wait_for

# No `if __name__ == "__main__"`: workers must not run the script.
LOOP = """
import sys
from pathlib import Path

import numpy as np
import coarsefine as cf
import helper_beside

with Path("ran.txt").open("a") as file:
    file.write("x")
rng = np.random.default_rng(0)
x = rng.normal(size=(200, 5))
y = x @ np.arange(5)


def train(trial):
    weights = np.zeros(5) if trial.resume is None else trial.resume["weights"]
    for epoch in range(round(trial.epoch) + 1, int(trial.epochs) + 1):
        error = x[:150] @ weights - y[:150]
        weights = weights - trial.hp["learning_rate"] * x[:150].T @ error / helper_beside.N
        val_rmse = np.sqrt(np.mean((x[150:] @ weights - y[150:]) ** 2))
        trial.report(epoch, val_rmse=val_rmse, state={"weights": weights})


search = cf.search(
    train,
    {"learning_rate": {"log_uniform": [1e-3, 1.0]}},
    {"coarse": {"trials": 6, "epochs": 1}, "fine": {"trials": 2, "epochs": 3}},
    metric="val_rmse",
    mode="min",
)
found = search.launch("coarse", workers=1)
assert len(found.trials()) == 6 and found.best.stage == "coarse"
found = search.launch("all", workers=1)
try:
    other = {"coarse": {"trials": 6, "epochs": 1}}
    cf.search(train, {"learning_rate": 0.5}, other, folder="elsewhere").launch()
except cf.SearchError as error:
    print("TOLD", error)
print("FOUND", len(found.trials()), found.best.trial, found.best.checkpoint, flush=True)
"""

CLASS = """
import torch
from torch import nn
import coarsefine as cf

WIDTH = 8


class Mine:
    def data(self):
        x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
        y = (x[:, 0] > 0).long()
        train, val = cf.Part(x[:200], y[:200]), cf.Part(x[200:], y[200:])
        return cf.Data(train=train, val=val, test=None, n_classes=2)

    def model(self, hp):
        return nn.Sequential(nn.Linear(4, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))


class Broken(Mine):
    def data(self):
        raise ValueError("no such file")


def main():
    space = {"learning_rate": {"log_uniform": [1e-2, 1.0]}}
    stages = [{"name": "coarse", "trials": 4, "epochs": 1}]
    try:
        cf.search(Broken, space, stages).launch()
    except cf.SearchError as error:
        print("TOLD", error)
    found = cf.search(Mine, space, stages).launch(workers=1)
    print("FOUND", len(found.trials()), found.best.trial, found.best.checkpoint, flush=True)


main()
"""


def script(here: Place, text: str) -> subprocess.CompletedProcess[str]:
    (here.path / "script.py").write_text(text)
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=here.path,
        env=here.environment,
        text=True,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )


def found(done: subprocess.CompletedProcess[str]) -> tuple[int, str, Path]:
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))
    _, n, trial, checkpoint = line.split()
    return int(n), trial, Path(checkpoint)


@pytest.mark.slow
def test_a_function_of_a_script_is_searched_and_the_command_line_goes_on(here: Place) -> None:
    (here.path / "helper_beside.py").write_text("N = 150\n")
    done = script(here, LOOP)
    n, trial, checkpoint = found(done)
    assert n == 8 and trial.startswith("fine-") and checkpoint.is_file()
    assert 'launch under another name with cf.search(name="NAME")' in done.stdout
    assert "set the old folder aside with launch(replace=True)" in done.stdout
    assert (here.path / "ran.txt").read_text() == "x"  # by this process, and by no worker
    assert "stage 'fine': 2 trials of 3 epochs" in done.stderr
    shipped = (here.root / "train" / "task-code").glob("*/*.py")
    assert sorted(file.name for file in shipped) == ["helper_beside.py", "task.py"]
    ranked = here.run("master", "rank", "--search", "train", "--format", "json")
    assert json.loads(ranked.stdout)[0]["trial"] == trial
    config = "searches/train/search.toml"
    again = here.run("master", "launch", "--config", config, "--stage", "all", "--workers", "1")
    assert again.returncode == 0 and "2 trials of 3 epochs, 0 new" in again.stderr, again.stderr
    (here.path / "helper_beside.py").write_text("N = 151\n")
    changed = here.run("master", "launch", "--config", config, "--stage", "all")
    assert changed.returncode and "(changed helper_beside.py)" in changed.stderr


@pytest.mark.slow
def test_a_class_of_a_script_is_searched_unless_the_checks_fail(here: Place) -> None:
    done = script(here, CLASS)
    n, trial, checkpoint = found(done)
    assert n == 4 and trial.startswith("coarse-") and checkpoint.is_file()
    assert "if the check is wrong, launch with launch(skip_check=True)" in done.stdout
    assert "TOLD search 'Broken' does not start, since a check failed" in done.stdout
    assert "no such file" in done.stdout and "checks of search 'Mine'" in done.stderr
    assert "from torch import nn" in (here.path / "searches/Mine/task.py").read_text()


WAITING = """
import time
from pathlib import Path
import coarsefine as cf

def train(trial):
    Path("began").touch()
    while True:
        time.sleep(0.05)
        trial.beat()

import signal
signal.signal(signal.SIGTERM, lambda number, frame: print("MINE", flush=True))
search = cf.search(train, {"learning_rate": 0.1}, {"coarse": {"trials": 1, "epochs": 1}})
try:
    search.launch("coarse", workers=1)
except KeyboardInterrupt:
    print("INTERRUPTED", flush=True)
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "INTERRUPTED"), (signal.SIGTERM, "MINE")]
)
def test_a_signal_ends_the_launch_and_the_script_goes_on_as_it_wants(
    here: Place, number: int, said: str
) -> None:
    (here.path / "script.py").write_text(WAITING)
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=here.path,
        env=here.environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        wait_for((here.path / "began").exists, "the trial", DEADLINE_S)
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    assert said in out and "interrupted; the trials go on" in err, out + err
    assert here.run("master", "kill", "--stage", "coarse", "--yes").returncode == 0

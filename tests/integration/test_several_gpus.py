"""Trials of several processes, as on several GPUs: the CPU stands in for these."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.integration.commands import Place, wait_for
from tests.integration.processes import alive

pytestmark = pytest.mark.faults  # `torchrun` takes seconds to start
EXAMPLE = Path(__file__).parents[2] / "examples" / "torchrun" / "search.toml"
# `torchrun` of the program's own environment: here the only one.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def test_torchrun_trains_a_trial_in_two_processes_and_resumes_it(here: Place) -> None:
    done = here.run(
        "master",
        "launch",
        "--config",
        str(EXAMPLE),
        "--stage",
        "coarse",
        "--workers",
        "1",
        PATH=PATH,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ranked = json.loads(
        here.run(
            "master", "rank", "--search", "digits-torchrun", "--stage", "coarse", "--format", "json"
        ).stdout
    )
    best = ranked[0]
    assert len(ranked) == 2 and best["state"] == "completed" and best["epochs"] == 2.0
    outputs = sorted(
        (here.root / "digits-torchrun" / "coarse" / "output").glob(f"*{best['trial']}*")
    )
    first, second = (path.read_text().splitlines() for path in outputs)
    assert [line.partition(":")[0] for line in (*first, *second)] == ["epoch 1", "epoch 2"]
    assert all(line.endswith(", of 2") for line in (*first, *second))


RANK = """
import os, pathlib, signal, time
rank = os.environ["RANK"]
if rank == "1":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(f"{os.environ['COARSEFINE_TRIAL']}-rank-{rank}-{os.getpid()}").touch()
time.sleep(600)
"""
SEARCH = """
name = "wide"
task = { command = "torchrun --standalone --nproc_per_node {gpus} rank.py" }
[space]
learning_rate = { uniform = [0.0, 1.0] }
[stages.coarse]
trials = 2
epochs = 1
[resources]
gpus = 2
on_cpu = true
"""


def test_a_kill_ends_all_processes_of_a_trial_before_the_next_begins(here: Place) -> None:
    (here.path / "rank.py").write_text(RANK)
    (here.path / "search.toml").write_text(SEARCH)
    launched = here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach",
                        PATH=PATH)  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    here.start("worker", "start", "--device", "cpu", PATH=PATH)

    def pids(trial: str) -> list[int]:
        return [int(path.name.rpartition("-")[2]) for path in here.path.glob(f"{trial}-rank-*")]

    wait_for(lambda: len(pids("coarse-0000")) == 2, "both processes")
    assert here.run("master", "kill", "--trial", "coarse-0000", "--yes").returncode == 0
    wait_for(lambda: pids("coarse-0001"), "the next trial")
    assert not any(map(alive, pids("coarse-0000")))
    wait_for(lambda: len(pids("coarse-0001")) == 2, "both processes of the next")
    assert here.run("master", "kill", "--stage", "coarse", "--yes").returncode == 0
    wait_for(lambda: not any(map(alive, pids("coarse-0001"))), "their end")

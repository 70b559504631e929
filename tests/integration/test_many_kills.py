"""Trials that are killed one after the other, and what they had started: none of it is left."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.integration.commands import Place, wait_for
from tests.integration.processes import alive

pytestmark = pytest.mark.faults
KILLS = 6

LOOP = """
import os, subprocess, time
from pathlib import Path

HERE = Path({here!r})
DAEMON = "setsid sh -c 'sleep {name} & exec sleep {name}' >/dev/null 2>&1 &"


def train(trial):
    subprocess.run(["sh", "-c", DAEMON], env={{"PATH": os.environ["PATH"]}})
    subprocess.Popen(["sh", "-c", "trap '' TERM; sleep {name} & sleep {name}"])
    (HERE / f"{{trial.id}}.began").touch()
    while True:
        time.sleep(0.02)
        trial.beat()
"""
PROGRAM = """
setsid sh -c 'sleep {name} & exec sleep {name}' >/dev/null 2>&1 &
sh -c "trap '' TERM; sleep {name} & sleep {name}" &
touch {here}/$COARSEFINE_TRIAL.began
sleep {name}
"""
TASKS = {  # file, code, task, and what its process has in its command line
    "loop": ("my_loop.py", LOOP, '"my_loop.py:train"', "worker.own.child"),
    "program": ("run.sh", PROGRAM, '{ command = "sh run.sh" }', "run.sh"),
}


def living(name: str) -> list[str]:
    """What sleeps so long, but for zombies that nobody has reaped yet."""
    told = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True)
    lines = [line for line in told.stdout.splitlines() if f"sleep {name}" in line]
    return [line for line in lines if not line.startswith("Z")]


def find_below(pid: int, word: str) -> list[int]:
    """The processes below a process, at any depth, that have this in their command line."""
    started = [int(one) for one in read(pid, f"task/{pid}/children").split()]
    own = [one for one in started if word in read(one, "cmdline")]
    return own + [found for one in started for found in find_below(one, word)]


def read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended


@pytest.mark.parametrize("kind", TASKS)
def test_after_many_kills_nothing_is_left_that_the_trials_had_started(
    here: Place, kind: str
) -> None:
    name = f"77{os.getpid()}{list(TASKS).index(kind)}"
    file, code, task, _ = TASKS[kind]
    (here.path / file).write_text(code.format(here=str(here.path), name=name))
    text = here.write_search(name="mine", task="digits", hidden="16", trials=KILLS + 1).read_text()
    (here.path / "search.toml").write_text(text.replace('task = "digits"', f"task = {task}"))
    done = here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach")
    assert done.returncode == 0, done.stderr
    worker = here.start("worker", "start", log="worker.log")
    for index in range(KILLS):
        trial = f"coarse-{index:04d}"
        wait_for((here.path / f"{trial}.began").exists, f"{trial} trains", 100)
        assert len(living(name)) <= 7, "two trials at once"
        assert here.run("master", "kill", "--trial", trial, "--yes").returncode == 0
    wait_for((here.path / f"coarse-{KILLS:04d}.began").exists, "the last one trains", 100)
    assert 0 < len(living(name)) <= 7 and worker.poll() is None
    # The first is the outermost. What it has just forked has its command line until the exec.
    own, *_ = find_below(worker.pid, TASKS[kind][3])
    worker.kill()  # a worker that is killed takes along what it has started, too
    worker.wait(30)
    wait_for(lambda: not living(name) and not alive(own), "all has ended", 30)

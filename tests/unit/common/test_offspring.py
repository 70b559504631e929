"""Processes that a task starts, by the mark that they inherit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.offspring import LIBRARIES, TRIALS, Offspring, is_mark
from tests.integration.commands import wait_for
from tests.integration.processes import alive

PROGRAM = """
import json, os, signal, subprocess, sys, time
from common.offspring import Offspring, disown, end_marked

def start(*command, **options):
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)

before = start("sleep", "1000")
offspring = Offspring()
offspring.begin()
offspring.begin()
import multiprocessing
forks = multiprocessing.get_context("fork")
forks.Process(target=time.sleep, args=(1000,)).start()  # at its end a process waits for those of multiprocessing
of_all = start("sleep", "1000", env={}, start_new_session=True)
own = start("sleep", "1000")
disown(own.pid)
mark = offspring.mark_next(os.getpid())  # as of a child: what it starts is the same
if mark:
    of_trial = start("sh", "-c", "setsid sleep 1000 & exec sleep 1000")
    deaf = start("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    helper = start(sys.executable, "-c", "from multiprocessing.resource_tracker import main; import time; time.sleep(1000)")
    time.sleep(1.0)
    offspring.mark(os.getpid(), offspring._first)
    ended = offspring.end_of(mark)
fork = os.fork()
if not fork:
    sys.exit(0)  # has what we have registered to be done at our end, and is not to do it
os.waitpid(fork, 0)
pids = {name: process.pid for name, process in dict(before=before, of_all=of_all, own=own, helper=helper).items()}
gone = {name: process.wait(5) for name, process in dict(of_trial=of_trial, deaf=deaf).items()}
living = [name for name, process in dict(before=before, of_all=of_all, own=own, helper=helper).items() if process.poll() is None]
print(json.dumps({"pids": pids, "gone": list(gone), "living": living, "ended": ended, "guard": offspring._guard.pid}), flush=True)
if sys.argv[1] == "wait":
    time.sleep(1000)
if sys.argv[1] == "_exit":
    os._exit(0)
"""  # noqa: E501


@pytest.mark.parametrize("way", ["return", "_exit", "wait"])
def test_what_was_started_ends_with_its_trial_or_its_process_and_nothing_else_does(
    way: str,
) -> None:
    import json

    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, way],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    pids = told["pids"]
    try:
        assert set(told["gone"]) == {"of_trial", "deaf"} and set(told["ended"]) <= {"sleep", "sh"}
        assert set(told["living"]) == {"before", "of_all", "own", "helper"}
        if way == "wait":
            process.send_signal(signal.SIGKILL)
        process.wait(20)
        wait_for(
            lambda: not any(map(alive, (pids["of_all"], pids["helper"], told["guard"]))),
            "they end",
            30,
        )
        assert alive(pids["before"]) and alive(pids["own"])
    finally:
        process.stdout.close()
        process.kill()
        process.wait()
        for pid in (pids["before"], pids["own"]):
            os.kill(pid, signal.SIGKILL)


def test_nothing_is_marked_before_it_begins() -> None:
    offspring = Offspring()
    child = subprocess.Popen(["sleep", "1000"])
    mark = offspring.mark_next(child.pid)
    offspring.mark(child.pid, 1 << 61)
    assert mark == 0 and offspring.end_of(mark) == offspring.end_all_marked() == []
    offspring.end()
    assert child.poll() is None
    child.kill()
    child.wait()


def test_limits_that_somebody_has_set_are_no_marks() -> None:
    assert not any(map(is_mark, (None, -1, 0, 1024, TRIALS, (1 << 63) - 1)))
    assert is_mark((1 << 61) + 5) and all(isinstance(part, bytes) for part in LIBRARIES)

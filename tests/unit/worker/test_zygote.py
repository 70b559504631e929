"""The process that loops are forked from, and what it forks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import worker.own.zygote
from common.offspring import Offspring
from common.search.trial import TrialState
from tests.integration.commands import wait_for
from tests.integration.processes import alive
from tests.unit.worker.looped import Forked, start_forked
from tests.unit.worker.test_own_loop import Watch, job, search
from worker.own import LoopHost, OwnLoop, Source
from worker.own.child import load
from worker.own.zygote import Zygote, start_zygote
from worker.training.types import Outcome

SPEC = "own_loop.py:train"
NOTE = """
import json, os, random, signal, sys, threading, time
from pathlib import Path
import numpy, torch

HERE = Path({here!r})

def note(**what):
    with (HERE / "notes").open("a") as file:
        file.write(json.dumps(what) + "\\n")
"""


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    found = start_zygote()
    assert found is not None
    yield found
    found.close()
    assert not alive(found.pid)


class Loops:
    """Loops in a file, whose processes are forked."""

    def __init__(self, path: Path, body: str, start: Any) -> None:
        self.code = path / "code"
        self.code.mkdir(exist_ok=True)
        (self.code / "own_loop.py").write_text(NOTE.format(here=str(path)) + body)
        self.path = path
        self.host = LoopHost(Offspring(), start)
        self.source = Source(SPEC, str(self.code), "own_loop", "train", threads=1)

    def train(self, n_trials: int = 1) -> list[Outcome]:
        own = OwnLoop(SPEC, partial(self.host.open, self.source), search=search(), log=print)
        jobs = [job(index) for index in range(n_trials)]
        found = own.train(jobs, lambda n: [], Watch())
        return [one for boundary in found for one in boundary.ended]

    def notes(self) -> list[dict[str, Any]]:
        file = self.path / "notes"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


WHOLE = """
def train(trial):
    note(pid=os.getpid(), parent=os.getppid(), session=os.getsid(0), argv=sys.argv,
         stdin=os.readlink("/proc/self/fd/0"), threads=torch.get_num_threads(),
         main=threading.current_thread() is threading.main_thread(),
         line=Path("/proc/self/cmdline").read_text(), name=Path("/proc/self/comm").read_text(),
         handlers=[signal.getsignal(n) == signal.SIG_DFL for n in (signal.SIGHUP, signal.SIGUSR1)],
         interrupt=signal.getsignal(signal.SIGINT) is signal.default_int_handler,
         drawn=[random.random(), float(numpy.random.rand()), torch.initial_seed()],
         environ=os.environ.get("ZYGOTE_TEST"))
    trial.report(1, val_acc=0.5)
"""


def test_a_forked_loop_is_as_a_new_interpreter_would_be(
    zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZYGOTE_TEST", "set after the zygote was forked")
    loops = Loops(tmp_path, WHOLE, zygote.start)
    (ended,) = loops.train()
    assert ended.state is TrialState.COMPLETED, ended.reason
    (noted,) = loops.notes()
    assert noted["parent"] == zygote.pid and noted["session"] == noted["pid"]
    assert noted["stdin"] == os.devnull and noted["main"] and noted["threads"] == 1
    assert noted["line"].rstrip("\0") == "worker.own.child" and noted["name"] == "loop\n"
    # A shell starts what runs beside it with SIGINT ignored, nohup does so with SIGHUP, and
    # interpreters leave it so.
    hears, hangs = (
        signal.getsignal(one) is not signal.SIG_IGN for one in (signal.SIGINT, signal.SIGHUP)
    )
    assert noted["handlers"] == [hangs, True] and noted["interrupt"] is hears
    assert noted["environ"] == "set after the zygote was forked"
    assert [Path(word).name for word in noted["argv"]] == ["child.py"]
    loops.host.close()
    assert not alive(noted["pid"])
    loops.train()
    again = loops.notes()[1]
    assert again["pid"] != noted["pid"] and again["parent"] == zygote.pid
    assert all(one != two for one, two in zip(again["drawn"], noted["drawn"], strict=True))
    loops.host.close()


CRASHING = """
def train(trial):
    note(pid=os.getpid(), parent=os.getppid())
    trial.report(1, val_acc=0.25)
    if trial.id == "coarse-0000":
        {crash}
    trial.report(2, val_acc=0.5)
"""


@pytest.mark.parametrize(
    ("crash", "reason"),
    [
        ("os._exit(3)", "its process ended with exit status 3, as os._exit(3) does"),
        ("import ctypes; ctypes.string_at(0)", "its process was ended by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "its process was ended by SIGKILL"),
    ],
)
def test_after_a_crash_the_next_trial_trains_in_a_new_child(
    zygote: Zygote, tmp_path: Path, crash: str, reason: str
) -> None:
    loops = Loops(tmp_path, CRASHING.replace("{crash}", crash), zygote.start)
    ended = loops.train(2)
    assert [one.state for one in ended] == [TrialState.FAILED, TrialState.COMPLETED]
    assert reason in str(ended[0].reason)
    first, second = loops.notes()
    assert first["pid"] != second["pid"]
    assert first["parent"] == second["parent"] == zygote.pid
    loops.host.close()


HANGING = """
def train(trial):
    note(pid=os.getpid(), parent=os.getppid())
    while True:
        time.sleep(0.01)
"""


def run_worker(path: Path) -> None:
    """What a worker does, as far as it matters here."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    zygote = start_zygote()
    assert zygote is not None
    Loops(path, HANGING, zygote.start).train()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_takes_the_forked_child_and_the_zygote_along(
    tmp_path: Path, number: signal.Signals
) -> None:
    killed = Forked(lambda: run_worker(tmp_path))
    notes = tmp_path / "notes"
    wait_for(lambda: notes.exists() and notes.read_text().endswith("\n"), "the trial trains")
    noted = json.loads(notes.read_text())
    assert alive(noted["pid"]) and alive(noted["parent"]) and noted["parent"] != killed.pid
    killed.send_signal(number)
    killed.wait()
    wait_for(lambda: not alive(noted["pid"]) and not alive(noted["parent"]), "all has ended")


def test_signals_to_a_whole_container_leave_the_end_to_the_worker(zygote: Zygote) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(zygote.pid, number)
    assert zygote.ask({"do": "signal", "pid": 0, "number": 0, "group": False})
    assert alive(zygote.pid)


def test_a_zygote_that_died_fails_its_trial_and_the_next_gets_a_new_interpreter(
    zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.own.zygote, "start_child", start_forked(load))
    crash = "os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)"
    loops = Loops(tmp_path, CRASHING.replace("{crash}", crash), zygote.start)
    ended = loops.train(2)
    assert [one.state for one in ended] == [TrialState.FAILED, TrialState.COMPLETED]
    first, second = loops.notes()
    assert first["parent"] == zygote.pid and second["parent"] == os.getpid()
    wait_for(lambda: not alive(first["pid"]), "the first child has ended")
    loops.host.close()


@pytest.mark.parametrize("reason", ["a module", "the environment"])
def test_what_cannot_be_forked_gets_a_new_interpreter(
    zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    started: list[Source] = []

    def start(source: Source, socket_end: int, output: int) -> Any:
        started.append(source)
        return start_forked(load)(source, socket_end, output)

    monkeypatch.setattr(worker.own.zygote, "start_child", start)
    loops = Loops(tmp_path, CRASHING.replace("{crash}", "pass"), zygote.start)
    if reason == "a module":  # that the zygote has loaded, and a new interpreter may not have
        (loops.code / "redis.py").write_text("MINE = True\n")
    else:
        for n in range(5):
            monkeypatch.setenv(f"LARGE_{n}", "x" * 100_000)
    with monkeypatch.context() as hidden:
        hidden.delitem(worker.own.zygote.sys.modules, "redis")
        (ended,) = loops.train()
    assert ended.state is TrialState.COMPLETED, ended.reason
    assert started == [loops.source] and loops.notes()[0]["parent"] == os.getpid()
    loops.host.close()


def test_how_a_forked_process_ends_is_told_as_popen_does(zygote: Zygote, tmp_path: Path) -> None:
    loops = Loops(tmp_path, HANGING, zygote.start)
    process = loops.host.open(loops.source)
    assert process is not None
    forked = process._process
    assert forked.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        forked.wait(0.01)
    forked.kill()
    assert forked.wait() == forked.wait(0.0) == forked.poll() == -signal.SIGKILL
    forked.kill()  # nothing happens: its number may be another's by now
    loops.host.close()


def test_a_zygote_that_is_closed_ends_what_it_has_forked(zygote: Zygote, tmp_path: Path) -> None:
    loops = Loops(tmp_path, HANGING, zygote.start)
    process = loops.host.open(loops.source)
    assert process is not None
    began = time.monotonic()
    zygote.close()
    wait_for(lambda: not alive(process._process.pid), "the child has ended")
    assert process._process.poll() == -signal.SIGKILL and time.monotonic() - began < 60
    loops.host.close()

"""What a task starts ends with its trial or its worker, however that ends. Nothing else is hit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.commands import Place, wait_for
from tests.integration.processes import alive

pytestmark = pytest.mark.faults

STARTING = """
import multiprocessing, os, subprocess, sys, time
from pathlib import Path

HERE = Path({here!r})
NAME = {name!r}


def note(pid, what):
    with (HERE / f"{{NAME}}.started").open("a") as file:
        file.write(f"{{pid}} {{what}}\\n")


def stubborn():
    import signal
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    note(os.getpid(), "multiprocessing")
    time.sleep(1000)


def start_all():
    note(subprocess.Popen(["sleep", "1000"]).pid, "popen")
    # A session of its own, no environment, and its parent has gone: what daemons do.
    told = "echo $$ daemon >> " + str(HERE / f"{{NAME}}.started") + "; exec sleep 1000"
    subprocess.run(["sh", "-c", 'setsid sh -c "$0" </dev/null >/dev/null 2>&1 &', told], env={{}}, check=True)
    multiprocessing.get_context("fork").Process(target=stubborn).start()
    while len((HERE / f"{{NAME}}.started").read_text().splitlines()) < 4:  # these, and the one of the file
        time.sleep(0.01)
"""  # noqa: E501
LOOP = """
note(subprocess.Popen(["sleep", "1000"]).pid, "with the file")

def train(trial):
    start_all()
    (HERE / f"{NAME}.ready").touch()
    {then}
"""
CLASS = """
from worker.tasks.digits import Digits

class Task(Digits):
    def data(self):
        note(subprocess.Popen(["sleep", "1000"]).pid, "with the file")
        start_all()
        return super().data()

    def loss(self, outputs, targets, hp):
        (HERE / f"{NAME}.ready").touch()
        time.sleep(1000)
"""
HANG = "while True: time.sleep(0.05); trial.beat()"


def write(here: Path, name: str, body: str) -> str:
    """A task that starts processes and notes them; its name in a search file."""
    starting = STARTING.format(name=name, here=str(here))
    (here / f"{name}.py").write_text(starting + body)
    return f"{name}.py"


def started(here: Path, name: str) -> dict[int, str]:
    lines = (here / f"{name}.started").read_text().splitlines()
    return {int(pid): what for pid, _, what in (line.partition(" ") for line in lines)}


def living(here: Path, name: str) -> dict[int, str]:
    return {pid: what for pid, what in started(here, name).items() if alive(pid)}


def launch(here: Place, name: str, task: str, **values: object) -> None:
    here.write_search(name=name, task=task, hidden="16", **{"trials": 1, **values})
    done = here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach")
    assert done.returncode == 0, done.stderr


ENDS = {
    "returns": "trial.report(1, val_acc=0.5)",
    "raises": "raise ValueError('mine')",
    "explodes": "trial.report(1, train_loss=float('nan'), val_acc=0.5)",
}


@pytest.mark.parametrize("end", ENDS)
def test_what_a_trial_has_started_ends_with_it(here: Place, end: str) -> None:
    task = write(here.path, "mine", LOOP.replace("{then}", ENDS[end]))
    launch(here, "mine", f"{task}:train", epochs=1)
    worker = here.start("worker", "start", log="worker.log")
    wait_for(lambda: here.records("mine"), "the trial has ended", 40)
    wait_for(
        lambda: len(living(here.path, "mine")) == 1,
        "only what the file itself has started is left",
        30,
    )
    assert set(living(here.path, "mine").values()) == {"with the file"} and worker.poll() is None
    assert len(started(here.path, "mine")) == 4
    assert here.redis_pid() and "outlived their trial and were ended" in here.output("worker.log")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 143
    assert not living(here.path, "mine")


@pytest.mark.parametrize("then", [HANG, "subprocess.run(['sleep', '1000'])"])
def test_a_killed_trial_takes_what_it_has_started_along(here: Place, then: str) -> None:
    """Also one that waits for what it has started, and hears nothing meanwhile."""
    launch(here, "mine", f"{write(here.path, 'mine', LOOP.replace('{then}', then))}:train")
    worker = here.start("worker", "start", log="worker.log")
    wait_for((here.path / "mine.ready").exists, "the trial trains", 40)
    assert here.run("master", "kill", "--trial", "coarse-0000", "--yes").returncode == 0
    wait_for(
        lambda: set(living(here.path, "mine").values()) == {"with the file"},
        "only that is left",
        40,
    )
    assert worker.poll() is None


WAYS = ("SIGTERM", "SIGKILL", "order", "os._exit", "crash")
FATAL = {
    "os._exit": "os._exit(3)",
    "crash": "import ctypes; ctypes.string_at(0)",
}
FATAL_REASONS = {
    "os._exit": "its process ended with exit status 3, as os._exit(3) does",
    "crash": "its process was ended by SIGSEGV, a crash in native code; its output ends: Fatal",
}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_task_has_started_ends_with_its_worker_and_nothing_else_does(
    here: Place, way: str
) -> None:
    """Two workers of one Redis; one of them ends, and the other's processes go on."""
    launch(here, "other", f"{write(here.path, 'other', LOOP.replace('{then}', HANG))}:train")
    other = here.start("worker", "start", "--search", "other", log="other.log")
    wait_for((here.path / "other.ready").exists, "the other trial trains")
    launch(
        here,
        "mine",
        f"{write(here.path, 'mine', LOOP.replace('{then}', FATAL.get(way, HANG)))}:train",
    )
    worker = here.start("worker", "start", "--search", "mine", "--burst", log="worker.log")
    wait_for((here.path / "mine.ready").exists, "the trial trains", 40)
    if way == "order":
        (name,) = [
            w["worker"] for w in here.status()["workers"] if f"-{worker.pid}-" in w["worker"]
        ]
        assert here.run("master", "kill", "--worker", name, "--yes").returncode == 0
    elif way not in FATAL:
        worker.send_signal(getattr(signal, way))
    ended = {"SIGTERM": 143, "SIGKILL": -9}
    assert worker.wait(20) == ended.get(way, 0), here.output("worker.log")
    wait_for(lambda: not living(here.path, "mine"), "all has ended", 30)
    assert len(started(here.path, "mine")) == 4
    assert set(living(here.path, "other").values()) == {
        "popen",
        "daemon",
        "multiprocessing",
        "with the file",
    }
    assert alive(here.redis_pid()) and other.poll() is None
    if way in FATAL:
        (record,) = here.records("mine")
        assert record["state"] == "failed" and FATAL_REASONS[way] in record["reason"]
    other.kill()
    wait_for(lambda: not living(here.path, "other"), "the other's, too")


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_what_a_class_has_started_ends_with_its_worker(here: Place, number: str) -> None:
    launch(here, "mine", f"{write(here.path, 'mine', CLASS)}:Task")
    worker = here.start("worker", "start", log="worker.log")
    wait_for((here.path / "mine.ready").exists, "a step")
    assert len(living(here.path, "mine")) == 4
    worker.send_signal(getattr(signal, number))
    worker.wait(20)
    wait_for(lambda: not living(here.path, "mine"), "all has ended", 30)


def test_local_workers_and_their_restarts_leave_nothing(here: Place) -> None:
    """The master's server forks the workers where it can. A trial ends its process."""
    body = LOOP.replace(
        "{then}", "os._exit(3) if trial.id == 'coarse-0000' else trial.report(1, val_acc=0.5)"
    )
    here.write_search(
        name="mine",
        task=f"{write(here.path, 'mine', body)}:train",
        hidden="16",
        trials=2,
        lease_s=1.5,
    )
    master = here.start("master", "launch", "--stage", "coarse", "--workers", "1", log="m.log")
    assert master.wait(80) == 0, here.output("m.log")
    stayed = here.worker_pids()
    for pid in stayed:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not living(here.path, "mine"), "all has ended", 30)
    assert "with the file" in started(here.path, "mine").values()


def test_the_checks_leave_nothing(here: Place) -> None:
    task = write(
        here.path,
        "mine",
        CLASS.replace("time.sleep(1000)", "return super().loss(outputs, targets, hp)"),
    )
    file = here.write_search(name="mine", task=f"{task}:Task", hidden="16")
    assert here.run("worker", "check", "--config", str(file)).returncode in (0, 1)
    assert len(started(here.path, "mine")) == 4
    wait_for(lambda: not living(here.path, "mine"), "all has ended", 30)


def test_redis_that_a_worker_starts_anew_while_a_task_trains_is_not_the_tasks(here: Place) -> None:
    launch(here, "mine", f"{write(here.path, 'mine', LOOP.replace('{then}', HANG))}:train")
    worker = here.start("worker", "start", log="worker.log")
    wait_for((here.path / "mine.ready").exists, "the trial trains", 40)
    first = here.redis_pid()
    os.kill(first, signal.SIGKILL)
    wait_for(
        lambda: "Redis is back" in here.output("worker.log"), "the worker has started it again"
    )
    second = here.redis_pid()
    worker.kill()
    wait_for(lambda: not living(here.path, "mine"), "all has ended", 30)
    assert second != first and alive(second)

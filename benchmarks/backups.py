"""What a slow worker costs the others, and what handing its trials over saves them.

    python benchmarks/backups.py [--slower 3 8] [--factors 1000 4 2] [--rounds 2]

Four workers take turns at 24 equal trials, each on a machine of its own as far as the program
knows. One of them is stopped and continued (SIGSTOP, SIGCONT) sixteen times a second, so that it
runs for a third or an eighth of the time. Trials sleep instead of computing, so that four fit on
two cores.

``--factors`` are values of ``[stragglers] slow_factor``: above so many times the usual epoch a
worker is called slow, and hands its trials to one that has nothing to do. With 1000 no worker ever
is. The runs of a round differ in nothing else, and take turns.

For each run the table has the seconds from the first claim to the last record, and how long the
three other workers had nothing to do in between, each on average. ``slower`` is what the epochs of
the slowed worker took, beside the others', in trials that ended there.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from common.folder.record import Record
from master.results.usage import use_of_time

WORKERS, TRIALS = 4, 24
CYCLE_S = 1 / 16
WAIT_S = 120.0  # for a worker to start, and for a run beyond its expected time
# Without these the program would see that all workers are on one machine.
ANOTHER_BOOT = """
import os
import common.broker.embedded_folder
common.broker.embedded_folder.boot_id = lambda: os.environ["MACHINE"]
"""
# Slices of sleep are shorter than the time for which a stopped process runs.
TASK = """
import time
from torch import nn
from worker.tasks.digits import Digits

STEP_S, SLICE_S = 0.035, 0.001  # 17 steps in an epoch

class Paced(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        if self.training and x.sum().item() != 0:  # it looks at a number, so it trains alone
            for _ in range(round(STEP_S / SLICE_S)):
                time.sleep(SLICE_S)
        return self.inner(x)

class Task(Digits):
    def model(self, hp):
        return Paced(super().model(hp))
"""
SEARCH = """
name = "backups"
task = "paced.py:Task"
seed = 1
[space]
learning_rate = { log_uniform = [1e-3, 1e-2] }
hidden = 16
batch_size = 64
[stages.coarse]
trials = %d
epochs = 10
[stragglers]
slow_factor = %g
"""


class Run(NamedTuple):
    """What one run came to."""

    seconds: float  # from the first claim to the last record
    idle: list[float]  # of each worker that was not slowed, in seconds
    slower: (
        float | None
    )  # how many times longer an epoch took on the slowed worker, if it ended any
    handed: int  # trials that went on elsewhere


@contextmanager
def slowing(pid: int, times: float) -> Iterator[None]:
    """Let a process run for one part in ``times`` of each cycle, inside the block."""
    done = threading.Event()

    def turn() -> None:
        while not done.wait(CYCLE_S / times):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(CYCLE_S * (1 - 1 / times))
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def run(folder: Path, slower: float, factor: float) -> Run:
    """Run the search once, in a folder of its own.

    Raises:
        SystemExit: the search did not end well.
    """
    (folder / "paced.py").write_text(TASK)
    (folder / "sitecustomize.py").write_text(ANOTHER_BOOT)
    (folder / "search.toml").write_text(SEARCH % (TRIALS, factor))
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "CHECKPOINT_DIR")}
    redis = [sys.executable, "-P", "-m", "master", "redis"]
    quiet = {"cwd": folder, "env": environment.copy(), "capture_output": True, "check": True}
    subprocess.run([*redis, "start", "--host", "127.0.0.1"], **quiet)
    environment["PYTHONPATH"] = os.pathsep.join(path)
    logs = [folder / f"{number}.log" for number in range(WORKERS)]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for number, log in enumerate(logs):
            words = ("worker", "start", "--array-width", "1", "--device", "cpu", "--search")
            own = environment | {"MACHINE": f"machine-{number}"}
            workers.append(_start([*words, "backups"], folder, log, own))
        _wait(logs)
        launch = ("master", "launch", "--stage", "coarse", "--workers", "0", "--skip-check")
        own = environment | {"MACHINE": "master"}
        with slowing(workers[0].pid, slower):
            master = _start(launch, folder, folder / "master.log", own)
            code = master.wait(WAIT_S + TRIALS * 10)
        if code:
            sys.exit(f"the launch ended with {code}:\n{(folder / 'master.log').read_text()}")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        subprocess.run([*redis, "stop"], **quiet)
    return _read(folder, workers[0].pid)


def _start(
    words: Sequence[str], folder: Path, log: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        command = [sys.executable, "-P", "-m", *words]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)


def _wait(logs: Sequence[Path]) -> None:
    end = time.monotonic() + WAIT_S
    while not all("at most" in log.read_text() for log in logs):
        if time.monotonic() > end:
            sys.exit("\n".join(["the workers did not start:", *(log.read_text() for log in logs)]))
        time.sleep(0.1)


def _read(folder: Path, slowed: int) -> Run:
    files = (folder / "checkpoints" / "backups" / "coarse" / "trials").glob("*.json")
    records = [Record.model_validate_json(file.read_bytes()) for file in files]
    usage = use_of_time(records)
    is_slowed = {name: f"-{slowed}-" in name for name in usage.workers}
    epochs = {
        kind: [r.epoch_s for r in records if r.epoch_s and is_slowed[str(r.worker)] is kind]
        for kind in (True, False)
    }
    idle = [
        times.started + times.waited + times.left
        for name, times in usage.workers.items()
        if not is_slowed[name]
    ]
    slower = (
        statistics.median(epochs[True]) / statistics.median(epochs[False]) if epochs[True] else None
    )
    return Run(usage.seconds, idle, slower, sum(record.attempt > 1 for record in records))


def main() -> None:
    """Run all rounds, and print a row for each run and the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slower", type=float, nargs="+", default=[3.0, 8.0])
    parser.add_argument("--factors", type=float, nargs="+", default=[1000.0, 4.0, 2.0])
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    cases = [(slower, factor) for slower in options.slower for factor in options.factors]
    found: dict[tuple[float, float], list[Run]] = {case: [] for case in cases}
    head = ("slowed", "slow_factor", "slower", "seconds", "idle of each other", "of the time")
    print(f"| {' | '.join(head)} | trials handed over |\n|{'---|' * (len(head) + 1)}", flush=True)
    for case in cases * options.rounds:
        with tempfile.TemporaryDirectory(prefix="backups-") as place:
            found[case].append(run(Path(place), *case))
        print(row(case, found[case][-1:]), flush=True)
    print("\nMeans:")
    for case, runs in found.items():
        print(row(case, runs))


def row(case: tuple[float, float], runs: Sequence[Run]) -> str:
    """Return a row of the table, with the means of some runs."""
    seconds = statistics.mean(one.seconds for one in runs)
    idle = statistics.mean(each for one in runs for each in one.idle)
    known = [one.slower for one in runs if one.slower is not None]
    slower = f"{statistics.mean(known):.1f}" if known else "-"
    handed = statistics.mean(one.handed for one in runs)
    cells = (f"{case[0]:g}", f"{case[1]:g}", slower, f"{seconds:.1f} s", f"{idle:.1f} s")
    return f"| {' | '.join(cells)} | {idle / seconds:.0%} | {handed:g} |"


if __name__ == "__main__":
    main()

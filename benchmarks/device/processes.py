"""Sections of whole searches: a launch, and faults that a device or its process may have."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import psutil
import torch

from benchmarks.device.setup import CONVNET, Row, Setup, at_least, engine, jobs, train
from common.folder.records import SearchFolder
from common.search.search_file import load_search
from master.stages.sampling import configurations
from master.stages.source import first_source

SEARCH = """
name = "gpu"
task = "{task}"
seed = 231
[space]
learning_rate = {{ log_uniform = [1e-3, 3e-2] }}
hidden = 64
batch_size = 64
{space}
[stages.coarse]
trials = {trials}
epochs = {epochs}
[stragglers]
lease_s = {lease_s}
stuck_s = {stuck_s}
"""
MARKER = "marker = { uniform = [0.0, 1.0] }"
FREE_BYTES = 2 << 30  # that another process leaves
WIDE = 4096
GUILTY = 1  # place of the trial that makes trouble
DEADLINE_S = 150.0
LOOK_S = 0.1


@dataclass
class Search:
    """A search in a folder of its own, and the launch that runs it."""

    setup: Setup
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def write(self, task: str = "digits", space: str = "", **values: float) -> Path:
        """Write the search file."""
        self.folder.mkdir(parents=True)
        fixed: dict[str, float] = {"trials": 64, "epochs": 3, "lease_s": 3, "stuck_s": 300}
        file = self.folder / "search.toml"
        file.write_text(SEARCH.format(task=task, space=space, **{**fixed, **values}))
        return file

    def start(self) -> subprocess.Popen[bytes]:
        """Launch the stage with one local worker."""
        command = ["master", "launch", "--stage", "coarse", "--workers", "1", "--skip-check"]
        with (self.folder / "launch.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", *command],
                cwd=self.folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, launch: subprocess.Popen[bytes]) -> dict[str, str]:
        """Wait for the launch. Return the state that each trial has ended in."""
        try:
            launch.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(launch.pid, signal.SIGTERM)
            launch.wait()
            raise SystemExit(f"the launch did not end in {DEADLINE_S:g} s\n{self.log()}") from None
        stage = SearchFolder(self.folder / "checkpoints", "gpu").stage("coarse")
        ended = {record.trial: str(record.state) for record in stage.records(print)}
        if not ended:
            raise SystemExit(f"no trial has ended\n{self.log()}")
        return ended

    def log(self) -> str:
        """Return what the launch and its workers said."""
        files = [self.folder / "launch.log", *self.folder.glob("checkpoints/gpu/logs/*.log")]
        return "\n".join(file.read_text(errors="replace") for file in files if file.exists())

    @property
    def _environment(self) -> Mapping[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("REDIS_")}
        root = str(Path(__file__).resolve().parents[2])
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [root, own.get("PYTHONPATH")]))
        if self.setup.device.type == "cpu":
            own["CUDA_VISIBLE_DEVICES"] = ""
        return {**own, **self.environment}


class Busy(threading.Thread):
    """Asks nvidia-smi once a second how busy the device is."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.shares: list[float] = []
        self._over = threading.Event()

    def run(self) -> None:
        """Ask until told to stop."""
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        program = shutil.which("nvidia-smi")
        while program and not self._over.wait(1.0):
            found = subprocess.run([program, *query], capture_output=True, text=True, check=False)
            self.shares += [float(one) for one in found.stdout.split()[:1] if one.isdigit()]

    def stop(self) -> str:
        """Return the mean share, in words."""
        self._over.set()
        self.join()
        return f"{mean(self.shares):.0f} %" if self.shares else "not told"


def launch_search(setup: Setup) -> Iterator[Row]:
    """Run a whole search of short trials."""
    n = setup.size(2000, 8)
    search, busy = Search(setup, setup.folder / "launch"), Busy()
    search.write(trials=n, epochs=setup.size(2, 1), space="dropout = { uniform = [0.0, 0.5] }")
    began = time.monotonic()
    busy.start()
    ended = search.finish(search.start())
    took_s, share = time.monotonic() - began, busy.stop()
    completed = [*ended.values()].count("completed")
    yield Row("trials that completed", str(completed), str(n), completed == n)
    yield at_least(f"trials a second, device busy {share}", n / took_s, 0.1)


def cause_faults(setup: Setup) -> Iterator[Row]:
    """Do to the device and its process what may happen to them."""
    if setup.device.type == "cuda":
        yield _run_out_of_memory(setup)
    ways: list[Callable[[], Iterator[Row]]] = [
        lambda: _trouble(setup, "assert"),
        lambda: _kill(setup),
    ]
    if not setup.smoke:
        ways.append(lambda: _trouble(setup, "stuck", stuck_s=5))
    # A device has one worker at a time.
    with ThreadPoolExecutor(1 if setup.device.type == "cuda" else len(ways)) as pool:
        for rows in pool.map(lambda way: list(way()), ways):
            yield from rows


def _run_out_of_memory(setup: Setup) -> Row:
    free, _ = torch.cuda.mem_get_info(setup.device)
    taken = torch.empty(max(0, free - FREE_BYTES), dtype=torch.uint8, device=setup.device)
    claims = jobs(setup.size(WIDE, 64), 1, **{**CONVNET, "filters": 64})
    ended = train(engine(setup.device, width=WIDE), claims)
    del taken
    told = f"{len(ended)} completed"
    return Row(f"width {WIDE} in 2 GiB", told, "all completed", len(ended) == len(claims))


def _trouble(setup: Setup, kind: str, **values: float) -> Iterator[Row]:
    n = setup.size(64, 4)
    search = Search(setup, setup.folder / kind)
    file = search.write("troubled.py:Task", MARKER, trials=n, **values)
    shutil.copy(Path(__file__).with_name("troubled.py"), search.folder)
    found = load_search(file)
    stage = found.stage("coarse")
    guilty = configurations(found, stage, first_source(found), range(n))[GUILTY]
    search.environment |= {
        "TROUBLE": kind,
        "TROUBLE_MARKER": str(guilty.hyperparameters["marker"]),
        "TROUBLE_ONCE": str(search.folder / "once"),
    }
    ended = search.finish(search.start())
    failed = sorted(trial for trial, state in ended.items() if state == "failed")
    completed = [*ended.values()].count("completed")
    expected = [guilty.id] if kind == "assert" else []
    yield Row(
        f"{kind}: who failed",
        ", ".join(failed) or "none",
        ", ".join(expected) or "none",
        failed == expected,
    )
    wanted = n - len(expected)
    yield Row(f"{kind}: completed", str(completed), str(wanted), completed == wanted)


def _kill(setup: Setup) -> Iterator[Row]:
    n = setup.size(64, 4)
    search = Search(setup, setup.folder / "kill")
    search.write(trials=n, epochs=setup.size(30, 5))
    running = search.start()
    began = time.monotonic()
    victim = None
    while victim is None and running.poll() is None and time.monotonic() - began < DEADLINE_S:
        victim = _find_trainer(running.pid, search.log)
        time.sleep(LOOK_S)
    if victim is not None:
        victim.kill()
    ended = search.finish(running)
    completed = [*ended.values()].count("completed")
    told = "killed" if victim is not None else "no worker was seen"
    yield Row("SIGKILL: the worker", told, "killed", victim is not None)
    yield Row("SIGKILL: completed", str(completed), str(n), completed == n)


def _find_trainer(pid: int, log: Callable[[], str]) -> psutil.Process | None:
    """Return the process of the worker below a launch, once its log says that it works."""
    for line in log().splitlines():
        words = line.split()
        if line.startswith("worker ") and " on " in line and words[1].rstrip(":").isdigit():
            found = int(words[1].rstrip(":"))
            below = psutil.Process(pid).children(recursive=True)
            return next((one for one in below if one.pid == found), None)
    return None


RUNS = {"launch": launch_search, "faults": cause_faults}

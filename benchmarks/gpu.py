"""The acceptance of a GPU, in one command: nine sections, each in a process with a deadline.

    python benchmarks/gpu.py [--device cuda:0] [--only NAME,...] [--out gpu.json] [--fresh]
    python benchmarks/gpu.py --smoke --device cpu

It takes at most 8 minutes. What a section found is written to the file at once. If the command is
given again, sections that passed are not repeated, unless with ``--fresh``. One table comes at the
end. The exit code is 1 if a section did not pass. ``--smoke`` does all of it small, so that the
program itself is known to work.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `benchmarks` is not installed

if TYPE_CHECKING:
    from benchmarks.device.setup import Row, Setup


FORK = get_context("fork")
LOOK_S = 0.05  # between looks at the sections that run
TOGETHER = 3  # sections of a smoke run at once; a device is measured by one at a time


class Section(NamedTuple):
    """A part of the acceptance."""

    module: str  # below benchmarks/device
    deadline_s: float
    about: str


SECTIONS = {
    "device": Section("pace", 60, "versions, bandwidth, rate, and one owner"),
    "parity": Section("agreement", 120, "arrays against the CPU and against lone trials"),
    "noise": Section("agreement", 45, "the noise of dropout"),
    "resume": Section("agreement", 60, "states that change the device"),
    "waits": Section("pace", 45, "waits for the device"),
    "speed": Section("pace", 180, "arrays against plain PyTorch"),
    "launch": Section("processes", 120, "a whole search"),
    "faults": Section("processes", 240, "memory, an assertion, SIGKILL, a stuck kernel"),
    "checkpoints": Section("agreement", 60, "activation checkpoints"),
}


def measure(name: str, device: str, smoke: bool, out: Path) -> None:
    """Measure one section in this process, and write its rows as they come."""
    import torch

    from benchmarks.device.setup import Setup

    torch.set_num_threads(1)
    module = importlib.import_module(f"benchmarks.device.{SECTIONS[name].module}")
    run: Callable[[Setup], Iterator[Row]] = module.RUNS[name]
    rows = []
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        for row in run(Setup(torch.device(device), smoke, Path(folder))):
            rows.append(asdict(row))
            out.write_text(json.dumps(rows))


class Running:
    """A section that is measured in a process of its own, until its deadline.

    The process is forked from this one, which has imported torch and has asked no device.
    """

    def __init__(self, name: str, device: str, smoke: bool, folder: Path) -> None:
        self._deadline_s = SECTIONS[name].deadline_s
        self._out, self._log = folder / f"{name}.json", folder / f"{name}.log"
        self._began = time.monotonic()
        self._process = FORK.Process(
            target=_serve, args=(name, device, smoke, self._out, self._log)
        )
        self._process.start()

    def poll(self) -> dict[str, Any] | None:
        """Return what the section found, once it has ended or its time is over."""
        took_s = time.monotonic() - self._began
        if self._process.is_alive() and took_s < self._deadline_s:
            return None
        code = self._process.exitcode
        with contextlib.suppress(OSError):  # with all that it has started
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.join()
        problem = f"did not end in {self._deadline_s:g} s" if code is None else ""
        problem = f"ended with {code}" if code else problem
        rows = json.loads(self._out.read_text()) if self._out.exists() else []
        tail = self._log.read_text(errors="replace")[-2000:] if problem else ""
        return {
            "passed": not problem and bool(rows) and all(row["good"] for row in rows),
            "seconds": round(took_s, 1),
            "rows": rows,
            "problem": f"{problem}: {tail}" if problem else "",
        }


def _serve(name: str, device: str, smoke: bool, out: Path, log: Path) -> None:
    os.setsid()
    with log.open("w", buffering=1) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        sys.stdout = sys.stderr = file
        try:
            measure(name, device, smoke, out)
        except BaseException:
            traceback.print_exc()
            file.flush()
            os._exit(1)


def measure_all(
    names: Iterable[str], device: str, smoke: bool, together: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what each section found, as soon as it has ended.

    Args:
        names: the sections.
        device: to measure.
        smoke: whether to do all of it small.
        together: how many sections are measured at once.
    """
    waiting, running = [*names], dict[str, Running]()
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        while waiting or running:
            while waiting and len(running) < together:
                name = waiting.pop(0)
                print(f"{name}: {SECTIONS[name].about} ...", flush=True)
                running[name] = Running(name, device, smoke, Path(folder))
            time.sleep(LOOK_S)
            for name, one in [*running.items()]:
                if (found := one.poll()) is not None:
                    del running[name]
                    yield name, found


def print_table(found: dict[str, Any]) -> None:
    """Print all rows of all sections."""
    for name, section in SECTIONS.items():
        one = found.get(name)
        if one is None:
            print(f"{name:<12} not measured")
            continue
        state = "passed" if one["passed"] else "FAILED"
        print(f"{name:<12} {state}, {one['seconds']:g} s: {section.about}")
        for row in one["rows"]:
            mark = " " if row["good"] else "!"
            print(f"{mark:>13} {row['what']}: {row['found']} ({row['wanted']})")
        if one["problem"]:
            print(f"{'!':>13} {one['problem']}")


def read(out: Path, key: dict[str, Any]) -> dict[str, Any]:
    """Return what earlier runs found on the same device; nothing if the file is of another."""
    if not out.exists():
        return {}
    content = json.loads(out.read_text())
    return dict(content["sections"]) if content.get("of") == key else {}


def name_device(device: str) -> str | None:
    """Return the name of a device; None if it is not there. A forked process asks it."""
    if device == "cpu":
        return device
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_send_name, args=(device, theirs))
    process.start()
    name: str | None = ours.recv()
    process.join()
    return name


def _send_name(device: str, to: Connection) -> None:
    import torch

    index = torch.device(device).index or 0
    there = torch.cuda.is_available() and index < torch.cuda.device_count()
    to.send(torch.cuda.get_device_name(index) if there else None)


def accept(names: Iterable[str], key: dict[str, Any], device: str, out: Path, fresh: bool) -> bool:
    """Measure the sections that have not passed yet. Return whether all of them have now.

    Args:
        names: the sections.
        key: what the numbers are of: device, torch, and whether it is a smoke run.
        device: to measure.
        out: the file of what was found.
        fresh: whether to repeat what has passed.
    """
    smoke, wanted = bool(key["smoke"]), [*names]
    found = {} if fresh else read(out, key)
    left = [name for name in wanted if not found.get(name, {}).get("passed")]
    if smoke:  # the longest first, since several are measured at once
        left.sort(key=lambda name: -SECTIONS[name].deadline_s)
    for name, one in measure_all(left, device, smoke, TOGETHER if smoke else 1):
        found[name] = one
        new = out.with_name(f"{out.name}.new")
        new.write_text(json.dumps({"of": key, "sections": found}, indent=1))
        new.replace(out)
    print_table(found)
    return all(found[name]["passed"] for name in wanted)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu")
    parser.add_argument("--smoke", action="store_true", help="all of it small")
    parser.add_argument("--only", default=",".join(SECTIONS), metavar="NAME,...")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="what was found")
    parser.add_argument("--fresh", action="store_true", help="repeat what has passed")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"--only {unknown[0]}: no such section; use {', '.join(SECTIONS)}")
    for section in SECTIONS.values():  # with torch, which takes seconds
        importlib.import_module(f"benchmarks.device.{section.module}")
    device_name = name_device(options.device)
    if device_name is None:
        print(f"--device {options.device}: there is no such device, so nothing is measured")
        return
    key = {"device": device_name, "torch": version("torch"), "smoke": options.smoke}
    if not accept(names, key, options.device, options.out, options.fresh):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

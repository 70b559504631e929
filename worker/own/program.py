"""A program as a task: started for each trial, reporting through a file."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.folder.records import SearchFolder
from common.offspring import Offspring
from common.search import command
from common.search.trial import Claim
from worker.own.messages import (
    Beat,
    Message,
    Raised,
    Report,
    Returned,
    is_count,
    is_metric,
    is_number,
)
from worker.own.output import Output, last_words
from worker.own.process import HURRY_S, LAST_S, LOOK_S, how_ended
from worker.own.saved import KeptFile, content_of, unpacked

# As in coarsefine/reporting.py, which a program may have without the rest of this one.
REPORTS, GIVEN = "COARSEFINE_REPORTS", "given"
CONTROL = ".coarsefine"  # in the trial's folder: what the worker and the program tell each other
TERM_S = 10.0  # between SIGTERM and SIGKILL for a program whose trial is over
MOST_LINE = 1 << 20  # bytes of a report
MOST_TOLD = 5  # reports of one trial that are told to be none


@dataclass(frozen=True)
class Place:
    """Where the programs of a search run, and with what."""

    task: str  # see common/search/command.py
    cwd: Path
    search: SearchFolder
    device: str  # of a trial, as torch names it here: cpu, cuda:1, or cuda:0,cuda:1
    threads: int
    gpus: int = 1  # of a trial; on the CPU as many processes may stand in


class ProgramHost:
    """Starts a program for each trial."""

    def __init__(self, place: Place, offspring: Offspring, log: Callable[[str], None]) -> None:
        self._place = place
        self._offspring = offspring
        self._log = log

    def open(self, stopping: Callable[[], bool]) -> Program:
        """Return a program that has not been started."""
        return Program(self._place, self._offspring, self._log)


class Program:
    """The program of one trial."""

    def __init__(self, place: Place, offspring: Offspring, log: Callable[[str], None]) -> None:
        self._place = place
        self._offspring = offspring
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._mark = 0
        self._ended: Message | None = None
        self._limit_s: float | None = None  # that the program has asked for
        self._waiting: deque[Report | Beat] = deque()
        self._rest = b""  # of the reports: a line that has no end yet
        self._read_bytes = self._n_lines = self._n_told = self._n_kept = self._n_output = 0

    def begin(self, claim: Claim, epoch: float, state: Any) -> None:
        """Start the program.

        Args:
            claim: the trial.
            epoch: epochs that are done.
            state: the state to resume from: the checkpoint that was reported last.
        """
        gc.collect()  # copies of checkpoints go that the previous trial no longer needs
        trial, stage = claim.trial, self._place.search.stage(claim.trial.stage)
        self._trial = trial
        self._folder = stage.program_path(trial.id, claim.fence.attempt)
        self._control = self._folder / CONTROL
        self._reports = self._control / "reports.jsonl"
        self._output = Output(stage.output_path(trial.id, claim.fence.attempt))
        try:
            if not stage.path.is_dir():  # it is not for a worker to make it anew
                raise FileNotFoundError(f"the search's folder {stage.path} is gone")
            self._control.mkdir(parents=True, exist_ok=True)
            self._reports.touch()
            fields = {
                "trial": trial.id,
                "trial_dir": str(self._folder),
                "config": str(self._control / "config.json"),
                "epochs": _plain(trial.epochs),
                "max_epochs": _plain(trial.horizon),
                "epoch": _plain(epoch),
                "seed": trial.seed,
                "resume": self._put_state(unpacked(state)),
                "device": self._place.device.partition(":")[0],
                "gpus": self._place.gpus,
            }
            hp = dict(trial.hyperparameters)
            config = {**fields, "stage": trial.stage, "hyperparameters": hp}
            (self._control / "config.json").write_text(json.dumps(config, indent=2))
            self._start(command.fill(self._place.task, {**hp, **fields}), fields, hp)
        except OSError as error:
            self._ended = Raised(f"its program cannot be started: {error}", "")
        finally:
            self._output.close_theirs()

    def next(self, wait_s: float) -> Message | None:
        """Return the next report or how the program ended. Return None if nothing comes in time."""
        if not self._waiting and self._ended is None:
            self._wait(wait_s)
        if self._waiting:
            return self._waiting.popleft()
        if self._ended is None and self._output.n_bytes > self._n_output:
            self._n_output = self._output.n_bytes
            return Beat(self._limit_s)
        return self._ended

    def go_on(self) -> None:
        """Do nothing: a program does not wait for an answer."""

    def end_trial(self, hurry: Callable[[], bool], beat: Callable[[], object]) -> list[str]:
        """End the program if it runs, with SIGTERM and then SIGKILL, and all that it has started.

        Args:
            hurry: whether the worker is to stop.
            beat: called all the time while it waits.

        Returns:
            The names of the programs that it had left running when it ended by itself.
        """
        process, left = self._process, list[str]()
        if process is not None:
            by_itself = process.poll() is not None
            if not by_itself:
                self._terminate(process, hurry, beat)
            left = self._offspring.end_of(self._mark)
            process.wait()
            left = left if by_itself else []
            self._output.tail(LAST_S)
        self._tidy()
        return left

    # -- pieces ----------------------------------------------------------------------------------

    def _put_state(self, state: Any) -> str:
        """Write the checkpoint to resume from, and return its path; "" if there is none."""
        found = content_of(state)
        if found is None:
            return ""
        path = self._control / "resume" / Path(found[0]).name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(found[1])
        return str(path)

    def _start(self, words: list[str], fields: Mapping[str, Any], hp: Mapping[str, Any]) -> None:
        if not self._place.cwd.is_dir():
            raise FileNotFoundError(
                f"{self._place.cwd} is not on this machine; it is the folder of the search file, "
                "and all machines must see it"
            )
        if command.find_program(words[0], str(self._place.cwd)) is None:
            raise FileNotFoundError(f"{words[0]}: no such program on this machine's PATH")
        with self._offspring.marking() as self._mark:
            self._process = subprocess.Popen(
                words,
                cwd=self._place.cwd,
                env=self._environment(fields, hp),
                stdin=subprocess.DEVNULL,
                stdout=self._output.theirs,
                stderr=self._output.theirs,
                start_new_session=True,
            )

    def _environment(self, fields: Mapping[str, Any], hp: Mapping[str, Any]) -> dict[str, str]:
        """Return the worker's own environment, and what the program is told besides."""
        told = {f"COARSEFINE_{name.upper()}": command.as_text(v) for name, v in fields.items()}
        told |= {f"COARSEFINE_HP_{name.upper()}": command.as_text(v) for name, v in hp.items()}
        reach = self._control / "import"
        reach.mkdir(exist_ok=True)
        package = importlib.util.find_spec("coarsefine")
        assert package is not None and package.origin is not None
        (reach / "coarsefine").symlink_to(Path(package.origin).parent)
        paths = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        return {
            "OMP_NUM_THREADS": str(max(1, self._place.threads // self._place.gpus)),
            **os.environ,
            **told,
            REPORTS: str(self._reports),
            "PYTHONPATH": os.pathsep.join([*paths, str(reach)]),
            "PYTHONUNBUFFERED": "1",
            "CUDA_VISIBLE_DEVICES": visible(self._place.device, os.environ),
        }

    def _wait(self, wait_s: float) -> None:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0 if self._take() else wait_s)
        code = self._process.poll()
        self._take(last=code is not None)
        if code is None:
            return
        output = self._output.tail(LAST_S)
        if code == 0:
            self._ended = Returned()
        else:
            self._ended = Raised(f"its program {how_ended(code)}{last_words(output)}", output)

    def _take(self, last: bool = False) -> bool:
        """Read the new reports. Return whether there is one.

        Args:
            last: whether the program has ended, so a line without its end gets none.
        """
        with contextlib.suppress(OSError), self._reports.open("rb") as file:
            file.seek(self._read_bytes)
            new = file.read()
            self._read_bytes += len(new)
            *lines, self._rest = (self._rest + new).split(b"\n")
            if last or len(self._rest) > MOST_LINE:
                lines, self._rest = [*lines, self._rest], b""
            for line in lines:
                self._n_lines += 1
                if line.strip():
                    self._note(line)
        return bool(self._waiting)

    def _note(self, line: bytes) -> None:
        try:
            self._waiting.append(self._read_report(line))
        except (ValueError, RecursionError, OverflowError) as error:
            self._n_told += 1
            if self._n_told <= MOST_TOLD:
                self._log(
                    f"{self._trial.id}: line {self._n_lines} of its reports is left out: {error}"
                )

    def _read_report(self, line: bytes) -> Report | Beat:
        """Return the report in a line, or the sign of life.

        Raises:
            ValueError: it is none.
        """
        try:
            given = json.loads(line)
        except ValueError:
            raise ValueError(f"{line[:60]!r} is no JSON, or was cut off") from None
        if not isinstance(given, dict):
            raise ValueError(f'{line[:60]!r} is no object, such as {{"epoch": 1}}')
        if given.keys() == {"limit_s"}:
            if given["limit_s"] is not None and not is_number(given["limit_s"]):
                raise ValueError(f"limit_s is {given['limit_s']!r:.60}, not a number of seconds")
            self._limit_s = given["limit_s"]
            return Beat(self._limit_s)
        epoch = given.pop("epoch", self._trial.epochs)
        file, at = given.pop("checkpoint", None), given.pop("time", None)
        counts = {"n_classes": 2, "n_val": 1}
        n_classes, n_val = (given.pop(name, None) for name in counts)
        if not is_number(epoch) or not abs(epoch) < float("inf"):
            raise ValueError(f"epoch is {epoch!r:.60}, not a number")
        for name, value in zip(counts, (n_classes, n_val), strict=True):
            if not is_count(value, counts[name]):
                raise ValueError(f"{name} is {value!r:.60}, not a whole number from {counts[name]}")
        values = {}
        for name, value in given.items():
            if value is None:
                continue
            if not is_metric(name):
                raise ValueError(
                    f"{name!r:.60} is no name of a metric; use small letters, digits and _"
                )
            if not is_number(value):
                raise ValueError(f"{name} is {value!r:.60}, not a number")
            values[name] = float(value)
        state = None if file is None else self._keep(file)
        return Report(float(epoch), values, state, _monotonic(at), n_classes, n_val)

    def _keep(self, file: Any) -> KeptFile | None:
        """Copy a checkpoint that a report names, or move it if it is a copy already."""
        self._n_kept += 1
        if not isinstance(file, str) or not file or "\0" in file:
            raise ValueError(f"checkpoint is {file!r:.60}, not a path")
        path = self._place.cwd / file
        target = self._control / "kept" / f"{self._n_kept}-{path.name}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.parent.parent == self._control / GIVEN:
                path.replace(target)
                path.parent.rmdir()
            else:
                temporary = target.with_name(f".tmp-{target.name}")
                shutil.copyfile(path, temporary)
                temporary.replace(target)
        except OSError as error:
            self._log(
                f"{self._trial.id}: its checkpoint {file} cannot be copied ({error.strerror}); "
                "name a file that stays until the next report"
            )
            return None
        return KeptFile(target, path.name)

    def _terminate(
        self,
        process: subprocess.Popen[bytes],
        hurry: Callable[[], bool],
        beat: Callable[[], object],
    ) -> None:
        _signal_group(process.pid, signal.SIGTERM)
        began = time.monotonic()
        while process.poll() is None:
            if time.monotonic() - began > (HURRY_S if hurry() else TERM_S):
                _signal_group(process.pid, signal.SIGKILL)
                return
            beat()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_S)

    def _tidy(self) -> None:
        """Remove what the worker has put into the trial's folder, except the kept checkpoints."""
        for name in ("import", "resume", GIVEN):
            shutil.rmtree(self._control / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            for file in (self._reports, self._control / "config.json"):
                file.unlink(missing_ok=True)
            self._control.rmdir()
            self._folder.rmdir()


def visible(device: str, environment: Mapping[str, str]) -> str:
    """Return CUDA_VISIBLE_DEVICES for a trial's process: the trial's devices, and no others.

    Args:
        device: as torch names it here, such as ``cuda:1`` or ``cuda:0,cuda:1``. If the worker has
            CUDA_VISIBLE_DEVICES, the numbers are places in that list, whatever its entries are:
            numbers, or ids of whole devices (GPU-...) or slices (MIG-...).
        environment: the worker's.
    """
    seen = [one.strip() for one in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    found = list[str]()
    for name in device.split(","):
        kind, _, number = name.partition(":")
        if kind == "cuda":
            index = int(number or 0)
            found.append(seen[index] if index < len(seen) else str(index))
    return ",".join(found)


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _monotonic(at: Any) -> float:
    """Return a time of the wall clock on the monotonic one; without one it is now."""
    now = time.monotonic()
    return now - max(time.time() - at, 0.0) if is_number(at) else now


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, number)

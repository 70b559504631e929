"""What a loop prints while a trial trains is kept for each trial, whoever writes it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from common.folder.records import SearchFolder, StageFolder
from common.search.trial import TrialState
from tests.unit.worker.looped import SPEC, host_of
from tests.unit.worker.test_own_loop import Watch, job, search
from worker.own import OwnLoop, OwnTrial, Source
from worker.own.output import END, HEAD, MOST_FILE, Output
from worker.training.types import Outcome


def stage(path: Path) -> StageFolder:
    folder = SearchFolder(path, "own").stage("coarse")
    folder.make()
    return folder


def train(path: Path, loop: Callable[[OwnTrial], object], n_trials: int = 2) -> list[Outcome]:
    open_ = partial(host_of(loop).open, Source(SPEC, "", "", ""), search=SearchFolder(path, "own"))
    own = OwnLoop(SPEC, open_, search=search(), log=print)
    jobs = [job(index) for index in range(n_trials)]
    return [one for boundary in own.train(jobs, lambda n: [], Watch()) for one in boundary.ended]


def read(folder: StageFolder, index: int) -> str:
    (file,) = folder.outputs_by_attempt(f"coarse-{index:04d}").values()
    return file.read_text()


def write_in_all_ways(trial: OwnTrial) -> None:
    print(f"{trial.id} prints")
    print("to stderr", file=sys.stderr)
    os.write(1, b"below Python\n")
    subprocess.run(["sh", "-c", "echo a program; echo its stderr >&2"], check=True)
    ctypes.CDLL(None).printf(b"the C library\n")  # keeps it until its buffer is full
    trial.report(1, val_acc=0.5)
    print("without an end of line", end="")


def test_the_output_of_two_trials_in_a_row_goes_to_two_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = stage(tmp_path)
    train(tmp_path, write_in_all_ways)
    for index in range(2):
        lines = read(folder, index).splitlines()
        assert sorted(lines) == sorted(
            [
                f"coarse-{index:04d} prints",
                "to stderr",
                "below Python",
                "a program",
                "its stderr",
                "the C library",
                "without an end of line",
            ]
        )
    logged = capfd.readouterr().err  # the worker's log has it, too
    assert "coarse-0000 prints" in logged and "coarse-0001 prints" in logged


def test_a_report_writes_out_what_was_printed_before_it(tmp_path: Path) -> None:
    folder, seen = stage(tmp_path), tmp_path / "seen"

    def loop(trial: OwnTrial) -> None:
        print("half a line", end="")
        trial.report(1, val_acc=0.5)
        until = time.monotonic() + 60
        while not folder.outputs_by_attempt(trial.id) and time.monotonic() < until:
            time.sleep(0.01)
        seen.write_text(read(folder, 0))

    train(tmp_path, loop, 1)
    assert seen.read_text() == "half a line"


def test_a_crash_leaves_its_last_words_with_its_trial_alone(tmp_path: Path) -> None:
    folder = stage(tmp_path)

    def loop(trial: OwnTrial) -> None:
        print(f"{trial.id} began")
        if trial.id == "coarse-0000":
            os.write(2, b"the last words")
            os._exit(3)
        trial.report(1, val_acc=0.5)

    ended = train(tmp_path, loop)
    assert [one.state for one in ended] == [TrialState.FAILED, TrialState.COMPLETED]
    assert "its output ends: coarse-0000 began | the last words" in str(ended[0].reason)
    assert read(folder, 0) == "coarse-0000 began\nthe last words"
    assert read(folder, 1) == "coarse-0001 began\n"


def test_more_than_a_pipe_holds_goes_to_its_own_trial_to_the_last_byte(tmp_path: Path) -> None:
    folder = stage(tmp_path)

    def loop(trial: OwnTrial) -> None:
        if trial.id == "coarse-0000":
            print("x" * 200_000)  # more than a pipe holds
        else:
            print("mine")
        trial.report(1, val_acc=0.5)

    train(tmp_path, loop)
    assert read(folder, 0) == "x" * 200_000 + "\n" and read(folder, 1) == "mine\n"


def test_a_trial_that_prints_nothing_has_no_file_and_a_folder_that_is_gone_is_not_made_anew(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = stage(tmp_path)
    train(tmp_path, lambda trial: trial.report(1, val_acc=0.5), 1)
    assert not folder.outputs_by_attempt("coarse-0000")
    shutil.rmtree(folder.path)
    train(tmp_path, write_in_all_ways, 1)
    assert not folder.path.exists() and "coarse-0000 prints" in capfd.readouterr().err


def test_a_loop_that_closes_its_stdout_trains_on(tmp_path: Path) -> None:
    def loop(trial: OwnTrial) -> None:
        sys.stdout.close()
        trial.report(1, val_acc=0.5)

    stage(tmp_path)
    assert [one.state for one in train(tmp_path, loop)] == [TrialState.COMPLETED] * 2


def test_what_was_written_before_the_turn_goes_to_the_first_file_though_somebody_writes_on(
    tmp_path: Path,
) -> None:
    output, one, two = Output(tmp_path / "one"), tmp_path / "one", tmp_path / "two"
    stop = threading.Event()
    os.write(output.theirs, b"before\n")

    def write_on() -> None:
        while not stop.is_set():
            os.write(output.theirs, b"x" * 1000)

    writer = threading.Thread(target=write_on)
    writer.start()
    output.turn_to(two)
    stop.set()
    writer.join()
    os.write(output.theirs, b"after\n")
    output.close_theirs()
    assert output.tail(60).endswith("after\n")
    assert one.read_text().startswith("before\n") and two.read_text().endswith("after\n")


def test_the_limit_of_a_file_is_each_trials_own(tmp_path: Path) -> None:
    output = Output()
    for name in ("one", "two"):
        output.turn_to(tmp_path / name)
        for number in range(3):
            os.write(output.theirs, f"{name} {number}\n".encode() + b"x" * (MOST_FILE // 2))
    output.close_theirs()
    output.tail(60)
    for name in ("one", "two"):
        text = (tmp_path / name).read_text()
        assert text.startswith(f"{name} 0") and HEAD + END < len(text) < MOST_FILE
        assert "bytes left out ...]" in text

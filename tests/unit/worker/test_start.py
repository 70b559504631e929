"""Which workers one `worker start` runs, and with which devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from common.ending import EXIT_POISONED
from worker.run import start
from worker.run.request import Request
from worker.run.start import start_workers


@pytest.mark.parametrize(
    ("device", "gpus", "here", "beside", "said"),
    [
        ("auto", 2, "auto", None, None),
        ("cuda:1,cuda:2", 2, "cuda:1,cuda:2", None, None),
        ("all", 4, "cuda:0,cuda:1,cuda:2,cuda:3", None, "1 of 5 CUDA devices stay unused"),
        ("all", 2, None, ["cuda:0,cuda:1", "cuda:2,cuda:3"], "1 of 5 CUDA devices stay unused"),
        ("cuda:0,cuda:3", 1, None, ["cuda:0", "cuda:3"], None),
    ],
)
def test_one_worker_runs_here_and_several_in_processes_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    device: str,
    gpus: int,
    here: str | None,
    beside: list[str] | None,
    said: str | None,
) -> None:
    ran, told = list[str](), list[str]()
    commands = list[Sequence[str]]()

    def run(request: Request) -> int:
        ran.append(request.device)
        return 0

    class Child:
        def __init__(self, command: Sequence[str], env: object) -> None:
            commands.append(command)

        def wait(self, timeout: float) -> int:
            return 0

    monkeypatch.setattr(start, "count_gpus", lambda: 5)
    monkeypatch.setattr(start, "start_one", run)
    monkeypatch.setattr(start, "say", told.append)
    monkeypatch.setattr(start, "hear_end", lambda on_signal: None)
    monkeypatch.setattr(start.subprocess, "Popen", Child)
    assert start_workers(Request(None, tmp_path, device, "auto", None, False, 0, gpus=gpus)) == 0
    assert ran == ([] if here is None else [here])
    assert [words[words.index("--device") + 1] for words in commands] == (beside or [])
    assert all(words[words.index("--gpus-per-trial") + 1] == str(gpus) for words in commands)
    assert [line for line in told if said is None or said not in line] == []
    assert bool(told) == (said is not None)


def test_a_worker_whose_device_serves_it_no_more_is_started_again_until_a_signal_comes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    codes = {"cuda:0": [EXIT_POISONED, EXIT_POISONED, 0], "cuda:1": [3, EXIT_POISONED]}
    started = list[str]()

    class Child:
        def __init__(self, command: Sequence[str], env: object) -> None:
            self.device = command[command.index("--device") + 1]
            started.append(self.device)

        def wait(self, timeout: float) -> int:
            return codes[self.device].pop(0)

        def send_signal(self, number: int) -> None:
            """Take no notice."""

    request = Request(None, tmp_path, "cuda:0,cuda:1", "auto", None, False, 0)
    monkeypatch.setattr(start, "count_gpus", lambda: 2)
    monkeypatch.setattr(start, "hear_end", lambda on_signal: None)
    monkeypatch.setattr(start.subprocess, "Popen", Child)
    assert start_workers(request) == 3 and started == ["cuda:0", "cuda:1", "cuda:0", "cuda:0"]

    codes = {"cuda:0": [EXIT_POISONED], "cuda:1": [EXIT_POISONED]}
    monkeypatch.setattr(start, "hear_end", lambda on_signal: on_signal(15, None))
    assert start_workers(request) == EXIT_POISONED, "told to end, none is started again"

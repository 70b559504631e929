"""Which workers of a launch before the next one takes over."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.folder.records import SearchFolder
from common.search.protocol import PROTOCOL
from common.search.stage import NO_NEEDS, Resources
from common.search.trial import WorkerInfo
from master.launchers import local
from master.launchers.local import (
    LocalWorkers,
    count_wanted_workers,
    dismiss_stayed,
    dismiss_unlike,
    local_workers,
)
from master.launchers.stayed import Stayed, any_stayed, key_of, write_down


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    found = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2)]
    yield found
    for process in found:
        process.kill()
        process.wait()


def info(pid: int, **values: object) -> WorkerInfo:
    values.setdefault("protocol", PROTOCOL)
    return WorkerInfo(
        f"w{pid}", str(values.pop("host", socket.gethostname())), pid, "cpu", "model", **values
    )  # type: ignore[arg-type]


def stayed(folder: Path, sleepers: list[subprocess.Popen[bytes]], key: str = "k") -> Stayed:
    folder.mkdir(parents=True, exist_ok=True)
    write_down(folder, key, [process.pid for process in sleepers])
    return Stayed.read(folder)


def test_those_that_live_are_found_again(
    tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    assert {p.pid for p in stayed(tmp_path / "digits" / "logs", sleepers).processes} == {
        p.pid for p in sleepers
    }
    assert any_stayed(tmp_path)
    sleepers[0].kill()
    sleepers[0].wait()
    assert [p.pid for p in Stayed.read(tmp_path / "digits" / "logs").processes] == [sleepers[1].pid]
    sleepers[1].kill()
    sleepers[1].wait()
    assert not any_stayed(tmp_path)


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{",
        "[]",
        '{"host": 1}',
        '{"host": "%s", "key": "k", "workers": [[1]]}',
        '{"host": "other"}',
    ],
)
def test_a_damaged_note_or_another_hosts_says_that_nobody_stayed(
    tmp_path: Path, damaged: str
) -> None:
    (tmp_path / "stayed.json").write_text(damaged.replace("%s", socket.gethostname()))
    assert not Stayed.read(tmp_path).processes


def test_a_number_that_is_another_process_now_is_nobody(
    tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    stayed(tmp_path, sleepers)
    known = json.loads((tmp_path / "stayed.json").read_text())
    known["workers"] = [[pid, "17"] for pid, _ in known["workers"]]
    (tmp_path / "stayed.json").write_text(json.dumps(known))
    assert not Stayed.read(tmp_path).processes


def test_only_those_fit_that_are_alike_and_connected(
    tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    one, two = (process.pid for process in sleepers)
    found = stayed(tmp_path, sleepers)
    assert [p.pid for p in found.fit("k", [info(one), info(two)])] == [one, two]
    assert found.fit("other", [info(one), info(two)]) == []
    assert [p.pid for p in found.fit("k", [info(one), info(two, state="quitting")])] == [one]
    assert [p.pid for p in found.fit("k", [info(one, host="elsewhere"), info(two)])] == [two]


def test_the_key_is_of_command_folder_environment_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_of(["worker"], {"DATA_DIR": "/a"})
    assert key == key_of(
        ["worker"], {"DATA_DIR": "/a", "TERM": "dumb", "COLUMNS": "80", "SSH_TTY": "/dev/pts/1"}
    )
    assert key != key_of(["worker"], {"DATA_DIR": "/b"})
    assert key != key_of(["worker", "--local", "3"], {"DATA_DIR": "/a"})
    monkeypatch.chdir(tmp_path)
    assert key != key_of(["worker"], {"DATA_DIR": "/a"})
    here = key_of(["worker"], {})
    monkeypatch.setattr("master.launchers.stayed._code", lambda: [["worker/run/loop.py", 1, 2]])
    assert here != key_of(["worker"], {})


class Launch:
    """What a launch knows; ``known`` are the workers of its Redis."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = SearchFolder(root, "digits")
        self.broker = SimpleNamespace(by_root=True, url="", client=None)
        self.known: list[WorkerInfo] = []
        monkeypatch.setattr(
            local, "WorkerRegistry", lambda client: SimpleNamespace(list=lambda: self.known)
        )
        self.holders: set[str] = set()
        monkeypatch.setattr(local, "_holders", lambda folder, broker: self.holders)
        monkeypatch.setattr(local, "auto_count", lambda resources: 2)

    def workers(self, n: int = 2, data: str = "data") -> LocalWorkers:
        return local_workers(
            n,
            self.folder,
            self.broker,  # type: ignore[arg-type]
            print,
            Path(data),
        )

    def wanted(
        self, asked: int | None = None, data: str = "data", resources: Resources = NO_NEEDS
    ) -> int:
        return count_wanted_workers(
            asked,
            self.folder,
            self.broker,  # type: ignore[arg-type]
            Path(data),
            resources,
        )

    def leave(self, sleepers: list[subprocess.Popen[bytes]]) -> None:
        """As a launch of two workers with the default options would."""
        stayed(self.folder.path / "logs", sleepers, self.workers()._key)
        self.known = [
            info(process.pid, search="digits", state="training", trials=3) for process in sleepers
        ]  # a second ago


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    return Launch(tmp_path, monkeypatch)


def test_the_next_launch_takes_them_over_and_watches_them(
    launch: Launch, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    launch.leave(sleepers)
    assert launch.wanted() == 2
    workers = launch.workers().start()
    assert sorted(workers.pids) == sorted(process.pid for process in sleepers)
    assert not any_stayed(
        launch.folder.root
    )  # a second launch at the same time does not take them over, too
    workers.leave()
    assert any_stayed(launch.folder.root) and not workers.pids
    launch.workers().start().stop()
    assert [process.wait(60) for process in sleepers] == [-signal.SIGTERM] * 2


@pytest.mark.parametrize(("n", "data"), [(3, "data"), (2, "elsewhere")])
def test_those_that_are_not_what_it_would_start_are_ended(
    launch: Launch, sleepers: list[subprocess.Popen[bytes]], n: int, data: str
) -> None:
    launch.leave(sleepers)
    assert launch.wanted(data=data) == 2
    launch.workers(n, data)
    assert [process.wait(60) for process in sleepers] == [-signal.SIGTERM] * 2


def test_before_anything_is_published_only_the_unlike_are_ended(
    launch: Launch, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    launch.leave(sleepers)
    dismiss_unlike(None, launch.folder, launch.broker, Path("data"))  # type: ignore[arg-type]
    assert launch.workers()._stayed and [process.poll() for process in sleepers] == [None, None]
    launch.leave(sleepers)
    dismiss_unlike(2, launch.folder, launch.broker, Path("elsewhere"))  # type: ignore[arg-type]
    assert [process.wait(60) for process in sleepers] == [-signal.SIGTERM] * 2


def test_those_that_train_are_never_ended_for_that(
    launch: Launch, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    launch.leave(sleepers)
    launch.holders = {worker.worker for worker in launch.known}
    assert launch.wanted(data="elsewhere") == 0  # they do take trials
    launch.workers(data="elsewhere")
    assert [process.poll() for process in sleepers] == [None, None]


def test_other_workers_make_local_ones_needless_and_these_do_not(
    launch: Launch, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    assert launch.wanted() == 2
    launch.known = [info(1, host="elsewhere")]
    assert launch.wanted() == 0 and launch.wanted(1) == 1
    launch.leave(sleepers)
    assert launch.wanted() == 2
    launch.known += [info(os.getpid(), search="other")]
    assert launch.wanted() == 2
    launch.known += [info(os.getpid(), search="digits")]
    assert launch.wanted() == 0


def test_workers_of_another_protocol_make_no_local_one_needless(launch: Launch) -> None:
    launch.known = [info(1, host="elsewhere", protocol=PROTOCOL + 1)]
    assert launch.wanted() == 2


def test_workers_with_too_few_gpus_make_no_local_one_needless(launch: Launch) -> None:
    launch.known = [replace(info(1, host="elsewhere"), device="cuda:0")]
    assert launch.wanted() == 0 and launch.wanted(resources=Resources(gpus=2)) == 2
    launch.known = [replace(info(1, host="elsewhere"), device="cuda:0,cuda:1")]
    assert launch.wanted(resources=Resources(gpus=2)) == 0


def test_none_is_left_where_none_is_wanted(
    launch: Launch, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    launch.leave(sleepers)
    dismiss_stayed(launch.folder, launch.broker)  # type: ignore[arg-type]
    assert [process.wait(60) for process in sleepers] == [-signal.SIGTERM] * 2


def test_one_that_was_just_leaving_is_replaced_at_once(
    launch: Launch, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    launch.leave(sleepers)
    workers = launch.workers()
    workers._command = ["sleep", "600"]
    workers.start()
    sleepers[0].kill()
    sleepers[0].wait()
    try:
        workers.poll()
        assert len(workers.pids) == 2 and sleepers[0].pid not in workers.pids
    finally:
        workers.stop()

"""The actor without Ray: what it starts, and what it notes. tests/ray has it in a real cluster."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import ConfigError
from master.launchers.ray.actor import Ended, Order, RayWorker, read_ended

PATIENCE_S = 60.0  # only there to stop a hang


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """What an actor sets when it asks Ray for its end."""
    event = threading.Event()
    me = SimpleNamespace(leave=SimpleNamespace(remote=event.set))
    context = SimpleNamespace(current_actor=me)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get_runtime_context=lambda: context))
    return event


@pytest.fixture
def order(tmp_path: Path) -> Order:
    logs = tmp_path / "digits" / "logs" / "ray"
    logs.mkdir(parents=True)
    search = str(tmp_path / "digits")
    return Order(["--version"], str(tmp_path), search, str(logs), "", "", 0o027, 0)


def test_an_actor_runs_a_worker_notes_its_end_and_leaves(
    order: Order, left: threading.Event
) -> None:
    RayWorker("1_1", asdict(order))
    assert left.wait(PATIENCE_S)
    ended = read_ended(Path(order.logs), "1_1")
    assert ended is not None and ended.exit_code == 0 and not ended.cancelled
    assert "version" in Path(order.logs, "1_1.log").read_text()


def test_a_worker_that_fails_is_noted_with_its_exit_status(
    order: Order, left: threading.Event
) -> None:
    RayWorker("1_1", asdict(replace(order, words=["--nonsense"])))
    assert left.wait(PATIENCE_S)
    ended = read_ended(Path(order.logs), "1_1")
    assert ended is not None and ended.exit_code == 2


def test_an_actor_that_is_told_to_stop_notes_that(order: Order, left: threading.Event) -> None:
    actor = RayWorker("1_1", asdict(order))
    actor.stop()
    assert left.wait(PATIENCE_S)
    ended = read_ended(Path(order.logs), "1_1")
    assert ended == Ended(node=ended.node if ended else "", exit_code=-15, cancelled=True)


def test_a_node_that_does_not_see_the_search_is_told_with_the_remedy(order: Order) -> None:
    with pytest.raises(ConfigError, match=r"does not see /nowhere/digits; mount the checkpoint"):
        RayWorker("1_1", asdict(replace(order, search="/nowhere/digits")))


def test_a_node_that_cannot_write_the_log_is_told_with_the_remedy(order: Order) -> None:
    with pytest.raises(ConfigError, match=r"No such file .*start Ray as the user that launches"):
        RayWorker("1_1", asdict(replace(order, logs=f"{order.logs}/none")))


def test_a_note_is_there_only_once_a_worker_has_ended(order: Order) -> None:
    assert read_ended(Path(order.logs), "1_1") is None


def test_a_worker_has_the_setup_the_address_of_redis_and_no_gpu_that_was_not_asked_for(
    order: Order, left: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://of-the-node/0")
    (tmp_path / "environment").write_text("export REDIS_URL=redis://:hush@head/0\n")
    setup = 'echo "$A ${REDIS_URL-none} [$CUDA_VISIBLE_DEVICES] $COARSEFINE_JOB $(pwd) $(umask)"'
    given = replace(order, setup=f"A=set\n{setup}", secrets=str(tmp_path / "environment"))
    RayWorker("1_1", asdict(given))
    assert left.wait(PATIENCE_S)
    first = Path(order.logs, "1_1.log").read_text().splitlines()[0]
    assert first == f"set none [] 1_1 {tmp_path} 0027"
    assert f". {tmp_path}/environment\n" in given.render()
    assert "export CUDA_VISIBLE_DEVICES" not in replace(given, gpus=1).render()


def test_where_a_node_has_no_such_folder_a_worker_runs_in_that_of_the_search(
    order: Order, left: threading.Event
) -> None:
    RayWorker("1_1", asdict(replace(order, folder="/nowhere", setup="pwd")))
    assert left.wait(PATIENCE_S)
    assert Path(order.logs, "1_1.log").read_text().splitlines()[0] == order.search


def test_a_worker_is_told_to_leave_when_its_actor_dies(order: Order, tmp_path: Path) -> None:
    """The actor is a process of its own here, and is killed."""
    told = tmp_path / "told"
    setup = f"trap 'touch {told}; exit' TERM; echo ready; for _ in $(seq 600); do sleep 0.1; done"
    code = (
        "import json, sys, time; sys.modules['ray'] = type(sys)('ray'); "
        "from master.launchers.ray.actor import RayWorker; "
        "RayWorker('1_1', json.loads(sys.argv[1])); time.sleep(600)"
    )
    given = json.dumps(asdict(replace(order, setup=setup)))
    actor = subprocess.Popen([sys.executable, "-P", "-c", code, given])
    log = Path(order.logs, "1_1.log")
    wait_for(lambda: log.exists() and "ready" in log.read_text())
    assert not told.exists()
    actor.kill()
    actor.wait()
    wait_for(told.exists)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)

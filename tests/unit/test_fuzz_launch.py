"""Accepted search files are launched on a real Redis.

Whatever a file says, the launch writes only into the search's folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import redis
from hypothesis import event, example, given
from hypothesis import strategies as st

from common.errors import CheckpointError, ConfigError, TaskError
from common.folder.chosen import Chosen
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from common.search.search_file import parse_search
from master.stages.prepare import settle
from master.stages.publishing import publish
from tests.redis_server import start_redis
from tests.unit.fuzzing import TEXT, fuzzed, refusal, with_changes
from tests.unit.test_fuzz_search_file import VALID, toml

PLACE = "{place}"  # stands for where the example is, which is known only when it runs
THERE = [
    "my_task.py:MyTask",
    "../user/my_task.py:MyTask",
    f"{PLACE}/user/my_task.py:MyTask",
    "sub/../my_task.py:MyTask",
    "sub/.tmp-1.py:MyTask",
]
TASKS = [
    *THERE,
    "digits",
    "../checkpoints/other/search.toml:x",
    "..:MyTask",
    "../../etc/passwd:root",
    "coarse:MyTask",
    "../coarse.py:x",
]
NAMES = [
    "digits",
    "other/../../up",
    "..",
    "../user",
    "other",
    ".redis",
    f"{PLACE}/up",
    "a\0b",
    "coarse",
    "-x",
    "x" * 200,
]
ODD = st.tuples(st.sampled_from(THERE), st.sampled_from(NAMES) | TEXT) | st.tuples(
    st.sampled_from(TASKS) | TEXT, st.just("digits")
)
FEW = 3  # trials a stage: a million of them would show nothing more
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
BOTH = {"os.rename", "os.link", "os.symlink"}
ONE = {"os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.mkfifo"}
touched: list[str] | None = None


def on_event(event: str, arguments: tuple[Any, ...]) -> None:
    """Record Python's audit events of every file opened, made, renamed or removed anywhere."""
    if touched is None or not (event == "open" or event in BOTH | ONE):
        return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & CHANGES):
        return
    paths = arguments[:2] if event in BOTH else arguments[:1]
    named = (os.fsdecode(path) for path in paths if isinstance(path, str | bytes | os.PathLike))
    touched.extend(os.path.abspath(path) for path in named)  # noqa: PTH100


@contextmanager
def listening() -> Iterator[list[str]]:
    global touched
    touched = []
    try:
        yield touched
    finally:
        touched = None


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    sys.addaudithook(on_event)  # for good, but deaf outside of ``listening``
    with start_redis(tmp_path_factory.mktemp("redis")) as server, server.client() as connected:
        with (
            TemporaryDirectory() as place
        ):  # what is imported at first use is not the example's doing
            furnished(Path(place))
            launch(Path(place), toml({**VALID, "task": THERE[0]}) or "", connected)
        yield connected


def furnished(place: Path) -> None:
    """Make the user's folder, another search beside the launched one, and the current folder."""
    for folder, name in (
        ("user", "my_task.py"),
        ("user/sub", ".tmp-1.py"),
        ("checkpoints/other", "search.toml"),
        ("here", "notes"),
    ):
        (place / folder).mkdir(parents=True, exist_ok=True)
        (place / folder / name).write_text("class MyTask:\n    pass\n")


def launch(place: Path, text: str, client: redis.Redis) -> Path | None:
    """Launch as `master launch` does, with few trials a stage.

    Return the search's folder, or None where the file is refused.
    """
    search = refusal(ConfigError, lambda: parse_search(text, "search.toml"))
    if search is None:
        return None
    root, told = place / "checkpoints", list[str]()
    refusals = (ConfigError, TaskError, CheckpointError)
    chosen = Chosen(search, text, place / "user", SearchFolder(root, search.name))
    with chdir(place / "here"):
        launched = refusal(refusals, lambda: settle(chosen, None, None, told.append))
        for stage in launched.search.stages if launched else ():
            few = stage.model_copy(update={"trials": min(FEW, stage.trials)})
            queue = TrialQueue(client, launched.id)
            refusal(
                refusals,
                lambda: publish(launched, few, queue, None, told.append),  # noqa: B023
            )
    return root / search.name


def tree(place: Path, but: Path | None) -> dict[str, bytes | None]:
    """Every path with its content, outside of a folder."""
    paths = (path for path in place.rglob("*") if but is None or not path.is_relative_to(but))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@fuzzed
@given(st.just(VALID) | st.just(VALID) | with_changes(VALID, most=1), ODD)
@example(VALID, ("digits", "other"))
@example(VALID, (f"{PLACE}/user/my_task.py:MyTask", "digits"))
def test_a_launch_writes_in_its_own_folder_alone(
    client: redis.Redis, value: Any, odd: tuple[str, str]
) -> None:
    text = toml({**value, "task": odd[0], "name": odd[1]} if isinstance(value, dict) else value)
    if text is None:
        return
    with TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        furnished(place)
        before = tree(place, None)
        with listening() as changed:
            own = launch(place, text.replace(PLACE, folder), client)
        assert own is None or (own.parent == place / "checkpoints" and own.resolve() == own)
        event("launched" if own is not None and own.exists() else "refused")
        inside = own or place / "nowhere"
        assert tree(place, inside) == {
            path: content
            for path, content in before.items()
            if not Path(path).is_relative_to(inside)
        }
        assert not [
            path
            for path in changed
            if "__pycache__" not in path and not Path(path).is_relative_to(inside)
        ]

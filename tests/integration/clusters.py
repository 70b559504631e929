"""A search whose workers are jobs of a cluster, as the tests of a scheduler launch and watch it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.broker.connection import open_broker
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from tests.integration.commands import Place, place, wait_for

LOOP = Path(__file__).parent / "tasks" / "loop.py"
SEARCH = """
name = "{name}"
task = "loop.py:train"
metric = "val_loss"
mode = "min"
[space]
x = {{ uniform = [0.0, 1.0] }}
folder = "{folder}"
search = "{name}"
first_to_wait = {first_to_wait}
[stages.coarse]
trials = {trials}
epochs = 6
[stragglers]
lease_s = 6
"""


def write_search(path: Path, name: str, trials: int, first_to_wait: int) -> None:
    """Write a search whose trials wait from this number on while there is a file ``wait``."""
    text = SEARCH.format(name=name, folder=path, trials=trials, first_to_wait=first_to_wait)
    (path / f"{name}.toml").write_text(text)


@contextmanager
def reachable_place(path: Path) -> Iterator[Place]:
    """Yield a folder with the loop, and with a Redis server that other hosts could reach."""
    with place(path) as opened:
        shutil.copy(LOOP, path)
        (path / "wait").touch()
        done = opened.run("master", "redis", "start", "--host", "127.0.0.1")
        assert done.returncode == 0, done.stderr
        try:
            yield opened
        finally:
            opened.run("master", "redis", "stop")


class ClusterSearch:
    """A search of its own folder, which is launched on a cluster."""

    def __init__(self, here: Place, name: str, environment: Mapping[str, str]) -> None:
        self.here = here
        self.name = name
        self.environment = environment  # with which commands find the cluster
        self.folder = SearchFolder(here.root, name)
        self.log = ""  # of the last launch
        self.last: subprocess.Popen[str] | None = None  # the last launch

    def start(self, *words: str, log: str = "") -> subprocess.Popen[str]:
        """Start a launch with these words, and return its process."""
        self.log = log or f"{self.name}.log"
        search = ("--config", f"{self.name}.toml", "--stage", "coarse")
        self.last = self.here.start(
            "master", "launch", *search, *words, log=self.log, **self.environment
        )
        return self.last

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until a condition holds, and no longer than the launch is well."""

        def holds() -> Any:
            value = condition()
            assert value or (self.last is not None and self.last.poll() is None), "it has ended"
            return value

        try:
            return wait_for(holds, what)
        except AssertionError as error:
            said = self.here.output(self.log)
            raise AssertionError(f"{error}; the launch has said\n{said}") from error

    def wait_for_word(self, pattern: str) -> str:
        """Wait until the launch has said something, and return it."""

        def said() -> str:
            found = re.search(pattern, self.here.output(self.log))
            return found[0] if found else ""

        word: str = self.wait(said, repr(pattern))
        return word

    def run(self, *command: str) -> str:
        """Run a command that succeeds, and return what it prints."""
        done = self.here.run(*command, **self.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def training(self) -> dict[str, int]:
        """Return the jobs whose worker has trials, with its process."""
        with open_broker(None, self.here.root) as broker:
            found = WorkerRegistry(broker.client).list()
        own = [info for info in found if info.search == self.name and info.state != "lost"]
        return {info.job: info.pid for info in own if info.trials}

    def count(self) -> tuple[Counter[str], Counter[str], dict[str, int]]:
        """Return the records by trial, the endings in Redis by trial, and the counts by state."""
        records = Counter(
            record["trial"] for record in self.here.records(self.name) if "trial" in record
        )
        search = self.folder.search()
        assert search is not None and search.id is not None
        with open_broker(None, self.here.root) as broker:
            queue = TrialQueue(broker.client, search.id)
            endings = Counter(trial for _, trial, _, _ in queue.read_endings(0, 10_000))
            counts = {state: n for state, n in queue.counts()["coarse"].items() if n}
        return records, endings, counts

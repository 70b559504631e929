"""One search under faults, from its launch to the verdict of the witnesses."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from common.search.trial import Trial
from tests.chaos.calm import Calm, Failing
from tests.chaos.crew import Crew
from tests.chaos.disks import Disk
from tests.chaos.networks import Network
from tests.chaos.nursery import Nursery
from tests.chaos.onlooker import Looked, Onlooker
from tests.chaos.proxy import Proxy
from tests.chaos.schedule import Kind, Running, planned
from tests.chaos.servers import Server
from tests.chaos.tasks import curves
from tests.chaos.verdict import judge
from tests.chaos.witnesses import Account
from tests.unit.master.played import Value

LEASE_S = 2.0
MAX_EPOCHS = 3
# Share of all ends that is left for after the last fault. Trials that lost their worker come last
# and must not be hit again and again.
RESERVE = 0.25
LIMIT_S = 240.0  # an episode takes a quarter of it
BEGIN_LIMIT_S = 60.0
PACES_S = (0.01, 0.8)  # sleep at an epoch boundary
ADAPT_S = 0.5
TASKS = Path(__file__).parent / "tasks"

SEARCH = """
name = "chaos"
task = "{task}"
seed = {seed}
keep = {keep}
[space]
{space}
{spent}
[stragglers]
lease_s = {lease_s}
"""


@dataclass(frozen=True)
class Work:
    """What is searched: two stages of equal cost, each with rungs of 1 and 3 epochs.

    ``stages`` replaces these two stages.

    Attributes:
        epochs: of all trials together.
        slots: has the plan make two stages of them.
        stages: the tables of the file, without a budget.
        value: what a trial comes to under its budget.
        failing: trials that fail whatever is tried.
    """

    task: str = "curves.py:train"
    space: str = "learning_rate = { log_uniform = [1e-4, 1.0] }\ndropout = { uniform = [0.0, 0.5] }"
    epochs: int = 300
    slots: int = 40
    stages: str = ""
    keep: int = 20
    value: Value = curves.value
    failing: Failing = lambda trial: False

    @property
    def spent(self) -> str:
        """What of the search file says how much is trained."""
        return (
            self.stages
            or f"[budget]\nepochs = {self.epochs}\nmax_epochs = {MAX_EPOCHS}\nslots = {self.slots}"
        )


@dataclass
class Command:
    """A `master` command that was begun."""

    nursery: Nursery
    pid: int
    log: Path

    @property
    def over(self) -> bool:
        return not self.nursery.alive(self.pid)

    @property
    def code(self) -> int:
        return self.nursery.codes[self.pid]

    @property
    def said(self) -> str:
        return self.log.read_text()


@dataclass
class Arena:
    """A search with its crew.

    ``path`` is an empty folder. ``seed`` is the seed of the search and of the faults.

    Attributes:
        server: the running Redis server, or None for the embedded one.
        proxy: stands between the processes and the server.
        root: the checkpoint root.
        plan: what every child does differently (see patches.py).
        watch: called again and again while the search runs.
        fixed_pace_s: sleep at an epoch boundary; None: trials take as long as the faults.
    """

    nursery: Nursery
    path: Path
    seed: int
    server: Server | None
    work: Work = Work()
    n_workers: int = 4
    lease_s: float = LEASE_S
    proxy: Proxy | None = None
    root: Path = Path()
    plan: dict[str, Any] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)
    networks: list[Network] = field(default_factory=list)
    watch: Callable[[Arena], None] = lambda arena: None
    fixed_pace_s: float | None = None

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.root = self.root if self.root.is_absolute() else self.path / "checkpoints"
        self.ledger, self._pace = self.path / "ledger.jsonl", self.path / "pace"
        self.ledger.touch()
        self.lost_decisions: set[str] = (
            set()
        )  # "<stage> <epochs>" of those of which a file was removed
        self._numbers = itertools.count()
        self._broken: list[str] = []
        self.last = Account()
        self.set_pace(self.fixed_pace_s or PACES_S[0])
        if self.task_file is not None:
            shutil.copy(TASKS / self.task_file, self.path)
        text = SEARCH.format(
            seed=self.seed, lease_s=self.lease_s, spent=self.work.spent, **vars(self.work)
        )
        (self.path / "search.toml").write_text(text, encoding="utf-8")
        self.calm = Calm(self.path / "calm", text, self.work.value, self.work.failing)
        self._budgets: dict[
            str, float
        ] = {}  # of the attempts that have a record, by the record's name
        self.plan = {"ledger": str(self.ledger), "pace": str(self._pace), **self.plan}
        url = self.proxy.url if self.proxy else self.server.url if self.server else None
        self.crew = Crew(self.nursery, self.path, url, self.n_workers, self.plan)
        for slot in self.crew.slots:
            slot.environment["CHECKPOINT_DIR"] = str(self.root)
        where = Looked(
            self.ledger,
            self.record,
            self.is_decided,
            self._workers,
            lambda: list(self.nursery.codes),
            self._server_pid,
        )
        self.onlooker = Onlooker(where, self.lease_s)

    # -- what can be seen --------------------------------------------------------------------------

    @property
    def task_file(self) -> str | None:
        """The user's own file; None: a built-in task, whose weights predict."""
        return self.work.task.partition(":")[0] if ":" in self.work.task else None

    @property
    def trials(self) -> list[Trial]:
        """All trials, with the budgets that they have in the end."""
        return self.calm.trials

    @property
    def stages(self) -> list[Path]:
        """Their folders."""
        return [self.root / "chaos" / stage.name for stage in self.calm.search.stages]

    def record(self, trial_id: str, attempt: int) -> Path:
        return (
            self.root
            / "chaos"
            / trial_id.rpartition("-")[0]
            / "trials"
            / f"{trial_id}-try={attempt}.json"
        )

    def is_decided(self, trial_id: str, epochs: float) -> bool:
        """Whether a file says that a trial goes on to this budget."""
        parts = [
            file.read_text()
            for stage in self.stages
            for file in stage.glob(f"promotions/epochs={epochs:g}-part=*.json")
        ]
        return any(f'"{trial_id}"' in part for part in parts)

    def _workers(self) -> list[tuple[int, bool]]:
        """The workers that run, and whether their link is up."""
        cut = {network.name for network in self.networks if not network.linked}
        return [
            (slot.pid, slot.plan.get("network") not in cut)
            for slot in self.crew.workers
            if slot.pid is not None
        ]

    def _server_pid(self) -> int | None:
        return self.server.pid if self.server is not None else None

    def client(self) -> redis.Redis:
        if self.server is not None:
            return self.server.client()
        return redis.Redis(
            unix_socket_path=str(self.root / ".redis" / "redis.sock"),
            decode_responses=True,
            socket_timeout=5,
            protocol=2,
        )

    def ended(self) -> int:
        """How many ends have a record, each trial's at each rung."""
        for path in [path for stage in self.stages for path in stage.glob("trials/*.json")]:
            if path.name not in self._budgets:
                with contextlib.suppress(OSError, ValueError, KeyError):
                    self._budgets[path.name] = json.loads(path.read_text())["budget_epochs"]
        return len({(name.partition("-try=")[0], budget) for name, budget in self._budgets.items()})

    def said(self, text: str) -> int:
        """How often the processes have said so."""
        return sum(slot.log.read_text().count(text) for slot in self.crew.slots)

    def embedded_pid(self) -> int | None:
        """The embedded server's process, None while it does not serve."""
        with contextlib.suppress(redis.RedisError), self.client() as client:
            return int(client.info("server")["process_id"])
        return None

    # -- what faults do ----------------------------------------------------------------------------

    def forgotten(self) -> None:
        """Notes in the ledger that Redis has lost data."""
        with self.ledger.open("a") as file:
            file.write('{"event": "forgotten"}\n')

    def forget_decision(self, path: Path) -> None:
        """Notes that a file of promotions is going to be lost."""
        self.lost_decisions.add(
            f"{path.parent.parent.name} {path.name.removeprefix('epochs=').partition('-')[0]}"
        )

    def require(self, fine: bool, what: str) -> None:
        if not fine:
            self._broken.append(what)

    def new_file(self, kind: str) -> Path:
        return self.path / f"{kind}-{next(self._numbers)}"

    def begin_command(self, *words: str) -> Command:
        log = self.new_file("command")
        return Command(
            self.nursery,
            self.nursery.start(["master", *words], log, self.plan, self.crew.master.environment),
            log,
        )

    # -- a run -------------------------------------------------------------------------------------

    def set_pace(self, seconds: float) -> None:
        new = self._pace.with_suffix(".new")
        new.write_text(f"{seconds:.4f}")
        new.replace(self._pace)

    def begin(self) -> None:
        """Starts master and workers, and waits until trials end."""
        deadline = time.monotonic() + BEGIN_LIMIT_S
        while self.ended() == 0:
            self.crew.look()
            time.sleep(0.02)
            assert time.monotonic() < deadline, (
                f"no trial has ended after a minute; see {self.path}"
            )

    def run(self, kinds: Sequence[Kind], n_faults: int, every_s: float) -> Running:
        """Makes faults until all are made and the search has ended."""
        self.onlooker.start()
        self.begin()
        running = Running(planned(f"{self.seed}", kinds, n_faults, every_s))
        deadline, adapted = time.monotonic() + LIMIT_S, 0.0
        while not (running.over and self.crew.ended):
            running.step()
            self.crew.look()
            self.watch(self)
            if self.fixed_pace_s is None and time.monotonic() - adapted > ADAPT_S:
                adapted = time.monotonic()
                self._adapt(running)
            time.sleep(0.01)
            assert time.monotonic() < deadline, (
                f"not at its end after {LIMIT_S:g} s: {self.ended()} of "
                f"{self.calm.n_ends} ends were seen, faults to come "
                f"{[plan.kind.name for plan in running.plans]}, ends of processes "
                f"{dict(self.crew.ends)}; see {self.path}"
            )
        return running

    def _adapt(self, running: Running) -> None:
        """Has the trials take as long as the faults."""
        left = self.calm.n_ends * (1 - RESERVE) - self.ended()
        pace_s = running.left_s * self.n_workers / max(left, 1.0) / (self.calm.mean_epochs + 1)
        self.set_pace(PACES_S[0] if running.over else min(max(pace_s, PACES_S[0]), PACES_S[1]))

    def close(self) -> None:
        """Leaves no process."""
        self.onlooker.stop()
        self.crew.kill()
        if self.server is None and (pid := self.embedded_pid()) is not None:
            os.kill(pid, signal.SIGKILL)

    # -- the verdict -------------------------------------------------------------------------------

    def verdict(self, undisturbed: Sequence[str] | None) -> Account:
        """Ends the crew and asks the witnesses; see verdict.py."""
        self.last = Account(other=self._broken)
        judge(self, undisturbed, self.last)
        return self.last

    def complete(self, *words: str) -> Command:
        """A `master` command that has ended."""
        command = self.begin_command(*words)
        deadline = time.monotonic() + BEGIN_LIMIT_S
        while not command.over:
            assert time.monotonic() < deadline, (
                f"master {' '.join(words)}: does not end; see {command.log}"
            )
            time.sleep(0.02)
        return command

"""One search under faults, from its launch to the verdict of the witnesses."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from common.search import load_search
from common.trial import Trial
from master.sampling import configurations
from tests.chaos import witnesses
from tests.chaos.crew import Crew
from tests.chaos.nursery import Nursery
from tests.chaos.schedule import Kind, Running, planned
from tests.chaos.servers import Server
from tests.chaos.tasks import numbers
from tests.chaos.witnesses import Account

LEASE_S = 2.0
AGED_S = 7200.0  # twice what the janitor waits before it takes a temporary file for abandoned
RESERVE = 0.2  # of the trials are left for after the last fault: what lost its worker comes last, and is not to be hit again and again
LIMIT_S = 240.0  # an episode takes a quarter of it
PACES_S = (0.01, 0.4)  # sleep at an epoch boundary

SEARCH = """
name = "chaos"
task = "{task}"
seed = {seed}
keep = 20
[space]
{space}
[stages.coarse]
trials = {trials}
epochs = {epochs}
[stragglers]
lease_s = {lease_s}
slow_factor = 1000.0
"""
NUMBERS_SPACE = """learning_rate = { log_uniform = [1e-4, 1.0] }
dropout = { uniform = [0.0, 0.5] }
"""
TASKS = Path(__file__).parent / "tasks"


class Arena:
    """A search of ``trials`` trials with its crew.

    Args:
        nursery: forks the processes.
        path: an empty folder.
        seed: of the search and of the faults.
        server: the served Redis, which runs; None: the embedded one.
        url: what the processes are told, where it is not the server's own (a proxy's).
        checkpoints: the checkpoint root, where it is not in ``path``.
        plan: what every child does differently (see patches.py).
    """

    def __init__(
        self,
        nursery: Nursery,
        path: Path,
        seed: int,
        server: Server | None,
        *,
        url: str | None = None,
        n_workers: int = 4,
        trials: int = 200,
        epochs: float = 3,
        task: str = "numbers.py:train",
        space: str = NUMBERS_SPACE,
        lease_s: float = LEASE_S,
        checkpoints: Path | None = None,
        plan: dict[str, Any] | None = None,
    ) -> None:
        self.path, self.seed, self.server, self.lease_s = path, seed, server, lease_s
        self.root = checkpoints or path / "checkpoints"
        self.ledger, self.pace = path / "ledger.jsonl", path / "pace"
        self.ledger.touch()
        self.set_pace(PACES_S[0])
        if ":" in task:
            shutil.copy(TASKS / task.partition(":")[0], path)
        (path / "search.toml").write_text(
            SEARCH.format(task=task, seed=seed, trials=trials, epochs=epochs, space=space, lease_s=lease_s), encoding="utf-8"
        )
        self.search = load_search(path / "search.toml")
        self.trials: list[Trial] = list(
            configurations(seed, self.search.stages[0], self.search.space, self.search.sampler, range(self.search.stages[0].trials))
        )
        self.plan = {"ledger": str(self.ledger), "pace": str(self.pace), **(plan or {})}
        self.crew = Crew(nursery, path, url or (server.url if server else None), n_workers, self.plan)
        for slot in self.crew.slots:
            slot.environment["CHECKPOINT_DIR"] = str(self.root)
        self.running: Running | None = None
        self.lists_done = 0.0
        self.n_ended = 0

    # -- what can be seen ----------------------------------------------------------------------------------------------

    @property
    def stage(self) -> Path:
        return self.root / "chaos" / "coarse"

    def client(self) -> redis.Redis:
        if self.server is not None:
            return self.server.client()
        return redis.Redis(unix_socket_path=str(self.root / ".redis" / "redis.sock"), decode_responses=True, socket_timeout=5, protocol=2)

    def ended(self) -> int:
        """How many trials have a record."""
        try:
            return len({name.partition("-try=")[0] for name in os.listdir(self.stage / "trials") if name.endswith(".json")})
        except FileNotFoundError:
            return 0

    def forgotten(self) -> None:
        """Notes in the ledger that Redis has lost data."""
        with self.ledger.open("a") as file:
            file.write('{"event": "forgotten"}\n')

    # -- a run ---------------------------------------------------------------------------------------------------------

    def set_pace(self, seconds: float) -> None:
        new = self.pace.with_suffix(".new")
        new.write_text(f"{seconds:.4f}")
        new.replace(self.pace)

    def begin(self) -> None:
        """Starts master and workers, and waits until trials end."""
        deadline = time.monotonic() + 60.0
        while self.ended() == 0:
            self.crew.look()
            time.sleep(0.02)
            assert time.monotonic() < deadline, f"no trial has ended after a minute; see {self.path}"

    def run(self, kinds: Sequence[Kind], n_faults: int, every_s: float) -> Running:
        """Makes faults until all are made and the search has ended."""
        self.begin()
        self.running = running = Running(planned(f"{self.seed}", kinds, n_faults, every_s))
        deadline, adapted = time.monotonic() + LIMIT_S, 0.0
        while not (running.over and self.crew.ended):
            running.step()
            self.crew.look()
            if time.monotonic() - adapted > 0.5:
                adapted = time.monotonic()
                self._adapt(running)
            time.sleep(0.01)
            assert time.monotonic() < deadline, (
                f"not at its end after {LIMIT_S:g} s: {self.ended()} of {len(self.trials)} trials have ended, faults to come "
                f"{[plan.kind.name for plan in running.plans]}, ends of processes {dict(self.crew.ends)}; see {self.path}"
            )
        return running

    def _adapt(self, running: Running) -> None:
        """Has the trials take as long as the faults."""
        epochs = self.search.stages[0].epochs + 1
        left = len(self.trials) * (1 - RESERVE) - self.ended()
        if running.over:
            self.set_pace(PACES_S[0])
        else:
            pace_s = running.left_s * len(self.crew.workers) / max(left, 1.0) / epochs
            self.set_pace(min(max(pace_s, PACES_S[0]), PACES_S[1]))

    def command(self, *words: str, seconds: float = 60.0) -> tuple[int, str]:
        """Runs a command of the master's to its end; exit code and all that it printed."""
        self.crew.started = getattr(self.crew, "started", 0) + 1  # type: ignore[attr-defined]
        log = self.path / f"command-{time.monotonic_ns()}.log"
        pid = self.crew.nursery.start(["master", *words], log, self.plan, self.crew.master.environment)
        deadline = time.monotonic() + seconds
        while self.crew.nursery.alive(pid):
            assert time.monotonic() < deadline, f"master {' '.join(words)}: does not end; see {log}"
            self.crew.look()
            time.sleep(0.02)
        return self.crew.nursery.codes[pid], log.read_text()

    # -- the verdict ---------------------------------------------------------------------------------------------------

    def verdict(self) -> Account:
        """Ends the crew, has the master tidy up once more, and asks the witnesses."""
        account = Account()
        with self.client() as client:
            self.crew.stop()
            for path in self.stage.rglob(".tmp-*"):
                os.utime(path, (time.time() - AGED_S,) * 2)
            keep_alive = self.server is None
            if not keep_alive:
                self._tidy(account)
            search_id = (self.root / "chaos" / "search.toml").read_text().split('"')[1]
            witnesses.look_at_redis(client, search_id, self.trials, account)
        witnesses.look_at_folder(self.stage, search_id, self.trials, account)
        witnesses.look_at_ledger(self.ledger, account)
        self._look_at_ranking(account)
        return account

    def _tidy(self, account: Account) -> None:
        code, said = self.command(*self.crew.master.command[1:])
        if code not in (0, 3):
            account.other.append(f"the last launch ended with {code}: {said[-500:]}")

    def _look_at_ranking(self, account: Account) -> None:
        _, said = self.command("rank", "--stage", "coarse", "--format", "json")
        rows = json.loads(said[said.index("[") :])
        found = [row["trial"] for row in rows if row["state"] in witnesses.TRAINED]
        if found != (wanted := self.undisturbed()):
            first = next((n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
            account.other.append(
                f"the ranking is not that of a run without faults: from rank {first + 1} on {found[first : first + 3]} instead of "
                f"{wanted[first : first + 3]} ({len(found)} trials instead of {len(wanted)})"
            )

    def undisturbed(self) -> list[str]:
        """The trials that train to their end without faults, best first."""
        values = {}
        for trial in self.trials:
            value, best = numbers.begun(), -1.0
            for _ in range(int(trial.epochs)):
                value = numbers.after(value, trial.hyperparameters)
                best = max(best, value)
            values[trial.id] = best
        return sorted(values, key=lambda trial_id: (-values[trial_id], trial_id))

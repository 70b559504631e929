"""A search that has ended well, made by the product itself without a process: what the witnesses of the chaos harness are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
import torch

from common import predictions
from common.checkpoint_name import CheckpointName
from common.queue import TrialQueue
from common.record import Record
from common.records import SearchFolder
from common.search import load_search
from common.trial import Fence, Result, Trial, TrialState
from master import ranking
from master.ranges import write_frozen
from master.sampling import configurations
from tests.chaos import folder_witness, witnesses
from tests.chaos.onlooker import Note
from tests.chaos.witnesses import Account

ID = "0123456789abcdef"
KEY = f"cf:{{{ID}}}:"
TEXT = f"""id = "{ID}"
name = "chaos"
task = "mine.py:train"
seed = 1
keep = 3
[space]
learning_rate = {{ log_uniform = [1e-4, 1.0] }}
hidden = 16
[stages.coarse]
trials = 6
epochs = 1
"""
KEEP, LEASE_S = 3, 2.0
FIRST, BEST = "coarse-0000", "coarse-0000"
CLEAN_LAUNCH = "search 'chaos', stage 'coarse': 6 trials of 1 epoch, 0 new\n"


@dataclass
class Scene:
    """A search that has ended, as it lies in Redis and in its folder; what was seen of it, and what commands said."""

    client: redis.Redis
    root: Path
    trials: list[Trial]
    notes: list[Note] = field(default_factory=list)
    launched: str = CLEAN_LAUNCH
    ranked: str = ""

    @property
    def stage(self) -> Path:
        return self.root / "chaos" / "coarse"

    @property
    def ledger(self) -> Path:
        return self.root.parent / "ledger.jsonl"

    def record(self, index: int = 0, attempt: int = 1) -> Path:
        return self.stage / "trials" / f"coarse-{index:04d}-try={attempt}.json"

    def weights(self, ending: str = ".pt") -> Path:
        """Those of the best trial."""
        return next(path for path in self.stage.glob(f"*{ending}") if BEST in path.name)

    def rewrite(self, path: Path, **new: Any) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | new))

    def change(self, key: str, member: str, new: Callable[[str], str]) -> None:
        """Changes a field of a hash in Redis."""
        self.client.hset(KEY + key, member, new(str(self.client.hget(KEY + key, member))))

    def told(self, event: str, attempt: int, token: str, ok: bool = True, pid: int = 1) -> None:
        with self.ledger.open("a") as file:
            said = {"event": event, "pid": pid, "trial": FIRST, "attempt": attempt, "token": token, "ok": ok}
            file.write(json.dumps(said) + "\n")

    def findings(self) -> list[str]:
        """All that the witnesses find, asked as verdict.py asks them."""
        account = Account()
        witnesses.look_at_redis(self.client, ID, self.trials, account)
        folder_witness.look_at_records(self.stage, ID, self.trials, account)
        folder_witness.look_at_files(self.root, "mine.py", account)
        folder_witness.look_at_kept(self.stage, KEEP, True, account)
        witnesses.look_at_ledger(self.ledger, account)
        witnesses.look_at_takings(self.notes, LEASE_S, account)
        witnesses.look_at_last_launch(self.launched, account)
        rows = witnesses.ranking_in(self.ranked, account)
        if rows:
            witnesses.look_at_ranking(rows, [trial.id for trial in self.trials], account)
        return account.findings


def made(client: redis.Redis, path: Path) -> Scene:
    """Six trials, the first the best; three of them keep their weights. Made by the product itself."""
    client.flushall()
    folder = SearchFolder(path / "checkpoints", "chaos")
    folder.path.mkdir(parents=True)
    folder.search_file.write_text(TEXT)
    (folder.path / "mine.py").write_text("def train(trial): ...\n")
    search, stage = load_search(folder.search_file), folder.stage("coarse")
    stage.make()
    write_frozen(stage.ranges, search.space)
    trials = list(configurations(search.seed, search.stages[0], search.space, search.sampler, range(6)))
    queue = TrialQueue(client, ID, LEASE_S)
    queue.register("chaos")
    queue.freeze("coarse", {"ranges": search.space.plain()})
    queue.publish(trials)
    queue.tick(master=True)
    here = Scene(client, folder.root, trials)
    for claim in sorted(queue.claim("w", 6, "r", machine="m"), key=lambda claim: claim.trial.index):
        _end(here, queue, claim.trial, claim.fence)
        if claim.trial.id == FIRST:
            here.told("claim", 1, claim.fence.token)
            here.told("finish", 1, claim.fence.token)
    queue.claim("w", 1, "s", machine="m")  # as an idle worker asks again
    table = ranking.frame(stage.records(print))
    present = {str(name) for name in stage.checkpoints()}
    stage.leaderboard.write_text(ranking.csv(table, present))
    here.ranked = ranking.as_json(table, present)
    return here


def _end(here: Scene, queue: TrialQueue, trial: Trial, fence: Fence) -> None:
    """As its worker does: weights, record, and only then the word."""
    value = 0.9 - 0.05 * trial.index
    name = CheckpointName(value, trial.id, 1, 1)
    if trial.index < KEEP:
        torch.save({"weight": torch.ones(3)}, here.stage / str(name))
        arrays = {"val": [[0.25, 0.75]], "val_targets": [1]}
        (here.stage / name.predictions).write_bytes(predictions.pack(arrays))
    checkpoint = str(name) if trial.index < KEEP else None
    result = Result(TrialState.COMPLETED, val_acc=value, val_loss=0.5, epochs=1.0, checkpoint=checkpoint, value=value)
    record = Record.of(ID, trial, 1, result, curves={"epoch": [1.0], "val_acc": [value]}, host="h")
    SearchFolder(here.root, "chaos").stage("coarse").write_records([record])
    queue.finish([(fence, record.result())])

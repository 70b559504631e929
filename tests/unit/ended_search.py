"""A search that has ended well, to test the witnesses of the chaos harness.

The product itself makes it, without a process.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import redis
import torch

from common.folder import predictions
from common.folder.checkpoint_name import CheckpointName
from common.folder.record import Record
from common.folder.records import StageFolder
from common.queue.trial_queue import TrialQueue
from common.search.search_file import parse_search
from common.search.stage import Stage
from common.search.trial import Fence, Result, Trial, TrialState
from master.results import ranking
from master.run.janitor import sweep
from master.run.planning import describe_stage
from master.stages.sampling import configurations
from tests.chaos import folder_witness, promotion_witness, witnesses
from tests.chaos.calm import ID as ID_LINE
from tests.chaos.calm import Calm
from tests.chaos.onlooker import Note
from tests.chaos.witnesses import Account
from tests.redis_server import RedisServer, start_redis
from tests.shipped import ship
from tests.unit.master.played import Played

ID = "0123456789abcdef"
KEY = f"cf:{{{ID}}}:"
KEEP, LEASE_S = 3, 2.0
TEXT = f"""
name = "chaos"
task = "mine.py:train"
seed = 1
keep = {KEEP}
[space]
learning_rate = {{ log_uniform = [1e-4, 1.0] }}
hidden = 16
[budget]
epochs = 50
max_epochs = 3
slots = 20
"""  # two stages of 15 trials to 1 epoch, of which 5 go on to 3
STAGES = parse_search(ID_LINE + TEXT).stages
FIRST = "coarse-0000"  # the best of all, promoted in its own stage: its attempt 2 counts
LATER = "coarse-0005"  # promoted in the stage after its own
LEFT = "coarse-0008"  # never promoted: its attempt 1 counts
CLEAN_LAUNCH = "".join(
    f"search 'chaos', stage {stage.name!r}: {describe_stage(stage)}, 0 new\n" for stage in STAGES
)


def worth(trial: Trial) -> float:
    """What a trial comes to: the lower its number the more, with every epoch a little more."""
    first, step = {"coarse": (0.7, 0.03), "fine": (0.695, 0.05)}[trial.stage]
    return round(first - step * trial.index + 0.1 * (trial.epochs - 1), 4)


@dataclass
class Scene:
    """An ended search in Redis and in its folder.

    It also has what was observed of it and the output of commands.
    """

    client: redis.Redis
    root: Path
    calm: Calm
    notes: list[Note] = field(default_factory=list)
    launched: str = CLEAN_LAUNCH
    ranked: str = ""
    lost_decisions: set[str] = field(default_factory=set)

    @property
    def stages(self) -> list[Path]:
        return [self.root / "chaos" / stage.name for stage in STAGES]

    @property
    def stage(self) -> Path:
        """The first."""
        return self.stages[0]

    @property
    def ledger(self) -> Path:
        return self.root.parent / "ledger.jsonl"

    def record(self, trial: str = FIRST, attempt: int = 2) -> Path:
        return (
            self.root / "chaos" / trial.partition("-")[0] / "trials" / f"{trial}-try={attempt}.json"
        )

    def state(self, trial: str = LEFT, attempt: int = 1) -> Path:
        return self.stage / "resume" / f"{trial}-try={attempt}.pt"

    def decision(self, stage: str = "coarse") -> Path:
        """Its only part."""
        return self.root / "chaos" / stage / "promotions" / "epochs=3-part=1.json"

    def weights(self, ending: str = ".pt") -> Path:
        """Those of the best trial."""
        return next(path for path in self.stage.glob(f"*{ending}") if FIRST in path.name)

    def read(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def rewrite(self, path: Path, **new: Any) -> None:
        path.write_text(json.dumps(self.read(path) | new))

    def change(self, key: str, member: str, new: Callable[[str], str]) -> None:
        """Changes a field of a hash in Redis."""
        self.client.hset(KEY + key, member, new(str(self.client.hget(KEY + key, member))))

    def told(
        self, event: str, attempt: int, token: str, rung: int = 0, ok: bool = True, pid: int = 1
    ) -> None:
        with self.ledger.open("a") as file:
            said = {
                "event": event,
                "pid": pid,
                "trial": FIRST,
                "attempt": attempt,
                "token": token,
                "rung": rung,
                "ok": ok,
            }
            file.write(json.dumps(said) + "\n")

    def findings(self) -> list[str]:
        """All that the witnesses find, asked as verdict.py asks them."""
        account = Account()
        witnesses.look_at_redis(self.client, ID, self.calm.trials, account)
        folder_witness.look_at_records(self.stages, ID, self.calm.trials, account)
        promotion_witness.look_at_rungs(self.calm.trials, account)
        promotion_witness.look_at_decisions(
            self.stages, ID, self.calm, account, self.lost_decisions
        )
        promotion_witness.look_at_frozen(self.stages, self.calm, account)
        folder_witness.look_at_files(self.root, self.calm.search, account)
        for stage in self.stages:
            folder_witness.look_at_kept(stage, KEEP, True, account)
        witnesses.look_at_ledger(self.ledger, account)
        witnesses.look_at_takings(self.notes, LEASE_S, account)
        witnesses.look_at_last_launch(self.launched, account)
        rows = witnesses.ranking_in(self.ranked, account)
        if rows:
            witnesses.look_at_ranking(rows, self.calm.ranking(), account)
        return account.findings


@dataclass(frozen=True)
class Original:
    """Two stages of 15 trials, of which five each are promoted, one by way of the later stage.

    Three trials a stage keep their weights.

    Attributes:
        server: has it in its database 1.
        scene: as it was made.
    """

    server: RedisServer
    scene: Scene

    @contextmanager
    def copied(self, path: Path) -> Iterator[Scene]:
        """A copy in this folder and in database 0, for something to be planted in it."""
        with self.server.client() as client, self.server.client(db=1) as made:
            client.flushdb()
            for key in made.scan_iter():
                made.copy(key, key, destination_db=0)
            shutil.copytree(self.scene.root.parent, path / "made")
            yield replace(
                self.scene,
                client=client,
                root=path / "made" / self.scene.root.name,
                notes=[],
                lost_decisions=set(),
            )


@contextmanager
def original() -> Iterator[Original]:
    """A search, in a folder and a server of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="cf-") as folder,
        start_redis(Path(folder)) as server,
        server.client(db=1) as client,
    ):
        calm = Calm(Path(folder) / "calm", TEXT, worth, lambda trial: False)
        yield Original(server, _made(client, Path(folder) / "made", calm))


def _made(client: redis.Redis, path: Path, calm: Calm) -> Scene:
    played = Played(path / "checkpoints", ID_LINE + TEXT, worth)
    played.folder.path.mkdir(parents=True)
    played.folder.search_file.write_text(ID_LINE + TEXT)
    (path / "mine.py").write_text("def train(trial): ...\n")
    ship(played.folder, "mine.py:train", path)
    scene = Scene(client, played.folder.root, calm)
    queue = TrialQueue(client, ID, LEASE_S)
    queue.register("chaos")
    for stage in STAGES:
        _train(scene, played, queue, stage)
    folders = [played.folder.stage(stage.name) for stage in STAGES]
    for folder in folders:
        sweep(queue, folder, KEEP, plans=[stage.plan for stage in STAGES])
        table = ranking.frame(folder.records(print))
        folder.leaderboard.write_text(
            ranking.csv(table, {str(name) for name in folder.checkpoints()})
        )
    table = ranking.frame([record for folder in folders for record in folder.records(print)])
    scene.ranked = ranking.as_json(
        table, {str(name) for folder in folders for name in folder.checkpoints()}
    )
    return scene


def _train(scene: Scene, played: Played, queue: TrialQueue, stage: Stage) -> None:
    """Freeze a stage and train it as its master and one worker do.

    A promotion is written to a file before Redis hears of it.
    """
    source = played.begin(stage.name)
    queue.freeze(stage.name, {"ranges": source.space.plain()})
    queue.publish(configurations(played.search, stage, source, range(stage.trials)))
    queue.tick(master=True)
    ladder, requests = played.ladder(stage.name), itertools.count()
    while True:
        assert not queue.promote(ladder.advance())
        claims = queue.claim("w", stage.trials, f"{stage.name} {next(requests)}", machine="m")
        if not claims:  # as an idle worker asks, too
            return
        for claim in claims:
            ladder.note(
                claim.trial.id,
                _end(
                    scene, played.folder.stage(claim.trial.stage), queue, claim.trial, claim.fence
                ),
            )
            if claim.trial.id == FIRST:
                scene.told("claim", claim.fence.attempt, claim.fence.token, claim.trial.rung)
                scene.told("finish", claim.fence.attempt, claim.fence.token, claim.trial.rung)


def _end(
    scene: Scene, folder: StageFolder, queue: TrialQueue, trial: Trial, fence: Fence
) -> Result:
    """As its worker does: weights, the state to go on from, record, and only then the word."""
    value = worth(trial)
    name = CheckpointName(value, trial.id, round(trial.epochs), fence.attempt)
    if trial.index < KEEP:
        torch.save({"weight": torch.ones(3)}, folder.path / str(name))
        arrays = {"val": [[0.25, 0.75]], "val_targets": [1]}
        (folder.path / name.predictions).write_bytes(predictions.pack(arrays))
    if trial.epochs < trial.max_epochs:
        torch.save({"value": value}, folder.resume_path(trial.id, fence.attempt))
    checkpoint = str(name) if trial.index < KEEP else None
    result = Result(
        TrialState.COMPLETED,
        val_acc=value,
        val_loss=0.5,
        epochs=trial.epochs,
        checkpoint=checkpoint,
        value=value,
        rung=trial.rung,
    )
    epochs = [float(epoch) for epoch in range(1, round(trial.epochs) + 1)]
    curves = {
        "epoch": epochs,
        "val_acc": [worth(replace(trial, epochs=epoch)) for epoch in epochs],
        "seconds": [0.1] * len(epochs),
    }
    record = Record.of(ID, trial, fence.attempt, result, curves=curves, host="h")
    folder.write_records([record])
    queue.finish([(fence, record.result())])
    return result

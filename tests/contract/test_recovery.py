"""`master recover`, on a folder with damage of every kind, and on a copy of it elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
import tomlkit

from common.code.store import task_digest
from common.errors import CheckpointError, ProtocolError
from common.folder.chosen import Chosen, choose
from common.folder.records import SearchFolder
from common.options import Shared
from common.queue.reconcile import write_ended
from common.queue.trial_queue import TrialQueue
from common.search.protocol import PROTOCOL
from common.search.trial import Result, TrialState
from master.commands.recovery import recover
from master.commands.redis_commands import retry
from master.report.reading import rank
from master.run.janitor import ORPHAN_S
from master.stages.prepare import Launched, settle
from master.stages.publishing import Published, publish
from master.stages.source import make_proposal, read_before
from master.strategy import ranges
from tests.contract.trials import DONE, text_with
from tests.redis_server import RedisServer, start_redis

TEXT = text_with(
    "[stages.coarse]\ntrials = 12\nepochs = 1\n[stages.fine]\ntrials = 4\nepochs = 20\n"
)
STAGES = ("coarse", "fine")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One version: the transitions have their own tests on both, and here the folder counts."""
    with start_redis(tmp_path_factory.mktemp("redis")) as running:
        yield running


class Place:
    """A checkpoint root, a search file of the user's own, and a Redis."""

    def __init__(self, root: Path, own: Path, url: str) -> None:
        self.root, self.own, self.url = root, own, url
        self.told: list[str] = []

    @property
    def chosen(self) -> Chosen:
        return choose(self.root, self.own, None, self.told.append)

    @property
    def folder(self) -> SearchFolder:
        return SearchFolder(self.root, "digits")

    def launched(self) -> Launched:
        return settle(self.chosen, None, None, self.told.append)

    def publish(self, client: redis.Redis, stage: str) -> tuple[TrialQueue, Published]:
        launched = self.launched()
        queue = TrialQueue(client, launched.id)
        return queue, publish(launched, launched.search.stage(stage), queue, None, self.told.append)

    def recover(self) -> str:
        self.told.clear()
        return recover(Shared(self.url, self.root), self.chosen, self.told.append)

    def ranked(self) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = json.loads(
            rank(self.chosen, "coarse", None, "json", self.told.append)
        )
        return rows


@pytest.fixture
def place(tmp_path: Path, client: redis.Redis, server: RedisServer) -> Place:
    """The first stage has ended, but for two trials; the second has begun; then Redis is lost."""
    own = tmp_path / "own.toml"
    own.write_text(TEXT)
    place = Place(tmp_path / "checkpoints", own, server.url)
    place.root.mkdir()
    queue, published = place.publish(client, "coarse")
    ended = [
        (t, 1, Result(TrialState.COMPLETED, val_acc=t.index / 100, val_loss=0.5, epochs=1.0))
        for t in published.trials
    ]
    write_ended(place.folder, queue.search_id, ended)
    launched, coarse = place.launched(), place.folder.stage("coarse")
    fine = launched.search.stage("fine")
    before = read_before(launched.search, launched.folder, [published.stage], print)
    proposal = make_proposal(launched.search, launched.folder, published.stage, fine, before)
    ranges.write_proposal(coarse.ranges, "fine", proposal)
    place.publish(client, "fine")
    for index in (3, 7):
        place.folder.stage("coarse").record_path(f"coarse-{index:04d}", 1).unlink()
    client.flushall()
    return place


def trial_file(place: Place, index: int) -> Path:
    return place.folder.stage("coarse").record_path(f"coarse-{index:04d}", 1)


def pending(client: redis.Redis, place: Place, stage: str = "coarse") -> int:
    launched = place.launched()
    return TrialQueue(client, launched.id).counts()[stage]["pending"]


def test_what_has_ended_counts_and_the_rest_is_queued_again(
    place: Place, client: redis.Redis
) -> None:
    said = place.recover()
    assert said.splitlines()[0] == (
        "stage coarse: 10 trials taken over from the folder as ended, 2 queued again, 0 "
        "missing records written"
    )
    assert said.splitlines()[1].startswith(
        "stage fine: 0 trials taken over from the folder as ended"
    )
    assert (
        place.recover()
        .splitlines()[0]
        .startswith("stage coarse: 0 trials taken over from the folder as ended, 0 queued again")
    )
    queue = TrialQueue(client, place.launched().id)
    claims = queue.claim("w", 9, "r")
    assert {claim.trial.id for claim in claims} <= {"coarse-0003", "coarse-0007"}


@pytest.mark.parametrize("how", ["state", "count", "kind", "options"])
def test_where_redis_is_damaged_it_is_rebuilt_from_the_folder(
    place: Place, client: redis.Redis, how: str
) -> None:
    """What a damaged value sends its user to do helps."""
    place.recover()
    queue = TrialQueue(client, place.launched().id)
    keys = queue.keys
    if how == "state":
        client.hset(keys["states"], mapping={"coarse-0001": "[1,2", "coarse-0003": "{}"})
    elif how == "count":
        client.hset(keys["counts"], "0:pending", "many")
    elif how == "kind":
        client.delete(keys["open"])
        client.set(keys["open"], "x")
    else:
        client.hset(keys["meta"].removesuffix("meta") + "frozen", "coarse", "x")
    said = place.recover()
    assert said.splitlines()[0] == (
        "stage coarse: 10 trials taken over from the folder as ended, 2 queued again, 0 "
        "missing records written"
    )
    (line,) = place.told
    assert "has not written" in line or "cannot read" in line
    assert "rebuilt from the folder; see who else uses this Redis" in line
    queue.check()
    assert set(queue.by_state(TrialState.PENDING, stage="coarse")) == {"coarse-0003", "coarse-0007"}
    assert len(queue.claim("w", 1, "r") + queue.claim("w", 1, "s")) == 2  # of one group or of two
    assert place.recover().startswith("stage coarse: 0 trials taken over") and not place.told


def test_what_killed_programs_have_left_goes(place: Place) -> None:
    old, young = place.root / ".tmp-1-old", place.folder.path / "fine" / ".tmp-1-young"
    for path in (old, young):
        path.touch()
    os.utime(old, (old.stat().st_mtime - 2 * ORPHAN_S,) * 2)
    place.recover()
    assert young.exists() and not old.exists()


def test_damaged_files_are_set_aside_by_name_and_no_attempt_number_is_used_twice(
    place: Place, client: redis.Redis
) -> None:
    place.launched()
    stage = place.folder.stage("coarse")
    trial_file(place, 0).write_bytes(b'{"format": 1, "tri')
    trial_file(place, 1).write_bytes(b"\x00" * 4096)
    trial_file(place, 2).write_bytes(b"")
    trial_file(place, 4).unlink()
    trial_file(place, 4).mkdir()
    trial_file(place, 5).write_bytes(trial_file(place, 6).read_bytes())
    stage.resume_path("coarse-0003", 2).write_bytes(b"PK\x03\x04")
    stage.leaderboard.write_bytes(b"\xff")
    place.folder.check_file.write_bytes(b"{")
    (place.folder.path / "test_looks.jsonl").write_bytes(b"\x80")
    said = place.recover()
    assert said.splitlines()[0] == (
        "stage coarse: 5 trials taken over from the folder as ended, 7 queued again, 0 "
        "missing records written"
    )
    for index in (0, 1, 2, 4, 5):
        path = trial_file(place, index)
        assert path.with_name(f"{path.name}.damaged").exists() and not path.exists()
        assert any(path.name in line for line in place.told)
    client.flushall()
    place.recover()
    assert not place.told  # nobody stumbles over them again
    queue = TrialQueue(client, place.launched().id)
    attempts = {}
    for n in range(9):
        attempts |= {claim.trial.id: claim.fence.attempt for claim in queue.claim("w", 9, str(n))}
    assert (attempts["coarse-0000"], attempts["coarse-0003"], attempts["coarse-0007"]) == (2, 3, 1)
    assert len(place.ranked()) == 5


@pytest.mark.parametrize("content", [b"", b"\xff[ranges", b'[ranges]\nlearning_rate = "x"\n'])
@pytest.mark.parametrize("stage", STAGES)
def test_damaged_ranges_are_written_anew(place: Place, stage: str, content: bytes) -> None:
    path = place.folder.stage(stage).ranges
    before = ranges.read_frozen(path, place.chosen.search.space)
    path.write_bytes(content)
    assert len(place.ranked()) == 10  # ranking needs none
    assert "10 trials taken over" in place.recover()
    assert any(f"{path}: damaged or lost" in line for line in place.told)
    assert path.with_name("ranges.toml.damaged").read_bytes() == content
    assert ranges.read_frozen(path, place.chosen.search.space) == before


def test_lost_ranges_come_from_redis_where_it_has_them(
    place: Place, client: redis.Redis, tmp_path: Path
) -> None:
    """The user's ranges for the stage are only in Redis once both files with them are gone."""
    place.recover()
    launched, fine = place.launched(), place.folder.stage("fine")
    queue = TrialQueue(client, launched.id)
    shutil.rmtree(fine.path)
    client.hdel(queue.keys["meta"].removesuffix("meta") + "frozen", "fine")
    chosen = tmp_path / "narrow.toml"
    narrow = place.chosen.search.space.plain() | {"learning_rate": {"log_uniform": [1e-2, 1e-1]}}
    chosen.write_text(tomlkit.dumps({"ranges": narrow}))
    for index in (3, 7):  # the stage before has to have ended
        write_ended(
            place.folder,
            queue.search_id,
            [(trial, 1, DONE) for trial in queue.trials_of([f"coarse-{index:04d}"]) if trial],
        )
    publish(launched, launched.search.stage("fine"), queue, chosen, place.told.append)
    before = ranges.read_frozen(fine.ranges, place.chosen.search.space)
    assert before.plain()["learning_rate"] == {"log_uniform": [1e-2, 1e-1]}
    fine.ranges.unlink()
    fine.strategy.unlink()
    fine.record_path("fine-0000", 1).write_bytes(b"")  # what shows that it was launched
    place.recover()
    assert ranges.read_frozen(fine.ranges, place.chosen.search.space) == before


def test_ranges_that_nothing_tells_are_not_made_up(place: Place) -> None:
    folder = place.folder.stage("coarse")
    record = json.loads(trial_file(place, 0).read_text())
    record["hyperparameters"]["learning_rate"] = 0.123
    trial_file(place, 0).write_text(json.dumps(record))
    folder.ranges.write_bytes(b"")
    with pytest.raises(CheckpointError, match="from a backup"):
        place.recover()


@pytest.mark.parametrize("content", [b"name = ", None])
def test_a_damaged_search_file_is_replaced_by_the_users_own(
    place: Place, content: bytes | None
) -> None:
    before = place.launched().id
    if content is None:
        place.folder.search_file.unlink()
    else:
        place.folder.search_file.write_bytes(content)
    assert "10 trials taken over" in place.recover()
    assert place.launched().id == before
    if content is not None:
        assert any("search.toml: damaged; set aside" in line for line in place.told)


def test_a_search_file_of_another_protocol_is_not_taken_for_damaged(place: Place) -> None:
    chosen = place.chosen  # a moment before the other version launches it
    content = place.folder.search_file.read_text().replace(
        f"protocol = {PROTOCOL}", f"protocol = {PROTOCOL + 1}"
    )
    place.folder.search_file.write_text(content)
    with pytest.raises(ProtocolError):
        recover(Shared(place.url, place.root), chosen, place.told.append)
    assert place.folder.search_file.read_text() == content


def test_a_search_file_that_was_not_launched_replaces_nothing(place: Place) -> None:
    place.folder.search_file.write_bytes(b"")
    place.own.write_text(TEXT.replace("seed = ", "seed = 9"))
    with pytest.raises(CheckpointError, match="your copy is not what was launched"):
        place.recover()
    assert place.folder.search_file.read_bytes() == b""


def test_a_damaged_search_file_without_any_record_says_what_to_do(place: Place) -> None:
    shutil.rmtree(place.folder.stage("coarse").trials)
    place.folder.search_file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="begin anew, move"):
        place.recover()


def test_a_copy_of_the_folder_ranks_and_goes_on_elsewhere(
    place: Place, client: redis.Redis, tmp_path: Path
) -> None:
    before = place.ranked()
    shutil.copytree(place.root, tmp_path / "elsewhere", ignore=shutil.ignore_patterns(".redis"))
    shutil.rmtree(place.root)
    copy = Place(tmp_path / "elsewhere", tmp_path / "own.toml", place.url)
    assert copy.ranked() == before
    queue, published = copy.publish(client, "coarse")  # as a launch does
    assert (published.reconciled.to_redis, published.added) == (10, 2)
    assert queue.counts()["coarse"]["completed"] == 10


def test_predictions_that_are_damaged_are_told_and_leave_the_rest(place: Place) -> None:
    from common.folder import predictions

    path = place.folder.path / "damaged.npz"
    np.savez(path, val=np.zeros(3))
    with pytest.raises(CheckpointError, match="takes part in no ensemble"):
        predictions.read(path)


def test_a_retry_that_was_killed_before_it_noted_the_task_is_said_again(
    tmp_path: Path, client: redis.Redis, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, own = tmp_path / "mine.py", tmp_path / "own.toml"
    code = "from worker.tasks.digits import Digits\n\nclass Task(Digits):\n    pass\n"
    task.write_text(code)
    own.write_text(TEXT.replace('task = "digits"', 'task = "mine.py:Task"'))
    place = Place(tmp_path / "checkpoints", own, server.url)
    place.root.mkdir()
    client.flushall()
    queue, _ = place.publish(client, "coarse")
    task.write_text(code + "# mended\n")
    shared, refreeze = Shared(place.url, place.root), TrialQueue.refreeze

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrialQueue, "refreeze", killed)
    with pytest.raises(KeyboardInterrupt):
        retry(shared, place.chosen, "failed", None)
    monkeypatch.setattr(TrialQueue, "refreeze", refreeze)
    assert "with the task's new code" in retry(shared, place.chosen, "failed", None)
    frozen = queue.frozen("coarse")
    assert frozen is not None and frozen["task_digest"] == task_digest(
        place.chosen.search, place.folder
    )
    assert "new code" not in retry(shared, place.chosen, "failed", None)
    place.publish(client, "coarse")  # the same launch command attaches again

"""Redis and the folder agree again after Redis lost its last writes or everything.

The highest ended attempt with a record counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from common.folder import durable
from common.folder.chosen import Chosen, choose
from common.folder.record import Record
from common.folder.records import SearchFolder, StageFolder
from common.options import Shared
from common.queue.answers import Taken
from common.queue.reconcile import Reconciled, reconcile, write_verdict
from common.queue.trial_queue import TrialQueue
from common.search.trial import Claim, Result, TrialState
from master.commands.recovery import recover
from master.run.janitor import sweep
from master.stages.prepare import settle
from master.stages.publishing import Published, publish
from tests.contract.trials import DONE, check_consistent, text_with
from tests.redis_server import RedisServer, start_redis

TEXT = text_with("[stages.coarse]\ntrials = 4\nepochs = 1\n")
FIRST, SECOND = replace(DONE, worker="A"), replace(DONE, val_acc=0.8, worker="B")
COMPLETED, KILLED, PENDING = TrialState.COMPLETED, TrialState.KILLED, TrialState.PENDING


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One version: the transitions have their own tests on both, and here the folder counts."""
    with start_redis(tmp_path_factory.mktemp("redis")) as running:
        yield running


class House:
    """A search of four trials, its master's view of it, and a Redis that can be set back."""

    def __init__(self, root: Path, url: str, client: redis.Redis) -> None:
        self.root, self.url, self.client = root / "checkpoints", url, client
        self.own = root / "own.toml"
        self.own.write_text(TEXT)
        self.root.mkdir()
        self.requests = 0
        self.queue = TrialQueue(client, "")
        self.published = self.launch()
        self.queue.tick(master=True)

    @property
    def chosen(self) -> Chosen:
        return choose(self.root, self.own, None, print)

    @property
    def folder(self) -> SearchFolder:
        return SearchFolder(self.root, "digits")

    @property
    def stage(self) -> StageFolder:
        return self.folder.stage("coarse")

    def launch(self) -> Published:
        launched = settle(self.chosen, None, None, print)
        self.queue = TrialQueue(self.client, launched.id)
        return publish(launched, launched.search.stage("coarse"), self.queue, None, print)

    def recover(self) -> str:
        return recover(Shared(self.url, self.root), self.chosen, print).splitlines()[0]

    def claim(self, worker: str, trial_id: str = "coarse-0000") -> Claim:
        """This trial, whatever comes before it."""
        while True:
            self.requests += 1
            (claim,) = self.queue.claim(worker, 1, str(self.requests))
            if claim.trial.id == trial_id:
                return claim

    def record(self, claim: Claim, result: Result) -> None:
        self.stage.write_records(
            [Record.of(self.queue.search_id, claim.trial, claim.fence.attempt, result)]
        )

    def remember(self) -> dict[bytes, bytes]:
        with redis.Redis(
            unix_socket_path=self.client.connection_pool.connection_kwargs["path"]
        ) as raw:
            return {key: raw.dump(key) for key in raw.keys("*")}

    def set_back(self, remembered: dict[bytes, bytes]) -> None:
        """As after a power cut, or a failover to a replica that lagged."""
        self.client.flushall()
        with redis.Redis(
            unix_socket_path=self.client.connection_pool.connection_kwargs["path"]
        ) as raw:
            for key, value in remembered.items():
                raw.restore(key, 0, value)

    def kill(self, trial_id: str = "coarse-0000") -> Taken:
        taken = self.queue.kill(trial_id, "by hand")
        assert taken
        write_verdict(self.queue, self.folder, taken)
        return taken

    def counts(self, trial_id: str = "coarse-0000") -> tuple[int, TrialState]:
        """What both witnesses say of a trial, who have to agree on all of it."""
        records = {record.trial: record for record in self.stage.records(print)}
        assert self.queue.result(trial_id) == (
            records[trial_id].attempt,
            records[trial_id].result(),
        )
        assert self.queue.state(trial_id) is records[trial_id].state
        check_consistent(self.queue)
        return records[trial_id].attempt, records[trial_id].state


@pytest.fixture
def house(tmp_path: Path, client: redis.Redis, server: RedisServer) -> House:
    return House(tmp_path, server.url, client)


def stuck(house: House, claim: Claim) -> None:
    assert house.queue.take(claim.fence, "stuck")


def test_a_kill_that_redis_forgot_stands_by_its_record(house: House) -> None:
    claim = house.claim("A")
    before = house.remember()
    house.kill()
    house.set_back(before)
    house.record(claim, FIRST)
    assert house.queue.finish([(claim.fence, FIRST)]) == ["ok"]
    assert house.launch().reconciled == Reconciled(to_redis=1)
    assert house.counts() == (2, KILLED)
    assert [row[:2] for row in house.queue.read_ended()] == [("coarse-0000", 2)]
    assert house.launch().reconciled == Reconciled()
    assert "0 trials taken over" in house.recover()
    assert house.queue.finish([(claim.fence, FIRST)]) == ["lost"]


def test_of_two_completed_attempts_both_count_the_later(house: House) -> None:
    first = house.claim("A")
    before = house.remember()
    stuck(house, first)
    second = house.claim("B")
    house.record(second, SECOND)
    house.queue.finish([(second.fence, SECOND)])
    house.set_back(before)
    house.record(first, FIRST)
    assert house.queue.finish([(first.fence, FIRST)]) == ["ok"]
    assert "1 trials taken over" in house.recover()
    assert house.counts() == (2, COMPLETED)
    assert house.queue.counts()["coarse"]["completed"] == 1


@pytest.mark.parametrize("heard", [False, True])
def test_a_late_failure_below_a_saved_state_ends_nothing(house: House, heard: bool) -> None:
    """As if Redis had not been lost: there, the late word of the first holder changes nothing."""
    first = house.claim("A")
    stuck(house, first)
    second = house.claim("B")
    house.record(first, Result(TrialState.FAILED, "ValueError: no"))
    durable.replace(house.stage.resume_path(first.trial.id, 2), b"state")
    house.client.flushall()
    assert "0 trials taken over from the folder as ended, 4 queued again" in house.recover()
    assert (house.queue.state(first.trial.id), house.queue.attempt(first.trial.id)) == (PENDING, 2)
    if heard:  # the second holder has left its record, though its fence is gone
        house.record(second, SECOND)
        assert house.queue.finish([(second.fence, SECOND)]) == ["lost"]
        assert "1 trials taken over" in house.recover()
        assert house.counts() == (2, COMPLETED)
    else:
        third = house.claim("C")
        assert third.fence.attempt == 3
        house.record(third, SECOND)
        house.queue.finish([(third.fence, SECOND)])
        assert house.launch().reconciled == Reconciled()
        assert house.counts() == (3, COMPLETED)


def test_a_completed_record_below_a_saved_state_ends_its_trial(house: House) -> None:
    """Nothing is trained again, whether the state is of a lost promotion or of the same budget."""
    first = house.claim("A")
    stuck(house, first)
    house.claim("B")
    house.record(first, FIRST)
    durable.replace(house.stage.resume_path(first.trial.id, 2), b"state")
    house.client.flushall()
    assert "1 trials taken over from the folder as ended, 3 queued again" in house.recover()
    assert house.counts() == (1, COMPLETED)
    assert house.queue.attempt(first.trial.id) == 2
    assert house.launch().reconciled == Reconciled()


def test_a_kill_under_a_number_that_has_a_record_yields_to_it(house: House) -> None:
    claim = house.claim("A")
    house.client.flushall()
    house.recover()  # nothing of A is in the folder yet
    house.record(claim, FIRST)
    assert house.queue.finish([(claim.fence, FIRST)]) == ["lost"]
    assert house.kill().fence.attempt == 1
    assert house.counts() == (1, COMPLETED)
    assert house.launch().reconciled == Reconciled()


def test_a_record_that_redis_has_as_another_result_counts(house: House) -> None:
    """A master died before it wrote the record of its verdict.

    A worker from before the loss left its own record.
    """
    claim = house.claim("A")
    house.client.flushall()
    house.recover()
    assert house.queue.kill("coarse-0000", "by hand")
    house.record(claim, FIRST)
    records = house.stage.records(print)
    assert reconcile(house.queue, house.folder, house.published.trials, []) == Reconciled(
        1, 1
    )  # a list from before the record
    assert house.counts() == (1, COMPLETED)
    assert reconcile(house.queue, house.folder, house.published.trials, records) == Reconciled()


def test_masters_who_correct_at_once_correct_once(house: House) -> None:
    trials = house.published.trials
    claims: list[Claim] = []
    while more := house.queue.claim("A", 4, str(len(claims))):
        claims += more
    house.queue.finish([(claim.fence, FIRST) for claim in claims])
    for claim in claims:
        house.record(claim, FIRST)
        house.stage.write_records([Record.of(house.queue.search_id, claim.trial, 2, SECOND)])
    with ThreadPoolExecutor(4) as masters:
        told = list(
            masters.map(
                lambda _: reconcile(house.queue, house.folder, trials, house.stage.records(print)),
                range(4),
            )
        )
    assert sum(reconciled.to_redis for reconciled in told) == len(trials)
    assert {house.counts(trial.id) for trial in trials} == {(2, COMPLETED)}
    assert house.client.llen(house.queue.keys["endings"]) == 2 * len(trials)


def test_a_running_trial_is_not_ended_by_a_record_below_its_attempt(house: House) -> None:
    first = house.claim("A")
    stuck(house, first)
    second = house.claim("B")
    house.record(first, FIRST)
    assert house.launch().reconciled == Reconciled()
    assert house.queue.renew("B", []) == {} and house.queue.finish([(second.fence, SECOND)]) == [
        "ok"
    ]


def test_a_retried_trial_is_not_ended_by_what_was_read_before(house: House) -> None:
    house.kill()
    records = house.stage.records(print)
    assert house.queue.retry("coarse-0000")
    assert reconcile(house.queue, house.folder, house.published.trials, records) == Reconciled()
    assert house.launch().reconciled == Reconciled()
    assert house.queue.state("coarse-0000") is PENDING


def test_a_recovery_that_was_killed_hands_out_nothing_that_has_ended(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trial in house.published.trials:
        house.stage.write_records([Record.of(house.queue.search_id, trial, 1, FIRST)])
    house.client.flushall()
    restore, published, calls = TrialQueue.restore, TrialQueue.publish, [0]

    def dies(queue: TrialQueue, *words: object) -> bool:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return restore(queue, *words)  # type: ignore[arg-type]

    def watched(queue: TrialQueue, *words: object) -> int:
        added = published(queue, *words)  # type: ignore[arg-type]
        assert queue.claim("eager", 4, "r") == []
        return added

    monkeypatch.setattr(TrialQueue, "restore", dies)
    with pytest.raises(KeyboardInterrupt):
        house.recover()
    monkeypatch.setattr(TrialQueue, "restore", restore)
    monkeypatch.setattr(TrialQueue, "publish", watched)
    assert "3 trials taken over from the folder as ended, 0 queued again" in house.recover()
    assert house.queue.counts()["coarse"]["completed"] == 4


class TestWeights:
    def name(self, value: str, attempt: int) -> str:
        return f"val_acc={value}-trial=coarse-0000-epoch=001-try={attempt}.pt"

    def weights(self, house: House) -> set[str]:
        sweep(house.queue, house.stage, 10)
        return {path.name for path in house.stage.path.glob("*.pt")}

    def write(self, house: House, *names: str) -> None:
        for name in names:
            durable.replace(house.stage.path / name, b"weights")
            durable.replace(house.stage.path / name.replace(".pt", ".npz"), b"predictions")

    def test_of_two_attempts_that_completed_one_keeps_its_weights(self, house: House) -> None:
        low, high = self.name("0.9000", 1), self.name("0.8000", 2)
        first = house.claim("A")
        stuck(house, first)
        second = house.claim("B")
        self.write(house, low, high)
        house.record(first, replace(FIRST, checkpoint=low))
        house.record(second, replace(SECOND, checkpoint=high))
        house.queue.restore(first.trial, 2, replace(SECOND, checkpoint=high))
        assert self.weights(house) == {high}

    def test_of_two_writers_of_one_number_the_one_with_the_record_keeps_its_weights(
        self, house: House
    ) -> None:
        kept, other = self.name("0.9000", 1), self.name("0.9100", 1)
        claim = house.claim("A")
        self.write(house, kept, other)
        durable.make_folder(house.stage.pictures)
        durable.replace(house.stage.picture_path("coarse-0000", 1), b"picture")
        assert self.weights(house) == {kept, other}  # both may yet write their record
        house.record(claim, replace(FIRST, checkpoint=kept))
        assert self.weights(house) == {kept}
        assert {path.name for path in house.stage.path.glob("*.npz")} == {
            kept.replace(".pt", ".npz")
        }
        assert house.stage.picture_path("coarse-0000", 1).exists()

    def test_weights_of_who_has_not_written_its_record_yet_stay(self, house: House) -> None:
        """Redis lost data and ended the trial at a lower attempt.

        The record that the higher attempt is about to write will count.
        """
        low, high = self.name("0.9000", 1), self.name("0.8000", 2)
        claim = house.claim("A")
        house.record(claim, replace(FIRST, checkpoint=low))
        house.queue.finish([(claim.fence, replace(FIRST, checkpoint=low))])
        self.write(house, low, high)
        assert self.weights(house) == {low, high}
        house.stage.write_records(
            [Record.of(house.queue.search_id, claim.trial, 2, replace(SECOND, checkpoint=high))]
        )
        assert self.weights(house) == {high}

"""Redis loses its last writes, or all of them, during the life of a promoted trial.

The folder and Redis agree again. The decision to promote is a file, written before Redis hears of
it, and each attempt has its own record. So whatever Redis has lost, the trial ends on the rung that
was decided, and no attempt number is used for two budgets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import pytest
import redis

from common.folder import durable
from common.folder.record import Record
from common.folder.records import SearchFolder, StageFolder
from common.queue.reconcile import (
    Reconciled,
    finish_from_record,
    reap,
    reconcile,
    restore,
    write_verdict,
)
from common.queue.trial_queue import TrialQueue
from common.search.trial import Claim, Fence, Result, Trial, TrialState
from tests.contract.trials import SEARCH, at_rung, check_consistent, made, until
from tests.redis_server import RedisServer, start_redis

COMPLETED, PENDING = TrialState.COMPLETED, TrialState.PENDING
(SHORT,) = made(1)
LONG = at_rung(SHORT, 1)
LIFE = (
    "published",
    "claimed",
    "recorded",
    "finished",
    "decided",
    "promoted",
    "claimed again",
    "recorded again",
    "finished again",
)
IN_REDIS = ("nothing", *(point for point in LIFE if not point.startswith(("recorded", "decided"))))
LOSSES = [
    (to, at)
    for to, at in product(IN_REDIS, LIFE)
    if to == "nothing" or LIFE.index(to) < LIFE.index(at)
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One version: the transitions have their own tests on both, and here the folder counts."""
    with start_redis(tmp_path_factory.mktemp("redis")) as running:
        yield running


class Place:
    """A search of one trial: its Redis, which can be set back, its folder, and who works there."""

    def __init__(self, root: Path, client: redis.Redis) -> None:
        self.client = client
        self.raw = redis.Redis(unix_socket_path=client.connection_pool.connection_kwargs["path"])
        self.folder = SearchFolder(root, "digits")
        self.queue = TrialQueue(client, SEARCH)
        self.brief = TrialQueue(client, SEARCH, lease_s=0.001)
        self.stage.make()
        self.decided = False
        self.requests = 0
        self.queue.tick(master=True)

    @property
    def stage(self) -> StageFolder:
        return self.folder.stage("coarse")

    @property
    def trial(self) -> Trial:
        """With its budget now, as every master reads it from the decisions."""
        return LONG if self.decided else SHORT

    def launch(self) -> Reconciled:
        """What each launch does, and a recovery."""
        records, attempts = self.stage.records(print), self.stage.highest_attempts()
        restored = restore(self.queue, [self.trial], records, attempts)
        self.queue.publish([self.trial], attempts)
        done = reconcile(self.queue, self.folder, [self.trial], records)
        self.promote()
        return Reconciled(done.to_redis + restored, done.to_folder)

    def promote(self) -> Sequence[Trial]:
        return self.queue.promote([self.trial], self.stage.highest_attempts())

    def claim(self) -> Claim | None:
        """By a worker that is never heard again, unless it ends the trial."""
        self.requests += 1
        return next(iter(self.brief.claim(f"w{self.requests}", 1, "r")), None)

    def record(self, claim: Claim) -> Result:
        own = Record.of(SEARCH, claim.trial, claim.fence.attempt, self.result(claim.trial))
        (standing,) = self.stage.write_records([own])
        assert standing.budget_epochs == claim.trial.epochs, (
            "an attempt number was used for two budgets"
        )
        return standing.result()

    @staticmethod
    def result(trial: Trial) -> Result:
        return Result(COMPLETED, value=1 - 1 / trial.epochs, epochs=trial.epochs, rung=trial.rung)

    def reap(self) -> None:
        def none_runs() -> bool:
            reap(self.queue, self.folder, master=True)
            return not self.queue.running()

        until(none_runs, "the lease of who is gone to be over")

    def work(self) -> None:
        """Reaps who is gone, and trains what waits, until nothing does."""
        self.reap()
        while claim := self.claim():
            self.queue.finish([(claim.fence, self.record(claim))])

    def live(self, until_point: str) -> dict[str, dict[bytes, bytes]]:
        """Run a trial's life up to a point.

        Return what Redis held at each earlier point; for none, an empty state.
        """
        held: dict[str, dict[bytes, bytes]] = {"nothing": {}}
        claims: list[Claim] = []
        steps = {
            "published": self.launch,
            "claimed": lambda: claims.append(self._claimed()),
            "recorded": lambda: self.record(claims[0]),
            "finished": lambda: self.queue.finish([(claims[0].fence, self.result(SHORT))]),
            "decided": lambda: setattr(self, "decided", True),
            "promoted": self.promote,
            "claimed again": lambda: claims.append(self._claimed()),
            "recorded again": lambda: self.record(claims[1]),
            "finished again": lambda: self.queue.finish([(claims[1].fence, self.result(LONG))]),
        }
        for point, step in steps.items():
            step()
            held[point] = {key: self.raw.dump(key) for key in self.raw.keys("*")}
            if point == until_point:
                break
        return held

    def _claimed(self) -> Claim:
        claim = self.claim()
        assert claim
        return claim

    def set_back(self, held: dict[bytes, bytes]) -> None:
        """As after a power cut, or a failover to a replica that lagged."""
        self.client.flushall()
        for key, value in held.items():
            self.raw.restore(key, 0, value)
        self.queue.tick(master=True)

    def agree(self) -> tuple[int, float]:
        """Check that Redis and the folder agree on a trial's end; return its (attempt, budget)."""
        (record,) = self.stage.records(print)
        assert self.queue.endings_of([SHORT.id]) == [
            (at_rung(SHORT, record.rung), record.attempt, record.result())
        ]
        assert record.result() == self.result(at_rung(SHORT, record.rung))
        assert self.queue.state(SHORT.id) is COMPLETED
        assert [row[0] for row in self.queue.read_ended()] == [SHORT.id]
        assert self.launch() == Reconciled()
        assert self.queue.state(SHORT.id) is COMPLETED
        check_consistent(self.queue)
        return record.attempt, record.budget_epochs


@pytest.fixture
def place(tmp_path: Path, client: redis.Redis) -> Place:
    return Place(tmp_path, client)


@pytest.mark.parametrize("first", ["launch", "reap", "work", "promote"])
@pytest.mark.parametrize(("to", "at"), LOSSES)
def test_redis_is_set_back(place: Place, to: str, at: str, first: str) -> None:
    place.set_back(place.live(at)[to])
    {"launch": place.launch, "reap": place.reap, "work": place.work, "promote": place.promote}[
        first
    ]()
    for _ in range(3):
        place.launch()
        place.work()
    assert place.promote() == []
    assert place.agree()[1] == place.trial.epochs


@pytest.mark.parametrize("to", IN_REDIS)
def test_the_decision_is_lost_as_well(place: Place, to: str) -> None:
    """What was trained longer is not trained again: the record says which budget it had."""
    place.set_back(place.live("finished again")[to])
    place.decided = False
    place.work()
    for _ in range(2):
        place.launch()
        place.work()
    attempt, budget = place.agree()
    assert budget == LONG.epochs
    assert len(place.stage.attempts(place.stage.trials)) == attempt == 2


def test_the_decision_is_lost_while_the_promoted_trial_trains(place: Place) -> None:
    """The trial saved a state under its longer budget, so the shorter one is not trained again."""
    place.live("claimed again")
    durable.replace(place.stage.resume_path(SHORT.id, 2), b"state")
    place.set_back({})
    place.decided = False
    place.launch()
    assert place.claim() is None
    assert place.queue.state(SHORT.id) is COMPLETED
    place.decided = True
    place.launch()
    claim = place.claim()
    assert claim and (claim.trial, claim.fence.attempt) == (LONG, 3)


def test_a_record_of_an_earlier_rung_is_history(place: Place) -> None:
    place.live("claimed again")
    records = place.stage.records(print)
    assert reconcile(place.queue, place.folder, [LONG], records) == Reconciled()
    assert restore(place.queue, [LONG], records, {}) == 0
    assert [running.fence.attempt for running in place.queue.running()] == [2]


def test_a_failure_on_an_earlier_rung_does_not_end_what_was_promoted(place: Place) -> None:
    """Redis lost data, and the trial that it handed out again was lost too often.

    The earlier decision still holds.
    """
    place.live("decided")
    place.stage.write_records(
        [Record.of(SEARCH, SHORT, 2, Result(TrialState.FAILED, "lost 3 attempts while alone"))]
    )
    place.set_back({})
    place.launch()
    claim = place.claim()
    assert claim and (claim.trial, claim.fence.attempt) == (LONG, 3)


def test_an_end_before_the_promotion_gets_its_record_back_with_the_budget_that_it_had(
    place: Place,
) -> None:
    place.live("decided")
    place.stage.record_path(SHORT.id, 1).unlink()
    assert reconcile(place.queue, place.folder, [LONG], []) == Reconciled(to_folder=1)
    (record,) = place.stage.records(print)
    assert (record.budget_epochs, record.attempt, record.state) == (SHORT.epochs, 1, COMPLETED)
    assert reconcile(place.queue, place.folder, [LONG], [record]) == Reconciled()
    assert place.promote() == []
    assert place.queue.state(SHORT.id) is PENDING


def test_a_record_of_another_budget_under_the_number_that_runs_ends_nothing(place: Place) -> None:
    """Redis was set back, and what runs now is another attempt of an earlier rung."""
    place.queue.publish([SHORT], {SHORT.id: 1})
    claim = place.claim()
    assert claim and claim.fence.attempt == 2
    place.stage.write_records([Record.of(SEARCH, LONG, 2, place.result(LONG))])
    assert not finish_from_record(place.queue, place.folder, claim.fence)
    assert place.queue.state(SHORT.id) is TrialState.RUNNING
    assert place.launch().to_redis == 1  # a master knows better: the trial was promoted
    assert place.agree() == (2, LONG.epochs)


def test_what_was_running_when_redis_was_set_back_ends_by_its_record_at_the_next_launch(
    place: Place,
) -> None:
    place.set_back(place.live("decided")["claimed"])
    assert reconcile(place.queue, place.folder, [LONG], place.stage.records(print)) == Reconciled(
        to_redis=1
    )
    assert place.queue.state(SHORT.id) is COMPLETED
    assert place.promote() == []
    assert place.queue.state(SHORT.id) is PENDING


def test_a_kill_after_the_promotion_stands_by_its_record(place: Place) -> None:
    held = place.live("promoted")
    taken = place.queue.kill(SHORT.id, "by hand")
    assert taken
    write_verdict(place.queue, place.folder, taken)
    place.set_back(held["finished"])
    assert place.launch().to_redis == 1
    assert place.queue.state(SHORT.id) is TrialState.KILLED
    (record,) = place.stage.records(print)
    assert (record.budget_epochs, record.rung, record.attempt) == (LONG.epochs, 1, 2)
    assert place.launch() == Reconciled()


def test_a_saved_state_above_the_record_keeps_its_number(place: Place) -> None:
    place.live("claimed again")
    durable.replace(place.stage.resume_path(SHORT.id, 2), b"state")
    place.set_back({})
    place.launch()
    claim = place.claim()
    assert claim and (claim.trial, claim.fence.attempt) == (LONG, 3)


def test_a_record_with_budgets_that_no_promotion_leaves_ends_nothing(place: Place) -> None:
    place.queue.publish([SHORT])
    odd = Record.of(SEARCH, LONG, 1, place.result(LONG)).model_copy(update={"passed": (4.0,)})
    assert restore(place.queue, [SHORT], [odd], {}) == 0
    assert reconcile(place.queue, place.folder, [SHORT], [odd]) == Reconciled()
    assert place.queue.state(SHORT.id) is PENDING


def test_the_accepted_word_of_before_the_loss_is_lost_and_its_record_counts(place: Place) -> None:
    """A lost answer can be repeated as long as Redis remembers.

    After that the record speaks for its writer.
    """
    held = place.live("recorded")
    fence = place.queue.running()[0].fence
    assert place.queue.finish([(fence, place.result(SHORT))]) == ["ok"]
    place.set_back(held["published"])
    assert place.queue.finish([(fence, place.result(SHORT))]) == ["lost"]
    assert place.launch() == Reconciled(to_redis=1)
    assert place.queue.finish([(Fence(SHORT.id, 1, "another"), place.result(SHORT))]) == ["lost"]
    assert place.agree() == (1, SHORT.epochs)

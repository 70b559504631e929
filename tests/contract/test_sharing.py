"""A worker gives part of its array to idle workers.

Redis is real, and digits are really trained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import redis

from common.errors import QueueError
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.search.trial import Claim, Trial, TrialState, WorkerInfo
from tests.contract import test_recording
from tests.contract.test_recording import Worker
from tests.contract.test_worker_rungs import DIGITS, TEXT, loss_curves
from tests.contract.trials import made
from worker.run import sharing
from worker.run.sharing import Sharing
from worker.training.types import View

N = 4


def trials(epochs: float) -> list[Trial]:
    return [
        replace(t, epochs=epochs, max_epochs=20.0, hyperparameters={**DIGITS, **t.hyperparameters})
        for t in made(N)
    ]


@pytest.fixture
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LEAST_S", 0.0)
    monkeypatch.setattr(test_recording, "default_text", lambda: TEXT)


def announce(client: redis.Redis, queue: TrialQueue, name: str, state: str = "idle") -> None:
    """As a worker that asks for trials, gets none, and says so."""
    WorkerRegistry(client).announce(WorkerInfo(name, "host", 1, "cpu", state=state))
    queue.claim(name, 1, "request", machine="B")


def test_half_of_an_array_goes_on_elsewhere_with_all_that_it_had(
    client: redis.Redis, queue: TrialQueue, tmp_path: Path, looks_at_once: None
) -> None:
    queue.publish(trials(epochs=6.0))
    alone = Worker(client, queue, tmp_path / "alone")
    alone.loop.run()
    undisturbed = {name: loss_curves(record) for name, record in alone.records().items()}
    queue.drop()

    worker = Worker(client, queue, tmp_path / "beside")
    announce(client, queue, "w2")
    queue.publish(trials(epochs=6.0))
    queue.client.zrem(queue.keys["workers"], "w2")  # it takes no share of the first claim
    claims = worker.claim(N)
    announce(client, queue, "w2")
    worker.loop._work(worker.session, claims)
    assert "gave 2 of 4 trials to workers with nothing to do" in worker.said
    states = [str(queue.state(trial.id)) for trial in made(N)]
    assert sorted(states) == ["completed", "completed", "pending", "pending"]
    worker.loop.run()  # whoever is free next
    records = worker.records()
    assert {record.state for record in records.values()} == {TrialState.COMPLETED}
    assert sorted(record.attempt for record in records.values()) == [1, 1, 2, 2]
    for name, record in records.items():
        found = loss_curves(record)
        assert found["epoch"] == undisturbed[name]["epoch"] == [1, 2, 3, 4, 5, 6]
        assert found["val_loss"] == pytest.approx(
            undisturbed[name]["val_loss"], abs=1e-4
        )  # arrays of other widths round otherwise
    assert not list(worker.session.folder.stage("coarse").resume.glob("*try=1*"))


def views(claims: list[Claim], epoch: float = 1.0) -> list[View]:
    return [View(claim, epoch, 10.0, len(claims), lambda: b"") for claim in claims]


@pytest.mark.parametrize(
    ("idle", "busy", "device", "epoch", "given"),
    [
        (0, 2, "cpu", 1.0, 0),
        (1, 2, "cpu", 1.0, 2),
        (2, 0, "cpu", 1.0, 2),
        (3, 0, "cpu", 1.0, 3),
        (9, 0, "cpu", 1.0, 3),  # one stays
        (3, 0, "cuda:0", 1.0, 0),
        (3, 0, "cpu", 2.9, 0),  # nearly done
    ],
)
def test_each_idle_worker_gets_an_equal_share_where_that_pays(
    client: redis.Redis,
    queue: TrialQueue,
    idle: int,
    busy: int,
    device: str,
    epoch: float,
    given: int,
) -> None:
    queue.publish(trials(epochs=3.0))
    claims = queue.claim("w1", N, "request")
    assert len(claims) == N
    for n in range(idle):
        announce(client, queue, f"idle{n}")
    for n in range(busy):
        announce(client, queue, f"busy{n}", "training")
    own = WorkerInfo("w1", "host", 1, device)
    share = Sharing(WorkerRegistry(client), own)
    found = share.surplus(queue, views(list(claims), epoch))
    assert len(found) == given
    assert share.refills
    share.note(view.trial.id for view in found)
    assert not share.refills
    assert share.surplus(queue, views(list(claims), epoch)) == [], "it looks once a second"


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize(("machine", "n", "given"), [("B", 1, 1), ("B", N, N), ("A", N, 0)])
def test_a_slow_worker_gives_all_to_another_machine(
    client: redis.Redis, queue: TrialQueue, device: str, machine: str, n: int, given: int
) -> None:
    registry = WorkerRegistry(client)
    own = WorkerInfo("w1", "host", 1, device, machine="A")
    registry.announce(own)
    registry.mark_slow("w1")
    queue.publish(trials(epochs=3.0)[:n])
    claims = queue.claim("w1", n, "request", machine="A")
    registry.announce(WorkerInfo("w2", "host", 1, device, state="idle", machine=machine))
    queue.claim("w2", 1, "request", machine=machine)
    assert len(Sharing(registry, own).surplus(queue, views(list(claims)))) == given
    registry.mark_slow("w1", False)
    shared = 2 if n == N and device == "cpu" else 0
    assert len(Sharing(registry, own).surplus(queue, views(list(claims)))) == shared


def test_nothing_is_given_while_trials_wait_or_to_who_works_for_others(
    client: redis.Redis, queue: TrialQueue
) -> None:
    first, *rest = trials(epochs=3.0)
    queue.publish(rest)
    claims = queue.claim("w1", N - 1, "request")
    announce(client, queue, "w2")
    queue.publish([first])
    own = WorkerInfo("w1", "host", 1, "cpu")
    assert Sharing(WorkerRegistry(client), own).surplus(queue, views(list(claims))) == []
    WorkerRegistry(client).announce(WorkerInfo("stranger", "host", 1, "cpu"))
    queue.leave("w2")
    queue.claim("w3", 1, "request")
    assert Sharing(WorkerRegistry(client), own).surplus(queue, views(list(claims))) == []


def test_of_a_trial_that_must_be_alone_nothing_is_given(
    client: redis.Redis, queue: TrialQueue
) -> None:
    queue.publish(trials(epochs=3.0))
    claims = [replace(claim, alone=True) for claim in queue.claim("w1", N, "request")]
    announce(client, queue, "w2")
    assert (
        Sharing(WorkerRegistry(client), WorkerInfo("w1", "host", 1, "cpu")).surplus(
            queue, views(claims)
        )
        == []
    )


def test_a_trial_that_comes_back_stays_for_a_while_and_is_given_again(
    client: redis.Redis, queue: TrialQueue, looks_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is idle may be gone, busy for a moment, or not allowed to have it."""
    monkeypatch.setattr(sharing, "PAUSE_S", 0.0)
    queue.publish(trials(epochs=3.0))
    claims = queue.claim("w1", N, "request")
    announce(client, queue, "w2")
    share = Sharing(WorkerRegistry(client), WorkerInfo("w1", "host", 1, "cpu"))
    first = share.surplus(queue, views(list(claims)))
    share.note(view.trial.id for view in first)
    second = share.surplus(queue, views(list(claims)))
    assert len(first) == len(second) == 2
    share.note(view.trial.id for view in second)
    assert share.surplus(queue, views(list(claims))) == []
    monkeypatch.setattr(sharing, "AGAIN_S", 0.0)
    share.note(view.trial.id for view in second)
    assert len(share.surplus(queue, views(list(claims)))) == 2


def test_leases_that_redis_did_not_take_back_are_held_and_trained_on(
    client: redis.Redis,
    queue: TrialQueue,
    tmp_path: Path,
    looks_at_once: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue.publish(trials(epochs=4.0))
    worker = Worker(client, queue, tmp_path)
    claims = worker.claim(N)
    announce(client, queue, "w2")

    def away(_: object) -> None:
        raise QueueError("Redis is away")

    monkeypatch.setattr(worker.session.queue, "release", away)
    worker.loop._work(worker.session, claims)
    assert [record.attempt for record in worker.records().values()] == [1] * N
    assert not any("gave" in line for line in worker.said)

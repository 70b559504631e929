"""A worker and its trials from rung to rung.

Redis and the folder are real, and digits are really trained.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from common.folder import durable
from common.folder.record import Record
from common.queue.trial_queue import TrialQueue
from common.search.trial import Trial, TrialState
from master.run.janitor import sweep
from tests.contract import test_recording
from tests.contract.test_recording import Worker
from tests.contract.trials import made
from worker.run.rungs import Waiting
from worker.run.session import Session

DIGITS = {
    "hidden": 16,
    "depth": 1,
    "dropout": 0.1,
    "optimizer": "adam",
    "batch_size": 128,
    "schedule": "cosine",
}
N = 4
TEXT = 'name = "digits"\ntask = "digits"\n[budget]\nepochs = 300\n[space]\nlearning_rate = 0.1\n'


def trials(epochs: float = 1.0) -> list[Trial]:
    plain = made(N)
    return [
        replace(t, epochs=epochs, max_epochs=20.0, hyperparameters={**DIGITS, **t.hyperparameters})
        for t in plain
    ]


class Killed(BaseException):
    """A worker's sudden end."""


@pytest.fixture
def worker(
    client: redis.Redis, queue: TrialQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Worker:
    monkeypatch.setattr(test_recording, "default_text", lambda: TEXT)
    return Worker(client, queue, tmp_path)


def resume_files(worker: Worker) -> list[str]:
    return sorted(path.name for path in worker.session.folder.stage("coarse").resume.iterdir())


def loss_curves(record: Record) -> dict[str, list[float | None]]:
    return {
        name: record.curves[name] for name in ("epoch", "train_loss", "val_loss", "learning_rate")
    }


@pytest.mark.parametrize("elsewhere", [False, True])
def test_promoted_trials_go_on_where_they_ended_on_this_worker_or_on_another(
    worker: Worker, client: redis.Redis, queue: TrialQueue, tmp_path: Path, elsewhere: bool
) -> None:
    queue.publish(trials(epochs=7.0))
    worker.loop.run()
    straight = worker.records()
    queue.drop()
    shutil.rmtree(tmp_path / "digits")
    again = Worker(client, queue, tmp_path)
    queue.tick(master=True)
    queue.publish(trials())
    again.loop.run()
    assert resume_files(again) == [f"coarse-{i:04d}-try=1.pt" for i in range(N)]
    for epochs, passed in ((2.0, (1.0,)), (7.0, (1.0, 2.0))):
        assert queue.promote([replace(t, passed=passed) for t in trials(epochs)]) == []
        if elsewhere:
            again.session.waiting = Waiting()  # its memory is another worker's
        again.loop.run()
    found = again.records()
    for name, record in straight.items():
        assert (found[name].attempt, found[name].passed, found[name].budget_epochs) == (
            3,
            (1.0, 2.0),
            7.0,
        )
        assert found[name].value == pytest.approx(
            record.value, abs=0.01
        )  # the backend is chosen by the clock, and rounds its own way
        assert {
            key: pytest.approx(values, rel=0.05, abs=0.02)
            for key, values in loss_curves(record).items()
        } == loss_curves(found[name])
    assert not any("anew" in line for line in again.said)
    assert resume_files(again) == [f"coarse-{i:04d}-try=3.pt" for i in range(N)]


def test_a_worker_that_dies_between_the_state_and_the_record_costs_no_epoch(
    worker: Worker,
    client: redis.Redis,
    queue: TrialQueue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue.publish(trials())

    def killed(files: object) -> set[Path]:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(durable, "write_new", killed)
        worker.loop.run()
    assert len(resume_files(worker)) == N and worker.records() == {}
    queue.release(worker.heart.find_unfinished())  # as if their leases had run out
    other = Worker(client, queue, tmp_path)
    load_states = Session.load_states
    steps: list[object] = []

    def noted(self: Session, *given: object) -> object:
        found = load_states(self, *given)  # type: ignore[arg-type]
        steps.extend(
            one.resume["history"]["epoch_seconds"] for one in found if one.resume is not None
        )
        return found

    monkeypatch.setattr(Session, "load_states", noted)
    other.loop.run()
    assert len(steps) == N and {queue.state(t.id) for t in trials()} == {TrialState.COMPLETED}
    assert all(
        record.epochs == 1.0 and len(record.curves["epoch"]) == 1
        for record in other.records().values()
    )


def test_a_worker_that_ends_too_late_leaves_no_state(
    worker: Worker,
    client: redis.Redis,
    queue: TrialQueue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue.publish(trials())
    write, others = durable.replace_all, [Worker(client, queue, tmp_path)]

    def stopped(files: dict[Path, bytes]) -> None:
        if others:  # past its lease, just before it writes where its trials stand
            queue.release(worker.heart.find_unfinished())
            others.pop().loop.run()
        write(files)

    monkeypatch.setattr(durable, "replace_all", stopped)
    worker.loop.run()
    assert len([line for line in worker.said if "late result" in line]) == 1  # of all of them
    assert resume_files(worker) == [f"coarse-{i:04d}-try=2.pt" for i in range(N)]


def test_the_janitor_leaves_the_states_of_those_that_may_go_on(
    worker: Worker, queue: TrialQueue
) -> None:
    queue.publish(trials())
    worker.loop.run()
    plans = [stage.plan for stage in worker.session.search.stages]
    stage = worker.session.folder.stage("coarse")
    sweep(queue, stage, 50, plans=plans)
    assert len(resume_files(worker)) == N
    queue.promote([trials()[0].promote(20.0)])
    sweep(queue, stage, 50, plans=plans)
    assert len(resume_files(worker)) == N  # it waits
    worker.loop.run()
    sweep(queue, stage, 50, plans=plans)
    assert resume_files(worker) == [f"coarse-{i:04d}-try=1.pt" for i in range(1, N)]
    kept = sorted(name.trial_id for name in stage.checkpoints())
    assert kept == [f"coarse-{i:04d}" for i in range(N)] and {
        n.attempt for n in stage.checkpoints() if n.trial_id == "coarse-0000"
    } == {2}

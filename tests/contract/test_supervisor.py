"""A master that watches a stage: while Redis is rebuilt under it, and where machines are put aside."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import redis

from common.errors import ConfigError
from common.queue import TrialQueue
from common.records import SearchFolder
from common.search import default_text, parse_search
from common.trial import Claim, Progress, TrialState, WorkerInfo
from common.workers import WorkerRegistry
from master import supervisor as module
from master.supervisor import Supervisor
from tests.contract.trials import DONE, made, until


@pytest.fixture
def watching(queue: TrialQueue, client: redis.Redis, tmp_path: Path) -> Supervisor:
    """A master that queued three trials, after which Redis was emptied and knows one again, which has ended."""
    search, trials = parse_search(default_text()), made(3)
    launched = SimpleNamespace(search=search, folder=SearchFolder(tmp_path, "digits"))
    queue.restore(trials[0], 1, DONE)
    published = SimpleNamespace(stage=search.stage("coarse"), trials=trials)
    return Supervisor(SimpleNamespace(client=client), launched, published, queue, Mock(), None)  # type: ignore[arg-type]


def test_a_stage_has_not_ended_while_its_trials_are_being_recovered(watching: Supervisor, queue: TrialQueue) -> None:
    assert watching._look() is None  # the ended one is back, the others are not yet
    queue.publish(made(3))
    assert watching._look() is None
    queue.finish([(claim.fence, DONE) for claim in queue.claim("w", 3, "r")])
    assert watching._look() == {**dict.fromkeys(queue.counts()["coarse"], 0), "completed": 3}


def test_trials_that_nobody_brings_back_are_told_with_the_remedy(watching: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LACKING_S", 0.0)
    assert watching._look() is None
    with pytest.raises(ConfigError, match="has lost 2 of its trials; launch again"):
        watching._look()


# -- machines that are put aside


class Crew:
    """A master that watches twenty trials, and its workers: as many on each machine as a test starts."""

    def __init__(self, queue: TrialQueue, client: redis.Redis, folder: Path) -> None:
        search = parse_search(default_text())
        self.queue, self.client, self.display = queue, client, Mock()
        queue.publish(made(20))
        launched = SimpleNamespace(search=search, folder=SearchFolder(folder, "digits"))
        published = SimpleNamespace(stage=search.stage("coarse"), trials=made(20))
        self.started = Mock(return_value=None)
        self.master = Supervisor(SimpleNamespace(client=client), launched, published, queue, self.display, None, self.started)  # type: ignore[arg-type]
        self.claims = 0

    def announce(self, name: str, state: str = "idle", pid: int = 1, reason: str = "") -> None:
        info = WorkerInfo(name, socket.gethostname(), pid, "cpu", state=state, machine=name.upper(), reason=reason)
        WorkerRegistry(self.client).announce(info)

    def claim(self, name: str) -> Claim:
        self.claims += 1
        (claim,) = self.queue.claim(name, 1, f"{self.claims}", machine=name.upper())
        return claim

    def strike(self, bad: str, good: str, n: int = 3) -> None:
        """Three trials raise on the one machine and complete on the other, so that the first is put aside."""
        for name in (bad, good):
            self.queue.claim(name, 0, "first", machine=name.upper())
        for claim in [self.claim(bad) for _ in range(n)]:
            self.queue.fail([(claim.fence, "boom")])
        for _ in range(n):
            self.queue.finish([(self.claim(good).fence, DONE)])

    def said(self) -> str:
        return "\n".join(call.args[0] for call in self.display.say.call_args_list)


@pytest.fixture
def crew(queue: TrialQueue, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crew:
    monkeypatch.setattr(module, "LONELY_S", 0.0)
    return Crew(queue, client, tmp_path)


def test_where_every_worker_is_put_aside_local_ones_are_started(crew: Crew) -> None:
    crew.strike("bad", "good")
    for name in ("bad", "good"):
        crew.announce(name)
    crew.master._care()
    assert not crew.started.called
    crew.queue.leave("good")
    crew.master._care()
    assert crew.started.called


def test_local_workers_that_are_all_put_aside_are_told_of(crew: Crew) -> None:
    crew.strike("bad", "good")
    crew.queue.leave("good")
    crew.master.local = Mock(pids=[71, 72], given_up=False)
    crew.announce("bad", "aside", 71, "this machine is put aside")
    crew.master._care()
    assert "no worker takes trials" not in crew.said()  # the other has not said a word yet
    crew.master.local.pids = [71]
    crew.master._care()
    assert "no worker takes trials of this search" in crew.said() and "this machine is put aside" in crew.said()
    assert not crew.master.local.start.called  # they run


def test_a_worker_that_is_put_aside_for_another_search_counts_as_one(crew: Crew) -> None:
    crew.queue.claim("bad", 0, "first", machine="BAD")
    crew.announce("bad", "aside", reason="this machine is put aside")
    crew.master._care()
    assert not crew.said() and not crew.started.called


@pytest.mark.parametrize(("other", "told"), [("good", "given to another worker"), ("bad", "no other worker"), ("going", "no other worker")])
def test_a_slow_trial_is_passed_on_only_where_somebody_could_take_it(crew: Crew, other: str, told: str) -> None:
    crew.strike("bad", "slow")
    crew.queue.claim("good", 0, "first", machine="GOOD")
    crew.queue.claim("going", 0, "first", machine="GOING")
    crew.announce("slow")
    crew.announce(other, "quitting" if other == "going" else "idle")
    claim = crew.claim("slow")
    for _ in range(5):
        crew.master._seen.paces.add_result(claim.trial.group, replace(DONE, epoch_s=1.0, device_model="cpu", array_width=1))
    crew.queue.renew("slow", [Progress(claim.fence, 1, epoch=2.5, epoch_elapsed_s=1000.0, device_model="cpu", array_width=1)])
    crew.master._care()
    assert told in crew.said()


# -- local workers that hold trials when they end


def test_who_left_the_list_but_gave_nothing_back_still_holds_its_trials(crew: Crew) -> None:
    crew.master.local = Mock(pids=[71], given_up=False)
    crew.announce("exits", pid=71)
    claim = crew.claim("exits")
    for leave in (False, True, True):
        if leave:
            WorkerRegistry(crew.client).leave("exits")
        crew.master._care()
        assert crew.master.local.poll.call_args.args == ({71},)
    crew.queue.release([claim.fence])
    crew.master._care()
    assert crew.master.local.poll.call_args.args == (set(),)


def test_whose_lease_runs_out_before_its_end_is_seen_has_died_with_it(crew: Crew, brief: TrialQueue) -> None:
    crew.master.local = Mock(pids=[71], given_up=False)
    crew.announce("exits", pid=71)
    (claim,) = brief.claim("exits", 1, "r", machine="EXITS")
    until(lambda: crew.queue.tick(True).expired, "the lease is over")
    crew.master._care()
    assert crew.queue.state(claim.trial.id) is TrialState.PENDING
    assert crew.master.local.poll.call_args.args == ({71},)


def test_who_goes_by_order_is_not_started_again_though_redis_did_not_hear_what_it_gave_back(crew: Crew) -> None:
    crew.master.local = Mock(pids=[71], given_up=False)
    crew.announce("goes", "quitting", 71)
    crew.claim("goes")
    crew.master._care()
    assert crew.master.local.poll.call_args.args == (set(),)

"""A master that watches a stage. Redis is rebuilt meanwhile, or machines are set aside."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import redis

from common.errors import ConfigError
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.search.search_file import Search, parse_search
from common.search.stage import Stragglers
from common.search.trial import Claim, Progress, Trial, TrialState, WorkerInfo
from master.run import supervisor as module
from master.run.janitor import ORPHAN_S
from master.run.supervisor import Supervisor
from master.stages.ladder import Ladder
from master.stages.standings import Standings
from tests.contract.trials import DONE, made, text_with, until

TEXT = text_with("[stages.coarse]\ntrials = 20\nepochs = 1\n")


def published_of(search: Search, trials: list[Trial]) -> SimpleNamespace:
    """A stage of one rung, from which nobody is promoted."""
    stage, standings = search.stage("coarse"), Standings(search)
    for trial in trials:
        standings.add(trial)
    return SimpleNamespace(
        added=1, stage=stage, trials=trials, ladder=Ladder(stage, standings, [], Mock())
    )


def local(*pids: int, how_ended: Callable[[int, str], str] = lambda pid, job: "") -> Mock:
    """Stand in for local workers with these processes."""
    return Mock(pids=list(pids), given_up=False, absence="", how_ended=how_ended)


@pytest.fixture
def watching(queue: TrialQueue, client: redis.Redis, tmp_path: Path) -> Supervisor:
    """Make a master that queued three trials.

    Redis was emptied after that and knows one trial again, which has ended.
    """
    search, trials = parse_search(TEXT), made(3)
    launched = SimpleNamespace(search=search, folder=SearchFolder(tmp_path, "digits"))
    queue.restore(trials[0], 1, DONE)
    published = published_of(search, trials)
    return Supervisor(
        SimpleNamespace(client=client),  # type: ignore[arg-type]
        launched,
        published,
        queue,
        Mock(),
        None,
    )


def test_a_stage_has_not_ended_while_its_trials_are_being_recovered(
    watching: Supervisor, queue: TrialQueue
) -> None:
    assert watching._look() is None  # the ended one is back, the others are not yet
    queue.publish(made(3))
    assert watching._look() is None
    queue.finish([(claim.fence, DONE) for claim in queue.claim("w", 3, "r")])
    assert watching._look() == {**dict.fromkeys(queue.counts()["coarse"], 0), "completed": 3}


def test_what_killed_programs_have_left_goes_at_the_end_of_a_stage(
    watching: Supervisor, queue: TrialQueue, tmp_path: Path
) -> None:
    left = tmp_path / "digits" / "logs" / ".tmp-1-stayed.json"
    left.parent.mkdir(parents=True)
    left.touch()
    os.utime(left, (left.stat().st_mtime - 2 * ORPHAN_S,) * 2)
    queue.publish(made(3))
    queue.finish([(claim.fence, DONE) for claim in queue.claim("w", 3, "r")])
    while watching._look() is None:
        pass
    assert not left.exists()


def test_ends_that_redis_counts_anew_after_it_was_emptied_are_heard(
    watching: Supervisor, queue: TrialQueue
) -> None:
    queue.publish(made(3))
    queue.finish([(claim.fence, DONE) for claim in queue.claim("w", 1, "r1")])
    assert watching._look() is None  # two ends are heard of
    queue.drop()
    queue.restore(made(3)[0], 1, DONE)  # what has a record: one of the two
    queue.publish(made(3))
    assert watching._look() is None
    queue.finish(
        [(claim.fence, DONE) for claim in reversed(queue.claim("w", 3, "r2"))]
    )  # the one not heard of before comes second
    while watching._look() is None:
        pass
    assert watching._ladder.standings.states([trial.id for trial in made(3)]) == {"completed": 3}


def test_trials_that_nobody_brings_back_are_told_with_the_remedy(
    watching: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LACKING_S", 0.0)
    assert watching._look() is None
    with pytest.raises(ConfigError, match="has lost 2 of its trials; launch again"):
        watching._look()


# -- machines that are put aside


class Crew:
    """A master that watches twenty trials, and its workers.

    A test starts as many workers on each machine as it needs.
    """

    def __init__(self, queue: TrialQueue, client: redis.Redis, folder: Path) -> None:
        search = parse_search(TEXT)
        self.queue, self.client, self.display = queue, client, Mock()
        queue.publish(made(20))
        launched = SimpleNamespace(search=search, folder=SearchFolder(folder, "digits"))
        published = published_of(search, made(20))
        self.started = Mock(return_value=None)
        self.master = Supervisor(
            SimpleNamespace(client=client),
            launched,
            published,
            queue,
            self.display,
            None,
            self.started,
        )  # type: ignore[arg-type]
        self.claims = 0

    def announce(
        self, name: str, state: str = "idle", pid: int = 1, reason: str = "", job: str = ""
    ) -> None:
        host, machine = socket.gethostname(), name.upper()
        info = WorkerInfo(
            name, host, pid, "cpu", state=state, machine=machine, reason=reason, job=job
        )
        WorkerRegistry(self.client).announce(info)

    def claim(self, name: str) -> Claim:
        self.claims += 1
        (claim,) = self.queue.claim(name, 1, f"{self.claims}", machine=name.upper())
        return claim

    def strike(self, bad: str, good: str, n: int = 3) -> None:
        """Let three trials raise on one machine and complete on the other.

        The first machine is then set aside.
        """
        for name in (bad, good):
            self.queue.claim(name, 0, "first", machine=name.upper())
        for claim in [self.claim(bad) for _ in range(n)]:
            self.queue.fail([(claim.fence, "boom")])
        for _ in range(n):
            self.queue.finish([(self.claim(good).fence, DONE)])

    def said(self) -> str:
        return "\n".join(call.args[0] for call in self.display.say.call_args_list)


@pytest.fixture
def crew(
    queue: TrialQueue, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Crew:
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
    crew.master.local = Mock(
        pids=[71, 72], given_up=False, absence="", how_ended=lambda pid, job: ""
    )
    crew.announce("bad", "aside", 71, "this machine is put aside")
    crew.master._care()
    assert "no worker takes trials" not in crew.said()  # the other has not said a word yet
    crew.master.local.pids = [71]
    crew.master._care()
    assert (
        "no worker takes trials of this search" in crew.said()
        and "this machine is put aside" in crew.said()
    )
    assert not crew.master.local.start.called  # they run


def test_a_worker_that_is_put_aside_for_another_search_counts_as_one(crew: Crew) -> None:
    crew.queue.claim("bad", 0, "first", machine="BAD")
    crew.announce("bad", "aside", reason="this machine is put aside")
    crew.master._care()
    assert not crew.said() and not crew.started.called


def paced(crew: Crew, elapsed_s: float, elsewhere: str) -> Claim:
    """Give one worker a trial in a long epoch.

    Five epochs of a second each were trained ``elsewhere``.
    """
    for worker in ("here", "there"):
        crew.queue.claim(worker, 0, "first", machine=worker)
        WorkerRegistry(crew.client).announce(WorkerInfo(worker, "host", 1, "cpu", machine=worker))
    claim = crew.claim("here")
    crew.master._care()  # knows the workers now
    done = replace(DONE, worker=elsewhere, epoch_s=1.0, device_model="cpu", array_width=1)
    for _ in range(5):
        crew.master._seen.paces.add_result(claim.trial.group, done)
    crew.queue.renew(
        "here",
        [
            Progress(
                claim.fence,
                1,
                epoch=2.5,
                epoch_elapsed_s=elapsed_s,
                device_model="cpu",
                array_width=1,
            )
        ],
    )
    crew.master._care()
    return claim


@pytest.mark.parametrize(("elsewhere", "told"), [("there", 1), ("here", 0)])
def test_a_slow_trial_is_told_of_once_and_stays_with_its_worker(
    crew: Crew, elsewhere: str, told: int
) -> None:
    claim = paced(crew, 1000.0, elsewhere)
    crew.master._care()
    assert crew.said().count("slow on here") == told
    assert [running.fence for running in crew.queue.running()] == [claim.fence]


def test_a_trial_beyond_the_users_limit_is_killed(crew: Crew) -> None:
    claim = crew.claim("here")
    launched = crew.master._launched
    launched.search = launched.search.model_copy(  # type: ignore[misc]
        update={"stragglers": Stragglers(limit_s=0.01)},
    )
    until(lambda: crew.queue.running()[0].claimed_s > 0.01, "the limit is over")
    crew.master._care()
    assert crew.queue.state(claim.trial.id) is TrialState.KILLED
    assert "more than [stragglers] limit_s = 0.01; KILLED" in crew.said()


# -- local workers that hold trials when they end


def test_who_left_the_list_but_gave_nothing_back_still_holds_its_trials(crew: Crew) -> None:
    crew.master.local = local(71)
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


def test_whose_lease_runs_out_before_its_end_is_seen_has_died_with_it(
    crew: Crew, brief: TrialQueue
) -> None:
    crew.master.local = local(71)
    crew.announce("exits", pid=71)
    (claim,) = brief.claim("exits", 1, "r", machine="EXITS")
    until(lambda: crew.queue.tick(True).expired, "the lease is over")
    crew.master._care()
    assert crew.queue.state(claim.trial.id) is TrialState.PENDING
    assert crew.master.local.poll.call_args.args == ({71},)


@pytest.mark.parametrize(("pid", "job"), [(71, ""), (1, "17_1")])
def test_how_a_worker_of_the_launch_died_stands_in_the_reason_of_the_trial(
    crew: Crew, brief: TrialQueue, pid: int, job: str
) -> None:
    told = "its last worker ended with exit status 3; its output ends in logs/worker-1.log"

    def how_ended(of_pid: int, of_job: str) -> str:
        return told if (of_pid, of_job) == (pid, job) else ""

    crew.master.local = local(71, how_ended=how_ended)
    for n in range(60):
        crew.announce("exits", pid=pid, job=job)
        (claim,) = brief.claim("exits", 1, f"r{n}", machine="EXITS")
        until(lambda: crew.queue.tick(True).expired, "the lease is over")
        crew.master._care()
        if crew.queue.state(claim.trial.id) is TrialState.FAILED:
            break
    ended = crew.queue.result(claim.trial.id)
    assert ended is not None and str(ended[1].reason).startswith("lost 3 attempts while alone: ")
    assert str(ended[1].reason).endswith(f" on exits; {told}")


def test_who_goes_by_order_is_not_started_again_though_redis_did_not_hear_what_it_gave_back(
    crew: Crew,
) -> None:
    crew.master.local = local(71)
    crew.announce("goes", "quitting", 71)
    crew.claim("goes")
    crew.master._care()
    assert crew.master.local.poll.call_args.args == (set(),)

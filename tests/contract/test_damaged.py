"""Damage to a search's keys by another program.

What is readable is served. The rest is skipped, ended, or reported in one message.
"""

from __future__ import annotations

import pytest
import redis

from common.errors import DamagedReplyError
from common.queue.answers import Verdict
from common.queue.trial_queue import TrialQueue, searches
from common.queue.workers import KEYS, WorkerRegistry
from common.search.trial import Fence, TrialState, WorkerInfo
from tests.contract.trials import DONE, GROUP, SEARCH, check_consistent, heartbeat, ids, made

NONSENSE = [
    "",
    "null",
    "[]",
    "{}",
    "[1,2",
    '["../../up",1,1,1.0,{},"{}"]',
    '{"state":"ruled"}',
    "9" * 5000,
    "\x1b[2J",
]

STATES = [
    "", "[1,2", "9" * 5000, "\x1b[2J", "null", "[]", '{"s":"running","g":1,"i":0,"a":"x"}',
    '{"s":"running","g":1,"i":0,"a":1}',
    '{"s":"pending","g":1,"i":0,"a":1,"b":5}', '{"s":"ruled","g":1,"i":0,"a":1}',
    '{"s":"pending","g":[],"i":{},"a":null}',
]  # fmt: skip


@pytest.fixture
def torn(client: redis.Redis) -> TrialQueue:
    """A search that need not be consistent afterwards."""
    queue = TrialQueue(client, SEARCH)
    queue.tick(master=True)
    queue.publish(made(4))
    return queue


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_a_trial_whose_configuration_is_damaged_ends_and_the_others_go_on(
    torn: TrialQueue, nonsense: str
) -> None:
    torn.client.hset(torn.keys["trials"], "coarse-0001", nonsense)
    assert ids(torn.claim("w", 4, "r")) == ["coarse-0000", "coarse-0002", "coarse-0003"]
    assert torn.state("coarse-0001") is TrialState.FAILED
    ended = torn.result("coarse-0001")
    assert ended is not None and "this program has not written" in str(ended[1].reason)
    with pytest.raises(DamagedReplyError, match="see who else uses this Redis"):
        torn.trial("coarse-0001")


def test_a_trial_of_a_name_that_leads_elsewhere_is_never_handed_out(torn: TrialQueue) -> None:
    name = "../../up-0001"
    torn.client.hset(torn.keys["trials"], name, '["../../up",1,1,1.0,{},"{}"]')
    state = torn.client.hget(torn.keys["states"], "coarse-0000")
    torn.client.hset(torn.keys["states"], name, state)
    torn.client.zadd(
        torn.keys["pending"], {name: torn.client.zscore(torn.keys["pending"], "coarse-0000")}
    )
    assert set(ids(torn.claim("w", 9, "r"))) <= {trial.id for trial in made(4)}


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_heartbeats_results_and_workers_that_are_damaged_are_passed_over(
    torn: TrialQueue, nonsense: str
) -> None:
    claims = torn.claim("w", 3, "r")
    torn.renew("w", [heartbeat(claims[0].fence, 3)])
    torn.finish([(claims[2].fence, DONE)])
    torn.client.hset(torn.keys["progress"], claims[1].trial.id, nonsense)
    torn.client.rpush(torn.keys["endings"], nonsense)
    torn.client.rpush(torn.keys["endings"], f"1 0 {claims[1].trial.id}")
    torn.client.hset(torn.keys["results"], claims[1].trial.id, f"1 {nonsense}")
    running = {found.fence.trial_id: found for found in torn.running()}
    assert set(running) == {claims[0].trial.id, claims[1].trial.id}
    assert (
        running[claims[0].trial.id].progress is not None
        and running[claims[1].trial.id].progress is None
    )
    assert [trial for trial, _, _ in torn.read_ended()] == [claims[2].trial.id]
    registry = WorkerRegistry(torn.client)
    registry.announce(WorkerInfo("w", "host", 1, "cpu"))
    registry.announce(WorkerInfo("x", "host", 1, "cpu"))
    torn.client.hset(KEYS[0], "x", nonsense)
    assert [info.worker for info in registry.list()] == ["w"]


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_searches_and_options_that_are_damaged(torn: TrialQueue, nonsense: str) -> None:
    torn.register("digits")
    torn.client.hset("{cf}:searches", "b" * 16, nonsense)
    assert (SEARCH, "digits") in searches(torn.client)
    torn.client.hset(f"cf:{{{SEARCH}}}:frozen", "coarse", nonsense)
    if nonsense not in ("{}", '{"state":"ruled"}'):
        with pytest.raises(DamagedReplyError):
            torn.frozen("coarse")


@pytest.mark.parametrize("nonsense", [stored for stored in STATES if '"b"' not in stored])
def test_a_state_that_no_script_can_read_is_told_in_one_line(
    torn: TrialQueue, nonsense: str
) -> None:
    torn.client.hset(torn.keys["states"], "coarse-0000", nonsense)
    for word in (
        lambda: torn.kill("coarse-0000", "by hand"),
        lambda: torn.retry("coarse-0000"),
        lambda: torn.state("coarse-0000"),
    ):
        with pytest.raises(DamagedReplyError, match="see who else uses") as caught:
            word()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("nonsense", STATES)
def test_a_trial_whose_state_is_damaged_ends_as_failed_and_the_others_go_on(
    torn: TrialQueue, nonsense: str
) -> None:
    """Both where it waits and where somebody holds it: nobody has to wait for it."""
    (held,) = torn.claim("w", 1, "first", group=GROUP)
    torn.client.hset(
        torn.keys["states"], mapping={held.trial.id: nonsense, "coarse-0002": nonsense}
    )
    assert torn.renew("w", [heartbeat(held.fence)]) == {held.trial.id: "damaged"}
    assert torn.finish([(held.fence, DONE)]) == [Verdict.LOST]
    others = torn.claim("w", 4, "second")
    assert ids(others) == ["coarse-0001", "coarse-0003"]
    assert torn.finish([(claim.fence, DONE) for claim in others]) == [Verdict.OK, Verdict.OK]
    assert torn.state("coarse-0002") is TrialState.FAILED and torn.count_unfinished() == 1
    torn.client.zadd(torn.keys["leases"], {held.trial.id: 1})
    assert torn.tick(master=True).expired == () and torn.count_unfinished() == 0
    assert torn.counts()["coarse"] == {**dict.fromkeys(TrialState, 0), "completed": 2, "failed": 2}
    ended = {trial: result for trial, _, result in torn.read_ended()}
    assert len(ended) == 4 and "this program has not written" in str(ended[held.trial.id].reason)
    check_consistent(torn)
    assert torn.retry(held.trial.id) and ids(torn.claim("w", 4, "third")) == [held.trial.id]
    check_consistent(torn)


def test_a_lease_of_no_trial_is_not_reaped(torn: TrialQueue) -> None:
    (claim,) = torn.claim("w", 1, "r")
    state = torn.client.hget(torn.keys["states"], claim.trial.id)
    torn.client.hset(torn.keys["states"], "../../up-0001", state)
    torn.client.zadd(torn.keys["leases"], {"../../up-0001": 1, claim.trial.id: 1})
    assert torn.tick(master=True).expired == ((Fence(claim.trial.id, 1, claim.fence.token), "w"),)

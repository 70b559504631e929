"""Publishing, freezing, recovery from the folder, and the list of searches."""

from __future__ import annotations

import math

import pytest
import redis

from common.queue.trial_queue import TrialQueue, searches
from common.search.trial import Result, TrialState
from tests.contract.trials import DONE, GROUP, SEARCH, ids, lose, made
from tests.redis_server import RedisServer


def test_publishing_twice_adds_nothing(queue: TrialQueue) -> None:
    assert queue.publish(made(1200)) == 1200
    assert queue.publish(made(1200)) == 0
    assert queue.counts()["coarse"]["pending"] == queue.pending_total() == 1200


def test_a_stage_grows_by_what_is_missing(queue: TrialQueue) -> None:
    queue.publish(made(3))
    (claim,) = queue.claim("w", 1, "r")
    queue.finish([(claim.fence, DONE)])
    assert queue.publish(iter(made(5))) == 2
    assert queue.counts() == {
        "coarse": {
            "pending": 4,
            "running": 0,
            "completed": 1,
            "exploded": 0,
            "stopped": 0,
            "killed": 0,
            "failed": 0,
        },
    }


def test_a_trial_comes_back_as_it_was_published(queue: TrialQueue) -> None:
    (trial,) = made(1)
    queue.publish([trial])
    assert queue.trial(trial.id) == trial
    assert queue.trials_of([trial.id, "coarse-0001"]) == [trial, None] and queue.trials_of([]) == []
    assert list(queue.trials("coarse")) == [trial]
    assert list(queue.trials("fine")) == []
    assert queue.state(trial.id) is TrialState.PENDING
    assert queue.attempt(trial.id) == 0
    assert queue.result(trial.id) is None
    (claim,) = queue.claim("w", 1, "r")
    assert claim.trial == trial


def test_what_was_never_published_is_unknown(queue: TrialQueue) -> None:
    assert queue.trial("coarse-0000") is None
    assert queue.state("coarse-0000") is None
    assert queue.attempt("coarse-0000") == 0
    assert queue.counts() == {}
    assert queue.running() == []


def test_attempts_start_above_what_the_folder_knows(queue: TrialQueue) -> None:
    queue.publish(made(2), {"coarse-0001": 4})
    assert [claim.fence.attempt for claim in queue.claim("w", 2, "r")] == [1, 5]


def test_publishing_again_raises_the_floor_of_a_waiting_trial_alone(queue: TrialQueue) -> None:
    queue.publish(made(2))
    (first,) = queue.claim("w", 1, "r")
    queue.publish(made(2), {"coarse-0000": 9, "coarse-0001": 9})
    assert (queue.attempt("coarse-0000"), queue.attempt("coarse-0001")) == (1, 9)
    assert queue.finish([(first.fence, DONE)]) == ["ok"]


def test_an_index_beyond_a_million_is_refused(queue: TrialQueue) -> None:
    with pytest.raises(ValueError, match="spread the trials over several stages"):
        queue.publish(made(1, first=1 << 20))


def test_freezing_keeps_the_first_word(queue: TrialQueue) -> None:
    first = {
        "seed": 231,
        "ranges": {"lr": [1e-6, 10.0], "depth": [1, math.inf]},
        "note": "$float",
        "limits": [],
    }
    assert queue.frozen("coarse") is None
    assert queue.freeze("coarse", first) == first
    assert queue.freeze("coarse", {"seed": 7}) == first
    assert queue.frozen("coarse") == first


def test_searches_are_listed_by_their_first_launch(client: redis.Redis) -> None:
    assert searches(client) == []
    for name in ("b", "a", "c"):
        TrialQueue(client, name * 16).register(f"name of {name}")
    TrialQueue(client, "b" * 16).register("renamed")
    assert searches(client) == [
        ("b" * 16, "renamed"),
        ("a" * 16, "name of a"),
        ("c" * 16, "name of c"),
    ]


def test_dropping_a_search_leaves_the_others_alone(queue: TrialQueue, client: redis.Redis) -> None:
    other = TrialQueue(client, "f" * 16)
    for search in (queue, other):
        search.register("digits")
        search.freeze("coarse", {})
        search.publish(made(3))
    (claim,) = queue.claim("w", 1, "r")
    queue.drop()
    assert [key for key in client.scan_iter() if SEARCH in key] == []
    assert searches(client) == [("f" * 16, "digits")]
    assert other.pending_total() == 3
    assert queue.finish([(claim.fence, DONE)]) == ["lost"]


def test_an_ended_record_restores_a_trial_that_redis_does_not_know(queue: TrialQueue) -> None:
    (trial,) = made(1)
    assert queue.restore(trial, 3, DONE)
    assert queue.state(trial.id) is TrialState.COMPLETED
    assert queue.result(trial.id) == (3, DONE)
    assert queue.read_endings(0) == [(1, trial.id, 3, DONE)]
    assert queue.publish([trial]) == 0
    assert not queue.restore(trial, 3, DONE)


def test_an_ended_record_restores_a_waiting_trial(queue: TrialQueue) -> None:
    queue.publish(made(2))
    assert queue.restore(made(2)[0], 1, DONE)
    assert ids(queue.claim("w", 2, "r")) == ["coarse-0001"]


def test_a_record_of_the_running_attempt_is_its_finish(queue: TrialQueue) -> None:
    queue.publish(made(1))
    (claim,) = queue.claim("w", 1, "r")
    assert queue.restore(claim.trial, 1, DONE)
    assert queue.finish([(claim.fence, DONE)]) == ["ok"]
    assert len(queue.read_endings(0)) == 1


def test_a_record_of_an_earlier_attempt_leaves_the_running_one_alone(
    queue: TrialQueue, brief: TrialQueue
) -> None:
    queue.publish(made(1))
    lose(queue, brief, "coarse-0000", "w", "r")
    (second,) = queue.claim("w", 1, "s")
    assert not queue.restore(second.trial, 1, DONE)
    assert queue.finish([(second.fence, DONE)]) == ["ok"]


def test_a_record_of_a_later_attempt_outranks_a_redis_that_went_back_in_time(
    queue: TrialQueue,
) -> None:
    queue.publish(made(1))
    (claim,) = queue.claim("w", 1, "r")
    assert queue.restore(claim.trial, 2, DONE)
    assert queue.finish([(claim.fence, DONE)]) == ["lost"]
    assert queue.result("coarse-0000") == (2, DONE)


def test_a_retried_trial_is_not_ended_again_by_its_old_record(queue: TrialQueue) -> None:
    queue.publish(made(1))
    taken = queue.kill("coarse-0000", "by hand")
    assert taken and taken.result
    queue.retry("coarse-0000")
    assert not queue.restore(made(1)[0], taken.fence.attempt, taken.result)
    assert queue.state("coarse-0000") is TrialState.PENDING


def test_endings_are_read_once_each_and_in_order(queue: TrialQueue) -> None:
    queue.publish(made(5) + made(2, "fine", first=5))
    for round_number in range(2):
        queue.finish([(claim.fence, DONE) for claim in queue.claim("w", 5, f"r{round_number}")])
    first = queue.read_endings(0, limit=3)
    rest = queue.read_endings(first[-1][0])
    assert [row[0] for row in first + rest] == [1, 2, 3, 4, 5, 6, 7]
    assert queue.read_endings(7) == []
    assert [row[0] for row in queue.read_ended("fine")] == ["fine-0005", "fine-0006"]
    assert len(list(queue.read_ended())) == 7


def test_an_ending_that_a_retry_undid_is_left_out(queue: TrialQueue) -> None:
    queue.publish(made(4))
    for trial in made(3):
        queue.kill(trial.id, "by hand")
    for trial in made(2):
        queue.retry(trial.id)
    assert [row[:3] for row in queue.read_endings(0, limit=1)] == [(3, "coarse-0002", 1)]


def test_trials_can_be_listed_by_state(queue: TrialQueue) -> None:
    queue.publish(made(3, "medium", first=9) + made(12))
    queue.kill("coarse-0011", "by hand")
    queue.kill("medium-0010", "by hand")
    assert queue.by_state(TrialState.KILLED) == ["medium-0010", "coarse-0011"]
    assert queue.by_state(TrialState.KILLED, TrialState.PENDING, stage="medium") == [
        "medium-0009",
        "medium-0010",
        "medium-0011",
    ]
    assert queue.by_state(TrialState.PENDING, stage="fine") == []


def test_a_client_that_does_not_decode_reads_the_same(
    server: RedisServer, queue: TrialQueue
) -> None:
    with server.client(decode_responses=False) as raw:
        other = TrialQueue(raw, SEARCH)
        other.register("digits")
        other.publish(made(2))
        claims = other.claim("w", 2, "r")
        assert claims == queue.claim("w", 2, "r")
        assert [running.trial for running in other.running()] == made(2)
        other.finish([(claims[0].fence, Result(TrialState.STOPPED, "no better than chance"))])
        taken = other.kill("coarse-0001", "by hand")
        assert taken and taken.worker == "w"
        assert other.counts() == queue.counts()
        assert list(other.read_ended("coarse")) == list(queue.read_ended("coarse"))
        assert searches(raw) == [(SEARCH, "digits")]
        assert made(1, group=GROUP)[0] in list(other.trials())

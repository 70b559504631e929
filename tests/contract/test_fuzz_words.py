"""Arbitrary writes by another program into a search's keys.

Each command works or refuses in one line, and the search still ends.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from hypothesis import assume, given
from hypothesis import strategies as st

from common.errors import DamagedReplyError, PutAside
from common.queue.bells import ENDED, WORK
from common.queue.trial_queue import SEARCHES, TrialQueue, searches
from common.queue.workers import KEYS, WorkerRegistry
from common.search.trial import Claim, Fence, Result, TrialState, WorkerInfo
from tests.contract.trials import DONE, SEARCH, at_rung, heartbeat, ids, made
from tests.redis_server import RedisServer
from tests.unit.fuzzing import BYTES, JSON, LONGEST_MESSAGE, NUMBERS, TEXT, fuzzed, with_changes

RUNNING = "coarse-0004"
FROZEN = f"cf:{{{SEARCH}}}:frozen"
PATIENCE_S = 10.0  # no word takes a hundredth of it
MOST_ROUNDS = 50  # of claiming and finishing; three do
KINDS = ("hash", "zset", "list", "set", "string")
RAW: st.SearchStrategy[str | bytes] = (
    TEXT
    | BYTES
    | NUMBERS.map(str)
    | JSON.map(json.dumps)
    | st.tuples(NUMBERS, NUMBERS, JSON.map(json.dumps)).map(lambda t: " ".join(map(str, t)))
)


class Scene:
    """A search half-way, with something in each key. It is restored before each example."""

    def __init__(self, server: RedisServer) -> None:
        self.client = server.client(socket_timeout=PATIENCE_S)
        self.raw = server.client(decode_responses=False)
        self.queue = TrialQueue(self.client, SEARCH)
        self.registry = WorkerRegistry(self.client)
        self.client.flushall()
        self._fill()
        self.names: list[str] = sorted(str(name) for name in self.client.keys("*"))
        self.kinds: dict[str, str] = {name: str(self.client.type(name)) for name in self.names}
        self._kept: dict[str, Any] = {name: self.raw.dump(name) for name in self.names}
        self.values: dict[str, dict[str, str]] = {
            name: self.client.hgetall(name) for name in self.names if self.kinds[name] == "hash"
        }  # type: ignore[misc]
        self.members: dict[str, list[str]] = {
            name: self.client.zrange(name, 0, -1)
            for name in self.names
            if self.kinds[name] == "zset"
        }  # type: ignore[misc]

    def _fill(self) -> None:
        queue = self.queue
        queue.register("digits")
        queue.freeze("coarse", {"seed": 1, "ranges": {}})
        queue.tick(master=True)
        queue.publish(made(12, group=lambda i: '{"hidden":32}' if i < 8 else '{"hidden":64}'))
        for worker, machine in (("w", "A"), ("v", "B")):
            queue.claim(worker, 0, "begin", machine=machine)
            self.registry.announce(WorkerInfo(worker, "host", 1, "cpu", machine=machine))
        claims = {
            claim.trial.id: claim
            for claim in [
                *queue.claim("w", 4, "r", machine="A"),
                *queue.claim("v", 4, "r", machine="B"),
            ]
        }
        fences = [claims[name].fence for name in sorted(claims)]
        assert len(fences) == 8, "the two take eight of the twelve"
        queue.finish(
            [(fences[0], DONE), (fences[1], Result(TrialState.FAILED, "it raised", epoch_s=1.0))]
        )
        queue.kill(fences[2].trial_id, "by hand")
        queue.take(fences[3], "stuck")
        queue.renew(
            "w",
            [heartbeat(fence, 3) for fence in fences[4:]],
            {RUNNING: '{"epoch":[1.0],"val_acc":[0.5]}'},
        )
        assert queue.fail([(fences[5], "it raised")])[0].ruling == "passed"
        self.registry.order_quit("w")
        self.registry.mark_slow("v")
        self.fence = next(fence for fence in fences if fence.trial_id == RUNNING)
        self.claims: list[Claim] = list(claims.values())
        for fence in fences[4:]:
            if fence != fences[5]:
                self.client.zadd(queue.keys["leases"], {fence.trial_id: 1}, xx=True)

    def put_back(self) -> None:
        pipeline = self.raw.pipeline(transaction=False).flushall()
        for name, content in self._kept.items():
            pipeline.restore(name, 0, content)
        pipeline.execute()
        seconds, micros = self.client.time()  # type: ignore[misc]
        now_ms = seconds * 1000 + micros // 1000
        self.client.hset(self.queue.keys["meta"], mapping={"tick": now_ms, "master": now_ms})
        self.client.zadd(self.queue.keys["workers"], {"w": now_ms, "v": now_ms})
        self.client.zadd(KEYS[1], {"w": now_ms, "v": now_ms})

    def words(self) -> dict[str, Callable[[], Any]]:
        """Return a call of every queue command. The trials exist, are damaged, or do not exist."""
        queue, registry, fence = self.queue, self.registry, self.fence
        said = [
            (fence, DONE),
            *((claim.fence, DONE) for claim in self.claims),
            (Fence("coarse-0099", 1, "t"), DONE),
        ]
        return {
            "register": lambda: queue.register("digits"),
            "freeze": lambda: queue.freeze("coarse", {"seed": 1}),
            "refreeze": lambda: queue.refreeze("coarse", "task_digest", "d"),
            "frozen": lambda: queue.frozen("coarse"),
            "publish": lambda: queue.publish(made(14), {"coarse-0009": 3}),
            "publish a stage": lambda: queue.publish(made(1, stage="fine")),
            "restore": lambda: [queue.restore(trial, 2, DONE) for trial in made(14)[-5:]],
            "restore longer": lambda: [
                queue.restore(at_rung(trial, 1), 2, DONE) for trial in made(14)[-5:]
            ],
            "promote": lambda: queue.promote(
                [at_rung(trial, 1) for trial in made(14)], {"coarse-0009": 3}
            ),
            "endings_of": lambda: queue.endings_of([f"coarse-000{i}" for i in range(9)]),
            "wait": lambda: [bell.wait(0.001) for bell in (queue.bells.work, queue.bells.ended)],
            "claim": lambda: queue.claim("w", 4, "other", machine="A"),
            "claim anew": lambda: queue.claim("u", 4, "r", machine="C"),
            "claim again": lambda: queue.claim("v", 4, "r", machine="B"),
            "refill": lambda: queue.claim("w", 4, "more", group='{"hidden":64}', machine="A"),
            "renew": lambda: queue.renew(
                "w", [heartbeat(word[0], 4) for word in said], {RUNNING: "{}"}
            ),
            "fail": lambda: queue.fail([(word[0], "it raised") for word in said[:5]]),
            "finish": lambda: queue.finish(said[:6]),
            "release": lambda: queue.release([word[0] for word in said]),
            "tick": lambda: queue.tick(master=False),
            "expire": lambda: queue.expire(fence),
            "reap": lambda: [queue.expire(found) for found, _ in queue.tick(master=True).expired],
            "take": lambda: queue.take(self.claims[-1].fence),
            "kill": lambda: [queue.kill(f"coarse-000{i}", "by hand") for i in (3, 7, 9)],
            "retry": lambda: [queue.retry(f"coarse-000{i}") for i in (1, 2)],
            "leave": lambda: queue.leave("u"),
            "trial": lambda: queue.trial(RUNNING),
            "trials_of": lambda: queue.trials_of([f"coarse-000{i}" for i in range(9)]),
            "trials": lambda: list(queue.trials("coarse")),
            "state": lambda: queue.state(RUNNING),
            "attempt": lambda: queue.attempt(RUNNING),
            "result": lambda: queue.result("coarse-0000"),
            "curves": lambda: queue.curves(RUNNING),
            "by_state": lambda: queue.by_state(*TrialState, stage="coarse"),
            "counts": queue.counts,
            "check": queue.check,
            "pending_total": queue.pending_total,
            "unfinished": queue.count_unfinished,
            "live_workers": queue.live_workers,
            "running": queue.running,
            "ended": lambda: list(queue.read_ended("coarse")),
            "ended_since": lambda: queue.read_endings(0, limit=2),
            "master_alive": queue.master_alive,
            "searches": lambda: searches(self.client),
            "announce": lambda: registry.announce(WorkerInfo("w", "host", 1, "cpu")),
            "workers": registry.list,
            "worker": lambda: registry.get("v"),
            "order_quit": lambda: registry.order_quit("v"),
            "mark_slow": lambda: registry.mark_slow("w"),
            "worker leaves": lambda: registry.leave("v"),
        }

    def set(self, name: str, field: str, value: Any) -> None:
        self.raw.hset(name, field, value)


@pytest.fixture(scope="module")
def scene(server: RedisServer) -> Iterator[Scene]:
    made_scene = Scene(server)
    yield made_scene
    made_scene.client.close()
    made_scene.raw.close()


def test_the_scene_has_something_in_every_key_and_no_word_refuses_it(scene: Scene) -> None:
    scene.put_back()
    assert set(scene.names) == {*scene.queue.keys.values(), FROZEN, SEARCHES, *KEYS, WORK, ENDED}
    for name, word in scene.words().items():
        assert _said(name, word) is not DamagedReplyError, name


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        *(
            ("states", RUNNING, change)
            for change in (
                {"a": "x"},
                {"t": 5},
                {"w": None},
                {"w": [1]},
                {"c": 1e999},
                {"a": 10**400},
            )
        ),
        *(
            ("states", RUNNING, change)
            for change in (
                {"l": [{}], "o": True},
                {"b": "x"},
                {"b": [["A", "x", 5, None]]},
                {"y": 5},
            )
        ),
        *(("trials", f"coarse-00{i:02d}", None) for i in (4, 5, 9)),
        *(("states", f"coarse-00{i:02d}", None) for i in (4, 5, 9)),
        ("meta", "master", "x"),
        ("meta", "master", "9" * 17),
        ("meta", "tick", "x"),
        ("counts", "0:pending", "x"),
        ("counts", "0:pending", "-1"),
        ("groups", "coarse", "x"),
        ("groups", "#", str(10**15)),  # of a loop in a script
        ("requests", "v", "[1,2"),
        ("requests", "v", '{"request":"r","ids":"x"}'),
        ("doubts", "B", "[1,2"),
        ("doubts", "B", '{"s":9,"o":1,"f":1,"n":"x","y":{}}'),
        ("trials", RUNNING, b"\xff\xfe"),
        ("results", "coarse-0000", '1 {"state":"completed","val_acc":' + "9" * 400 + "}"),
        ("results", "coarse-0000", '1 {"state":"completed","reason":"\\ud800"}'),
    ],
)
def test_what_was_found(scene: Scene, key: str, field: str, value: Any) -> None:
    scene.put_back()
    name = scene.queue.keys[key]
    planted = (
        json.dumps({**json.loads(scene.values[name][field]), **value})
        if isinstance(value, dict)
        else value
    )
    for word, say in scene.words().items():
        if planted is None:
            scene.raw.hdel(name, field)
        else:
            scene.set(name, field, planted)
        _said(word, say)


def test_a_queue_of_no_name_and_a_lease_of_no_trial_hide_nothing(scene: Scene) -> None:
    scene.put_back()
    keys = scene.queue.keys
    scene.client.zadd(keys["open"], {"x": -1, "nan": -2, "inf": -3})
    scene.client.zadd(keys["leases"], {"x": 1, "coarse-0000": 1})
    assert [found for found, _ in scene.queue.tick(master=True).expired]
    assert scene.queue.claim("u", 4, "r", machine="C")
    assert scene.client.zmscore(keys["leases"], ["x", "coarse-0000"]) == [None, None]
    assert scene.queue.state("coarse-0000") is TrialState.COMPLETED


@fuzzed
@given(data=st.data(), order=st.randoms(use_true_random=False))
def test_anything_anywhere(scene: Scene, data: st.DataObject, order: random.Random) -> None:
    scene.put_back()
    _damage(scene, data)
    words = list(scene.words().items())
    order.shuffle(words)
    for name, word in words:
        _said(name, word)


@fuzzed
@given(data=st.data())
def test_a_search_ends_whatever_stands_where_a_trial_stands(
    scene: Scene, data: st.DataObject
) -> None:
    scene.put_back()
    queue, states = scene.queue, scene.queue.keys["states"]
    victim = data.draw(
        st.sampled_from(
            [name for name, stored in sorted(scene.values[states].items()) if _open(stored)]
        )
    )
    before = json.loads(scene.values[states][victim])
    stored = data.draw(with_changes(before).map(json.dumps) | RAW)
    assume(not _moved(before, stored))
    scene.set(states, victim, stored)
    finished: list[str] = []
    rounds = 0
    while queue.count_unfinished():
        rounds += 1
        assert rounds < MOST_ROUNDS, queue.counts()
        for fence, _ in queue.tick(master=True).expired:
            queue.expire(fence)
        claims = queue.claim("v", 4, str(rounds), machine="B") or queue.claim(
            "u", 4, str(rounds), machine="C"
        )
        queue.finish([(claim.fence, DONE) for claim in claims])
        finished += ids(claims)
    counts = queue.counts()["coarse"]
    assert sum(counts.values()) == 12 and counts["pending"] == counts["running"] == 0
    others = set(scene.values[states]) - {victim, "coarse-0000", "coarse-0001", "coarse-0002"}
    assert set(finished) - {victim} == others, "the others go on"
    ended = {trial_id: result for trial_id, _, result in queue.read_ended()}
    assert set(ended) == set(scene.values[states]), "every trial has ended, the damaged one too"
    assert ended[victim].state is (
        TrialState.COMPLETED if victim in finished else TrialState.FAILED
    )


def _open(state: str) -> bool:
    return json.loads(state)["s"] in ("pending", "running")


def _moved(before: dict[str, Any], stored: str | bytes) -> bool:
    """Whether a value reads like a state from another stage, queue or trial.

    Nothing shows that such a value is misplaced.
    """
    try:
        after = json.loads(stored)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(after, dict)
        and after.get("s") == before["s"]
        and after.get("g") != before["g"]
        and isinstance(after.get("g"), int | float)
    )


def _said(name: str, word: Callable[[], Any]) -> Any:
    """Return what a command answers, or the kind of its refusal.

    Any other exception fails the test, and so does a refusal because Redis is busy.
    """
    try:
        return word()
    except (DamagedReplyError, PutAside) as error:
        assert 0 < len(str(error)) < LONGEST_MESSAGE and len(str(error).splitlines()) == 1, (
            f"{name}: {error!r}"
        )
        return type(error)


def _damage(scene: Scene, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(scene.names), label="key")
    kind = scene.kinds[name]
    if data.draw(st.integers(0, 9)) == 0:
        _replace(scene.raw, name, data.draw(st.sampled_from(KINDS), label="kind"), data.draw(RAW))
    elif kind == "hash":
        stored = scene.values[name]
        field = data.draw(st.sampled_from(sorted(stored)) | TEXT, label="field")
        other = data.draw(_other(stored.get(field)) | st.none(), label="value")
        if other is None:
            scene.raw.hdel(name, field)
        else:
            scene.set(name, field, other)
    elif kind == "zset":
        member = data.draw(
            st.sampled_from(scene.members[name])
            | RAW
            | st.sampled_from(sorted(scene.values[scene.queue.keys["trials"]]))
        )
        score = data.draw(
            st.floats(allow_nan=False) | st.integers(0, 2**40) | st.none(), label="score"
        )
        if score is None:
            scene.raw.zrem(name, member)
        else:
            scene.raw.zadd(name, {member: score})
    elif kind == "list":
        scene.raw.rpush(name, data.draw(RAW))
        scene.raw.lset(name, 0, data.draw(RAW))
    elif kind == "stream":
        scene.raw.xadd(
            name,
            {"rung": data.draw(RAW)},
            id=data.draw(st.sampled_from(["*", f"{2**64 - 1}-{2**64 - 1}"])),
        )
    else:
        scene.raw.sadd(name, data.draw(RAW))


def _other(stored: str | None) -> st.SearchStrategy[str | bytes]:
    """Something else for a value: right JSON of wrong types, other parts, or anything."""
    if stored is None:
        return RAW
    head, brace, tail = stored.partition("{" if "{" in stored else "[")
    try:
        inside = json.loads(brace + tail)
    except ValueError:
        words = stored.split(" ")
        return RAW | st.tuples(*(st.just(word) | NUMBERS.map(str) | TEXT for word in words)).map(
            " ".join
        )
    return (
        RAW
        | with_changes(inside).map(lambda changed: head + json.dumps(changed))
        | TEXT.map(lambda text: text + " " + brace + tail)
    )


def _replace(client: redis.Redis, name: str, kind: str, value: Any) -> None:
    client.delete(name)
    if kind == "hash":
        client.hset(name, value, value)
    elif kind == "zset":
        client.zadd(name, {value: 1})
    elif kind == "list":
        client.rpush(name, value)
    elif kind == "set":
        client.sadd(name, value)
    else:
        client.set(name, value)

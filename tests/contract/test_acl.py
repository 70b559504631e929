"""The Redis users of common/broker/rights.

Each may do what its side of a search needs, and nothing else that Redis can tell apart.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from common.errors import QueueError
from common.queue import scripts
from common.queue.trial_queue import TrialQueue, searches
from common.queue.workers import WorkerRegistry
from common.search.trial import Result, TrialState, WorkerInfo
from tests.acl import ROLES, SELECTOR, USERS, add_user, rules
from tests.contract.trials import DONE, SEARCH, check_consistent, heartbeat, made, until
from tests.redis_server import VERSIONS, RedisServer, start_redis

# What the scaler of KEDA has Redis do, after PING: that of version 2.17, and that of 2026.
KEDA_SCRIPTS = (
    """
    local key = KEYS[1]
    local kind = redis.call('type', key).ok
    local lengths = {zset = 'zcard', set = 'scard', list = 'llen', hash = 'hlen', none = 'llen'}
    return redis.call(lengths[kind], key)""",
    """
    local key = KEYS[1]
    local kind = redis.call('type', key).ok
    if kind == 'zset' then return redis.call('zcard', key) end
    return redis.call('llen', key)""",
)
SCALER_REFUSED = (
    "ZRANGE {pending} 0 -1", "ZADD {pending} 1 x", "UNLINK {pending}", "HGETALL {states}",
    "ZCARD {leases}", "TYPE {trials}", "HGETALL {{cf}}:searches", "EXPIRE {pending} 1", "INFO",
    "GET {pending}", "LRANGE {pending} 0 -1", "XADD {{cf}}:work * a b",
)  # fmt: skip
LUA = Path(scripts.__file__).parent / "lua"
WORKERS_SCRIPTS = (
    "announce",
    "claim",
    "clock",
    "expire",
    "fail",
    "finish",
    "release",
    "renew",
    "tick",
    "workers",
)
REFUSED = (
    "FLUSHALL", "FLUSHDB", "CONFIG GET requirepass", "CONFIG SET dir /tmp", "KEYS *", "SCAN 0",
    "ACL LIST",
    "ACL SETUSER worker allcommands", "SHUTDOWN NOSAVE", "MONITOR", "CLIENT LIST",
    "CLIENT KILL TYPE normal", "REPLICAOF 127.0.0.1 1",
    "SCRIPT FLUSH", "MODULE LIST", "SWAPDB 0 1", "GET other", "SET other 1", "HGETALL other",
    "EVAL return 1 other", "SAVE",
    "LATENCY RESET",
)  # fmt: skip
WORKER_REFUSED = (
    "HSET {trials} a b", "HSET {frozen} coarse {{}}", "HSET {groups} a 1",
    "HSET {{cf}}:searches a b", "HDEL {{cf}}:searches a",
    "UNLINK {states}", "DEL {states}", "HDEL {states} coarse-0000", "HDEL {results} coarse-0000",
    "HSET {{cf}}:orders other quit",
    "SADD {{cf}}:slow other", "SET {lock} x", "EXPIRE {states} 1", "RENAME {states} {trials}",
    "RPUSH {states} x", "HSETNX {frozen} x y",
    "ZADD {trials} 1 x", "LRANGE {endings} 0 -1", "XADD {endings} * a b", "XADD {{cf}}:other * a b",
)  # fmt: skip

# 6.2 has no read-only rights and none for a command together with a key. docs/security.md says what
# that leaves open.
ON_7 = pytest.mark.parametrize("server_and_users", ["7"], indirect=True)


@dataclass
class House:
    """A server with both users."""

    admin: redis.Redis
    master: redis.Redis
    worker: redis.Redis
    scaler: redis.Redis

    def queue(self, client: redis.Redis, lease_s: float = 30.0) -> TrialQueue:
        return TrialQueue(client, SEARCH, lease_s)


@pytest.fixture(scope="module", params=VERSIONS)
def server_and_users(request: pytest.FixtureRequest) -> Iterator[House]:
    with (
        tempfile.TemporaryDirectory(prefix="cf-") as folder,
        start_redis(Path(folder), request.param) as server,
        server.client() as admin,
    ):
        for user in USERS:
            add_user(admin, user, f"{user}'s", flat=request.param == "6.2" and user in ROLES)
        with (
            login(server, "master") as master,
            login(server, "worker") as worker,
            login(server, "scaler") as scaler,
        ):
            yield House(admin, master, worker, scaler)


def login(server: RedisServer, role: str) -> redis.Redis:
    return server.client(username=role, password=f"{role}'s")


@pytest.fixture
def house(server_and_users: House) -> House:
    """The same, empty, and with no script known."""
    server_and_users.admin.flushall()
    server_and_users.admin.script_flush()
    return server_and_users


def test_a_search_needs_nothing_else(house: House) -> None:
    """Every word of both sides, with a script cache that is empty for each side once."""
    master, worker = house.queue(house.master), house.queue(house.worker)
    registry, hers = WorkerRegistry(house.master), WorkerRegistry(house.worker)
    master.register("digits")
    master.freeze("coarse", {"seed": 1})
    master.refreeze("coarse", "task_digest", "d")
    master.tick(master=True)
    assert master.publish(made(6)) == 6
    house.admin.script_flush()
    assert searches(house.worker) == [(SEARCH, "digits")]
    assert worker.frozen("coarse") == {"seed": 1, "task_digest": "d"}
    hers.announce(WorkerInfo("w", "host", 1, "cpu"))
    assert [info.worker for info in hers.list()] == ["w"]
    claims = worker.claim("w", 4, "one")
    assert len(claims) == 4
    assert worker.claim("w", 4, "one") == claims
    assert worker.renew("w", [heartbeat(claims[0].fence)], {claims[0].trial.id: "{}"}) == {}
    assert worker.finish([(claims[0].fence, DONE)]) == ["ok"]
    assert worker.release([claims[1].fence]) == ["ok"]
    assert (
        worker.attempt(claims[0].trial.id) == 1
        and worker.trial(claims[0].trial.id) == claims[0].trial
    )
    assert worker.count_unfinished() == 5 and worker.master_alive()
    assert worker.state(claims[0].trial.id) is TrialState.COMPLETED

    assert {running.fence for running in master.running()} == {claim.fence for claim in claims[2:]}
    assert master.curves(claims[0].trial.id) == {} and master.live_workers() == {"w"}
    assert master.take(claims[2].fence, "stuck") is not None
    assert master.kill(claims[3].trial.id, "by hand") is not None
    assert master.retry(claims[3].trial.id)
    assert master.promote([claims[3].trial.promote(3)]) == []
    for one, other in ((master.bells, worker.bells), (worker.bells, master.bells)):
        for rung, heard in ((one.work, other.work), (one.ended, other.ended)):
            heard.wait()  # what was rung before
            rung.ring()
            assert heard.wait()
    assert (
        list(master.read_ended()) == [(claims[0].trial.id, 1, DONE)]
        and len(list(master.trials())) == 6
    )
    assert len(master.by_state(TrialState.PENDING)) == master.pending_total() == 5
    assert master.restore(made(7)[6], 1, DONE)
    with master.lock("janitor", 5) as held:
        assert held
    registry.order_quit("w")
    registry.mark_slow("w")
    registry.mark_slow("w", False)
    assert hers.announce(WorkerInfo("w", "host", 1, "cpu")) == ["quit"]
    worker.leave("w")
    hers.leave("w")
    registry.leave("w")
    check_consistent(house.queue(house.admin))
    master.drop()
    assert house.admin.keys("cf:*") == [] and house.admin.hgetall("{cf}:searches") == {}


def test_a_worker_reaps_where_no_master_lives(house: House) -> None:
    house.queue(house.master).publish(made(1))
    worker, brief = house.queue(house.worker), house.queue(house.worker, 0.001)
    worker.tick(master=False)
    for attempt in range(3):
        (claim,) = brief.claim(f"w{attempt}", 1, f"r{attempt}")
        taken = until(
            lambda fence=claim.fence: worker.expire(fence, max_lost=2), "the lease expires"
        )
    assert taken.state is TrialState.FAILED and isinstance(taken.result, Result)


@pytest.mark.parametrize("script", KEDA_SCRIPTS)
def test_the_scaler_of_keda_counts_the_waiting_trials(house: House, script: str) -> None:
    """Without any, and with a server that forgot the script, too."""
    waiting = scripts.search_keys(SEARCH)["pending"]
    assert house.scaler.ping()
    assert house.scaler.eval(script, 1, waiting) == 0
    house.queue(house.master).publish(made(5))
    assert house.scaler.eval(script, 1, waiting) == 5
    house.queue(house.worker).claim("w", 2, "one")
    assert house.scaler.register_script(script)(keys=[waiting]) == 3


def test_the_scaler_sees_and_changes_nothing_else(house: House) -> None:
    house.queue(house.master).publish(made(1))
    house.queue(house.worker).claim("w", 1, "one")
    house.queue(house.master).publish(made(3))
    before = house.queue(house.admin).counts()
    names = scripts.search_keys(SEARCH)
    for command in SCALER_REFUSED:
        words = command.format(**names).split()
        with pytest.raises(redis.exceptions.NoPermissionError):
            house.scaler.execute_command(*words)
        script = "return redis.call(unpack(ARGV))"
        with pytest.raises(
            (redis.exceptions.NoPermissionError, redis.exceptions.ResponseError),
            match=r"(?i)perm|can't",
        ):
            house.scaler.eval(script, 0, *words)
    assert house.queue(house.admin).counts() == before


@pytest.mark.parametrize("role", USERS)
def test_what_no_search_needs_is_refused(house: House, role: str) -> None:
    house.queue(house.master).publish(made(1))
    client = {"master": house.master, "worker": house.worker, "scaler": house.scaler}[role]
    for command in REFUSED:
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command.split())
        assert house.admin.ping(), command


@ON_7
def test_a_worker_changes_neither_search_nor_ranges_nor_others(house: House) -> None:
    house.queue(house.master).publish(made(1))
    names = {
        **scripts.search_keys(SEARCH),
        "frozen": f"cf:{{{SEARCH}}}:frozen",
        "lock": f"cf:{{{SEARCH}}}:lock:janitor",
    }
    for command in WORKER_REFUSED:
        with pytest.raises(redis.exceptions.NoPermissionError):
            house.worker.execute_command(*command.format(**names).split())
        script = "return redis.call(unpack(ARGV))"
        with pytest.raises(
            (redis.exceptions.NoPermissionError, redis.exceptions.ResponseError),
            match=r"(?i)perm|can't",
        ):
            house.worker.eval(script, 0, *command.format(**names).split())


@ON_7
@pytest.mark.parametrize(
    "word",
    [
        lambda queue: queue.register("mine"),
        lambda queue: queue.freeze("coarse", {}),
        lambda queue: queue.refreeze("coarse", "task_digest", "other"),
        lambda queue: queue.publish(made(3)),
        lambda queue: queue.publish(made(1, stage="fine")),
        lambda queue: queue.restore(made(9)[8], 1, DONE),
        lambda queue: queue.retry("coarse-0000"),
        lambda queue: queue.promote([made(2)[1].promote(3)]),
        lambda queue: queue.drop(),
        lambda queue: queue.lock("janitor", 1).__enter__(),
        lambda queue: WorkerRegistry(queue.client).order_quit("w"),
        lambda queue: WorkerRegistry(queue.client).mark_slow("w"),
    ],
)
def test_a_worker_that_speaks_as_a_master_is_told_where_the_rights_are(
    house: House, word: Callable[[TrialQueue], object]
) -> None:
    master = house.queue(house.master)
    master.register("digits")
    master.freeze("coarse", {"seed": 1})
    master.publish(made(2))
    master.kill("coarse-0000", "by hand")
    before = {name: house.admin.type(name) for name in house.admin.keys("*")}
    with pytest.raises(QueueError, match=r"does not let this user.*docs/security\.md"):
        word(house.queue(house.worker))
    assert {name: house.admin.type(name) for name in house.admin.keys("*")} == before
    assert master.frozen("coarse") == {"seed": 1} and searches(house.admin) == [(SEARCH, "digits")]


def test_the_workers_scripts_touch_what_its_rules_name() -> None:
    """Read off the scripts, so that a command that a test happens not to reach is noticed too."""
    allowed = granted("worker")
    for name in WORKERS_SCRIPTS:
        for command, key in touched(name):
            assert any(matches(pattern, key) for pattern in allowed.get(command, ())), (
                f"{name}.lua: {command} {key}"
            )


def granted(role: str) -> dict[str, set[str]]:
    """The patterns of keys that each command may touch."""
    text = rules(role)
    parts = [SELECTOR.sub("", text), *SELECTOR.findall(text)]
    found: dict[str, set[str]] = {}
    for part in parts:
        words = part.split()
        patterns = {word.partition("~")[2] for word in words if "~" in word}
        for word in words:
            if word.startswith("+"):
                found.setdefault(word[1:], set()).update(patterns)
    return found


def matches(pattern: str, key: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), key) is not None


def touched(name: str) -> set[tuple[str, str]]:
    """Return (command, key) of what a script does to keys.

    The shared part counts only where the script uses the function.
    """
    alone = name in scripts.ALONE
    text = (
        "" if alone else called((LUA / "shared.lua").read_text(), (LUA / f"{name}.lua").read_text())
    )
    text += (LUA / f"{name}.lua").read_text()
    registry = {
        f"KEYS[{n}]": key
        for n, key in enumerate(("{cf}:workers", "{cf}:seen", "{cf}:orders", "{cf}:slow"), 1)
    }
    keys = registry if alone else {key.upper(): f"cf:{{x}}:{key}" for key in scripts.SEARCH_KEYS}
    found = re.findall(r"(?:redis\.call|in_slices)\('(\w+)', ([\w\[\]]+)", text)
    found += [("hmget", key) for key in re.findall(r"[^_]fields\(([A-Z]+)", text)]
    return {(command.lower(), keys[key]) for command, key in found if key != "key"}


def called(shared: str, script: str) -> str:
    """The functions of shared.lua that ``script`` uses, directly or through one another."""
    functions = {
        m[1]: m[0] for m in re.finditer(r"^local function (\w+)\(.*?^end$", shared, re.M | re.S)
    }
    used: set[str] = set()
    waiting = [script]
    while waiting:
        text = waiting.pop()
        new = {name for name in functions if re.search(rf"\b{name}\(", text)} - used
        used |= new
        waiting += [functions[name] for name in new]
    return "\n".join(functions[name] for name in sorted(used))


def test_every_transition_is_looked_at() -> None:
    """A new script of the worker's has to be named above: those it runs are read off its code."""
    ours = {path.stem for path in LUA.glob("*.lua")} - {"shared"}
    assert set(WORKERS_SCRIPTS) <= ours
    assert ours - set(WORKERS_SCRIPTS) == {
        "kill",
        "promote",
        "publish",
        "register",
        "restore",
        "retry",
        "running",
        "take",
    }

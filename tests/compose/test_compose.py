"""`docker compose up` on an unmodified checkout, from build to stop. The tests follow one another, as a user's day would."""

import json
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.compose.stack import Stack

TRIALS = 200  # of the built-in digits search's coarse stage
STOP_WITHIN_S = 20.0  # the grace period of the compose file; a worker promises ten
TERMINATED = 143  # 128 + SIGTERM: how a worker says that it was asked to stop; killed after the grace would be 137
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="coarsefine-compose-") as folder:
        Path(folder).chmod(0o755)  # for the owner of the checkout in it
        stack = Stack(Path(folder))
        stack.clone()
        try:
            stack.up(workers=2)
            yield stack
        finally:
            stack.down()


def test_two_workers_and_a_master_are_up(stack: Stack) -> None:
    assert stack.unhealthy() == []
    assert [len(stack.containers(service)) for service in ("redis", "worker", "master")] == [1, 2, 1]
    assert [container["State"]["ExitCode"] for container in stack.containers("password")] == [0]


def test_the_password_is_the_owners_alone(stack: Stack) -> None:
    file = stack.folder / "secrets" / "redis_password"
    assert (file.stat().st_uid, stat.S_IMODE(file.stat().st_mode)) == (stack.owner, 0o600)
    password = file.read_text()
    assert len(password) >= 32
    for service in ("redis", "worker", "master"):
        for container in stack.containers(service):
            assert password not in json.dumps(container)
            assert password not in " ".join(arguments for _, arguments in stack.processes(container))


def test_redis_answers_this_machine_only_and_with_the_password_only(stack: Stack) -> None:
    (server,) = stack.containers("redis")
    assert [binding["HostIp"] for binding in server["NetworkSettings"]["Ports"]["6379/tcp"]] == ["127.0.0.1"]
    password = (stack.folder / "secrets" / "redis_password").read_text()
    with redis.Redis(port=stack.redis_port, password=password, decode_responses=True) as client:
        assert client.ping()
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    with redis.Redis(port=stack.redis_port) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_programs_in_the_containers_run_as_the_owner(stack: Stack) -> None:
    for service in ("worker", "master"):
        for container in stack.containers(service):
            users = {user for user, arguments in stack.processes(container) if "docker-init" not in arguments}
            assert users == {stack.owner}


def test_a_stage_runs_through_the_master_service(stack: Stack) -> None:
    done = stack.compose("exec", "-T", "master", "master", "launch", "--stage", "coarse", deadline_s=600)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{stack.logs()}"
    records = _records(stack)
    assert len({record["trial"] for record in records}) == len(records) == TRIALS
    assert len({record["host"] for record in records}) == 2, "both worker containers took part"


def test_the_best_checkpoint_is_listed_first(stack: Stack) -> None:
    names = sorted((path.name for path in _stage(stack).glob("*.pt")), reverse=True)
    ranking = json.loads(stack.compose("exec", "-T", "master", "master", "rank", "--top", "1", "--format", "json").stdout)
    assert names
    assert f"trial={ranking[0]['trial']}-" in names[0]


def test_the_same_launch_from_the_host_ends_at_once(stack: Stack) -> None:
    before = sorted(path.name for path in (_stage(stack) / "trials").iterdir())
    done = stack.on_host("master", "launch", "--stage", "coarse")
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert sorted(path.name for path in (_stage(stack) / "trials").iterdir()) == before


def test_everything_in_the_folder_belongs_to_the_owner(stack: Stack) -> None:
    paths = [stack.folder / "checkpoints", *(stack.folder / "checkpoints").rglob("*")]
    assert len(paths) > TRIALS
    assert {path.stat().st_uid for path in paths} == {stack.owner}


def test_stop_is_clean_and_the_search_is_there_afterwards(stack: Stack) -> None:
    started = time.monotonic()
    assert stack.compose("stop").returncode == 0
    assert time.monotonic() - started < STOP_WITHIN_S
    codes = {service: [one["State"]["ExitCode"] for one in stack.containers(service)] for service in ("redis", "worker", "master")}
    assert codes == {"redis": [0], "worker": [TERMINATED, TERMINATED], "master": [TERMINATED]}
    stack.up(workers=2)
    counts = json.loads(stack.on_host("master", "status", "--json").stdout)["stages"]["coarse"]
    assert sum(counts.values()) == TRIALS
    assert counts["pending"] == counts["running"] == 0


def _stage(stack: Stack) -> Path:
    return stack.folder / "checkpoints" / "digits" / "coarse"


def _records(stack: Stack) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((_stage(stack) / "trials").glob("*.json"))]

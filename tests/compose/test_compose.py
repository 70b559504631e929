"""`docker compose up` on an unmodified checkout, from build to stop.

The tests depend on their order, as in a user's day.
"""

import json
import re
import stat
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from common.errors import QueueError
from common.queue.trial_queue import TrialQueue
from tests.compose.stack import SERVICES, Stack

TRIALS, PROMOTED = 56, 19  # of the built-in digits search's coarse stage
PLANNED = 130  # trials of all its stages
STOP_WITHIN_S = 20.0  # the grace period of the compose file; a worker promises ten
USERS = ("master", "worker")  # of Redis
# 128 + SIGTERM: the exit code of a worker that was asked to stop. Killed after the grace it is 137.
TERMINATED = 143
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


def test_two_workers_a_master_and_a_dashboard_are_up(stack: Stack) -> None:
    assert stack.unhealthy() == []
    assert {service: len(stack.containers(service)) for service in SERVICES} == {
        "redis": 1,
        "worker": 2,
        "master": 1,
        "dashboard": 1,
    }
    assert [container["State"]["ExitCode"] for container in stack.containers("password")] == [0]


def test_the_passwords_are_the_owners_alone(stack: Stack) -> None:
    for user in USERS:
        file = _password_file(stack, user)
        assert (file.stat().st_uid, stat.S_IMODE(file.stat().st_mode)) == (stack.owner, 0o600)
        assert (file.parent.stat().st_uid, stat.S_IMODE(file.parent.stat().st_mode)) == (
            stack.owner,
            0o700,
        )
        password = file.read_text()
        assert len(password) >= 32
        for service in SERVICES:
            for container in stack.containers(service):
                assert password not in json.dumps(container)
                assert password not in " ".join(
                    arguments for _, arguments in stack.processes(container)
                )
    assert len({_password_file(stack, user).read_text() for user in USERS}) == len(USERS)


def test_workers_see_their_own_password_only(stack: Stack) -> None:
    for container in stack.containers("worker"):
        found = stack.files(container, "/run/coarsefine")
        assert [name for name in found if "password" in name] == ["/run/coarsefine/redis_password"]
        assert (
            stack.content(container, "/run/coarsefine/redis_password")
            == _password_file(stack, "worker").read_text()
        )


def test_redis_answers_this_machine_only_and_its_two_users_only(stack: Stack) -> None:
    (server,) = stack.containers("redis")
    assert [binding["HostIp"] for binding in server["NetworkSettings"]["Ports"]["6379/tcp"]] == [
        "127.0.0.1"
    ]
    for user in USERS:
        password = _password_file(stack, user).read_text()
        with redis.Redis(
            port=stack.redis_port, username=user, password=password, decode_responses=True
        ) as client:
            assert client.info("persistence")["aof_enabled"] == 1
            for command in ("FLUSHALL", "KEYS *", "CONFIG GET dir", "ACL LIST"):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command.split())
    with redis.Redis(port=stack.redis_port) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    with (
        redis.Redis(port=stack.redis_port, password=password) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()  # the default user is off


def test_a_worker_cannot_add_a_search(stack: Stack) -> None:
    password = _password_file(stack, "worker").read_text()
    with (
        redis.Redis(port=stack.redis_port, username="worker", password=password) as client,
        pytest.raises(QueueError, match=r"security\.md"),
    ):
        TrialQueue(client, "0123456789abcdef").register("mine")


def test_programs_in_the_containers_run_as_the_owner(stack: Stack) -> None:
    for service in ("worker", "master", "dashboard"):
        for container in stack.containers(service):
            users = {
                user
                for user, arguments in stack.processes(container)
                if "docker-init" not in arguments
            }
            assert users == {stack.owner}


def test_a_stage_runs_through_the_master_service(stack: Stack) -> None:
    done = stack.compose(
        "exec", "-T", "master", "master", "launch", "--stage", "coarse", deadline_s=600
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{stack.logs()}"
    records = _records(stack)
    assert len({record["trial"] for record in records}) == TRIALS
    assert len(records) == TRIALS + PROMOTED, "those that were promoted have a record for each rung"
    assert len({record["host"] for record in records}) == 2, "both worker containers took part"


def test_the_dashboard_prints_its_address_and_opens_with_its_token_only(stack: Stack) -> None:
    (dashboard,) = stack.containers("dashboard")
    port = f"{stack.dashboard_port}/tcp"
    assert [binding["HostIp"] for binding in dashboard["NetworkSettings"]["Ports"][port]] == [
        "127.0.0.1"
    ]
    found = re.search(
        r"dashboard: (http://127\.0\.0\.1:(\d+)/)\?token=(\S+)",
        stack.compose("logs", "--no-color", "dashboard").stdout,
    )
    assert found and int(found[2]) == stack.dashboard_port
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{found[1]}api/searches")
    asked = urllib.request.Request(
        f"{found[1]}api/searches", headers={"authorization": f"Bearer {found[3]}"}
    )
    with urllib.request.urlopen(asked) as answer:
        (line,) = json.load(answer)
    assert (line["search"], line["ended"], line["running"], line["trials"]) == (
        "digits",
        TRIALS,
        0,
        PLANNED,
    )


def test_the_best_checkpoint_is_listed_first(stack: Stack) -> None:
    names = sorted((path.name for path in _stage(stack).glob("*.pt")), reverse=True)
    ranking = json.loads(
        stack.compose(
            "exec", "-T", "master", "master", "rank", "--top", "1", "--format", "json"
        ).stdout
    )
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
    codes = {
        service: [one["State"]["ExitCode"] for one in stack.containers(service)]
        for service in SERVICES
    }
    assert codes == {
        "redis": [0],
        "worker": [TERMINATED, TERMINATED],
        "master": [TERMINATED],
        "dashboard": [TERMINATED],
    }
    stack.up(workers=2)
    counts = json.loads(stack.on_host("master", "status", "--json").stdout)["stages"]["coarse"]
    assert sum(counts.values()) == TRIALS
    assert counts["pending"] == counts["running"] == 0


def _password_file(stack: Stack, user: str) -> Path:
    return (
        stack.folder
        / "secrets"
        / ("worker/redis_password" if user == "worker" else "redis_password")
    )


def _stage(stack: Stack) -> Path:
    return stack.folder / "checkpoints" / "digits" / "coarse"


def _records(stack: Stack) -> list[dict]:
    return [
        json.loads(path.read_text()) for path in sorted((_stage(stack) / "trials").glob("*.json"))
    ]

"""The connection to Redis and the embedded server, with real servers and real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from common.broker.connection import Broker, open_broker
from common.broker.errors import translate_errors
from common.broker.server_program import find_programs
from common.errors import CheckpointError, ConfigError, QueueError
from common.redact import redact
from tests.integration.commands import DEADLINE_S, wait_for
from tests.integration.processes import alive

USER = """
import pathlib, sys
from common.broker.connection import open_broker
with open_broker(None, pathlib.Path(sys.argv[1])) as broker:
    print(broker.client.info("server")["process_id"], flush=True)
    sys.stdin.readline()
"""


def server_pid(broker: Broker) -> int:
    return int(broker.client.info("server")["process_id"])


def wait_for_disk(broker: Broker) -> None:
    def written() -> bool:
        info = broker.client.info("persistence")
        return info["aof_buffer_length"] == 0 and info["aof_pending_bio_fsync"] == 0

    wait_for(written, "the append-only file is written")


class User:
    """Another process that uses the embedded server until told to leave."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def server(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def leave(self) -> None:
        self.process.communicate("\n", timeout=DEADLINE_S)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(
        prefix="cf-"
    ) as folder:  # shorter than pytest's, so that the socket fits
        yield Path(folder) / "checkpoints"


@pytest.fixture
def only_bundled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture(params=["on_path", "bundled"])
def program(request: pytest.FixtureRequest) -> str:
    if request.param == "bundled":
        request.getfixturevalue("only_bundled")
    return str(request.param)


class TestSharing:
    @pytest.mark.usefixtures("program")
    def test_two_processes_share_one_server_and_the_last_stops_it(self, root: Path) -> None:
        first, second = User(root), User(root)
        pid = first.server()
        assert second.server() == pid
        first.leave()
        assert alive(pid)
        second.leave()
        assert not alive(pid)

    def test_racing_processes_get_one_server(self, root: Path) -> None:
        users = [User(root) for _ in range(6)]
        pids = {user.server() for user in users}
        assert len(pids) == 1
        for user in users:
            user.leave()
        assert not alive(pids.pop())

    def test_what_killed_users_left_is_used_and_stopped_by_the_next(self, root: Path) -> None:
        user = User(root)
        pid = user.server()
        user.kill()
        assert alive(pid)
        with open_broker(None, root) as broker:
            assert server_pid(broker) == pid
        assert not alive(pid)

    def test_a_server_killed_with_its_users_leaves_nothing_in_the_way(self, root: Path) -> None:
        user = User(root)
        pid = user.server()
        user.kill()
        os.kill(pid, signal.SIGKILL)
        assert (root / ".redis/redis.sock").exists()
        with open_broker(None, root) as broker:
            assert server_pid(broker) != pid

    def test_programs_that_a_user_started_do_not_keep_the_server(self, root: Path) -> None:
        with open_broker(None, root) as broker:
            pid = server_pid(broker)
            child = subprocess.Popen(
                [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False
            )
        assert not alive(pid)
        child.communicate(b"\n")

    def test_the_server_is_out_of_reach_of_ctrl_c(self, root: Path) -> None:
        with open_broker(None, root) as broker:
            assert os.getsid(server_pid(broker)) == server_pid(broker)

    def test_a_server_whose_folder_was_removed_is_stopped_too(self, root: Path) -> None:
        with open_broker(None, root) as broker:
            pid = server_pid(broker)
            shutil.rmtree(root)
        wait_for(lambda: not alive(pid), "the server has ended")

    def test_a_removed_server_is_stopped_even_if_the_connection_to_it_is_broken(
        self, root: Path
    ) -> None:
        with open_broker(None, root) as broker:
            pid = server_pid(broker)
            shutil.rmtree(root)
            broker.client.connection_pool.disconnect()
        wait_for(lambda: not alive(pid), "the server has ended")

    def test_a_server_whose_folder_was_removed_does_not_take_the_next_one_with_it(
        self, root: Path
    ) -> None:
        old = open_broker(None, root)
        before = server_pid(old)
        shutil.rmtree(root)
        new = open_broker(None, root)
        after = server_pid(new)
        assert before != after
        old.close()
        wait_for(lambda: not alive(before), "the old server has ended")
        new.client.set("key", "value")
        with open_broker(None, root) as beside:
            assert server_pid(beside) == after
        new.close()
        assert not alive(after)

    def test_no_file_is_lost_with_it_where_a_user_of_a_removed_server_works(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own = tmp_path / "project" / "train.py"
        own.parent.mkdir()
        own.write_text("precious")
        monkeypatch.chdir(own.parent)
        with open_broker(None, root) as broker:
            shutil.rmtree(root)
            with pytest.raises(CheckpointError):
                broker.ensure()  # as a worker does whose connection is lost
        assert own.read_text() == "precious"

    @pytest.mark.parametrize("name", ["redis.sock", "train.py"])
    def test_a_socket_elsewhere_takes_nothing_beside_it_along(
        self, root: Path, tmp_path: Path, name: str
    ) -> None:
        own = tmp_path / "project" / "train.py"
        own.parent.mkdir(0o755)
        own.write_text("precious")
        with open_broker(None, root):
            known = json.loads((root / ".redis/server.json").read_text())
        elsewhere = {**known, "socket": str(own.parent / name)}
        (root / ".redis/server.json").write_text(json.dumps(elsewhere))
        with open_broker(None, root) as broker:
            assert broker.client.ping()
        assert list(own.parent.iterdir()) == [own] and own.read_text() == "precious"
        assert stat.S_IMODE(own.parent.stat().st_mode) == 0o755


@pytest.mark.usefixtures("program")
class TestData:
    def test_they_are_there_on_the_next_open(self, root: Path, program: str) -> None:
        for n in range(3):
            with open_broker(None, root) as broker:
                assert broker.client.incr("opened") == n + 1
                assert (broker.client.info("server")["redis_version"] < "7") <= (
                    program == "bundled"
                )

    def test_they_survive_a_kill_of_the_server_under_a_living_user(self, root: Path) -> None:
        with open_broker(None, root) as broker:
            broker.client.set("key", "value")
            wait_for_disk(broker)
            os.kill(server_pid(broker), signal.SIGKILL)
            with (
                pytest.raises(QueueError, match="cannot be reached"),
                translate_errors(broker.where),
            ):
                broker.client.get("key")
            assert broker.ensure()
            assert not broker.ensure()
            assert broker.client.get("key") == "value"

    def test_many_users_repair_a_killed_server_once(self, root: Path) -> None:
        with open_broker(None, root) as broker:
            os.kill(server_pid(broker), signal.SIGKILL)
            repaired: list[bool] = []
            threads = [
                threading.Thread(target=lambda: repaired.append(broker.ensure())) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(repaired) == [False, False, False, True]

    def test_a_script_that_meets_full_memory_says_so(self, root: Path) -> None:
        with open_broker(None, root) as broker:
            broker.client.config_set("maxmemory", 1)
            with (
                pytest.raises(QueueError, match="out of memory; raise its maxmemory"),
                translate_errors(broker.where),
            ):
                broker.client.eval("return redis.call('set', KEYS[1], 'x')", 1, "key")

    def test_a_script_that_meets_a_replica_says_so(self, root: Path) -> None:
        with open_broker(None, root) as broker:
            broker.client.config_set("replica-serve-stale-data", "yes")
            broker.client.replicaof("127.0.0.1", 1)
            with (
                pytest.raises(QueueError, match="read-only replica"),
                translate_errors(broker.where),
            ):
                broker.client.eval("return redis.call('set', KEYS[1], 'x')", 1, "key")


class TestPrivacy:
    def test_nobody_else_reaches_the_server(self, root: Path) -> None:
        old = os.umask(0)
        try:
            with open_broker(None, root) as broker:
                modes = {
                    path.name: stat.S_IMODE(path.stat().st_mode)
                    for path in [root / ".redis", root / ".redis/redis.sock"]
                }
                assert modes == {".redis": 0o700, "redis.sock": 0o700}
                assert broker.client.config_get("port") == {"port": "0"}
        finally:
            os.umask(old)

    def test_a_long_path_gets_a_socket_in_a_private_folder(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deep = root / ("long" * 20) / "path"
        with open_broker(None, deep) as broker:
            folder = Path(broker.url.removeprefix("unix://")).parent
            assert not folder.is_relative_to(root)
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            other = User(deep, TMPDIR=str(root))
            assert other.server() == server_pid(broker)
            other.leave()
            os.kill(server_pid(broker), signal.SIGKILL)
            shutil.rmtree(folder)
            assert broker.ensure()
            assert broker.client.ping()
        assert not folder.exists()


class TestRefusals:
    def place(self, root: Path, **changes: str) -> None:
        with open_broker(None, root):
            known = json.loads((root / ".redis/server.json").read_text())
        (root / ".redis/server.json").write_text(json.dumps({**known, **changes}))

    def test_another_host_may_still_run_it(self, root: Path) -> None:
        self.place(root, host="elsewhere", boot_id="another")
        with pytest.raises(
            QueueError, match=r"may be running on the host elsewhere; .* delete .*server\.json"
        ):
            open_broker(None, root)

    def test_the_same_host_started_anew(self, root: Path) -> None:
        self.place(root, boot_id="before", socket="/gone/with/the/boot/redis.sock")
        with open_broker(None, root) as broker:
            assert broker.client.ping()

    def test_a_damaged_place_file(self, root: Path) -> None:
        self.place(root)
        (root / ".redis/server.json").write_text("{")
        with pytest.raises(QueueError, match=r"server\.json: it is damaged; .* delete it"):
            open_broker(None, root)

    def test_data_of_a_newer_major_version(self, root: Path) -> None:
        with open_broker(None, root):
            pass
        (root / ".redis/version").write_text("99.1.0\n")
        with pytest.raises(
            QueueError,
            match=(
                r"Redis 99\.1\.0 wrote the data there.*install redis-server 99 or newer, or "
                r"move the folder away"
            ),
        ):
            open_broker(None, root)

    @pytest.mark.usefixtures("only_bundled")
    def test_data_in_the_layout_of_7_whose_version_was_lost(self, root: Path) -> None:
        (root / ".redis/appendonlydir").mkdir(parents=True)
        with pytest.raises(QueueError, match="Redis 7 wrote the data there"):
            open_broker(None, root)

    def test_the_version_that_wrote_last_is_kept(self, root: Path) -> None:
        for _ in range(2):
            with open_broker(None, root) as broker:
                assert (root / ".redis/version").read_text() == broker.client.info("server")[
                    "redis_version"
                ]

    @pytest.mark.usefixtures("only_bundled")
    def test_an_activated_environment_does_not_put_the_wheels_copy_first(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        newer = tmp_path / "redis-server"
        newer.write_text("#!/bin/sh\necho 'Redis server v=98.0.0 sha=00000000:0'\n")
        newer.chmod(0o755)
        monkeypatch.setenv("PATH", f"{Path(sys.prefix) / 'bin'}:{tmp_path}")
        first, *others = find_programs()
        assert str(first) == f"{newer} 98.0.0"
        assert [program.version[:2] for program in others] == [(6, 2)]

    @pytest.mark.usefixtures("program")
    def test_damaged_data_show_the_end_of_the_log_and_the_remedy(self, root: Path) -> None:
        with open_broker(None, root) as broker:
            broker.client.set("key", "value")
        file = max(
            (root / ".redis").glob("**/*appendonly*.aof"), key=lambda path: path.stat().st_size
        )
        file.write_bytes(b"*1\r\n$4\r\nnope\r\nrubbish\r\n" + file.read_bytes())
        with pytest.raises(
            QueueError,
            match=(
                r"(?s)did not start: .* ended with status 1\..*redis\.log ends "
                r"with\n.*redis-check-aof --fix"
            ),
        ):
            open_broker(None, root)

    def test_a_root_that_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="pass another --checkpoints"):
            open_broker(None, tmp_path / "file")

    def test_a_refused_open_leaves_no_lock(self, root: Path) -> None:
        self.place(root, host="elsewhere", boot_id="another")
        with pytest.raises(QueueError):
            open_broker(None, root)
        (root / ".redis/server.json").unlink()
        with open_broker(None, root) as broker:
            pid = server_pid(broker)
        assert not alive(pid)


@pytest.fixture
def guarded(root: Path) -> Iterator[str]:
    """The socket of a server with the password s3/cr@et and a user without rights."""
    with open_broker(None, root) as broker:
        broker.client.execute_command(
            "ACL", "SETUSER", "guest", "on", ">guest", "+ping", "+info", "+client"
        )
        broker.client.config_set("requirepass", "s3/cr@et")
        yield broker.url.removeprefix("unix://")
        broker.client.config_set("requirepass", "")


class TestUrl:
    def test_the_password_may_stand_in_the_url_or_in_a_file(
        self, guarded: str, root: Path, tmp_path: Path
    ) -> None:
        secret = tmp_path / "password"
        secret.write_text("s3/cr@et\n")
        for url, environ in [
            (f"unix://:s3%2Fcr%40et@{guarded}", {}),
            (
                f"unix://default:s3%2Fcr%40et@{guarded}?db=1",
                {"REDIS_PASSWORD_FILE": "/not/looked/at"},
            ),
            (f"unix://{guarded}", {"REDIS_PASSWORD_FILE": str(secret)}),
        ]:
            with open_broker(url, root, environ) as broker:
                assert broker.client.set("key", "value")
                assert not broker.embedded
                assert not broker.ensure()

    @pytest.mark.parametrize(
        ("login", "message"),
        [
            (":wr0ng%2Fpass@", "refuses the login; check the user and the password"),
            ("", "asks for a password; give it in --redis"),
        ],
    )
    def test_a_refused_login(self, guarded: str, root: Path, login: str, message: str) -> None:
        with pytest.raises(QueueError, match=message) as caught:
            open_broker(f"unix://{login}{guarded}", root, {})
        assert guarded in str(caught.value)
        assert "wr0ng" not in str(caught.value)

    def test_a_user_without_rights(self, guarded: str, root: Path) -> None:
        broker = open_broker(f"unix://guest:guest@{guarded}", root, {})
        with (
            broker,
            pytest.raises(QueueError, match=r"does not let this user .*docs/security\.md"),
            translate_errors(broker.where),
        ):
            broker.client.set("key", "value")

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "cannot be read"), ("\n", "is empty"), (b"\xff\xfe", "it is not text")],
    )
    def test_a_password_file_that_gives_none(
        self, root: Path, tmp_path: Path, content: str | bytes | None, message: str
    ) -> None:
        file = tmp_path / "password"
        if content is not None:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ConfigError, match=message) as caught:
            open_broker("redis://localhost", root, {"REDIS_PASSWORD_FILE": str(file)})
        assert str(file) in str(caught.value)

    def test_nobody_there(self, root: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with pytest.raises(
            QueueError, match=f"Redis at 127.0.0.1:{port} cannot be reached; start it"
        ) as caught:
            open_broker(f"redis://me:s3cret@127.0.0.1:{port}/0", root, {})
        assert "s3cret" not in str(caught.value)
        assert caught.value.exit_code == 4
        assert not root.exists()

    @pytest.mark.parametrize(
        "url",
        [
            "localhost:6379",
            "http://:s3cret@localhost",
            "redis://:s3cret/with/slash@localhost:6379",
            "redis://:s3cret@localhost:s3cretport",
            "redis://:s3cret@localhost/first",
            "redis://:s3cret@localhost?no_such_option=1",
            "redis://localhost?password=s3cret&no_such_option=1",
            "unix://",
        ],
    )
    def test_a_malformed_url(self, root: Path, url: str) -> None:
        with pytest.raises(ConfigError, match=r"write redis://HOST:6379/0") as caught:
            open_broker(url, root, {})
        assert "s3cret" not in str(caught.value).replace("s3cretport", "")


class Pretender:
    """A server that answers each command with what a function says, and hangs up at None."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self.heard: list[bytes] = []
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                while (heard := connection.recv(4096)) and (
                    answer := self._reply(heard)
                ) is not None:
                    connection.sendall(answer)

    def _reply(self, heard: bytes) -> bytes | None:
        self.heard.append(heard)
        return b"+OK\r\n" if b"CLIENT" in heard else self._answer(heard)

    def close(self) -> None:
        self._socket.close()


class TestStrangeServers:
    @pytest.fixture
    def pretend(self) -> Iterator[Callable[[Callable[[bytes], bytes | None]], Pretender]]:
        servers: list[Pretender] = []

        def start(answer: Callable[[bytes], bytes | None]) -> Pretender:
            servers.append(Pretender(answer))
            return servers[-1]

        yield start
        for server in servers:
            server.close()

    def test_nothing_is_ever_sent_twice(
        self, pretend: Callable[..., Pretender], root: Path
    ) -> None:
        server = pretend(
            lambda heard: (
                None if b"EVALSHA" in heard else b"+PONG\r\n" if b"PING" in heard else b"$0\r\n\r\n"
            )
        )
        broker = open_broker(server.url, root, {})
        with (
            broker,
            pytest.raises(QueueError, match="cannot be reached"),
            translate_errors(broker.where),
        ):
            broker.client.evalsha("f" * 40, 0)
        assert sum(b"EVALSHA" in heard for heard in server.heard) == 1

    def test_one_that_is_no_redis(self, pretend: Callable[..., Pretender], root: Path) -> None:
        server = pretend(lambda heard: b"HTTP/1.1 400 Bad Request\r\n")
        with pytest.raises(QueueError, match="not as Redis does"):
            open_broker(server.url, root, {})

    def test_one_that_is_too_old(self, pretend: Callable[..., Pretender], root: Path) -> None:
        info = b"redis_version:5.0.7\r\n"
        server = pretend(
            lambda heard: b"+PONG\r\n" if b"PING" in heard else b"$%d\r\n%s\r\n" % (len(info), info)
        )
        with pytest.raises(QueueError, match=r"is version 5\.0\.7; a search needs 6\.2 or newer"):
            open_broker(server.url, root, {})

    def test_one_that_forbids_info_is_taken_as_it_is(
        self, pretend: Callable[..., Pretender], root: Path
    ) -> None:
        server = pretend(
            lambda heard: (
                b"+PONG\r\n" if b"PING" in heard else b"-NOPERM this user has no permissions\r\n"
            )
        )
        with open_broker(server.url, root, {}) as broker:
            assert broker.client.ping()

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (
                b"-LOADING Redis is loading the dataset in memory",
                "still loading its data; try again",
            ),
            (
                b"-MISCONF Errors writing to the AOF file: No space left on device",
                "cannot write to its disk",
            ),
            (b"-CLUSTERDOWN The cluster is down", "Redis Cluster that is down"),
            (b"-MOVED 3999 127.0.0.1:6381", "node of a Redis Cluster"),
            (b"-ERR max number of clients reached", "no connection left; raise its maxclients"),
            (
                b"-ERR Error running script (call to f_0): @user_script:1: -MISCONF Errors writing",
                "cannot write to its disk",
            ),
        ],
    )
    def test_one_that_refuses(
        self, pretend: Callable[..., Pretender], root: Path, answer: bytes, message: str
    ) -> None:
        server = pretend(lambda heard: answer + b"\r\n")
        with pytest.raises(QueueError, match=message):
            open_broker(server.url, root, {})


def test_faults_of_the_program_are_not_blamed_on_the_server() -> None:
    with pytest.raises(redis.ResponseError), translate_errors("Redis"):
        raise redis.ResponseError("ERR wrong number of arguments for 'hget' command")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:s3cret@localhost", "redis://:***@localhost"),
        ("rediss://me:s3/c@r:e://t@localhost:1/2", "rediss://me:***@localhost:1/2"),
        ("redis://s3cret@localhost", "redis://***@localhost"),
        (":s3cret@localhost:6379", ":***@localhost:6379"),
        (
            "unix:///a@b/redis.sock?db=1&password=s3c@ret&x=1",
            "unix:///a@b/redis.sock?db=1&password=***&x=1",
        ),
    ],
)
def test_redacted_urls(url: str, shown: str) -> None:
    assert redact(url) == shown

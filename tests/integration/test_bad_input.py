"""Bad input gets one clear message, the right exit code, no traceback; nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.commands import DEADLINE_S, Place


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert len(errors) == 1 and "Traceback" not in done.stderr + done.stdout, done.stderr
    for word in words:
        assert word in done.stderr, (word, done.stderr)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seed = 1", "sed = 1", ["sed", "unknown key", "seed"]),
        ("[0.001, 1.0]", "[1.0, 0.001]", ["learning_rate", "upside down", "[0.001, 1]"]),
        ("[0.001, 1.0]", "[0.0, 1.0]", ["learning_rate", "touches zero"]),
        ("[0.001, 1.0]", "[nan, 1.0]", ["learning_rate", "nan"]),
        ("[16, 24]", "[]", ["hidden", "no options"]),
        ('"digits"\ntask', '"../up"\ntask', ["../up", "folder"]),
        ("trials = 24", 'trials = "many"', ["[stages.coarse] trials", "many"]),
        ("seed = 1", "seed = ", ["TOML"]),
        ('task = "digits"', 'task = "nothing"', ["nothing", "digits"]),
        ('task = "digits"', 'task = "gone.py:Task"', ["gone.py"]),
        ('task = "digits"', 'task = "search.toml:Task"', ["search.toml", "my_task.py:MyTask"]),
        ('task = "digits"', 'task = "broken.py:Task"', ["broken.py", "line 1"]),
        ('task = "digits"', 'task = "empty.py:Task"', ["empty.py", "Task"]),
    ],
)
def test_a_wrong_search_file(here: Place, old: str, new: str, words: list[str]) -> None:
    file = here.write_search()
    text = file.read_text()
    assert old in text
    (here.path / "empty.py").touch()
    (here.path / "broken.py").write_text("class Task\n")
    file.write_text(text.replace(old, new, 1))
    code = 1 if ".py" in new else 2
    refused(here.run("master", "launch", "--stage", "coarse"), code, *words)
    assert not list(here.root.rglob("*.json"))


def test_an_unreadable_search_file(here: Place) -> None:
    refused(
        here.run("master", "launch", "--stage", "coarse", "--config", "none.toml"),
        2,
        "none.toml",
        "master init",
    )
    (here.path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    refused(
        here.run("master", "launch", "--stage", "coarse", "--config", "binary.toml"),
        2,
        "binary.toml",
        "UTF-8",
    )


def test_stages_out_of_order_or_unknown(here: Place) -> None:
    here.write_search()
    refused(here.run("master", "launch", "--stage", "medium"), 2, "medium", "coarse, fine")
    refused(
        here.run("master", "launch", "--stage", "fine"),
        2,
        "fine",
        "master launch --search digits --stage coarse",
    )
    refused(here.run("master", "rank"), 2, "has not been launched")
    assert not list(here.root.rglob("*.json"))


def test_several_searches_and_none(here: Place) -> None:
    refused(here.run("master", "rank"), 2, "no search")
    for name in ("one", "two"):
        here.write_search(name=name, trials=2)
        assert (
            here.run(
                "master", "launch", "--stage", "coarse", "--workers", "0", "--detach"
            ).returncode
            == 0
        )
    (here.path / "search.toml").unlink()
    refused(here.run("master", "status"), 2, "one, two", "--search")
    assert here.run("master", "status", "--search", "one").returncode == 0
    refused(here.run("master", "status", "--search", "three"), 2, "three", "one, two")


def test_redis_out_of_reach(here: Place) -> None:
    here.write_search()
    refused(
        here.run("master", "--redis", "redis://127.0.0.1:1/0", "launch", "--stage", "coarse"),
        4,
        "127.0.0.1:1",
    )
    refused(
        here.run("worker", "start", "--redis", "redis://:secret@127.0.0.1:1/0"), 4, "127.0.0.1:1"
    )
    refused(here.run("master", "--redis", "nonsense", "workers"), 2, "nonsense")


def test_a_wrong_password(here: Place, password_server: str) -> None:
    here.write_search()
    wrong = password_server.replace(":right@", ":wrong-one@")
    done = here.run("master", "--redis", wrong, "launch", "--stage", "coarse")
    refused(done, 4, "password")
    assert "wrong-one" not in done.stderr
    right = here.run(
        "master",
        "--redis",
        password_server,
        "launch",
        "--stage",
        "coarse",
        "--workers",
        "0",
        "--detach",
    )
    assert right.returncode == 0, right.stderr


def test_damaged_files_in_the_folder(here: Place) -> None:
    here.write_search(trials=8)
    assert here.run("master", "launch", "--stage", "coarse").returncode == 0
    folder = here.root / "digits" / "coarse"
    record, weights = folder / "trials" / "coarse-0001-try=1.json", next(iter(folder.glob("*.pt")))
    record.write_text(record.read_text()[:40])
    weights.write_bytes(b"PK\x03\x04 no weights")
    done = here.run("master", "rank", "--format", "json")
    assert done.returncode == 0 and str(record.name) in done.stderr and "damaged" in done.stderr
    assert "coarse-0001" not in done.stdout and "coarse-0002" in done.stdout
    refused(here.run("worker", "test", str(weights)), 1, weights.name)
    again = here.run("master", "launch", "--stage", "coarse")
    assert again.returncode == 0, again.stderr  # Redis still knows what became of it
    assert record.read_text()[:40] and "Traceback" not in again.stderr


def test_a_damaged_resume_state_starts_the_trial_anew(here: Place) -> None:
    here.write_search(trials=2)
    assert (
        here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach").returncode
        == 0
    )
    resume = here.root / "digits" / "coarse" / "resume"
    (resume / "coarse-0000-try=1.pt").write_bytes(b"nothing")
    shutil.rmtree(here.root / ".redis", ignore_errors=True)
    assert (
        here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach").returncode
        == 0
    )
    done = here.run("worker", "start", "--burst")
    assert done.returncode == 0 and "damaged" in done.stderr
    assert {r["state"] for r in here.rank()} <= {"completed", "exploded"}


MOUNT = "mount -t tmpfs -o size={size} tmpfs checkpoints"


def in_mount_namespace(here: Place, script: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script with mounts of its own."""
    (here.root).mkdir(exist_ok=True)
    flags = "-m" if os.geteuid() == 0 else "-rm"
    return subprocess.run(
        ["unshare", flags, "sh", "-c", script],
        cwd=here.path,
        env={**here.environment, "PY": sys.executable},
        text=True,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_a_read_only_checkpoint_folder(here: Place, open_server: str) -> None:
    here.write_search()
    here.redis_url = open_server
    script = (
        "mount -t tmpfs tmpfs checkpoints && mount -o remount,ro checkpoints && "
        "exec $PY -P -m master launch --stage coarse --skip-check --workers 0"
    )
    refused(in_mount_namespace(here, script), 1, "checkpoints", "read-only")
    script = script.replace(
        "master launch --stage coarse --skip-check --workers 0", "master init checkpoints"
    )
    refused(in_mount_namespace(here, script), 1, "read-only")
    here.redis_url = None
    embedded = script.replace("master init checkpoints", "worker start --burst")
    refused(in_mount_namespace(here, embedded), 1, "read-only")


def test_a_full_checkpoint_folder(here: Place, open_server: str) -> None:
    """The worker gives its trials back and leaves.

    With room again, the same commands end the stage.
    """
    here.write_search(trials=6)
    here.redis_url = open_server
    script = """
    mount -t tmpfs -o size=400k tmpfs checkpoints || exit 99
    $PY -P -m master launch --stage coarse --skip-check --workers 0 --detach || exit 98
    dd if=/dev/zero of=checkpoints/filler bs=1k 2>/dev/null
    $PY -P -m worker start --burst; echo "worker: $?"
    $PY -P -m master status --json; rm checkpoints/filler; mount -o remount,size=100m checkpoints
    $PY -P -m worker start --burst; echo "worker: $?"
    $PY -P -m master launch --stage coarse --skip-check --workers 0 >/dev/null; echo "master: $?"
    """
    done = in_mount_namespace(here, script)
    assert "worker: 1" in done.stdout and "disk is full" in done.stderr, (done.stdout, done.stderr)
    assert '"pending": 6' in done.stdout and '"running": 0' in done.stdout  # given back, none lost
    assert "worker: 0" in done.stdout and "master: 0" in done.stdout, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr


def test_a_checkpoint_folder_without_inodes(here: Place, open_server: str) -> None:
    """The disk has free bytes and no free inodes.

    The message says so; with room again the same command goes on.
    """
    here.write_search(trials=2)
    here.redis_url = open_server
    script = """
    mount -t tmpfs -o size=100m,nr_inodes=40 tmpfs checkpoints || exit 99
    for n in $(seq 100); do touch checkpoints/filler-$n 2>/dev/null; done
    $PY -P -m master launch --stage coarse --skip-check --workers 0 --detach; echo "full: $?"
    rm checkpoints/filler-*; mount -o remount,size=100m,nr_inodes=4000 checkpoints
    $PY -P -m master launch --stage coarse --skip-check --workers 0 --detach; echo "free: $?"
    """
    done = in_mount_namespace(here, script)
    assert "full: 1" in done.stdout and "free: 0" in done.stdout, (done.stdout, done.stderr)
    assert (
        "takes no more files: its inodes are used up (`df -i" in done.stderr
        and "Traceback" not in done.stderr
    )


@pytest.mark.slow
def test_a_master_names_every_remedy_of_the_command_line(here: Place) -> None:
    here.write_search()
    refused(
        here.run("master", "launch", "--stage", "coarse", "--workers", "some"), 2, "some", "auto"
    )
    refused(here.run("master", "kill", "--yes"), 2, "--trial")
    refused(here.run("worker", "start", "--device", "tpu"), 2, "tpu", "auto")
    refused(here.run("worker", "start", "--device", "all"), 2, "no CUDA device")
    refused(here.run("worker", "start", "--array-width", "0"), 2, "0", "auto")
    assert (
        here.run("master", "init", "x").returncode == 0
        and Path(here.path / "x" / "search.toml").is_file()
    )
    refused(here.run("master", "init", "x"), 2, "exists already")

"""Whatever is killed: every trial ends exactly once."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import redis

from common.ending import EXIT_POISONED
from common.errors import QueueError
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from common.search.search_file import load_search
from common.search.trial import Running
from master.stages.sampling import configurations
from master.stages.source import first_source
from tests.integration.commands import BUSY_S, DEADLINE_S, Place, place, wait_for
from tests.redis_server import start_redis

pytestmark = pytest.mark.faults

TASKS = Path(__file__).parent / "tasks"
LONG = {"trials": 24, "epochs": 150, "lease_s": 2, "high": 0.05}


def ended_once(here: Place, n: int, stage: str = "coarse") -> dict[str, int]:
    """Asserts it by both witnesses; trial id to the attempt that it ended with."""
    rows, counts = here.rank(stage), here.status()["stages"][stage]
    assert [r["trial"] for r in sorted(rows, key=lambda r: r["trial"])] == [
        f"{stage}-{i:04d}" for i in range(n)
    ]
    assert counts["pending"] == counts["running"] == 0 and sum(counts.values()) == n
    by_state = {state: sum(r["state"] == state for r in rows) for state in counts}
    assert by_state == counts
    return {r["trial"]: r["attempt"] for r in rows}


def taken(here: Place, attempts: dict[str, int]) -> int:
    """Count the attempts that began because an earlier one was taken.

    Trials that workers gave to idle workers do not count.
    """
    given = re.findall(
        r"gave (\d+) of \d+ trials to workers with nothing to do", "".join(here.logs())
    )
    return sum(attempts.values()) - len(attempts) - sum(map(int, given))


def read_running(here: Place) -> list[Running]:
    """Return the trials that are training.

    This reads Redis directly: on a busy machine a command may take as long as the whole search.
    """
    search = SearchFolder(here.root, "digits").search()
    if search is None or search.id is None:
        return []
    with here.connection() as client, contextlib.suppress(redis.ConnectionError, QueueError):
        return TrialQueue(client, search.id).running()
    return []


def half_way(here: Place) -> bool:
    """Return whether four trials or more are training, and one has ended an epoch."""
    running = read_running(here)
    trains = any(one.progress is not None and one.progress.epoch > 0 for one in running)
    return trains and len(running) >= 4


def all_have_ended(here: Place) -> bool:
    coarse = here.status()["stages"]["coarse"]
    return bool(coarse["running"] == coarse["pending"] == 0)


def another_server(here: Place, killed: int) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return here.redis_pid() != killed
    return False


def test_kill_9_of_a_worker(here: Place) -> None:
    here.write_search(**LONG)
    master = here.start("master", "launch", "--stage", "coarse", "--workers", "2", log="master.log")
    wait_for(lambda: half_way(here), "running trials")
    victim = here.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    assert master.wait(DEADLINE_S) == 0, here.output("master.log")
    attempts = ended_once(here, 24)
    assert max(attempts.values()) == 2  # the interrupted ones, as a later attempt
    assert "back to the queue" in here.output("master.log")
    assert re.search(
        r"worker.*(died|killed|ended)", here.output("master.log")
    ) and "worker-" in here.output("master.log")  # with its log


def test_kill_9_of_the_master_and_the_same_launch_again(here: Place) -> None:
    here.write_search(**{**LONG, "epochs": 200, "lease_s": 30})
    master = here.start("master", "launch", "--stage", "coarse", "--workers", "2", log="master.log")
    wait_for(lambda: half_way(here), "running trials")
    workers = here.worker_pids()
    master.kill()
    master.wait()
    again = here.run("master", "launch", "--stage", "coarse")
    assert again.returncode == 0, again.stderr
    assert " 0 new" in again.stderr  # attached again
    assert taken(here, ended_once(here, 24)) == 0, "".join(
        here.logs()
    )  # the workers went on, untouched
    assert len(workers) == 2


def test_ctrl_c_leaves_the_trials_running_and_says_so(here: Place) -> None:
    here.write_search(**{**LONG, "epochs": 200})
    master = here.start("master", "launch", "--stage", "coarse", "--workers", "1", log="master.log")
    wait_for(lambda: half_way(here), "running trials")
    os.killpg(master.pid, signal.SIGINT)  # what a terminal does: the whole foreground group
    assert master.wait(DEADLINE_S) == 130
    assert "the trials go on" in here.output("master.log")
    wait_for(lambda: all_have_ended(here), "the end")
    assert here.worker_pids()  # it waits a minute for the next command
    ended_once(here, 24)
    shutil.rmtree(here.root)
    wait_for(
        lambda: not here.worker_pids(),
        "the worker to leave by itself, as no master lives and its folder is gone",
    )


def test_sigterm_of_a_worker_saves_and_gives_back(here: Place) -> None:
    here.write_search(**{**LONG, "epochs": 100, "lease_s": 60})
    assert (
        here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach").returncode
        == 0
    )
    worker = here.start("worker", "start", "--burst", log="worker.log")
    wait_for(lambda: half_way(here), "running trials")
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(DEADLINE_S) == 143
    assert time.monotonic() - began < BUSY_S
    assert here.status()["stages"]["coarse"]["running"] == 0  # at once, not after the lease of 60 s
    saved = list((here.root / "digits" / "coarse" / "resume").glob("*.pt"))
    assert saved
    resumed = here.run("worker", "start", "--burst")
    assert resumed.returncode == 0, resumed.stderr
    attempts = ended_once(here, 24)
    records = {r["trial"]: r for r in here.records()}
    for path in saved:
        trial = path.name.split("-try")[0]
        assert attempts[trial] == 2 and not path.exists()
        if records[trial]["state"] == "completed":
            assert records[trial]["curves"]["epoch"] == [
                float(e) for e in range(1, 101)
            ]  # from where the last attempt stood


def test_of_32_trials_in_a_process_with_a_poisoned_device_only_the_guilty_one_fails(
    here: Place,
) -> None:
    shutil.copy(TASKS / "poison.py", here.path)
    file = here.write_search(
        task="poison.py:Task",
        space="marker = { uniform = [0.0, 1.0] }",
        trials=32,
        epochs=3,
        hidden=16,
        high=0.05,
    )
    search = load_search(file)
    guilty = configurations(search, search.stage("coarse"), first_source(search), range(32))[5]
    marker = str(guilty.hyperparameters["marker"])
    launch = ("master", "launch", "--stage", "coarse", "--workers", "0")
    master = here.start(*launch, log="m.log", POISON_MARKER=marker)
    wait_for(lambda: "32 trials of 3 epochs" in here.output("m.log"), "the launch")
    start = ("worker", "start", "--device", "cpu", "--array-width", "32", "--idle-exit", "3")
    codes = []
    while master.poll() is None:  # as a supervisor does
        log = f"w{len(codes)}.log"
        codes.append(here.start(*start, log=log, POISON_MARKER=marker).wait(DEADLINE_S))
    assert master.returncode == 0, here.output("m.log")
    attempts = ended_once(here, 32)
    rows = {row["trial"]: row for row in here.rank()}
    assert [t for t, row in rows.items() if row["state"] == "failed"] == [guilty.id]
    assert rows[guilty.id]["reason"] == "AcceleratorError: CUDA error: device-side assert triggered"
    assert {row["state"] for t, row in rows.items() if t != guilty.id} == {"completed"}
    assert set(attempts.values()) == {2}, "in the array, and then alone"
    assert [code for code in codes if code] == [EXIT_POISONED, EXIT_POISONED]
    told = "".join(here.logs())
    assert told.count("32 trials will be tried again, each alone") == 1
    assert f"{guilty.id} fails: it was alone" in told
    assert "raised AcceleratorError" not in told, "the device is blamed, and no stacked step"


def test_a_trial_that_kills_its_worker_fails_alone(here: Place) -> None:
    shutil.copy(TASKS / "trouble.py", here.path)
    file = here.write_search(
        task="trouble.py:Task", space="marker = { uniform = [0.0, 1.0] }", lease_s=1.5, trials=12
    )
    search = load_search(file)
    markers = {
        t.id: t.hyperparameters["marker"]
        for t in configurations(search, search.stage("coarse"), first_source(search), range(12))
    }
    victim, highest = max(markers.items(), key=lambda item: item[1])
    master = here.start(
        "master",
        "launch",
        "--stage",
        "coarse",
        "--workers",
        "2",
        log="m.log",
        TROUBLE="exit",
        TROUBLE_BOUND=str(highest),
    )
    assert master.wait(DEADLINE_S) == 0, here.output("m.log")
    ended_once(here, 12)
    rows = {r["trial"]: r for r in here.rank()}
    assert rows[victim]["state"] == "failed"
    tried = ", ".join([r"try (\d+) on (\S+)"] * 3)
    ended = r"its last worker ended with exit status 9; its output ends in (logs/worker-\d\.log)"
    told = re.fullmatch(rf"lost 3 attempts while alone: {tried}; {ended}", rows[victim]["reason"])
    assert told, rows[victim]["reason"]
    tries, names = [int(told[n]) for n in (1, 3, 5)], [told[n] for n in (2, 4, 6)]
    assert (
        tries == list(range(tries[0], tries[0] + 3)) and rows[victim]["attempt"] == tries[-1] + 1
    )  # the verdict has a number of its own
    assert "planted: leaving at" in (here.root / "digits" / told[7]).read_text()
    assert (
        len(set(names)) == 3
    )  # workers that it killed, each under the name that its log begins with
    assert all(
        any(f"{name} on " in log.read_text() for log in here.root.glob("digits/logs/*.log"))
        for name in names
    ), names
    assert {r["state"] for t, r in rows.items() if t != victim} <= {"completed", "exploded"}
    assert here.run("master", "retry", "--state", "failed").stdout.startswith("1 failed trials")
    healed = here.run("master", "launch", "--stage", "coarse", TROUBLE="")
    assert healed.returncode == 0, healed.stderr
    attempts = ended_once(here, 12)
    assert {r["state"] for r in here.rank()} <= {"completed", "exploded"} and attempts[victim] > 4


def test_a_worker_stopped_beyond_its_lease_and_continued(here: Place) -> None:
    here.write_search(**{**LONG, "epochs": 120, "trials": 8, "hidden": "16"})
    assert (
        here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach").returncode
        == 0
    )
    sleeper = here.start("worker", "start", log="sleeper.log")
    wait_for(lambda: len(read_running(here)) == 8, "all trials on one worker")
    os.kill(sleeper.pid, signal.SIGSTOP)
    other = here.start("master", "launch", "--stage", "coarse", "--workers", "1", log="master.log")
    assert other.wait(DEADLINE_S) == 0, here.output("master.log")
    before = {r["trial"]: r for r in here.rank()}
    assert {r["attempt"] for r in before.values()} == {2}
    files = sorted(p.name for p in (here.root / "digits" / "coarse").glob("*.pt"))
    here.write_search(**{**LONG, "epochs": 120, "trials": 12, "hidden": "16"})
    assert (
        here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach").returncode
        == 0
    )
    os.kill(sleeper.pid, signal.SIGCONT)
    wait_for(
        lambda: (
            here.status()["stages"]["coarse"]["pending"]
            + here.status()["stages"]["coarse"]["running"]
            == 0
        ),
        "the next trials",
    )
    attempts = ended_once(here, 12)
    after = {r["trial"]: r for r in here.rank()}
    assert all(
        {**after[t], "rank": 0} == {**before[t], "rank": 0} for t in before
    )  # its late results changed nothing
    assert (
        taken(here, {t: n for t, n in attempts.items() if t not in before}) == 0
    )  # and it went on to the next trials
    assert (
        sorted(
            p.name
            for p in (here.root / "digits" / "coarse").glob("*.pt")
            if any(t in p.name for t in before)
        )
        == files
    )
    assert "changes nothing" in here.output("sleeper.log")


def test_a_task_that_raises_fails_its_own_trials_and_the_worker_lives_on(here: Place) -> None:
    shutil.copy(TASKS / "trouble.py", here.path)
    here.write_search(task="trouble.py:Task", space="marker = { uniform = [0.0, 1.0] }", trials=12)
    done = here.run(
        "master",
        "launch",
        "--stage",
        "coarse",
        "--workers",
        "1",
        TROUBLE="raise",
        TROUBLE_BOUND="0.7",
    )
    assert done.returncode == 0, done.stderr
    ended_once(here, 12)
    records = here.records()
    failed = [r for r in records if r["hyperparameters"]["marker"] > 0.7]
    assert failed and all(
        r["state"] == "failed" and "planted" in r["reason"] and "Traceback" in r["traceback"]
        for r in failed
    )
    assert all(
        r["state"] in ("completed", "exploded") and r["attempt"] == 1
        for r in records
        if r not in failed
    )
    assert {r["worker"] for r in records} == {records[0]["worker"]}


def test_redis_gone_in_the_middle(here: Place) -> None:
    here.write_search(**{**LONG, "epochs": 80, "lease_s": 3})
    master = here.start("master", "launch", "--stage", "coarse", "--workers", "2", log="master.log")
    wait_for(lambda: half_way(here), "running trials")
    killed = here.redis_pid()
    os.kill(killed, signal.SIGKILL)
    wait_for(
        lambda: another_server(here, killed),
        "the server to be started again by whoever needs it first",
    )
    assert master.wait(DEADLINE_S) == 0, here.output("master.log")
    said = here.output("master.log")  # nothing, where a worker was first
    assert (
        said.count("trying again until Redis is back") == said.count("Redis is back; going on") <= 1
    ), said
    ended_once(here, 24)


def test_kill_of_a_trial_while_it_trains(here: Place) -> None:
    here.write_search(**{**LONG, "epochs": 100_000, "trials": 4, "lease_s": 30, "hidden": "16"})
    assert (
        here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach").returncode
        == 0
    )
    here.start("worker", "start", log="worker.log")
    wait_for(lambda: len(read_running(here)) == 4, "running trials")
    killed = here.run("master", "kill", "--trial", "coarse-0002", "--yes")
    assert killed.returncode == 0 and "killed" in killed.stdout
    assert here.status()["stages"]["coarse"]["killed"] == 1  # at once
    wait_for(
        lambda: "coarse-0002: the lease is gone (killed)" in here.output("worker.log"),
        "the worker to hear it",
    )
    wait_for(
        lambda: [w["trials"] for w in here.status()["workers"]] == [3], "the slot to be given up"
    )
    refused = here.run("master", "kill", "--trial", "coarse-9999", "--yes")
    assert refused.returncode == 2 and "coarse-9999" in refused.stderr
    asked = subprocess.run(
        ["python", "-P", "-m", "master", "kill", "--stage", "coarse"],
        cwd=here.path,
        env=here.environment,
        input="n\n",
        text=True,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert asked.returncode == 1 and here.status()["stages"]["coarse"]["running"] == 3
    assert here.run("master", "kill", "--stage", "coarse", "--yes").returncode == 0
    wait_for(
        lambda: [w["state"] for w in here.status()["workers"]] == ["idle"],
        "the worker to be free again",
    )
    assert {r["state"] for r in here.rank()} == {"killed"}
    record = next(r for r in here.records() if r["trial"] == "coarse-0002")
    assert (
        record["attempt"] == 2 and record["reason"] == "killed by the user"
    )  # the verdict's own attempt number


def test_kill_of_a_worker_is_not_undone_by_the_master(here: Place) -> None:
    here.write_search(**{**LONG, "epochs": 500, "lease_s": 30})
    master = here.start("master", "launch", "--stage", "coarse", "--workers", "2", log="master.log")
    wait_for(lambda: half_way(here), "running trials")
    name = next(w["worker"] for w in here.status()["workers"] if w["trials"])
    assert here.run("master", "kill", "--worker", name, "--yes").returncode == 0
    wait_for(lambda: len(here.worker_pids()) == 1, "it to leave")
    assert master.wait(DEADLINE_S) == 0, here.output("master.log")
    assert len({r["worker"] for r in here.records()}) <= 2
    ended_once(here, 24)


def test_a_folder_without_its_redis_goes_on_in_another_place(here: Place) -> None:
    here.write_search(trials=10)
    assert here.run("master", "launch", "--stage", "coarse").returncode == 0
    before = here.rank()
    shutil.copytree(
        here.root,
        here.path / "another" / "checkpoints",
        ignore=shutil.ignore_patterns(".redis", "*.log"),
    )
    shutil.rmtree(here.root / "digits")  # nothing of it is needed there
    with place(here.path / "another") as there:
        (there.root / "digits" / "coarse" / "trials" / "coarse-0003-try=1.json").unlink()
        (there.root / "digits" / "coarse" / "ranges.toml").write_text("[ran")
        recovered = there.run("master", "recover")
        assert (
            recovered.returncode == 0
            and "9 trials taken over from the folder as ended, 1 queued again" in recovered.stdout
        )
        assert "set aside as ranges.toml.damaged" in recovered.stderr
        assert there.status()["stages"]["coarse"]["pending"] == 1
        assert there.run("master", "launch", "--stage", "coarse").returncode == 0
        ended_once(there, 10)
        assert [r["trial"] for r in there.rank()] == [r["trial"] for r in before]


STEADY = """
import os, time
from pathlib import Path


def train(trial):
    for epoch in range(round(trial.epoch) + 1, 7):
        while trial.id == "coarse-0001" and epoch == 4 and "HOLD" in os.environ:
            Path(os.environ["HOLD"]).touch()
            trial.beat()
            time.sleep(0.01)
        with Path(os.environ["TRAINED"]).open("a") as file:
            file.write(f"{trial.id} {epoch}\\n")
        trial.report(epoch, val_acc=epoch / 10, val_loss=1 / epoch, state={"so far": epoch})
"""


def test_a_copied_folder_goes_on_from_its_saved_states(here: Place) -> None:
    (here.path / "steady.py").write_text(STEADY)
    here.write_search(task="steady.py:train", trials=3, epochs=6, hidden="16")
    assert (
        here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach").returncode
        == 0
    )
    held, second = here.path / "held", here.path / "second"
    worker = here.start(
        "worker", "start", log="worker.log", HOLD=str(held), TRAINED=str(here.path / "first")
    )
    wait_for(held.exists, "a trial that has come half-way")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(DEADLINE_S) == 143
    shutil.copytree(
        here.root,
        here.path / "another" / "checkpoints",
        ignore=shutil.ignore_patterns(".redis", "*.log"),
    )
    shutil.rmtree(here.root / "digits")
    with place(here.path / "another") as there:
        saved = there.root / "digits" / "coarse" / "resume" / "coarse-0001-try=1.pt"
        assert saved.exists()
        assert [row["trial"] for row in there.rank()] == ["coarse-0000"]  # at once, without a Redis
        done = there.run(
            "master",
            "launch",
            "--stage",
            "coarse",
            "--search",
            "digits",
            "--workers",
            "1",
            TRAINED=str(second),
        )
        assert done.returncode == 0, done.stderr
        assert ended_once(there, 3) == {"coarse-0000": 1, "coarse-0001": 2, "coarse-0002": 1}
        assert second.read_text().splitlines() == [f"coarse-0001 {n}" for n in (4, 5, 6)] + [
            f"coarse-0002 {n}" for n in range(1, 7)
        ]
        record = next(record for record in there.records() if record["trial"] == "coarse-0001")
        assert (
            record["curves"]["epoch"] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] and record["epochs"] == 6.0
        )  # what went before is not lost
        assert not saved.exists()


def test_sigterm_of_the_master(here: Place) -> None:
    here.write_search(**{**LONG, "epochs": 100_000})
    master = here.start("master", "launch", "--stage", "coarse", "--workers", "1", log="master.log")
    wait_for(lambda: half_way(here), "running trials")
    master.terminate()
    assert master.wait(DEADLINE_S) == 143
    assert here.run("master", "kill", "--stage", "coarse", "--yes").returncode == 0


def test_sigterm_of_a_worker_while_redis_hangs(
    here: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here.write_search(**{**LONG, "epochs": 100_000})
    with start_redis(tmp_path_factory.mktemp("redis")) as server:
        here.redis_url = server.url
        assert (
            here.run(
                "master", "launch", "--stage", "coarse", "--workers", "0", "--detach"
            ).returncode
            == 0
        )
        worker = here.start("worker", "start", log="worker.log")
        wait_for(lambda: half_way(here), "running trials")
        server.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(DEADLINE_S) == 143
        assert time.monotonic() - began < BUSY_S
        server.process.send_signal(signal.SIGCONT)


def test_a_mended_task_is_taken_over_by_a_retry(here: Place) -> None:
    task = here.path / "mine.py"
    broken = (
        "from worker.tasks.digits import Digits\n\nclass Task(Digits):\n"
        "    def model(self, hp):\n        raise ValueError('not yet')\n"
    )
    task.write_text(broken)
    here.write_search(task="mine.py:Task", trials=4)
    assert here.run("master", "launch", "--stage", "coarse").returncode == 3
    assert {r["state"] for r in here.rank()} == {"failed"} and "not yet" in here.rank()[0]["reason"]
    task.write_text(broken.replace("raise ValueError('not yet')", "return super().model(hp)"))
    refused = here.run("master", "launch", "--stage", "coarse")
    assert refused.returncode == 2 and "master retry" in refused.stderr
    retried = here.run("master", "retry", "--state", "failed")
    assert retried.stdout.startswith(
        "4 failed trials are back in the queue, with the task's new code"
    )
    assert here.run("master", "launch", "--stage", "coarse").returncode == 0
    assert set(ended_once(here, 4).values()) == {2}
    assert {r["state"] for r in here.rank()} <= {"completed", "exploded"}


def test_a_damaged_record_is_set_aside_and_written_again(here: Place) -> None:
    here.write_search(trials=6)
    assert here.run("master", "launch", "--stage", "coarse").returncode == 0
    record = here.root / "digits" / "coarse" / "trials" / "coarse-0001-try=1.json"
    record.write_text("{")
    again = here.run("master", "launch", "--stage", "coarse")
    assert again.returncode == 0 and "1 records were missing" in again.stderr
    assert record.with_name(record.name + ".damaged").read_text() == "{"
    ended_once(here, 6)
    assert here.run("master", "launch", "--stage", "fine").returncode == 0


def test_a_worker_for_another_search_does_not_count(here: Place) -> None:
    here.write_search(name="other", trials=2)
    assert (
        here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach").returncode
        == 0
    )
    here.start("worker", "start", "--search", "other", log="other.log")
    wait_for(lambda: here.run("master", "workers").stdout.count("idle"), "it to idle")
    here.write_search(trials=4)
    done = here.run("master", "launch", "--stage", "coarse")
    assert (
        done.returncode == 0 and "no worker takes trials" not in done.stderr
    )  # local ones were started at once
    ended_once(here, 4)


def test_a_connected_worker_that_sees_another_folder_is_not_waited_for(
    here: Place, open_server: str
) -> None:
    here.write_search(trials=4)
    here.redis_url = open_server
    here.start(
        "worker", "start", "--checkpoints", str(here.path / "elsewhere"), log="elsewhere.log"
    )
    wait_for(lambda: here.run("master", "workers").stdout.count("idle"), "it to idle")
    done = here.run("master", "launch", "--stage", "coarse")
    assert (
        done.returncode == 0
        and "no worker takes trials of this search; starting local ones" in done.stderr
    )
    assert "start one with" not in done.stderr  # nothing is left for the user to do
    ended_once(here, 4)


def test_a_worker_on_another_volume_says_so_and_trains_nothing(
    here: Place, open_server: str
) -> None:
    here.write_search(trials=4)
    here.redis_url = open_server
    assert (
        here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach").returncode
        == 0
    )
    done = here.run("worker", "start", "--burst", "--checkpoints", str(here.path / "elsewhere"))
    assert (
        done.returncode == 0
        and done.stderr.count("another volume") == 1
        and "'digits'" in done.stderr
    )
    assert here.status()["stages"]["coarse"]["pending"] == 4


def test_workers_that_die_at_once_end_the_launch_with_a_clear_message(here: Place) -> None:
    (here.path / "sitecustomize.py").write_text(
        "import os, sys\nif 'worker' in sys.orig_argv:\n"
        "    os.write(2, b'planted: no luck\\n')\n    os._exit(7)\n"
    )
    here.write_search(trials=4)
    done = here.run(
        "master", "launch", "--stage", "coarse", "--workers", "1", PYTHONPATH=str(here.path)
    )
    assert (
        done.returncode == 1
        and "died 5 times" in done.stderr
        and "planted: no luck" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert done.stderr.splitlines()[-1].startswith("error: the local workers died too often")
    assert here.status()["stages"]["coarse"]["pending"] == 4  # they wait


PLANTED_SIGNAL = """
import os, signal, sys
if "launch" in sys.argv or "launch" in sys.orig_argv:
    place, name = os.environ["PLANTED"].rsplit(".", 1)
    import master.run.finish, master.run.launch, master.launchers.local
    owner = eval(place)
    own = getattr(owner, name)
    def planted(*args, **options):
        os.kill(os.getpid(), getattr(signal, os.environ["NUMBER"]))
        return own(*args, **options)
    setattr(owner, name, planted)
"""


@pytest.mark.parametrize(
    ("place", "number", "told"),
    [
        (
            "master.run.launch.examine",
            "SIGTERM",
            "interrupted; nothing was queued",
        ),  # unless it leaves the checks out
        (
            "master.run.launch.conclude",
            "SIGTERM",
            "has ended. `master rank` ranks them; the same launch command prints the outcome",
        ),
        (
            "master.run.launch.conclude",
            "SIGINT",
            "has ended. `master rank` ranks them; the same launch command prints the outcome",
        ),
        (
            "master.run.finish.draw_reports_in_background",
            "SIGUSR1",
            "is ranked. `master report --stage coarse` draws the report",
        ),
        (
            "master.launchers.local.LocalWorkers.leave",
            "SIGTERM",
            "has ended and is ranked; nothing is missing",
        ),
    ],
)
def test_a_signal_after_the_last_trial_is_told_what_is_done_and_what_is_missing(
    here: Place, place: str, number: str, told: str
) -> None:
    here.write_search(trials=3)
    (here.path / "sitecustomize.py").write_text(PLANTED_SIGNAL)
    planted = {
        "PYTHONPATH": os.pathsep.join([str(here.path), os.environ.get("PYTHONPATH", "")]),
        "PLANTED": place,
        "NUMBER": number,
    }
    command = ("master", "launch", "--stage", "coarse", "--workers", "1")
    done = here.run(*command, checks=place.endswith("examine"), **planted)
    assert done.returncode == 128 + getattr(signal, number), done.stderr
    last = done.stderr.splitlines()[-1]
    assert told in last and "the trials go on" not in last and "Traceback" not in done.stderr
    again = here.run(*command)
    assert again.returncode == 0 and "being drawn" in again.stderr, again.stderr

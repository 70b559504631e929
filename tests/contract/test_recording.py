"""What a worker does with ended trials when Redis or the folder refuses. Both are real."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import torch

from common.ending import EXIT_POISONED
from common.errors import CheckpointError, DamagedReplyError, NotAllowedError, QueueError
from common.folder import records
from common.folder.record import Record
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.search.protocol import PROTOCOL
from common.search.search_file import default_text
from common.search.trial import Claim, TrialState, WorkerInfo
from tests.contract.trials import SEARCH, made
from worker.run import loop
from worker.run import recorder as recorder_module
from worker.run.heartbeat import Heartbeat
from worker.run.loop import Loop, LoopOptions
from worker.run.recorder import Recorder
from worker.run.session import Means, Session, Sessions
from worker.training.device_errors import Poisoned
from worker.training.types import Boundary, Outcome, Snapshot, View

OTHER = "fedcba9876543210"
SURROGATE = "FileNotFoundError: [Errno 2] No such file: 'caf\udce9.csv'"


class Worker:
    """One worker of the search: it holds trials, and what it would have trained is given."""

    def __init__(self, client: redis.Redis, queue: TrialQueue, root: Path) -> None:
        self.queue, self.said = queue, list[str]()
        folder = SearchFolder(root, "digits")
        folder.stage("coarse").make()
        folder.search_file.write_text(f'id = "{SEARCH}"\nprotocol = 2\n{default_text()}')
        queue.register("digits")
        self.sessions = Sessions(
            client, root, Means(torch.device("cpu"), None, 1), self.said.append
        )
        session = self.sessions.find(SEARCH, "digits")
        assert session is not None
        self.session: Session = session
        self.heart = Heartbeat(
            WorkerInfo("w1", "host", 1, "cpu", machine="A"),
            WorkerRegistry(client),
            self.said.append,
        )
        self.heart.serve(queue, queue.lease_s)
        self.recorder = Recorder(session, self.heart, self.said.append)
        self.loop = Loop(
            client, self.sessions, self.heart, LoopOptions(burst=True), self.said.append
        )

    @property
    def file(self) -> Path:
        return self.session.folder.search_file

    def claim(self, n: int) -> list[Claim]:
        claims = self.queue.claim("w1", n, "request", machine="A")
        assert len(claims) == n
        self.heart.hold(claims)
        return claims

    def states(self) -> list[str]:
        return [str(self.queue.state(trial.id)) for trial in made(4)]

    def records(self) -> dict[str, Record]:
        return {
            record.trial: record for record in self.session.folder.stage("coarse").records(print)
        }


def completed(claim: Claim) -> Outcome:
    metrics = {"val_acc": 0.5, "val_loss": 0.5}
    return Outcome(claim, TrialState.COMPLETED, metrics=metrics, epochs=1.0, value=0.5)


def failed(claim: Claim, why: str) -> Outcome:
    return Outcome(claim, TrialState.FAILED, why, f"Traceback\n{why}")


def test_a_search_of_another_protocol_is_left_alone_and_said_once(
    client: redis.Redis, queue: TrialQueue, tmp_path: Path
) -> None:
    for search_id, name, number in ((SEARCH, "digits", PROTOCOL), (OTHER, "newer", PROTOCOL + 1)):
        (tmp_path / name).mkdir()
        text = default_text().replace('"digits"', f'"{name}"', 1)
        (tmp_path / name / "search.toml").write_text(
            f'id = "{search_id}"\nprotocol = {number}\n{text}'
        )
    said: list[str] = []
    sessions = Sessions(client, tmp_path, Means(torch.device("cpu"), None, 1), said.append)
    for _ in range(3):
        assert sessions.find(OTHER, "newer") is None
    assert sessions.find(SEARCH, "digits") is not None, "it goes on waiting for others"
    assert said == [
        f"this worker speaks protocol {PROTOCOL}, search 'newer' was launched by protocol "
        f"{PROTOCOL + 1}: "
        "install the same version of coarsefine; until then it leaves the search alone"
    ]


@pytest.mark.parametrize(
    ("gpus", "on_cpu", "told"),
    [
        ((), "", "has cpu: it leaves the search alone; start `worker start --device all"),
        ((), "on_cpu = true", None),
        ((0,), "on_cpu = true", "has cuda:0: it leaves the search alone"),
        ((0, 1), "", None),
        ((0, 1, 2), "", None),
    ],
)
def test_a_search_that_wants_more_gpus_than_the_worker_owns_is_left_alone_and_said_once(
    client: redis.Redis, tmp_path: Path, gpus: tuple[int, ...], on_cpu: str, told: str | None
) -> None:
    texts = {
        SEARCH: default_text(),
        OTHER: default_text().replace('"digits"', '"wide"', 1).replace('"digits"', '"a.py:f"', 1)
        + f"\n[resources]\ngpus = 2\n{on_cpu}\n",
    }
    for (search_id, text), name in zip(texts.items(), ("digits", "wide"), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "search.toml").write_text(
            f'id = "{search_id}"\nprotocol = {PROTOCOL}\n{text}'
        )
    said: list[str] = []
    means = Means(torch.device("cpu"), None, 1, gpus=gpus)
    sessions = Sessions(client, tmp_path, means, said.append)
    for _ in range(3):
        assert (sessions.find(OTHER, "wide") is None) == (told is not None)
    assert sessions.find(SEARCH, "digits") is not None
    assert len(said) == (told is not None)
    assert told is None or (told in said[0] and "wants 2 GPUs for each trial" in said[0])
    if told is not None:
        file = tmp_path / "wide" / "search.toml"
        file.write_text(file.read_text().replace("gpus = 2", "gpus = 1"))
        assert sessions.find(OTHER, "wide") is not None, "it reads the file again"


@pytest.fixture
def worker(client: redis.Redis, queue: TrialQueue, tmp_path: Path) -> Worker:
    queue.publish(made(4))
    return Worker(client, queue, tmp_path)


def test_a_message_that_no_json_takes_ends_its_trial_and_its_neighbours(worker: Worker) -> None:
    *well, bad = worker.claim(4)
    worker.recorder.record([*map(completed, well), failed(bad, SURROGATE + "x" * (2 << 20))])
    assert worker.states() == ["completed"] * 3 + ["failed"] and worker.recorder.flush()
    ended = worker.queue.result(bad.trial.id)
    assert ended is not None and str(ended[1].reason).startswith(
        r"FileNotFoundError: [Errno 2] No such file: 'caf\udce9.csv'"
    )
    found = worker.records()
    assert (
        len(found) == 4
        and found[bad.trial.id].reason == ended[1].reason
        and r"caf\udce9" in str(found[bad.trial.id].traceback)
    )


def test_a_message_of_another_kind_of_failure_too(worker: Worker) -> None:
    worker.recorder.record_failure(worker.claim(4), SURROGATE, SURROGATE)
    assert worker.states() == ["failed"] * 4 and set(worker.records()) == {
        trial.id for trial in made(4)
    }


def test_a_trial_that_another_machine_is_to_try_carries_such_a_message(worker: Worker) -> None:
    worker.queue.claim("w2", 1, "request", machine="B")
    (claim,) = worker.claim(1)
    worker.recorder.record([failed(claim, SURROGATE)])
    assert worker.queue.state(claim.trial.id) is TrialState.PENDING and not worker.records()
    assert any(
        "Another machine will try next" in line and r"caf\udce9" in line for line in worker.said
    )


@pytest.mark.parametrize("error", [DamagedReplyError, NotAllowedError])
def test_what_redis_refuses_holds_nothing_back_and_ends_the_worker(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, error: type[QueueError]
) -> None:
    def refused(*_: object) -> None:
        raise error("Redis refuses")

    *well, bad = worker.claim(4)
    monkeypatch.setattr(worker.session.queue, "fail", refused)
    with pytest.raises(error):
        worker.recorder.record([failed(bad, "boom"), *map(completed, well)])
    assert worker.states() == ["completed"] * 3 + ["running"]
    worker.loop._release(worker.session, worker.recorder, error("Redis refuses"))
    assert worker.states() == ["completed"] * 3 + ["pending"] and not worker.heart.find_unfinished()
    assert worker.said == ["gave back 1 unfinished trials"]


def lost(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.write_text("")


def garbled(file: Path) -> None:
    file.write_bytes(b"\xff\x00" * 100)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [lost, cut, garbled, a_folder])
def test_where_search_toml_cannot_be_read_what_ended_waits_for_it(
    worker: Worker, damage: Callable[[Path], None]
) -> None:
    claims = worker.claim(4)
    before = worker.file.read_bytes()
    damage(worker.file)
    worker.recorder.record([completed(claims[0]), failed(claims[1], "boom")])
    worker.recorder.record([completed(claims[2])])
    worker.recorder.save_states([])
    assert not worker.recorder.flush() and worker.recorder.unheard == {
        claim.trial.id for claim in claims[:3]
    }
    assert not worker.records() and worker.states() == ["running"] * 4
    worker.heart.once()  # the leases are renewed, and nothing has been lost
    assert len(worker.heart.find_unfinished()) == 4 and not worker.heart.lost()
    (told,) = worker.said
    assert (
        str(worker.file) in told
        and "`master recover --config FILE`" in told
        and "kept in memory" in told
    )
    worker.file.rmdir() if worker.file.is_dir() else worker.file.unlink(missing_ok=True)
    worker.file.write_bytes(before)
    assert worker.recorder.flush() and not worker.recorder.unheard
    assert (
        worker.states() == ["completed", "failed", "completed", "running"]
        and len(worker.records()) == 3
    )


def test_while_it_waits_for_search_toml_it_is_neither_stuck_nor_slow(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = worker.claim(1)
    before = worker.file.read_bytes()
    worker.file.unlink()
    worker.recorder.record(list(map(completed, claims)))
    heard: list[tuple[str, int]] = []

    def looked(_seconds: float) -> None:
        worker.heart.once()
        (running,) = worker.queue.running()
        assert running.progress is not None
        heard.append((running.progress.phase, running.progress.beat))
        if len(heard) == 3:
            worker.file.write_bytes(before)

    monkeypatch.setattr(loop.threading, "Event", lambda: SimpleNamespace(wait=looked))
    worker.loop._settle(worker.recorder)
    assert [phase for phase, _ in heard] == ["waiting"] * 3 and len(
        {beat for _, beat in heard}
    ) == 3
    assert worker.states() == ["completed"] + ["pending"] * 3


def test_where_a_trouble_of_the_system_passes_what_ended_is_written(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common import safe_read

    def stale(*_: object) -> bytes:
        raise OSError(116, "Stale file handle")

    claims = worker.claim(4)
    with monkeypatch.context() as patched:
        patched.setattr(safe_read, "read_bytes", stale)
        worker.recorder.record(list(map(completed, claims)))
        assert worker.states() == ["running"] * 4 and "Stale file handle" in worker.said[0]
    assert worker.recorder.flush() and worker.states() == ["completed"] * 4


def test_where_another_search_has_the_folder_the_leases_go_back(worker: Worker) -> None:
    *ended, running = worker.claim(4)
    worker.file.write_text(f'id = "{OTHER}"\nprotocol = 2\n{default_text()}')
    worker.recorder.record([*map(completed, ended[:2]), failed(ended[2], "boom")])
    assert worker.recorder.flush() and not worker.recorder.unheard and not worker.records()
    assert worker.states() == ["pending"] * 3 + ["running"]
    assert worker.heart.find_unfinished() == [running.fence]
    assert worker.said == [
        "search 'digits' was replaced by another in its folder: 3 results are left out"
    ]
    worker.heart.once()
    assert (
        worker.loop._refill(worker.session, ended[0], 3, worker.recorder) == []
        and worker.loop._claim() is None
    )  # nor trains them again
    assert worker.sessions.find(SEARCH, "digits") is None and len(worker.said) == 1
    worker.file.write_text(f'id = "{SEARCH}"\nprotocol = 2\n{default_text()}')
    assert worker.sessions.find(SEARCH, "digits") is not None


def test_where_the_lease_is_gone_too_nothing_is_said_of_results(worker: Worker) -> None:
    claims = worker.claim(4)
    for claim in claims:
        worker.queue.kill(claim.trial.id, "killed by the user")
    worker.heart.once()
    worker.said.clear()
    worker.file.write_text(f'id = "{OTHER}"\nprotocol = 2\n{default_text()}')
    worker.recorder.record(list(map(completed, claims)))
    assert worker.recorder.flush() and not worker.said and worker.states() == ["killed"] * 4


def test_where_the_whole_folder_is_gone_the_worker_leaves_with_one_message(worker: Worker) -> None:
    claims = worker.claim(4)
    shutil.rmtree(worker.session.folder.path)
    with pytest.raises(CheckpointError) as told:
        worker.recorder.record(list(map(completed, claims)))
    worker.loop._release(worker.session, worker.recorder, told.value)
    assert worker.states() == ["pending"] * 4 and worker.said == ["gave back 4 unfinished trials"]


def test_an_outage_in_the_middle_of_the_answers_counts_no_trial_twice(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = worker.claim(4)
    worker.queue.kill(claims[3].trial.id, "killed by the user")
    attempt, away = worker.queue.attempt, [True]

    def answer(trial_id: str) -> int:
        if away.pop() if away else False:
            raise QueueError("Redis at nowhere: refused")
        return attempt(trial_id)

    monkeypatch.setattr(worker.session.queue, "attempt", answer)
    outcomes: list[Any] = [completed(claim) for claim in claims]
    outcomes[3] = Outcome(
        **{**vars(outcomes[3]), "best_epoch": 1.0, "checkpoint": lambda: b"weights"}
    )
    worker.recorder.record(outcomes)
    assert worker.recorder.unheard == {claims[3].trial.id} and worker.heart.trials_done == 3
    assert worker.recorder.flush() and worker.heart.trials_done == 3
    assert len([line for line in worker.said if "another worker now holds this trial" in line]) == 1


def test_options_that_nobody_of_us_wrote_end_the_worker_and_its_leases_go_back(
    worker: Worker, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, asked = worker.session.queue.frozen, list[str]()

    def look(stage: str) -> Any:
        assert not asked, "it asks again, though no waiting helps"
        asked.append(stage)
        return frozen(stage)

    monkeypatch.setattr(worker.session.queue, "frozen", look)
    client.hset(worker.queue._frozen, "coarse", "[")
    with pytest.raises(DamagedReplyError, match="stage's options"):
        worker.loop.run()
    assert worker.states() == ["pending"] * 4 and worker.said == ["gave back 4 unfinished trials"]


def test_how_steps_are_computed_is_told_whatever_a_task_raised_meanwhile(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = SimpleNamespace(
        backend=SURROGATE * 100_000,
        width=lambda _hp: 1,
        train=lambda *_: iter([Boundary([], [], [])]),
    )
    monkeypatch.setattr(worker.session, "engine", lambda *_: told)
    worker.loop._train(worker.session, worker.claim(1), worker.recorder)
    worker.heart.once()
    (info,) = WorkerRegistry(worker.queue.client).list()
    assert info.backend.encode().startswith(b"FileNotFoundError") and len(info.backend) < 400


def test_rights_that_are_taken_away_while_it_trains_end_the_worker(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise NotAllowedError("Redis does not let this user do that")

    (claim,) = worker.claim(1)
    monkeypatch.setattr(worker.session.queue, "claim", refused)
    with pytest.raises(NotAllowedError):
        worker.loop._refill(worker.session, claim, 3, worker.recorder)


def odd(claim: Claim, **more: Any) -> Outcome:
    return replace(completed(claim), **more)


def raises() -> Any:
    raise TypeError("planted: no such state")


def leaves() -> Any:
    raise SystemExit("planted: a module that leaves")


ODD: dict[str, dict[str, Any]] = {
    "a metric": {"metrics": {"val_f1": object()}},
    "a value": {"value": "good"},
    "a curve": {"curves": {"epoch": [1.0], "val_acc": ["half"]}},
    "a key": {"curves": {"epoch": [1.0], 3: [0.5]}},
    "a figure": {
        "portrait": lambda: {"layer": object()},
        "checkpoint": lambda: b"weights",
        "best_epoch": 1.0,
    },
    "weights over time": {
        "snapshots": (Snapshot(1.0, 0.5, raises, None),),
        "checkpoint": lambda: b"weights",
        "best_epoch": 1.0,
    },
    "a state": {"resume": raises},
    "an exit": {
        "snapshots": (Snapshot(1.0, 0.5, leaves, None),),
        "checkpoint": lambda: b"weights",
        "best_epoch": 1.0,
    },
}


@pytest.mark.parametrize("what", ODD)
def test_what_cannot_be_written_down_fails_its_trial_with_the_cause_and_no_other(
    worker: Worker, what: str
) -> None:
    *well, bad = worker.claim(4)
    if what == "a state":  # one that may go on
        bad = replace(bad, trial=replace(bad.trial, max_epochs=9 * bad.trial.epochs))
    worker.recorder.record([odd(bad, **ODD[what]), *map(completed, well)])
    assert worker.recorder.flush() and not worker.recorder.unheard
    assert sorted(worker.states()) == ["completed"] * 3 + ["failed"]
    found = worker.records()[bad.trial.id]
    assert found.state is TrialState.FAILED and str(found.reason).startswith(
        "it cannot be recorded: "
    )
    assert "Traceback" in str(found.traceback) and ("planted" in str(found.reason)) == (
        what in ("weights over time", "a state", "an exit")
    )
    assert not list(worker.session.folder.stage("coarse").path.glob("*.pt"))


def test_a_disk_that_cannot_be_written_is_no_trials_fault(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise CheckpointError("the disk is full")

    claims = worker.claim(4)
    monkeypatch.setattr(records.durable, "write_new", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        worker.recorder.record(list(map(completed, claims)))
    assert worker.states() == ["running"] * 4 and len(worker.heart.find_unfinished()) == 4


def test_a_state_that_cannot_be_put_together_is_told_and_the_others_are_saved(
    worker: Worker,
) -> None:
    one, other = worker.claim(2)
    views = [
        View(one, 1.0, None, 2, raises),
        View(other, 1.0, None, 2, lambda: b"state"),
    ]
    assert not worker.recorder.save_states(views, now=True)
    saved = worker.session.folder.stage("coarse").find_states
    assert not saved(one.trial.id) and len(saved(other.trial.id)) == 1
    assert worker.said == [
        f"{one.trial.id}: its state cannot be saved (TypeError: planted: no such state)"
    ]


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        (lambda folder: (folder / "search.toml").write_text("id = "), "search.toml"),
        (lambda folder: (folder / "search.toml").unlink(), "search.toml is missing"),
        (
            lambda folder: (folder / "search.toml").write_text(
                f'id = "{OTHER}"\nprotocol = {PROTOCOL}\n{default_text()}'
            ),
            "holds another search",
        ),
    ],
)
def test_where_it_is_known_why_a_search_is_not_here_no_other_volume_is_guessed(
    client: redis.Redis, tmp_path: Path, trouble: Callable[[Path], object], cause: str
) -> None:
    said: list[str] = []
    sessions = Sessions(client, tmp_path, Means(torch.device("cpu"), None, 1), said.append)
    assert sessions.find(SEARCH, "digits") is None and "another volume" in said[0]
    said.clear()
    sessions = Sessions(client, tmp_path, Means(torch.device("cpu"), None, 1), said.append)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/search.toml").write_text(f'id = "{SEARCH}"\nprotocol = 2\n{default_text()}')
    trouble(tmp_path / "digits")
    for _ in range(2):
        assert sessions.find(SEARCH, "digits") is None
    assert len(said) == 1 and cause in said[0] and "another volume" not in said[0]
    (tmp_path / "digits/search.toml").write_text(f'id = "{SEARCH}"\nprotocol = 2\n{default_text()}')
    assert sessions.find(SEARCH, "digits") is not None


ASSERTION = torch.AcceleratorError("CUDA error: device-side assert triggered")


def poison(
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    claims: list[Claim],
    *before: Boundary,
    computed: list[Claim],
) -> list[int]:
    """Train the claims on a device that serves no more after some boundaries; the exit codes."""

    def train(*_: object) -> Iterator[Boundary]:
        yield from before
        raise Poisoned(ASSERTION, computed)

    exits = list[int]()
    engine = SimpleNamespace(backend="", width=lambda _hp: 4, train=train)
    monkeypatch.setattr(worker.session, "engine", lambda *_: engine)
    monkeypatch.setattr(worker.heart, "_exit_hard", exits.append)
    worker.loop._work(worker.session, claims)
    return exits


def test_a_poisoned_array_becomes_suspects_and_what_waited_goes_back(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = worker.claim(4)
    assert poison(worker, monkeypatch, claims, computed=claims[:2]) == [EXIT_POISONED]
    assert worker.records() == {} and worker.states() == ["pending"] * 4
    others = worker.queue.claim("w2", 4, "next")
    assert [(one.id, one.alone) for one in others] == [(claim.id, False) for claim in claims[2:]], (
        "they were not computed"
    )
    alone = [*worker.queue.claim("w2", 4, "a"), *worker.queue.claim("w2", 4, "b")]
    assert [(one.id, one.alone) for one in alone] == [(claim.id, True) for claim in claims[:2]]


def test_of_a_poisoned_trial_that_was_alone_the_reason_is_in_its_record(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = worker.claim(1)
    lone = [replace(claims[0], alone=True)]
    assert poison(worker, monkeypatch, claims, computed=lone) == [EXIT_POISONED]
    record = worker.records()[claims[0].id]
    assert record.state == TrialState.FAILED
    assert record.reason == "AcceleratorError: CUDA error: device-side assert triggered"
    assert worker.states()[0] == "failed" and f"{claims[0].id} fails" in "".join(worker.said)


@pytest.mark.parametrize("what", ["checkpoint", "predictions", "portrait", "resume"])
def test_where_the_device_goes_while_weights_are_written_their_trial_is_a_suspect(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fail() -> Any:
        raise ASSERTION

    claims = worker.claim(1)
    files: dict[str, Any] = {"checkpoint": lambda: b"weights", what: fail}
    ended = replace(completed(claims[0]), best_epoch=1.0, **files)
    monkeypatch.setattr(worker.session.waiting, "choose", lambda outcomes, *_: outcomes)
    assert poison(worker, monkeypatch, claims, Boundary([ended], [], []), computed=[]) == [
        EXIT_POISONED
    ]
    assert worker.records() == {}
    others = worker.queue.claim("w2", 4, "next")  # suspects come last
    (again,) = worker.queue.claim("w2", 4, "last")
    assert len(others) == 3 and again.alone and again.id == claims[0].id


def test_without_redis_the_leases_of_a_poisoned_process_run_out(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise QueueError("Redis is away")

    claims = worker.claim(2)
    monkeypatch.setattr(worker.session.queue, "take", away)
    assert poison(worker, monkeypatch, claims, computed=claims) == [EXIT_POISONED]
    assert worker.states()[:2] == ["running"] * 2
    assert "leases that are not given back run out by themselves" in "".join(worker.said)


def test_states_that_take_long_to_save_are_saved_less_often(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, saved = [1000.0], list[float]()
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr(recorder_module, "time", clock)
    recorder = Recorder(worker.session, worker.heart, worker.said.append)
    (claim,) = worker.claim(1)
    takes_s = [0.5, 7.5, 0.5, 0.5]

    def state() -> bytes:
        saved.append(now[0])
        now[0] += takes_s[len(saved) - 1]
        return b"state"

    views = [View(claim, 1.0, 1.0, 1, state)]
    while len(saved) < len(takes_s):
        now[0] += 1.0
        recorder.save_states(views)
    gaps = [after - before for before, after in pairwise(saved)]
    assert gaps[1] == 7.5 + 75.0, "7.5 s of each 30 s would be a fifth of the time"
    assert gaps[0] == gaps[2] == 30.5, "once it is fast again, it is as often as before"

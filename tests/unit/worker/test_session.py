"""Which code a worker trains: that which was launched, and no other."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis
import torch

from common.errors import CheckpointError, TaskError
from common.records import SearchFolder
from common.search import parse_search
from common.trial import Claim, Fence, Trial
from worker import tasks
from worker.loop import Loop, Options
from worker.own import OwnLoop
from worker.session import Means, Session
from worker.tasks import task_digest
from worker.training import archive
from worker.training.engine import Engine

STAGE = "[stages.{name}]\ntrials = 1\nepochs = 1\n"
TEXT = 'id = "0123456789abcdef"\nname = "own"\ntask = "{task}"\nmetric = "val_f1"\n[space]\nlearning_rate = 0.1\n' + STAGE.format(
    name="coarse"
)
CODE = {
    "Task": "class Task:\n    metrics = {'val_f1': max}\n    def data(self): ...\n    def model(self, hp): ...\n",
    "train": "def train(trial): ...\n",
}


def session(root: Path, name: str) -> Session:
    folder = SearchFolder(root, "own")
    folder.path.mkdir()
    (folder.path / "mine.py").write_text(CODE[name])
    folder.search_file.write_text(TEXT.format(task=f"somewhere/mine.py:{name}"))
    search = folder.search()
    assert search is not None
    found = Session(redis.Redis(), folder, search, Means(torch.device("cpu"), None, 1))
    launched(found)
    return found


def launched(found: Session) -> None:
    """What the master notes at launch, and again at a retry with mended code."""
    frozen = {"task_digest": task_digest(found.search.task_in_folder, found.folder.path)}
    found.queue = cast(Any, SimpleNamespace(frozen=lambda stage: frozen))


@pytest.mark.parametrize(("name", "kind"), [("Task", Engine), ("train", OwnLoop)])
def test_other_code_than_the_one_launched_is_refused_until_a_retry_notes_it(tmp_path: Path, name: str, kind: type) -> None:
    found = session(tmp_path, name)
    said: list[str] = []
    first = found.engine("coarse", said.append)
    assert isinstance(first, kind) and found.engine("coarse", said.append) is first
    runs = [line for line in said if "runs the code in" in line]
    assert len(runs) == 1 and str(found.digest) in runs[0] and str(found.folder.path) in runs[0] and "as launched" in runs[0]
    fresh = Session(redis.Redis(), found.folder, found.search, Means(torch.device("cpu"), None, 1))
    fresh.queue = found.queue
    file = found.folder.path / "mine.py"
    file.write_text(CODE[name] + "raise SystemExit  # must not even run\n")
    with pytest.raises(TaskError, match=r"the code here has digest \w+, the launched one \w+; restore the file"):
        fresh.engine("coarse", print)
    file.write_text(CODE[name] + "# mended\n")
    launched(fresh)
    assert isinstance(fresh.engine("coarse", print), kind) and fresh.digest == task_digest("mine.py:x", found.folder.path)
    launched(found)
    assert found.engine("coarse", print) is not first


def test_a_stage_that_was_added_later_is_read(tmp_path: Path) -> None:
    found = session(tmp_path, "train")
    first = found.engine("coarse", print)
    found.folder.search_file.write_text(found.folder.search_file.read_text() + STAGE.format(name="finest"))
    assert found.engine("finest", print) is not first
    assert [stage.name for stage in found.search.stages] == ["coarse", "finest"]


def test_the_engine_is_told_what_the_search_ranks_by(tmp_path: Path) -> None:
    engine = session(tmp_path, "Task").engine("coarse", print)
    assert isinstance(engine, Engine)
    assert (engine.options.metric, engine.options.mode, list(engine.options.stages)) == ("val_f1", "max", ["coarse"])


def test_a_worker_that_claimed_an_array_s_worth_for_a_loop_gives_back_all_but_one() -> None:
    trials = [Trial(f"coarse-{i:04d}", "coarse", i, i, 1.0, {}, "{}") for i in range(4)]
    claims = [Claim(trial, Fence(trial.id, 1, "token")) for trial in trials]
    released: list[Fence] = []
    dropped: list[str] = []
    session = cast(Session, SimpleNamespace(queue=SimpleNamespace(release=released.extend, search_id="x")))
    loop = Loop(redis.Redis(), cast(Any, None), cast(Any, SimpleNamespace(drop=dropped.extend)), Options(), print)
    search = parse_search(TEXT.format(task="mine.py:train"))
    own = OwnLoop(tasks.Loop(print, "mine.py:train"), torch.device("cpu"), search=search, log=print)
    assert loop._only(session, claims, own) == claims[:1]
    assert released == [claim.fence for claim in claims[1:]] and dropped == ["coarse-0001", "coarse-0002", "coarse-0003"]
    assert loop._only(session, claims, cast(Any, None)) == claims  # arrays take all


def test_a_retry_that_is_just_being_written_fails_no_trial(tmp_path: Path) -> None:
    found = session(tmp_path, "Task")
    digests = [*["0" * 64] * 3, task_digest("mine.py:x", found.folder.path)]  # the file has been replaced; its digest comes later
    found.queue = cast(Any, SimpleNamespace(frozen=lambda stage: {"task_digest": digests.pop(0) if len(digests) > 1 else digests[0]}))
    assert isinstance(found.engine("coarse", print), Engine)


def test_of_several_saved_states_the_latest_that_can_be_read_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, said = session(tmp_path, "Task"), list[str]()
    stage = found.folder.stage("coarse")
    stage.make()
    for attempt in (1, 2):
        torch.save({"epoch": attempt}, stage.resume_path("coarse-0000", attempt))
    latest = stage.resume_path("coarse-0000", 3)
    latest.write_bytes(b"PK\x03\x04 half a file")
    claim = Claim(Trial("coarse-0000", "coarse", 0, 1, 1.0, {}, "{}"), Fence("coarse-0000", 4, "token"))
    refused: list[OSError] = [OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "Permission denied")]
    load = archive.load

    def second_refuses(path: Path) -> Any:
        if "try=2" in path.name:
            raise refused[0]
        return load(path)

    with monkeypatch.context() as patch:
        patch.setattr(archive, "load", second_refuses)
        with pytest.raises(CheckpointError, match=r"try=2.*Input/output error"):  # no fault of the file
            found.jobs([claim], lambda line: None)
        del refused[0]
        (job,) = found.jobs([claim], lambda line: None)
    assert job.resume == {"epoch": 1} and stage.resume_path("coarse-0000", 2).exists()  # another user's
    latest.write_bytes(b"PK\x03\x04 half a file")
    latest.with_name(latest.name + ".damaged").unlink()
    (job,) = found.jobs([claim], said.append)
    assert job.resume == {"epoch": 2}
    assert len(said) == 1 and latest.name in said[0]
    assert latest.with_name(latest.name + ".damaged").exists() and not latest.exists()
    assert stage.highest_attempts() == {"coarse-0000": 3}

"""Which code a worker trains: that which was launched, and no other."""

from __future__ import annotations

import errno
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis
import torch

from common.code.store import task_digest
from common.errors import CheckpointError, TaskError
from common.folder.records import SearchFolder
from common.offspring import Offspring
from common.search.search_file import parse_search
from common.search.stage import Resources
from common.search.trial import Claim, Fence, Trial
from tests.shipped import ship
from tests.unit.worker.looped import own_of, start_forked
from worker.own import LoopHost, OwnLoop, Source
from worker.own.child import load
from worker.own.process import start_child
from worker.run.loop import Loop, LoopOptions
from worker.run.session import Means, Session
from worker.training.engine.engine import Engine
from worker.training.outcome import archive

STAGE = "[stages.{name}]\ntrials = 1\nepochs = 1\n"
TEXT = (
    'id = "0123456789abcdef"\nprotocol = 2\n'
    'name = "own"\ntask = "{task}"\nmetric = "val_f1"\n[space]\n'
    "learning_rate = 0.1\n"
) + STAGE.format(name="coarse")
CODE = {
    "Task": (
        "class Task:\n    metrics = {'val_f1': max}\n    def data(self): ...\n"
        "    def model(self, hp): ...\n"
    ),
    "train": "def train(trial): ...\n",
}


def session(root: Path, name: str, host: LoopHost | None = None) -> Session:
    folder = SearchFolder(root, "own")
    folder.path.mkdir()
    write(root, CODE[name], name)
    ship(folder, f"somewhere/mine.py:{name}", root)
    folder.search_file.write_text(TEXT.format(task=f"somewhere/mine.py:{name}"))
    search = folder.search()
    assert search is not None
    found = Session(redis.Redis(), folder, search, Means(torch.device("cpu"), None, 1, host=host))
    launched(found)
    return found


def write(root: Path, code: str, name: str) -> None:
    """Write the user's file, with a helper beside it."""
    (root / "somewhere").mkdir(exist_ok=True)
    (root / "somewhere" / "mine.py").write_text(f"import beside\n{code}")
    (root / "somewhere" / "beside.py").write_text(f"NAME = {name!r}\n")


def launched(found: Session) -> None:
    """What the master notes at launch, and again at a retry with mended code."""
    frozen = {"task_digest": task_digest(found.search, found.folder)}
    found.queue = cast(Any, SimpleNamespace(frozen=lambda stage: frozen))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such\ndef train(trial): ...\n", "importing it raised ModuleNotFoundError: No"),
        ("1 / 0\ndef train(trial): ...\n", "importing it raised ZeroDivisionError: division by"),
        ("def train(): ...\n", "cannot be called with one argument, the trial"),
        (
            "import os\nprint('bye', flush=True)\nos._exit(3)\ndef train(trial): ...\n",
            "importing somewhere/mine.py:train: its process ended with exit status 3, as "
            "os._exit(3) does; its output ends: bye",
        ),
    ],
)
def test_a_loop_that_cannot_be_imported_is_told_as_before_with_the_traceback_of_its_process(
    tmp_path: Path, code: str, reason: str
) -> None:
    found = session(tmp_path, "train", LoopHost(Offspring(), start_forked(load)))
    write(tmp_path, code, "train")
    ship(found.folder, found.search.task, tmp_path)
    launched(found)
    with pytest.raises(TaskError) as told:
        found.engine("coarse", print)
    assert reason in str(told.value)
    shown = "".join(traceback.format_exception(told.value))
    assert "mine.py" in shown and ("bye" in shown or "Traceback" in shown)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("Task", Engine), ("train", OwnLoop)])
def test_other_code_than_the_one_launched_is_refused_until_a_retry_notes_it(
    tmp_path: Path, name: str, kind: type
) -> None:
    found = session(tmp_path, name)
    said: list[str] = []
    first = found.engine("coarse", said.append)
    assert isinstance(first, kind) and found.engine("coarse", said.append) is first
    runs = [line for line in said if "runs the code in" in line]
    assert (
        len(runs) == 1
        and str(found.digest) in runs[0]
        and str(found.folder.code) in runs[0]
        and "as launched" in runs[0]
    )
    old = found.digest
    for own in ("mine.py", "beside.py"):
        fresh = Session(
            redis.Redis(), found.folder, found.search, Means(torch.device("cpu"), None, 1)
        )
        fresh.queue = found.queue
        (file,) = found.folder.code.glob(f"*/{own}")
        content = file.read_text()
        file.write_text(content + "raise SystemExit  # must not even run\n")
        with pytest.raises(
            TaskError,
            match=rf"{own}: the file here has digest \w+, the launched one \w+; .* restore the",
        ):
            fresh.engine("coarse", print)
        file.write_text(content)
        assert isinstance(fresh.engine("coarse", print), kind)
    write(tmp_path, CODE[name] + "# mended\n", name)
    spec = found.search.task
    assert ship(found.folder, spec, tmp_path) != old
    assert found.engine("coarse", print) is first  # nobody has noted the new digest yet
    launched(found)
    assert found.engine("coarse", print) is not first and found.digest != old
    assert isinstance(fresh.engine("coarse", print), kind) and fresh.digest == old  # beside it
    launched(fresh)
    assert isinstance(fresh.engine("coarse", print), kind) and fresh.digest == found.digest


def test_the_commit_of_the_code_is_logged(tmp_path: Path) -> None:
    found, said = session(tmp_path, "train"), list[str]()
    (listing,) = found.folder.code.glob("*.json")
    listing.write_text(listing.read_text().replace('"commit": null', f'"commit": "{"ab" * 20}"'))
    found.engine("coarse", said.append)
    assert "2 files, 1 KiB, commit abababababab, sha256" in said[0]


def test_code_that_the_folder_does_not_have_is_told(tmp_path: Path) -> None:
    found = session(tmp_path, "Task")
    (listing,) = found.folder.code.glob("*.json")
    listing.unlink()
    with pytest.raises(TaskError, match=r"the code with digest \w+ is not there"):
        found.engine("coarse", print)


def test_a_stage_that_was_added_later_is_read(tmp_path: Path) -> None:
    found = session(tmp_path, "train")
    first = found.engine("coarse", print)
    found.folder.search_file.write_text(
        found.folder.search_file.read_text() + STAGE.format(name="finest")
    )
    assert found.engine("finest", print) is not first
    assert [stage.name for stage in found.search.stages] == ["coarse", "finest"]


def test_the_engine_is_told_what_the_search_ranks_by(tmp_path: Path) -> None:
    engine = session(tmp_path, "Task").engine("coarse", print)
    assert isinstance(engine, Engine)
    assert (
        engine.builder.options.metric,
        engine.builder.options.mode,
        list(engine.builder.options.stages),
    ) == (
        "val_f1",
        "max",
        ["coarse"],
    )


def test_a_class_gets_no_several_gpus(tmp_path: Path) -> None:
    found = session(tmp_path, "Task")
    found.search = found.search.model_copy(update={"resources": Resources(gpus=2)})
    with pytest.raises(TaskError, match=r"\[resources\] gpus = 2: is for loops and programs"):
        found.engine("coarse", print)


@pytest.mark.parametrize(
    ("gpus", "asked", "device", "seen"),
    [((), 1, "cpu", ""), ((1,), 1, "cuda:0", "GPU-b"), ((1, 2), 2, "cuda:0", "GPU-b,MIG-c"),
     ((0, 1), 1, "cuda:0", "GPU-a"), ((), 2, "cpu", "")],
)  # fmt: skip
def test_the_process_of_a_loop_sees_the_gpus_of_its_trial_and_no_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: tuple[int, ...],
    asked: int,
    device: str,
    seen: str,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,MIG-c")
    opened, started, said = list[Source](), list[dict[str, Any]](), list[str]()
    host = cast(Any, SimpleNamespace(open=lambda source, *_, **more: opened.append(source)))
    found = session(tmp_path, "train", host)
    found._means = replace(found._means, gpus=gpus)
    found.search = found.search.model_copy(update={"resources": Resources(gpus=asked)})
    found.engine("coarse", said.append)
    (source,) = opened
    assert (source.device, source.gpus) == (device, asked)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: started.append(more))
    start_child(source, 0, 1)
    assert started[0]["env"]["CUDA_VISIBLE_DEVICES"] == seen
    assert any("stay idle" in line for line in said) == (len(gpus) > asked)


def test_a_worker_that_claimed_an_array_s_worth_for_a_loop_gives_back_all_but_one() -> None:
    trials = [Trial(f"coarse-{i:04d}", "coarse", i, i, 1.0, {}, "{}") for i in range(4)]
    claims = [Claim(trial, Fence(trial.id, 1, "token")) for trial in trials]
    released: list[Fence] = []
    dropped: list[str] = []
    session = cast(
        Session, SimpleNamespace(queue=SimpleNamespace(release=released.extend, search_id="x"))
    )
    loop = Loop(
        redis.Redis(),
        cast(Any, None),
        cast(Any, SimpleNamespace(drop=dropped.extend, info=None)),
        LoopOptions(),
        print,
    )
    search = parse_search(TEXT.format(task="mine.py:train"))
    own = own_of(print, search)
    assert loop._only(session, claims, own) == claims[:1]
    assert released == [claim.fence for claim in claims[1:]] and dropped == [
        "coarse-0001",
        "coarse-0002",
        "coarse-0003",
    ]
    assert (
        loop._only(session, claims, cast(Any, SimpleNamespace(width=lambda _hp: 4))) == claims
    )  # they fit into an array


def test_of_several_saved_states_the_latest_that_can_be_read_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, said = session(tmp_path, "Task"), list[str]()
    stage = found.folder.stage("coarse")
    stage.make()
    for attempt in (1, 2):
        torch.save({"epoch": attempt}, stage.resume_path("coarse-0000", attempt))
    latest = stage.resume_path("coarse-0000", 3)
    latest.write_bytes(b"PK\x03\x04 half a file")
    claim = Claim(
        Trial("coarse-0000", "coarse", 0, 1, 1.0, {}, "{}"), Fence("coarse-0000", 4, "token")
    )
    refused: list[OSError] = [
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
    ]
    load = archive.load

    def second_refuses(path: Path) -> Any:
        if "try=2" in path.name:
            raise refused[0]
        return load(path)

    with monkeypatch.context() as patch:
        patch.setattr(archive, "load", second_refuses)
        with pytest.raises(
            CheckpointError, match=r"try=2.*Input/output error"
        ):  # no fault of the file
            found.load_states([claim], said.append)
        del refused[0]
        (job,) = found.load_states([claim], said.append)
    assert (
        job.resume == {"epoch": 1} and stage.resume_path("coarse-0000", 2).exists()
    )  # another user's
    latest.write_bytes(b"PK\x03\x04 half a file")
    latest.with_name(latest.name + ".damaged").unlink()
    (job,) = found.load_states([claim], said.append)
    assert job.resume == {"epoch": 2}
    assert latest.name in said[0] and "damaged" in said[0] and "may not read" in said[1]
    assert len(said) == 2  # the second damaged one is only counted
    assert latest.with_name(latest.name + ".damaged").exists() and not latest.exists()
    assert stage.highest_attempts() == {"coarse-0000": 3}


BESIDE_OURS = """
import sys
from pathlib import Path
from tests.unit.worker.test_session import CODE, session

for name in CODE:
    root = Path(sys.argv[1]) / name
    for package in ("common", "worker"):
        (root / "somewhere" / package).mkdir(parents=True)
        (root / "somewhere" / package / "__init__.py").write_text(f"MINE = {name!r}")
    own = f"import common, worker\\nassert common.MINE == worker.MINE == {name!r}\\n"
    CODE[name] = own + CODE[name]
    print(type(session(root, name).engine("coarse", print)).__name__)
"""


def test_the_process_of_a_loop_begins_with_our_modules_whatever_packages_tasks_have(
    tmp_path: Path,
) -> None:
    """A class whose package is called ``worker``, and a loop with one after it."""
    run = subprocess.run(
        [sys.executable, "-c", BESIDE_OURS, str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert [line for line in run.stdout.splitlines() if " " not in line] == ["Engine", "OwnLoop"]

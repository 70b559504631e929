"""A search's folder is shared.

Whatever is planted in it leads to no other place, hangs no reader, and does not run.
"""

from __future__ import annotations

import hashlib
import io
import os
import py_compile
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fastapi import HTTPException

from common.broker.embedded_folder import Place
from common.broker.server_folder import LOG_TAIL_BYTES, ServerFolder, log_tail
from common.code import store
from common.code.tree import Manifest
from common.errors import CheckpointError, ConfigError, SearchError, TaskError
from common.folder import ledger, pictures, predictions
from common.folder.filelock import FileLock
from common.folder.records import SearchFolder, StageFolder, read_record
from common.folder.teacher import read_taught, read_teacher
from common.safe_read import open_to_append, read_bytes, read_end
from common.search.search_file import default_text, load_search, parse_search
from master.commands import damage
from master.dashboard import api
from master.dashboard.views import figures
from master.report import figure_data
from master.strategy.ranges import read_frozen
from tests.shipped import ship
from tests.unit.master.made import record
from worker.tasks import load_launched, load_task
from worker.training.outcome import archive

OUTWARD = [
    "../../up-0001",
    "/etc/coarse-0001",
    "coarse-0001/../../x",
    "coarse-0001\0",
    "coarse-٠٠٠١",
    "coarse-0001\n",
    "",
    "..",
    "coarse",
]
PICTURE = "coarse-0001-try=1.png"
KEPT = record(1, {}, checkpoint="val_acc=0.9000-trial=coarse-0001-epoch=001-try=1.pt")


def found(picture: bytes | None) -> bytes:
    """What a figure or a report shows; without a picture they go on."""
    if picture is None:
        raise OSError("no picture")
    return picture


def drawn(path: Path) -> bytes:
    view = SimpleNamespace(records={KEPT.trial: KEPT}, folder=StageFolder(path.parent.parent))
    return found(figures._picture(view, KEPT.trial))  # type: ignore[arg-type]


def served(path: Path) -> object:
    """Return the dashboard's answer from the folder as it is now, whatever it saw before."""
    stage = StageFolder(path.parent.parent)
    detail = SimpleNamespace(picture="/api/there", attempt=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "_detail", lambda *_: detail)
        patch.setattr(api, "stage_of_trial", lambda *_: SimpleNamespace(folder=stage))
        try:
            return api.picture(SimpleNamespace(), KEPT.trial, None).body  # type: ignore[arg-type]
        except HTTPException as error:
            raise OSError(error.detail) from error


def version(path: Path) -> object:
    return ServerFolder(path.parent).read_version()


READERS: dict[str, Callable[[Path], object]] = {
    "coarse-0001-try=1.json": read_record,
    "search.toml": load_search,
    "a.npz": predictions.read,
    "a.pt": archive.load,
    "teacher.json": read_teacher,
    "teacher.npz": read_taught,
    "val_acc=0.9000-trial=coarse-0001-epoch=001-try=1.pt": damage.check_weights,
    "task.py": lambda path: load_task("task.py:T", path.parent),
    "task.json": lambda path: store.launched_digest(
        SearchFolder(path.parent.parent, path.parent.name)
    ),
    f"task-code/{'0' * 16}.json": lambda path: store.read(
        SearchFolder(path.parents[2], path.parents[1].name), "0" * 64
    ),
    "test_looks.jsonl": lambda path: ledger.count(
        SearchFolder(path.parent.parent, path.parent.name)
    ),
    "ranges.toml": lambda path: read_frozen(path, parse_search(default_text()).space),
    "server.json": Place.read,
    ".redis/version": version,
    f"pictures/{PICTURE}": pictures.read,
    f"stage/pictures/{PICTURE}": lambda path: found(
        figure_data._pictures(StageFolder(path.parent.parent), [KEPT])(KEPT.trial)
    ),
    f"drawn/pictures/{PICTURE}": drawn,
    f"served/pictures/{PICTURE}": served,
}


@pytest.mark.parametrize("name", OUTWARD)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = SearchFolder(tmp_path, "digits")
    for path in (
        folder.stage("coarse").record_path,
        folder.stage("coarse").resume_path,
        folder.stage("coarse").picture_path,
    ):
        with pytest.raises(CheckpointError, match="no trial's name"):
            path(name, 1)
    if name != "coarse":
        with pytest.raises(CheckpointError, match="no stage's name"):
            folder.stage(name)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("plant", ["pipe", "device", "folder", "endless"])
def test_a_reader_neither_waits_nor_fills_the_memory(tmp_path: Path, name: str, plant: str) -> None:
    path = planted(tmp_path / name, plant)
    with pytest.raises((SearchError, OSError)):
        READERS[name](path)


def planted(path: Path, plant: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if plant == "pipe":
        os.mkfifo(path)
    elif plant == "device":
        path.symlink_to("/dev/zero")
    elif plant == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)  # takes no room on the disk
    return path


@pytest.mark.parametrize("plant", ["pipe", "device", "folder", "endless"])
def test_the_end_of_a_log_is_read_and_no_more_of_it(tmp_path: Path, plant: str) -> None:
    path = planted(tmp_path / "redis.log", plant)
    shown = log_tail(path)
    assert len(shown) <= LOG_TAIL_BYTES + 100
    assert plant == "endless" or "cannot be read" in shown


def test_the_end_of_a_file_is_its_end(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"0123456789")
    assert (read_end(file, 3), read_end(file, 99), read_end(file, 99, 6)) == (
        b"789",
        b"0123456789",
        b"6789",
    )


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(PICTURE)])
def test_a_picture_is_shown_and_what_a_link_in_its_place_leads_to_is_not(
    tmp_path: Path, name: str
) -> None:
    path = planted(tmp_path / name, "folder")
    path.rmdir()
    path.write_bytes(pictures.SIGNATURE + b"...")
    assert READERS[name](path) == path.read_bytes()
    path.unlink()
    (tmp_path / "private").write_text("mine")
    path.symlink_to(tmp_path / "private")
    with pytest.raises(OSError):
        READERS[name](path)


def test_what_is_appended_to_is_never_elsewhere(tmp_path: Path) -> None:
    target, folder = tmp_path / "profile", SearchFolder(tmp_path, "digits")
    target.write_text("mine\n")
    folder.path.mkdir()
    (folder.path / ledger.NAME).symlink_to(target)
    with pytest.raises(CheckpointError, match="is a link"):
        ledger.note(folder, [{"correct": 1}])
    for opens in (open_to_append, FileLock):
        with pytest.raises((OSError, CheckpointError)):
            opens(folder.path / ledger.NAME)
    assert target.read_text() == "mine\n"


def test_a_record_of_another_stage_is_none(tmp_path: Path) -> None:
    stage = SearchFolder(tmp_path, "digits").stage("coarse")
    stage.make()
    content = (
        '{"search_id":"a","trial":"coarse-0001","stage":"../../up","index":1,"seed":1,'
        '"budget_epochs":1,"hyperparameters":{},'
    )
    stage.record_path("coarse-0001", 1).write_text(content + '"attempt":1,"state":"completed"}')
    told: list[str] = []
    assert stage.records(told.append) == []
    assert len(told) == 1


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    """Checkpoints often are on another disk.

    Who may plant a link may also change the task's code.
    """
    (tmp_path / "big").mkdir()
    (tmp_path / "digits").symlink_to(tmp_path / "big")
    stage = SearchFolder(tmp_path, "digits").stage("coarse")
    stage.make()
    assert (tmp_path / "big" / "coarse" / "trials").is_dir()


TASK = "class T:\n    def data(self): ...\n    def model(self, hp): ...\n    name = {!r}\n"


def shipped(root: Path) -> tuple[SearchFolder, Path]:
    """Return a search's folder with the code of a task, and the task's file in it."""
    folder = SearchFolder(root / "checkpoints", "digits")
    folder.path.mkdir(parents=True)
    (root / "task.py").write_text(TASK.format("honest"))
    ship(folder, "task.py:T", root)
    (file,) = folder.code.glob("*/task.py")
    return folder, file


def test_a_compiled_copy_beside_a_task_is_not_run(tmp_path: Path) -> None:
    folder, file = shipped(tmp_path)
    file.write_text(TASK.format("wicked"))
    planted = py_compile.compile(
        str(file), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    file.write_text(TASK.format("honest"))
    assert Path(planted).exists()
    search = parse_search(default_text().replace('task = "digits"', 'task = "task.py:T"'))
    assert load_launched(search, folder).name == "honest"  # type: ignore[union-attr]


def test_a_file_beside_the_launched_ones_is_not_imported(tmp_path: Path) -> None:
    folder, file = shipped(tmp_path)
    (file.parent / "json.py").write_text("raise SystemExit('ran')\n")
    (file.parent / "planted.py").touch()
    assert set(store.read(folder, store.launched_digest(folder)).files) == {"task.py"}


def test_other_code_than_was_launched_is_not_run(tmp_path: Path) -> None:
    folder, file = shipped(tmp_path)
    digest = store.launched_digest(folder)
    file.write_text("raise SystemExit('ran')\n")
    with pytest.raises(TaskError, match="the launched one"):
        store.read(folder, digest)
    (listing,) = folder.code.glob("*.json")
    entry = f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"'
    listing.write_text(re.sub(r'(?<="sha256": )"[0-9a-f]+"', entry, listing.read_text()))
    with pytest.raises(TaskError, match=f"the launched one {digest}"):
        store.read(folder, digest)


@pytest.mark.parametrize("name", ["../up.py", "/etc/passwd", "a//b.py", "a/../../b.py", ""])
def test_a_list_of_files_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    folder, _ = shipped(tmp_path)
    (listing,) = folder.code.glob("*.json")
    found = Manifest.model_validate_json(listing.read_bytes())
    other = Manifest(module="task", files={**found.files, name: found.files["task.py"]})
    (folder.code / f"{other.digest[:16]}.json").write_text(other.model_dump_json())
    (folder.code / other.digest[:16]).mkdir()
    with pytest.raises(TaskError, match=r"no path in a folder|cannot be read"):
        store.read(folder, other.digest)


class Wicked:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("echo ran > /tmp/never",)


def test_weights_run_no_code_and_unpack_to_what_they_are_long(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"model": {}, "state": torch.zeros(3)}, path)
    assert archive.load(path)["state"].tolist() == [0.0, 0.0, 0.0]
    torch.save({"model": Wicked()}, path)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        archive.load(path)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/data/0", bytes(1 << 20))
    path.write_bytes(bomb.getvalue())
    with pytest.raises(ValueError, match="compressed entry"):
        archive.load(path)
    path.write_bytes(b"\x80\x02cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(zipfile.BadZipFile):
        archive.load(path)


def test_a_file_that_grows_is_read_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"0123456789")
    assert read_bytes(file, 10) == b"0123456789"
    with pytest.raises(OSError, match="10 bytes, more than the 9"):
        read_bytes(file, 9)
    with pytest.raises(ConfigError, match="no path that a file can have"):
        load_search(Path("a\0b"))

"""`master recover` sets damaged weights and predictions aside, and leaves whole files alone."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis
import torch

from common.errors import CheckpointError
from common.folder import predictions
from common.folder.records import StageFolder
from common.queue.reconcile import write_ended
from common.search.trial import Result, TrialState
from master.commands import damage
from tests.contract.test_recovery import TEXT, Place
from tests.redis_server import RedisServer
from worker.training.outcome import archive

N = 12
NAME = "val_acc=0.{0:02d}00-trial=coarse-{0:04d}-epoch=001-try=1"


def packed(content: bytes) -> bytes:
    """A few bytes that unpack to much, under the names of a checkpoint."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", bytes(1 << 20))
    return made.getvalue()


def flipped(content: bytes) -> bytes:
    """One bit in the middle, where the numbers are: nothing but a sum shows it."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "a flipped bit": flipped,
    "another archive": packed,
    "text": lambda content: b"weights\n" * 100,
}


@pytest.fixture
def kept(tmp_path: Path, client: redis.Redis, server: RedisServer) -> tuple[Place, StageFolder]:
    """Make a search whose trials all ended and kept weights, predictions and one snapshot."""
    own = tmp_path / "own.toml"
    own.write_text(TEXT)
    place = Place(tmp_path / "checkpoints", own, server.url)
    place.root.mkdir()
    queue, published = place.publish(client, "coarse")
    stage = place.folder.stage("coarse")
    stage.snapshots.mkdir()
    weights, predicted = io.BytesIO(), probabilities()
    torch.save({"model": {"weight": torch.randn(64, 64)}, "epoch": 1.0}, weights)
    for index in range(N):
        for folder in (stage.path, stage.snapshots):
            (folder / f"{NAME.format(index)}.pt").write_bytes(weights.getvalue())
            (folder / f"{NAME.format(index)}.npz").write_bytes(predicted)
    ended = [
        (t, 1, Result(TrialState.COMPLETED, val_acc=t.index / 100, val_loss=0.5, epochs=1.0))
        for t in published.trials
    ]
    write_ended(place.folder, queue.search_id, ended)
    client.flushall()
    return place, stage


def probabilities() -> bytes:
    rows = np.random.default_rng(1).random((100, 10))
    return predictions.pack(
        {"val": rows / rows.sum(1, keepdims=True), "val_targets": np.zeros(100)}
    )


def test_damaged_weights_and_predictions_are_set_aside_by_name(
    kept: tuple[Place, StageFolder],
) -> None:
    place, stage = kept
    before = {
        path: path.read_bytes()
        for folder in (stage.path, stage.snapshots)
        for path in folder.iterdir()
        if path.is_file()
    }
    harmed = {}
    for number, damaged in enumerate(DAMAGES.values()):
        for path in (
            stage.path / f"{NAME.format(number)}.pt",
            stage.snapshots / f"{NAME.format(number + 1)}.npz",
        ):
            path.write_bytes(damaged(before[path]))
            harmed[path] = path.read_bytes()
    said = place.recover()
    assert f"{N} trials taken over from the folder as ended, 0 queued again" in said
    for path, content in harmed.items():
        assert not path.exists() and path.with_name(f"{path.name}.damaged").read_bytes() == content
        (line,) = [line for line in place.told if str(path) in line]
        assert "damaged" in line and "set aside" in line
    for path in before.keys() - harmed.keys():
        assert path.read_bytes() == before[path]
        (archive.load if path.suffix == ".pt" else predictions.read)(path) if path.suffix in (
            ".pt",
            ".npz",
        ) else None
    assert len(place.told) == len(harmed)
    place.recover()
    assert not place.told  # nobody stumbles over them again
    assert len(place.ranked()) == N


def test_what_is_no_file_is_set_aside_and_what_cannot_be_read_for_now_stays(
    kept: tuple[Place, StageFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, stage = kept
    pipe, folder, barred = (stage.path / f"{NAME.format(index)}.pt" for index in range(3))
    pipe.unlink()
    os.mkfifo(pipe)
    folder.unlink()
    folder.mkdir()
    opened = os.open

    def refuses(path: str | Path, *more: int) -> int:
        if Path(path) == barred:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *more)

    monkeypatch.setattr(os, "open", refuses)
    place.recover()
    monkeypatch.undo()
    assert not pipe.exists() and pipe.with_name(f"{pipe.name}.damaged").is_fifo()
    assert not folder.exists() and folder.with_name(f"{folder.name}.damaged").is_dir()
    assert archive.load(barred)["epoch"] == 1.0
    (line,) = [line for line in place.told if str(barred) in line]
    assert "permission denied" in line and "set aside" not in line


def test_a_file_that_says_less_than_it_would_unpack_is_not_read_for_ever(tmp_path: Path) -> None:
    """Overlapping entries unpack to a thousand times the file's size, though none is compressed."""
    path = tmp_path / f"{NAME.format(1)}.pt"
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("x/data.pkl", bytes(1 << 20))
        whole = file.infolist()[0]
        file.filelist += [whole] * 1000
    path.write_bytes(made.getvalue())
    with pytest.raises(CheckpointError, match="unpack to more"):
        damage.check_weights(path)

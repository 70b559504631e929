"""The teacher of a stage of kind "distill": its models, and their predictions.

    small/teacher.json   the models; the master chooses them when the stage is launched
    small/teacher.npz    their predictions; the first worker that needs them writes the file

``teacher.json`` has the form

    {"format": 1, "kind": "top", "members": [{"checkpoint": "fine/val_acc=...pt", "weight": 1}]}

The arrays of ``teacher.npz`` are

- ``log_probabilities`` (n, C), float32: the natural logarithm of the weighted mean of the models'
  probabilities on the n training examples, without augmentation;
- ``targets`` (n,), int64;
- ``teacher`` (32,), uint8: the digest of ``teacher.json``.

Reading them needs no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common import safe_read
from common.errors import DamagedFileError
from common.folder import durable
from common.folder.checkpoint_name import CheckpointName
from common.folder.predictions import DAMAGE
from common.search.trial import STAGE_PATTERN

FORMAT = 1
MAX_TEACHER_BYTES = 1 << 20  # thousands of models
MAX_BYTES = 8 << 30  # a million examples of two thousand classes
# The logarithm for a probability of 0. At any temperature in use the class still gets nothing, and
# no number is infinite.
LEAST_LOG = -1e4
SUM_TOLERANCE = 1e-3  # tolerance for the sum of a row's probabilities
ARRAYS = ("log_probabilities", "targets", "teacher")


@dataclass(frozen=True)
class Member:
    """A kept model: its weights file below the search's folder, and its weight in the mean."""

    checkpoint: str
    weight: int = 1


@dataclass(frozen=True)
class Teacher:
    """The models of an ensemble."""

    kind: str  # how they were chosen, such as "top"
    members: Sequence[Member]

    def content(self) -> bytes:
        """Return the content of ``teacher.json``."""
        members = [
            {"checkpoint": member.checkpoint, "weight": member.weight} for member in self.members
        ]
        return json.dumps(
            {"format": FORMAT, "kind": self.kind, "members": members}, indent=1
        ).encode()

    @property
    def digest(self) -> bytes:
        """The 32 bytes that identify these models and weights."""
        return hashlib.sha256(self.content()).digest()


@dataclass(frozen=True)
class Taught:
    """A teacher's predictions on the training examples, in the order of the examples."""

    log_probabilities: NDArray[np.float32]  # (n, C)
    targets: NDArray[np.int64]  # (n,)
    digest: bytes  # of the teacher

    def content(self) -> bytes:
        """Return the content of ``teacher.npz``."""
        buffer = io.BytesIO()
        digest = np.frombuffer(self.digest, dtype=np.uint8)
        np.savez(
            buffer, log_probabilities=self.log_probabilities, targets=self.targets, teacher=digest
        )
        return buffer.getvalue()


def read_teacher(path: Path) -> Teacher:
    """Read and check a ``teacher.json``. No path in it leads out of the search's folder.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is damaged, or not a ``teacher.json``.
        CheckpointError: it cannot be read for now.
    """
    try:
        raw = json.loads(safe_read.read_bytes(path, MAX_TEACHER_BYTES))
        members = [
            Member(_inside(str(member["checkpoint"])), int(member["weight"]))
            for member in raw["members"]
        ]
        if raw["format"] != FORMAT or not members or min(member.weight for member in members) < 1:
            raise ValueError("it names no models")
        return Teacher(str(raw["kind"]), members)
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        told = (
            f"{path}: damaged list of models ({type(error).__name__}: {error}); remove it and "
            "launch the stage again"
        )
        raise DamagedFileError(told) from None
    except OSError as error:
        raise _unreadable(error, path) from error


def read_taught(path: Path) -> Taught:
    """Read and check a ``teacher.npz``.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is damaged, or not a ``teacher.npz``.
        CheckpointError: it cannot be read for now.
    """
    try:
        with safe_read.open_ordinary(path, MAX_BYTES) as file:
            with zipfile.ZipFile(file) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                    raise ValueError(f"more than {MAX_BYTES:,} bytes unpacked")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return _check_arrays(*(arrays[name] for name in ARRAYS))
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise DamagedFileError(
            f"{path}: damaged predictions of the teacher ({error}); remove the file, a worker "
            "writes it again"
        ) from None
    except OSError as error:
        raise _unreadable(error, path) from error


def _check_arrays(
    logs: NDArray[np.float32], targets: NDArray[np.int64], digest: NDArray[np.uint8]
) -> Taught:
    """Return these arrays. Raise ValueError if they are not predictions."""
    if logs.ndim != 2 or targets.shape != logs.shape[:1] or not len(logs) or digest.shape != (32,):
        raise ValueError(
            f"shapes {logs.shape}, {targets.shape} and {digest.shape}; (n, C), (n,) and (32,) "
            "are needed"
        )
    if logs.dtype != np.float32 or targets.dtype != np.int64 or digest.dtype != np.uint8:
        raise ValueError(
            f"types {logs.dtype}, {targets.dtype} and {digest.dtype}; float32, int64 and uint8 "
            "are needed"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.exp(logs).sum(axis=1)
    if not np.isfinite(logs).all() or not np.allclose(sums, 1.0, rtol=0, atol=SUM_TOLERANCE):
        raise ValueError("its rows are no logarithms of probabilities that add up to 1")
    return Taught(logs, targets, digest.tobytes())


def _inside(checkpoint: str) -> str:
    """Return the path if it consists of a stage's name and a weights file's name.

    Such a path leads nowhere else.
    """
    stage, slash, name = checkpoint.partition("/")
    if not slash or not STAGE_PATTERN.fullmatch(stage) or CheckpointName.parse(name) is None:
        raise ValueError(f"{checkpoint!r} is no weights file of a stage")
    return checkpoint


def _unreadable(error: OSError, path: Path) -> Exception:
    explained = durable.explain_os_error(error, path)
    return DamagedFileError(str(explained)) if safe_read.is_odd(error) else explained

"""Kept weights and predictions that are damaged, found without torch: each is read once, from its beginning to its end."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from common import bounded, durable, predictions
from common.checkpoint_name import CheckpointName
from common.errors import CheckpointError, DamagedFileError
from common.records import StageFolder

MAX_WEIGHTS_BYTES = 64 << 30  # as the worker's reader has it
CONTENT = "/data.pkl"  # the entry with the structure, in every file that torch.save makes
DAMAGE = (ValueError, EOFError, RuntimeError, NotImplementedError, OverflowError, struct.error, zipfile.BadZipFile)  # of zipfile's reader


def set_damaged_aside(folder: StageFolder, warn: Callable[[str], None]) -> None:
    """Gives damaged weights and predictions of a stage another name. Costs one reading of all that is kept.

    Args:
        folder: of the stage.
        warn: told of each by name, and of those that cannot be read for now, which stay.

    Raises:
        CheckpointError: one cannot be renamed.
    """
    for path, check in _kept(folder):
        try:
            check(path)
        except FileNotFoundError:
            continue  # the janitor was faster
        except DamagedFileError as error:
            warn(f"set aside as {durable.set_aside(path).name}: {error}")
        except CheckpointError as error:
            warn(str(error))


def _kept(folder: StageFolder) -> Iterator[tuple[Path, Callable[[Path], object]]]:
    """The weights and predictions that bear a final name, kept at the end or over time, each with what reads it."""
    for place in (folder.path, folder.snapshots):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if CheckpointName.parse(path.name):
                yield path, check_weights
            elif CheckpointName.parse_predictions(path.name):
                yield path, predictions.read


def check_weights(path: Path) -> None:
    """Reads a file of weights and compares the sums that are in it, which torch itself does not.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is not as it was written.
        CheckpointError: it cannot be read for now.
    """
    try:
        with bounded.open_ordinary(path, MAX_WEIGHTS_BYTES) as file, zipfile.ZipFile(file) as archive:
            _check_entries(archive, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise DamagedFileError(f"{path}: damaged weights ({error}))") from None
    except OSError as error:
        explained = durable.explained(error, path)
        raise (DamagedFileError(str(explained)) if bounded.is_odd(error) else explained) from error


def _check_entries(archive: zipfile.ZipFile, size_bytes: int) -> None:
    """Raises ValueError or what zipfile does."""
    entries = archive.infolist()
    if not any(entry.filename.endswith(CONTENT) for entry in entries):
        raise ValueError(f"no entry {CONTENT}")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(entry.file_size for entry in entries) > size_bytes:
        raise ValueError("entries that unpack to more than the file holds")  # torch.save never compresses
    if broken := archive.testzip():
        raise ValueError(f"the entry {broken[:100]!r} is not what its sum says")

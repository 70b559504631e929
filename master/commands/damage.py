"""Damaged weights and predictions, found without torch. Each kept file is read once, completely."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from common import safe_read
from common.errors import CheckpointError, DamagedFileError
from common.folder import durable, predictions
from common.folder.checkpoint_name import CheckpointName
from common.folder.records import StageFolder

MAX_WEIGHTS_BYTES = 64 << 30  # the worker's reader has the same limit
CONTENT = "/data.pkl"  # the entry with the structure, in every file that torch.save writes
# What zipfile raises for a damaged file.
DAMAGE = (
    ValueError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
)


def set_damaged_aside(folder: StageFolder, warn: Callable[[str], None]) -> None:
    """Rename damaged weights and predictions of a stage. This reads all kept files once.

    Args:
        folder: the folder of the stage.
        warn: called with a message about each damaged file. It is also called for each file that
            cannot be read for now, which stays.

    Raises:
        CheckpointError: a file cannot be renamed.
    """
    for path, check in _find_kept(folder):
        try:
            check(path)
        except FileNotFoundError:
            continue  # the janitor has just removed it
        except DamagedFileError as error:
            warn(f"set aside as {durable.set_aside(path).name}: {error}")
        except CheckpointError as error:
            warn(str(error))


def _find_kept(folder: StageFolder) -> Iterator[tuple[Path, Callable[[Path], object]]]:
    """Yield the kept weights and predictions, each with the function that checks it.

    These are the files with a final name, of the end of a training or of a snapshot.
    """
    for place in (folder.path, folder.snapshots):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if CheckpointName.parse(path.name):
                yield path, check_weights
            elif CheckpointName.parse_predictions(path.name):
                yield path, predictions.read


def check_weights(path: Path) -> None:
    """Read a file of weights and compare its checksums, which torch itself does not do.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: the file is not as it was written.
        CheckpointError: the file cannot be read for now.
    """
    try:
        with (
            safe_read.open_ordinary(path, MAX_WEIGHTS_BYTES) as file,
            zipfile.ZipFile(file) as archive,
        ):
            _check_entries(archive, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise DamagedFileError(f"{path}: damaged weights ({error})") from None
    except OSError as error:
        explained = durable.explain_os_error(error, path)
        raise (
            DamagedFileError(str(explained)) if safe_read.is_odd(error) else explained
        ) from error


def _check_entries(archive: zipfile.ZipFile, size_bytes: int) -> None:
    """Check the entries of the archive.

    Raises:
        ValueError: an entry is missing, is too large, or does not match its checksum. zipfile
            raises other exceptions too, see ``DAMAGE``.
    """
    entries = archive.infolist()
    if not any(entry.filename.endswith(CONTENT) for entry in entries):
        raise ValueError(f"no entry {CONTENT}")
    if (
        any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        or sum(entry.file_size for entry in entries) > size_bytes
    ):
        raise ValueError("entries that unpack to more than the file holds")
    if broken := archive.testzip():
        raise ValueError(f"the entry {broken[:100]!r} does not match its checksum")

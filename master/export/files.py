"""The files of an export, which appear as a whole or not at all, and their error messages."""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import ConfigError
from common.folder import durable


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that replaces ``path`` at the end.

    After a failure nothing new is left, and an older file stays. Nothing is synced to the disk,
    because an export can be made again.

    Raises:
        CheckpointError: the file cannot be written.
    """
    durable.check_replaceable(path)
    temporary = path.parent / f"{durable.TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise durable.explain_os_error(error, path) from error
    finally:
        durable.remove([temporary])


def two_files(out: str, suffix: str) -> tuple[Path, Path]:
    """Return the file of the trials and, beside it, that of the curves.

    They are ``x.csv`` and ``x.curves.csv``.

    Raises:
        ConfigError: ``out`` cannot be a file.
        CheckpointError: its folder cannot be made.
    """
    path = plain_path(out)
    if path.is_dir():
        raise ConfigError(
            f"--out {out}: is a folder; name a file, such as {path / f'trials.{suffix}'}"
        )
    durable.make_folder(path.parent)
    return path, path.with_name(f"{path.stem}.curves{path.suffix}")


def plain_path(out: str) -> Path:
    """Return ``out`` as a path.

    Raises:
        ConfigError: it is empty or a URL.
    """
    if not out.strip() or "\0" in out:
        raise ConfigError(f"--out {out!r}: names no file")
    if "://" in out:
        raise ConfigError(
            f"--out {out}: is an address, which only --format optuna takes; name a file or folder"
        )
    return Path(out)


def need(module: str, form: str) -> None:
    """Check that the library of a format is installed.

    Raises:
        ConfigError: it is missing; the message has pip's command.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        command = f"{sys.executable} -m pip install {module}"
        raise ConfigError(
            f"--format {form} needs the package {module} ({error}); install it: {command}"
        ) from None

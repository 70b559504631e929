"""Where an export goes: files that appear whole or not at all, and what is said where they cannot."""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import durable
from common.errors import ConfigError


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place at the end; of a failure nothing stays, and an older file does.

    Nothing is synced to the disk: an export can be made again.

    Raises:
        CheckpointError: it cannot be written.
    """
    temporary = path.parent / f"{durable.TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise durable.explained(error, path) from error
    finally:
        durable.remove([temporary])


def two_files(out: str, suffix: str) -> tuple[Path, Path]:
    """The file of the trials and, beside it, that of the curves: ``x.csv`` and ``x.curves.csv``.

    Raises:
        ConfigError: ``out`` cannot be a file.
        CheckpointError: its folder cannot be made.
    """
    path = plain_path(out)
    if path.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file, such as {path / f'trials.{suffix}'}")
    durable.make_folder(path.parent)
    return path, path.with_name(f"{path.stem}.curves{path.suffix}")


def plain_path(out: str) -> Path:
    """``out`` as a path.

    Raises:
        ConfigError: it is empty or an address.
    """
    if not out.strip() or "\0" in out:
        raise ConfigError(f"--out {out!r}: names no file")
    if "://" in out:
        raise ConfigError(f"--out {out}: is an address, which only --format optuna takes; name a file or folder")
    return Path(out)


def need(module: str, form: str) -> None:
    """Says how to install the library that a format is written with, where it is missing.

    Raises:
        ConfigError: with pip's command.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        command = f"{sys.executable} -m pip install {module}"
        raise ConfigError(f"--format {form} needs the package {module} ({error}); install it: {command}") from None

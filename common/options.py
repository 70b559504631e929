"""What every command shares: --redis, --checkpoints, --data-dir where tasks are loaded, and errors as one line.

These options may stand before or after a command's name; the later word wins.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from common.errors import SearchError

DATA_FOLDER = Path("data")  # of built-in data sets
INTERRUPTED = 130
TERMINATED = 143
F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Shared:
    """Where Redis and the folders are."""

    redis: str | None = None  # None: the embedded server
    checkpoints: Path = Path("checkpoints")
    data: Path = DATA_FOLDER


def _set_redis(context: click.Context, option: click.Parameter, value: str | None) -> None:
    shared = context.ensure_object(Shared)
    if value is not None and not _told_before(context, option):
        shared.redis = value or None


def _set_checkpoints(context: click.Context, option: click.Parameter, value: Path | None) -> None:
    shared = context.ensure_object(Shared)
    if value is not None and not _told_before(context, option):
        shared.checkpoints = value


def _set_data(context: click.Context, option: click.Parameter, value: Path | None) -> None:
    shared = context.ensure_object(Shared)
    if value is not None and not _told_before(context, option):
        shared.data = value


def _told_before(context: click.Context, option: click.Parameter) -> bool:
    """Whether a value of a command's is only the environment's, which the program's own option before it has read already."""
    return context.parent is not None and context.get_parameter_source(str(option.name)) is ParameterSource.ENVIRONMENT


def common_options(command: F) -> F:
    """Adds --redis and --checkpoints, which end up in ``context.obj``, a ``Shared``."""
    redis = click.option(
        "--redis", metavar="URL", envvar="REDIS_URL", expose_value=False, callback=_set_redis,
        help="redis://, rediss:// or unix:// [REDIS_URL]; none: an embedded server in the checkpoint folder.",
    )  # fmt: skip
    checkpoints = click.option(
        "--checkpoints", metavar="DIR", envvar="CHECKPOINT_DIR", expose_value=False, callback=_set_checkpoints,
        type=click.Path(path_type=Path, file_okay=False), help="The checkpoint folder [CHECKPOINT_DIR; ./checkpoints].",
    )  # fmt: skip
    return redis(checkpoints(command))


def data_option(command: F) -> F:
    """Adds --data-dir, which ends up in ``context.obj.data``."""
    return click.option(
        "--data-dir", metavar="DIR", envvar="DATA_DIR", expose_value=False, callback=_set_data,
        type=click.Path(path_type=Path, file_okay=False), help="Files of the built-in data sets [DATA_DIR; ./data].",
    )(command)  # fmt: skip


def fail_with_message(command: F) -> F:
    """Turns errors that are the user's into one message and their exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except SearchError as error:
            leave(str(error), error.exit_code)
        except KeyboardInterrupt:
            leave("interrupted", INTERRUPTED)
        except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)

    return wrapped  # type: ignore[return-value]


def leave(message: str, code: int) -> NoReturn:
    """Prints ``message`` on stderr and exits."""
    click.echo(f"error: {message}", err=True)
    sys.exit(code)

"""Options that every command shares, and errors as one line.

The options are --redis, --checkpoints and, where tasks are loaded, --data-dir. They may stand
before or after a command's name. The later one wins.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from common.errors import SearchError
from common.redact import redact
from common.shell_command import forget_given, note_given

DATA_FOLDER = Path("data")  # for built-in data sets
INTERRUPTED = 130
F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Shared:
    """Where Redis and the folders are."""

    redis: str | None = None  # None: the server of the checkpoint root
    checkpoints: Path = Path("checkpoints")
    data: Path = DATA_FOLDER


def _set_redis(context: click.Context, option: click.Parameter, value: str | None) -> None:
    shared = context.ensure_object(Shared)
    if value is not None and not _is_from_environment(context, option):
        shared.redis = value or None
        _note(context, option, redact(value))


def _set_checkpoints(context: click.Context, option: click.Parameter, value: Path | None) -> None:
    shared = context.ensure_object(Shared)
    if value is not None and not _is_from_environment(context, option):
        shared.checkpoints = value
        _note(context, option, str(value))


def _set_data(context: click.Context, option: click.Parameter, value: Path | None) -> None:
    shared = context.ensure_object(Shared)
    if value is not None and not _is_from_environment(context, option):
        shared.data = value
        _note(context, option, str(value))


def _set_search(context: click.Context, option: click.Parameter, value: Any) -> Any:
    if value is not None:
        _note(context, option, str(value))
    return value


def _note(context: click.Context, option: click.Parameter, value: str) -> None:
    """Note an option of the command line for the commands that messages name."""
    if context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
        note_given(option.opts[0], value)
        context.find_root().call_on_close(forget_given)


def _is_from_environment(context: click.Context, option: click.Parameter) -> bool:
    """Return whether a command's value comes only from the environment.

    The program's own option, which comes before it, has read the environment already.
    """
    return (
        context.parent is not None
        and context.get_parameter_source(str(option.name)) is ParameterSource.ENVIRONMENT
    )


class Number(click.FloatRange):
    """A finite number within bounds, as an option."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def common_options(command: F) -> F:
    """Add --redis and --checkpoints, whose values are in ``context.obj``, a ``Shared``."""
    with_redis = click.option(
        "--redis",
        metavar="URL",
        envvar="REDIS_URL",
        expose_value=False,
        callback=_set_redis,
        help="redis://, rediss:// or unix:// [REDIS_URL]; none: the server of the checkpoint "
        "folder, by `master redis start` or embedded.",
    )
    return with_redis(checkpoints_option(command))


def checkpoints_option(command: F) -> F:
    """Add --checkpoints alone, for commands that use no other Redis than that of the folder."""
    return click.option(
        "--checkpoints",
        metavar="DIR",
        envvar="CHECKPOINT_DIR",
        expose_value=False,
        callback=_set_checkpoints,
        type=click.Path(path_type=Path, file_okay=False),
        help="The checkpoint folder [CHECKPOINT_DIR; ./checkpoints].",
    )(command)


def data_option(command: F) -> F:
    """Add --data-dir, whose value is in ``context.obj.data``."""
    return click.option(
        "--data-dir",
        metavar="DIR",
        envvar="DATA_DIR",
        expose_value=False,
        callback=_set_data,
        type=click.Path(path_type=Path, file_okay=False),
        help="Files of the built-in data sets [DATA_DIR; ./data].",
    )(command)


def search_options(command: F) -> F:
    """Add the options ``--config`` and ``--search`` to a command."""
    config = click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        callback=_set_search,
        help="The search file.",
    )
    search = click.option(
        "--search",
        metavar="NAME",
        callback=_set_search,
        help="The search's folder below the checkpoint root.",
    )
    return config(search(command))


def fail_with_message(command: F) -> F:
    """Print errors that are meant for users as one message, and exit with their exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except SearchError as error:
            leave(str(error), error.exit_code)
        except KeyboardInterrupt:
            leave("interrupted", INTERRUPTED)

    return wrapped  # type: ignore[return-value]


def leave(message: str, code: int) -> NoReturn:
    """Print ``message`` on stderr and exit."""
    click.echo(f"error: {message}", err=True)
    sys.exit(code)

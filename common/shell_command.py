"""Commands that a message tells the user to run, as they work in the shell where they are read.

A message for another place, such as a page that is mailed or a reason that another machine prints,
names commands without this module: `master rank`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# The options that the command in progress was given and that others need as well, by name.
_given: dict[str, str] = {}

OF_A_SEARCH = ("--config", "--search")
USING_REDIS = {"launch", "status", "workers", "kill", "retry", "recover", "serve", "start"}
USING_DATA = {"launch", "plan", "start", "check", "profile"}
WITHOUT_A_SEARCH = {"init", "workers", "redis", "start", "test", "predict"}
WITHOUT_A_FOLDER = {"init", "test"}


def note_given(name: str, value: str) -> None:
    """Note an option of the command line, for the commands that messages name from now on."""
    if name in OF_A_SEARCH:
        for other in OF_A_SEARCH:
            _given.pop(other, None)
    _given[name] = value


def find_given(name: str) -> str | None:
    """Return an option of the command line; None if it was not given, or by the environment."""
    return _given.get(name)


def forget_given() -> None:
    """Forget the options, since their command has ended."""
    _given.clear()


def shell_command(words: str, *more: str) -> str:
    """Return a command of this installation, quoted for the shell.

    It has the options of the command in progress that it needs: which folder, which search, which
    Redis. What the environment says it need not repeat.

    Args:
        words: the program, the command and options that need no quotes, such as
            ``"master rank --top 5"``.
        more: further words.
    """
    program, name, *rest = words.split()
    own = [*rest, *more]
    needed = [
        word
        for option, value in _given.items()
        if option not in own and _takes(name, option, own)
        for word in (option, value)
    ]
    return shlex.join([*find_program(program), name, *own, *needed])


def recover_remedy() -> str:
    """Return what to do about a damaged file that a launch has written."""
    command = shell_command("master recover")
    return f"undo what was changed, or let `{command}` set the file aside and write it anew"


def join_options(options: Mapping[str, str | Sequence[str] | None]) -> list[str]:
    """Return options as pairs quoted for the shell, such as ``--config 'my search.toml'``.

    Args:
        options: a value of None leaves an option out; several values repeat it.
    """
    return [
        f"{name} {shlex.quote(value)}"
        for name, values in options.items()
        for value in ([values] if isinstance(values, str) else values or ())
    ]


def find_program(name: str) -> list[str]:
    """Return the words that run ``master`` or ``worker`` of this installation in this shell.

    That is its name where the PATH leads to it, and otherwise its path, relative to the current
    folder where that is shorter.
    """
    script = Path(sys.executable).parent / name
    if not os.access(script, os.X_OK):
        return [_shorten(Path(sys.executable)), "-m", name]
    found = shutil.which(name)
    if found is not None and script.samefile(found):
        return [name]
    return [_shorten(script)]


def _takes(name: str, option: str, own: Sequence[str]) -> bool:
    """Return whether a command has to be given an option besides its own."""
    if option in OF_A_SEARCH:
        return name not in WITHOUT_A_SEARCH and not set(OF_A_SEARCH) & set(own)
    if option == "--redis":
        return name in USING_REDIS
    if option == "--data-dir":
        return name in USING_DATA
    return name not in WITHOUT_A_FOLDER


def _shorten(path: Path) -> str:
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):  # the current folder is gone, or on another drive
        return str(path)
    if os.sep not in relative:
        relative = f".{os.sep}{relative}"
    return min(str(path), relative, key=len)

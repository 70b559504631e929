"""A task that is a program: ``task = { command = "python train.py --lr {learning_rate}" }``.

Elsewhere such a task is one text, ``$`` and the words of the command as a shell would read them.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.search.values import Value, flat

PREFIX = "$ "
PLACEHOLDERS = {  # besides the hyperparameters
    "trial": "the trial's id, such as coarse-0042",
    "trial_dir": "a folder of this attempt, for whatever the program writes",
    "config": "a JSON file with the configuration and all that is listed here",
    "epochs": "the budget now",
    "max_epochs": "the longest budget that the trial may get",
    "epoch": "the epochs that are done: 0, or more after a resume",
    "seed": "the trial's seed",
    "resume": "the checkpoint that was reported last, or empty",
    "device": "cpu or cuda",
    "gpus": "the GPUs of the trial, or on the CPU the processes in their place",
}
# {name}, but not the ${name} of a shell; {{name}} stays as {name}. Other braces are left alone, and
# those with a format, such as {name:.3f}, are recognised only to be refused.
FIELD = re.compile(
    r"(?P<kept>\{\{[A-Za-z_]\w*\}\})"
    r"|(?<!\$)\{(?P<name>[A-Za-z_]\w*)(?P<form>[:!.\[][^{}]*)?\}"
)
OPTION = re.compile(r"-[^=\s]*=")
REMEDY = 'write task = { command = "python train.py --lr {learning_rate}" }'


def as_task(raw: Mapping[str, Any]) -> str:
    """Return the text of a task that the search file gives as a table.

    Raises:
        ConfigError: it holds no command.
    """
    if others := sorted(raw.keys() - {"command"}):
        raise ConfigError(f"task {others[0]}: unknown key; {REMEDY}")
    command = raw.get("command")
    if isinstance(command, str):
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(
                f"task command = {command!r}: {str(error).lower()}; close the quote, or write a "
                "list of words"
            ) from None
    elif isinstance(command, list) and all(isinstance(word, str) for word in command):
        words = command
    else:
        raise ConfigError(f"task command = {command!r}: is no text and no list; {REMEDY}")
    if not words or not words[0].strip():
        raise ConfigError(f"task command = {command!r}: names no program; {REMEDY}")
    if any("\0" in word for word in words):
        raise ConfigError(f"task command = {command!r}: has a NUL character; remove it")
    return PREFIX + shlex.join(words)


def is_command(task: str) -> bool:
    """Return whether a task is a program."""
    return task.startswith(PREFIX)


def words_of(task: str) -> list[str]:
    """Return the program and its arguments, with their placeholders."""
    return shlex.split(task.removeprefix(PREFIX))


def digest(task: str) -> str:
    """Return what a stage freezes of the task. The program itself is not looked at."""
    return f"command:{hashlib.sha256(task.encode()).hexdigest()}"


def check(task: str, hyperparameters: Collection[str]) -> None:
    """Check the placeholders of a task that is a program.

    Raises:
        ConfigError: one is unknown, or a hyperparameter has the name of another one.
    """
    if taken := sorted(PLACEHOLDERS.keys() & set(hyperparameters)):
        raise ConfigError(
            f"[space] {taken[0]}: {{{taken[0]}}} in a command means {PLACEHOLDERS[taken[0]]}; "
            "give the hyperparameter another name"
        )
    known = [*hyperparameters, *PLACEHOLDERS]
    for found in FIELD.finditer(task):
        name = found["name"]
        if found["form"] and name in known:
            raise ConfigError(
                f"task command: {found[0]}: the value of {name} is put in as it is; write "
                f"{{{name}}}"
            )
        if name and not found["form"] and name not in known:
            raise ConfigError(
                f"task command: {found[0]} is neither in [space] nor one of "
                f"{', '.join(PLACEHOLDERS)}; write {{{{{name}}}}} for braces that stay"
            )


def fill(task: str, values: Mapping[str, Value]) -> list[str]:
    """Return the words of the command, with a value in place of each placeholder.

    A hyperparameter that does not exist in this trial, since its ``when`` is false, is an empty
    text. An option that is one word with it, such as ``--momentum={momentum}``, is left out.
    """
    texts = {name: as_text(value) for name, value in values.items()}
    return [_filled(word, texts) for word in words_of(task) if not _lacks(word, texts)]


def find_program(name: str, folder: str) -> str | None:
    """Return the path of a program, as it is found where the command runs.

    Args:
        name: found on the PATH, or in the folder if it has a slash.
        folder: the folder in which the command runs.
    """
    return shutil.which(str(Path(folder, name)) if "/" in name else name)


def as_text(value: Value) -> str:
    """Return a value as a program gets it: a list or a table as JSON."""
    return str(value).lower() if isinstance(value, bool) else str(flat(value))


def _lacks(word: str, texts: Mapping[str, str]) -> bool:
    """Return whether a word is an option with the value of a hyperparameter that is not there."""
    return OPTION.match(word) is not None and any(
        found["name"] and not found["form"] and found["name"] not in texts
        for found in FIELD.finditer(word)
    )


def _filled(word: str, texts: Mapping[str, str]) -> str:
    def put(found: re.Match[str]) -> str:
        if found["kept"]:
            return found[0][1:-1]
        return found[0] if found["form"] else texts.get(found["name"], "")

    return FIELD.sub(put, word)

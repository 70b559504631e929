"""A search that a script or notebook describes: its search file, and its launch."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit

from common import safe_read
from common.console import open_console
from common.ending import BY_SIGNAL
from common.errors import ConfigError, SearchError
from common.folder import durable
from common.folder.chosen import CONFIG, choose
from common.options import DATA_FOLDER, INTERRUPTED, Shared
from common.search.search_file import MAX_FILE_BYTES, RESERVED_STAGE, check_name, parse_search
from common.search.search_file import Search as SearchFile
from master.launchers.forked import start_early
from master.run.launch import launch
from master.run.request import Request
from master.scripting.loaded import Search
from master.scripting.statements import Source, read_statements
from master.scripting.task_source import FILE, HEADER, TaskSource, find_task

FOLDER = Path("searches")  # for the files that this module writes
OF_LAUNCH = {"id", "protocol", "plan"}  # keys that only launch writes
SOURCE = "search()"  # what messages about the search file begin with
# What messages call options of the command, and what they are here.
IN_PYTHON = {
    "--new-name NAME": 'cf.search(name="NAME")',
    "--new-name": "cf.search(name=...)",
    "--replace": "launch(replace=True)",
    "--skip-check": "launch(skip_check=True)",
    "--more": "launch(more=...)",
    "--workers": "launch(workers=...)",
    "--redis URL": "cf.search(redis=URL)",
    'code = ["*.py", "settings"] in the search file': 'cf.search(code=["*.py", "settings"])',
}
NOTE = (
    f"{HEADER} To go on by hand, remove this line.\n"
    "# master launch --config {path} --stage {stage}\n"
)


def search(
    task: object,
    space: Mapping[str, Any],
    stages: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    name: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
    redis: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Draft:
    """Describe a search. Nothing is written or run before ``launch``.

    Args:
        task: A function ``train(trial)`` or a class with ``data()`` and ``model(hp)``, at the top
            of the script, the notebook or a module. Or ``"path/to/file.py:Name"``,
            ``"module:Name"``, or a built-in task such as ``"digits"``. Or a program,
            ``{"command": "python train.py --lr {learning_rate}"}``, which runs in the current
            folder.
        space: As ``[space]`` of a search file:
            ``{"learning_rate": {"log_uniform": [1e-4, 1.0]}, "hidden": 64}``.
        stages: As ``[stages]``: ``{"coarse": {"trials": 30, "epochs": 1}}``, or a list of tables
            with their ``name``. Without it, ``budget={"epochs": 300}`` plans the stages.
        name: The search's folder below the checkpoint root. The default is the task's name;
            a program has none.
        folder: Where the search file and the source of the task are written; the default is
            ``searches/NAME``.
        checkpoints: The checkpoint root [CHECKPOINT_DIR; ./checkpoints].
        redis: The URL of Redis [REDIS_URL]; None is the server of the folder.
        data_dir: The folder of built-in data sets [DATA_DIR; ./data].
        options: Anything else of a search file: ``seed``, ``metric``, ``mode``, ``budget``,
            ``sampler``, ``strategy``, ``stragglers``, ``resources``. ``code_from`` is a list of
            folders, as seen from here, besides those of the modules that lie beside the script.

    Raises:
        ConfigError: The space, the stages or an option is wrong.
        TaskError: The task has no source that a worker could import.
    """
    found = find_task(task)
    if not name and not found.name:
        raise ConfigError('task: a command has no name for the search; add name="..."')
    name = check_name(name or found.name)
    home = Path(folder) if folder is not None else FOLDER / name
    if taken := OF_LAUNCH & options.keys():
        raise ConfigError(f"{min(taken)}: is set by launch; leave it out")
    folders = _find_code(found, home, options.get("code_from"))
    table = {
        "name": name,
        "task": _from_folder(found, home),
        # The search file lies elsewhere, and a program is written as one would call it from here.
        **({"folder": str(Path.cwd())} if isinstance(found.task, Mapping) else {}),
        **options,
        **({"code_from": folders} if folders else {}),
        "space": space,
        **({} if stages is None else {"stages": _named_stages(stages)}),
    }
    text = _dump(table)
    return Draft(
        parse_search(text, SOURCE),
        text,
        found.text,
        home,
        Shared(
            redis or os.environ.get("REDIS_URL") or None,
            Path(checkpoints or os.environ.get("CHECKPOINT_DIR") or Shared().checkpoints),
            Path(data_dir or os.environ.get("DATA_DIR") or DATA_FOLDER),
        ),
    )


class Draft:
    """A search that is described and can be launched.

    Attributes:
        name: The name of the search.
        file: The search file, which ``write`` and ``launch`` write.
    """

    def __init__(
        self, described: SearchFile, text: str, code: str | None, folder: Path, places: Shared
    ) -> None:
        self._search = described
        self._text = text
        self._code = code
        self._places = places
        self.name = described.name
        self.file = folder / CONFIG

    def __repr__(self) -> str:
        stages = ", ".join(stage.name for stage in self._search.stages)
        return f"search {self.name!r} of {self._search.task}, not launched here: stages {stages}"

    def write(self) -> Path:
        """Write the search file, and the source of the task beside it, and return its path.

        Raises:
            ConfigError: A file there was written by hand.
            CheckpointError: The folder cannot be written.
        """
        durable.make_folder(self.file.parent)
        note = NOTE.format(path=shlex.quote(str(self.file)), stage=self._search.stages[0].name)
        files = {self.file: note + self._text}
        if self._code is not None:
            path = self.file.parent / FILE
            files[path] = _as_before(path, self._code)
        for path in files:
            _refuse_by_hand(path)
        for path, text in files.items():
            durable.replace(path, text.encode())
        return self.file

    def launch(
        self,
        stage: str = RESERVED_STAGE,
        *,
        workers: int | str = "auto",
        skip_check: bool = False,
        replace: bool = False,
        more: float | None = None,
    ) -> Search:
        """Run a stage, or all, as ``master launch`` does, and return the search as it is then.

        Workers are processes of this machine, unless others are connected. They import the task's
        file and not the script. Progress is a bar in a terminal and in a notebook. Launched again,
        the search goes on where it was.

        Args:
            stage: The name of a stage, or ``"all"``.
            workers: How many local workers; ``"auto"`` starts some where none is connected.
            skip_check: Leave out the checks before the first stage.
            replace: Set an older search of this name aside, and begin anew.
            more: Add this many epochs to the budget.

        Raises:
            SearchError: The search cannot begin or go on; the message says why.
            KeyboardInterrupt: After Ctrl-C. The trials that were queued go on.
        """
        file, places = self.write(), self._places
        spawner = start_early(places.checkpoints, wanted=workers != 0)
        try:
            console = open_console(stderr=True)
            chosen = choose(places.checkpoints, file, None, console.print, builtin=True)
            code = launch(
                Request(
                    stage,
                    places.redis,
                    places.checkpoints,
                    file,
                    workers=str(workers),
                    replace=replace,
                    data=places.data,
                    skip_check=skip_check,
                    more=more,
                    spawner=spawner,
                ),
                chosen,
                console,
            )
        except SearchError as error:
            error.args = (_in_python(str(error)),)
            raise
        finally:
            if spawner is not None:
                spawner.close()
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code > BY_SIGNAL:
            signal.raise_signal(code - BY_SIGNAL)  # what it asks for is the script's own affair
        return Search(chosen.folder)


def _in_python(message: str) -> str:
    message = re.sub(r"--workers (\d+)", r"launch(workers=\1)", message)
    for option, argument in IN_PYTHON.items():
        message = message.replace(option, argument)
    return message


def _from_folder(found: TaskSource, home: Path) -> str | Mapping[str, Any]:
    """Return the task as a search file in ``home`` names it."""
    if isinstance(found.task, Mapping):
        return found.task
    path, colon, name = found.task.rpartition(":")
    if not colon or found.text is not None:
        return found.task
    return f"{os.path.relpath(path, home.resolve())}:{name}"


def _find_code(found: TaskSource, home: Path, given: object) -> object:
    """Return the folders that the task imports from, as a search file in ``home`` names them."""
    if given is not None and not (
        isinstance(given, list | tuple) and all(isinstance(one, str | os.PathLike) for one in given)
    ):
        return given  # the search file's own message says what is wrong
    folders = dict.fromkeys(Path(one).resolve() for one in (*found.folders, *(given or ())))
    return [os.path.relpath(one, home.resolve()) for one in folders if one != home.resolve()]


def _named_stages(stages: object) -> object:
    """Return a list of stages as a table by name, and anything else as it is."""
    if isinstance(stages, Mapping | str) or not isinstance(stages, Sequence):
        return stages
    named: dict[str, Any] = {}
    for number, stage in enumerate(stages):
        if not isinstance(stage, Mapping) or not isinstance(stage.get("name"), str):
            raise ConfigError(
                f"stages[{number}] = {stage!r}: has no name; write "
                '{"name": "coarse", "trials": 30, "epochs": 1}'
            )
        if stage["name"] in named:
            raise ConfigError(f"stages[{number}]: a second stage {stage['name']!r}; rename one")
        named[stage["name"]] = {key: value for key, value in stage.items() if key != "name"}
    return named


def _dump(table: Mapping[str, Any]) -> str:
    """Return the search file's text, plain values before tables, as TOML wants them."""
    plain = {key: _plain(value, key) for key, value in table.items()}
    document = tomlkit.document()
    for key, value in sorted(plain.items(), key=lambda item: isinstance(item[1], dict)):
        document[key] = _inline(value) if key == "space" else value
    return tomlkit.dumps(document)


def _inline(space: object) -> object:
    """Return the space with one line for each hyperparameter."""
    if not isinstance(space, dict):
        return space
    table = tomlkit.table()
    for name, value in space.items():
        if isinstance(value, dict):
            line = tomlkit.inline_table()
            line.update(value)
            table[name] = line
        else:
            table[name] = value
    return table


def _plain(value: object, place: str) -> Any:
    """Return a value as TOML can hold it: numbers of numpy as numbers, tuples as lists.

    Raises:
        ConfigError: TOML has nothing for it.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(own, f"{place} {key}") for key, own in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(own, place) for own in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(own, place) for own in value]
    raise ConfigError(
        f"{place} = {value!r}: a {type(value).__name__} cannot be written in a search file; use "
        "numbers, strings, booleans, lists and dicts of these"
    )


def _refuse_by_hand(path: Path) -> None:
    """Refuse to replace a file that this module has not written."""
    try:
        found = safe_read.read_bytes(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise durable.explain_os_error(error, path) from error
    if not found.startswith(HEADER.encode()):
        raise ConfigError(
            f"{path}: was written by hand and stays as it is; move it away, or choose another "
            "place with folder="
        )


def _as_before(path: Path, code: str) -> str:
    """Return the file's own text if it has the same statements, else ``code``.

    A notebook's cells that ran again in another order are still the same task, and a search that
    goes on needs the same file.
    """
    try:
        found = safe_read.read_bytes(path, MAX_FILE_BYTES).decode()
    except (OSError, ValueError):
        return code
    known, own = (
        sorted(s.text for s in read_statements([Source("", text)])) for text in (found, code)
    )
    return found if known == own else code

"""Before the first trial: the folder, the frozen ranges and options, the trials in the queue."""

from __future__ import annotations

import ast
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import tomlkit

from common import durable, task_file
from common.errors import ConfigError, TaskError
from common.queue import TrialQueue
from common.records import SearchFolder
from common.search import Search, Stage, parse_search
from common.select import Chosen
from common.space import Space
from common.trial import Trial
from common.witness import Reconciled, reconcile, restore
from master.ranges import write_frozen
from master.sampling import configurations
from master.stage_ranges import stage_ranges

REMAINS = ("*/ranges.toml", "*/trials/*.json", "*/resume/*.pt")  # what shows that a search was launched in a folder


@dataclass(frozen=True)
class Launched:
    """A search that has its folder and its id."""

    search: Search
    folder: SearchFolder

    @property
    def id(self) -> str:
        """Its identity in Redis."""
        assert self.search.id is not None  # written by settle() before any other use
        return self.search.id


@dataclass(frozen=True)
class Examined:
    """A search that is about to be launched; nothing has been written."""

    search: Search
    text: str
    folder: SearchFolder
    code: bytes | None  # of the user's task; None for a built-in one, or where only the folder has it


def examine(chosen: Chosen, new_name: str | None) -> Examined:
    """The search under its name, with the user's task, which is there and defines what it should.

    Raises:
        ConfigError: ``new_name`` cannot be a folder.
        TaskError: the task's file cannot be read, or is no Python.
    """
    text = _renamed(chosen.text, new_name)
    search = parse_search(text)
    folder = SearchFolder(chosen.folder.root, search.name)
    return Examined(search, text, folder, _task_code(search, chosen.base, folder))


def settle(chosen: Chosen, new_name: str | None, forget: Callable[[SearchFolder], None] | None, say: Callable[[str], None]) -> Launched:
    """Makes the search's folder, or finds it as it was launched before.

    Args:
        new_name: launch under this name instead of the file's.
        forget: takes an older search of that name out of Redis; its folder is then moved away. None: it is not replaced.

    Raises:
        ConfigError: the file has changed since the first launch; the message shows how.
        CheckpointError: the folder cannot be written.
    """
    examined = examine(chosen, new_name)
    search, text, folder = examined.search, examined.text, examined.folder
    if forget is None:
        _refuse_to_begin_on_remains(folder)
    elif folder.path.exists():
        forget(folder)
        say(f"the older search lies in {_move_aside(folder)} now")
    durable.make_folder(folder.path)
    _copy_task(search, examined.code, chosen.base, folder)
    fresh = search.model_copy(update={"id": secrets.token_hex(8)})
    content = {folder.search_file: file_text(str(fresh.id), text).encode()}
    if not folder.search_file.exists() and folder.search_file not in durable.write_new(content):
        return Launched(fresh, folder)
    return Launched(_grown(folder, search, text), folder)


def _refuse_to_begin_on_remains(folder: SearchFolder) -> None:
    """A search that has lost its file is none that was never launched: a new identity would take its records for its own."""
    if folder.search_file.exists():
        return
    remains = next((path for pattern in REMAINS for path in folder.path.glob(pattern)), None)
    if remains is not None:
        raise ConfigError(
            f"{folder.path}: has no search.toml, but what a search has left ({remains.relative_to(folder.path)}): "
            "`master recover --config FILE` puts your copy of the search file back and goes on; --replace sets the folder aside, "
            "--new-name launches another search"
        )


def file_text(search_id: str, text: str) -> str:
    """What a search's folder has as its ``search.toml``: the file as launched, with its identity."""
    return f'id = "{search_id}"\n{_renamed(text, None)}'


def _grown(folder: SearchFolder, search: Search, text: str) -> Search:
    """The search as launched before, with what may be added to it."""
    before = folder.search()
    assert before is not None and before.id is not None  # the file exists
    now = search.model_copy(update={"id": before.id})
    if differences := changed(before, now, folder):
        listed = "\n  ".join(differences)
        raise ConfigError(
            f"search {search.name!r} was launched before with other settings:\n  {listed}\n"
            "put them back, launch under another name with --new-name NAME, or set the old folder aside with --replace"
        )
    if now != before:
        durable.replace(folder.search_file, file_text(before.id, text).encode())
    return now


def changed(before: Search, now: Search, folder: SearchFolder) -> list[str]:
    """What differs and may not: all but more trials, and stages that have not been launched yet."""
    old, new = before.model_dump(exclude={"stages", "space"}), now.model_dump(exclude={"stages", "space"})
    lines = [f"{key}: {old[key]!r} -> {new[key]!r}" for key in old if old[key] != new[key]]
    old_space, new_space = before.space.plain(), now.space.plain()
    names = [*old_space, *(n for n in new_space if n not in old_space)]
    lines += [
        f"[space] {n}: {_shown(old_space.get(n))} -> {_shown(new_space.get(n))}" for n in names if old_space.get(n) != new_space.get(n)
    ]
    launched = [stage for stage in before.stages if folder.stage(stage.name).ranges.exists()]
    if [s.name for s in now.stages][: len(launched)] != [s.name for s in launched]:
        return [*lines, f"[stages]: {[s.name for s in before.stages]} -> {[s.name for s in now.stages]}"]
    for stage in launched:
        lines += _changed_stage(stage, now.stage(stage.name))
    return lines


def _changed_stage(before: Stage, now: Stage) -> list[str]:
    old, new = before.model_dump(exclude={"trials"}), now.model_dump(exclude={"trials"})
    lines = [f"[stages.{now.name}] {key}: {_option(old[key])} -> {_option(new[key])}" for key in old if old[key] != new[key]]
    if now.trials < before.trials:
        lines.append(f"[stages.{now.name}] trials: {before.trials} -> {now.trials} (more may be added, none taken away)")
    return lines


def _option(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else _shown(value)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else _shown(value)


def _shown(value: object) -> str:
    return "not there" if value is None else repr(value)


def _renamed(text: str, new_name: str | None) -> str:
    """The search file's text without an id, and under another name if one is given; comments stay."""
    document = tomlkit.parse(text)
    if new_name is None and "id" not in document:
        return text
    document.pop("id", None)
    if new_name is not None:
        document["name"] = new_name
    return tomlkit.dumps(document)


def _move_aside(folder: SearchFolder) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    target = folder.root / f".{folder.name}-replaced-{stamp}"  # hidden, so that it is no search of its own
    try:
        folder.path.rename(target)
    except OSError as error:
        raise durable.explained(error, folder.path) from error
    return target


def _task_code(search: Search, base: Path, folder: SearchFolder) -> bytes | None:
    """The user's task file, checked; None for a built-in task, or where only the folder has it."""
    if search.task_file is None:
        return None
    source, target = base / search.task_file, folder.path / Path(search.task_file).name
    if target.exists() and (not source.exists() or source.resolve() == target.resolve()):
        return None
    try:
        content = task_file.read(source)
    except OSError as error:
        problem = f"{source} cannot be read ({error.strerror}); the path is relative to the search file"
        raise TaskError(f"task = {search.task!r}: {problem}") from None
    _check_defined(search.task, source, content)
    return content


def _copy_task(search: Search, content: bytes | None, base: Path, folder: SearchFolder) -> None:
    """Puts the user's task file beside ``search.toml``, where every worker finds the same code."""
    if content is None or search.task_file is None:
        return
    target = folder.path / Path(search.task_file).name
    if target in durable.write_new({target: content}) and _launched_code(target) != content:
        raise ConfigError(
            f"task = {search.task!r}: {base / search.task_file} differs from the code that was launched ({target}); `master retry` takes "
            "it for failed and killed trials, --new-name NAME launches it as another search, --replace sets the old folder aside"
        )


def renew_task(chosen: Chosen, launched: Launched) -> bool:
    """Takes over a task file that was mended since the launch, for a retry.

    Returns:
        Whether the user's own file is at hand, so that the folder now has its content and the frozen digest may follow.

    Raises:
        TaskError: it cannot be read, or does not define the task.
        CheckpointError: the folder cannot be written.
    """
    content = _task_code(chosen.search, chosen.base, launched.folder)
    target = launched.folder.path / Path(launched.search.task_file or "").name
    if content is None:
        return False
    if _launched_code(target) != content:
        durable.replace(target, content)
    return True


def _check_defined(task: str, source: Path, content: bytes) -> None:
    """Sees without running it that the file can be compiled and defines the task: here the user still looks on."""
    name = task.rpartition(":")[2]
    try:
        tree = ast.parse(content, str(source))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise TaskError(f"task = {task!r}: {source}, line {line}: not Python: {error.args[0]}") from None
    bound = {getattr(node, "name", None) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name)
    if name not in bound and "*" not in bound:
        raise TaskError(f"task = {task!r}: {source} defines no {name}; name a class or function that it has")


def task_digest(search: Search, folder: SearchFolder) -> str:
    """Names the code that is launched: what each worker compares with its own."""
    if search.task_file is None:
        return f"builtin:{search.task}"
    return task_file.digest(_launched_code(folder.path / Path(search.task_file).name))


def _launched_code(path: Path) -> bytes:
    try:
        return task_file.read(path)
    except OSError as error:
        raise durable.explained(error, path) from error


# -- a stage -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A stage whose trials are in the queue."""

    stage: Stage
    space: Space
    trials: Sequence[Trial]
    added: int
    reconciled: Reconciled


def publish(launched: Launched, stage: Stage, queue: TrialQueue, ranges_file: Path | None, warn: Callable[[str], None]) -> Published:
    """Freezes a stage's ranges and options, queues its trials, and brings Redis and the folder to one account.

    Raises:
        ConfigError: the stage before is unfinished, or ``ranges_file`` is wrong or comes too late.
        QueueError: Redis cannot be reached.
        CheckpointError: the folder cannot be written.
    """
    search, folder = launched.search, launched.folder.stage(stage.name)
    sampled = stage_ranges(search, launched.folder, stage, ranges_file, warn)
    space = sampled.space
    queue.register(search.name)
    _freeze(queue, stage, options(launched, stage, space))
    folder.make()
    write_frozen(folder.ranges, space, sampled.seeds_of)
    trials = configurations(search.seed, stage, space, search.sampler, range(stage.trials))
    attempts = folder.highest_attempts()
    records = folder.records(warn, set_aside=True) if attempts else []
    restored = restore(queue, trials, records, attempts)
    added = queue.publish(trials, attempts)
    done = reconcile(queue, launched.folder, trials, records) if records or added < len(trials) else Reconciled()
    return Published(stage, space, trials, added, Reconciled(done.to_redis + restored, done.to_folder))


def options(launched: Launched, stage: Stage, space: Space) -> dict[str, Any]:
    """What a stage's first launch freezes; the number of trials is not among it."""
    search = launched.search
    return {
        "ranges": space.plain(), "seed": search.seed, "sampler": search.sampler, "epochs": stage.epochs, "task": search.task,
        "task_digest": task_digest(search, launched.folder), "explosion_factor": search.explosion_factor,
    }  # fmt: skip


def _freeze(queue: TrialQueue, stage: Stage, wanted: dict[str, Any]) -> None:
    stored = queue.freeze(stage.name, wanted)
    lines = [f"{key}: {_shown(stored.get(key))} -> {_shown(wanted[key])}" for key in wanted if stored.get(key) != wanted[key]]
    if lines:
        listed = "\n  ".join(lines)
        raise ConfigError(
            f"stage {stage.name!r} was launched before with other options:\n  {listed}\nput them back, or use --new-name NAME"
        )

"""Preparation of a launch: the search's folder, its file as launched, and the task's code."""

from __future__ import annotations

import ast
import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import tomlkit

from common.code import store
from common.code.choose import collect_own
from common.code.tree import Code, listed
from common.errors import ConfigError, TaskError
from common.folder import durable
from common.folder.chosen import Chosen
from common.folder.records import SearchFolder
from common.search import command
from common.search.plan import StagePlan, plan_more, stage_names
from common.search.protocol import PROTOCOL
from common.search.search_file import Search, parse_search, read_text
from common.search.stage import Budget, Stage
from common.shell_command import shell_command

LAUNCHED = {"id", "protocol", "folder", "plan"}  # keys that launch adds to a search file
# Files that show that a search was launched in a folder.
REMAINS = ("*/ranges.toml", "*/trials/*.json", "*/resume/*.pt")


@dataclass(frozen=True)
class Launched:
    """A search that has its folder and its id."""

    search: Search
    folder: SearchFolder

    @property
    def id(self) -> str:
        """Identity of the search in Redis."""
        assert self.search.id is not None  # settle() writes it before any other use
        return self.search.id


@dataclass(frozen=True)
class Examined:
    """A search that is about to be launched. Nothing has been written."""

    search: Search
    text: str
    folder: SearchFolder
    # What is shipped with the user's task; None for a built-in task, or if only the folder has it.
    code: Code | None


def examine(chosen: Chosen, new_name: str | None) -> Examined:
    """Read the search under its name, and check the user's task.

    The task's file must exist and define what it should.

    Raises:
        ConfigError: ``new_name`` cannot be a folder.
        TaskError: a file that is shipped cannot be read or is too large, or the task's is no
            Python.
    """
    text = _rename(chosen.text, new_name)
    search = parse_search(text)
    folder = SearchFolder(chosen.folder.root, search.name)
    return Examined(search, text, folder, _task_code(search, chosen.base, folder))


def settle(
    chosen: Chosen,
    new_name: str | None,
    forget: Callable[[SearchFolder], None] | None,
    say: Callable[[str], None],
    epochs: float | None = None,
    more: float | None = None,
) -> Launched:
    """Make the search's folder, or find it as it was launched before.

    Args:
        chosen: the search file.
        new_name: launch under this name instead of the file's.
        forget: removes an older search of that name from Redis, after which its folder is moved
            aside; None if it is not replaced.
        say: called with the place to which an older search was moved, and with what is shipped.
        epochs: number of epochs that the budget comes to, if it is in minutes and was measured.
        more: epochs to add to the budget of a search that was launched before.

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
    _ship(search, examined.code, folder, say)
    if not folder.search_file.exists():
        planned = _plan_stages(search, epochs)
        fresh = file_text(secrets.token_hex(8), text, planned, place_of(chosen))
        if folder.search_file not in durable.write_new({folder.search_file: fresh.encode()}):
            return Launched(_extend(folder, parse_search(fresh), text, more, say), folder)
    return Launched(_extend(folder, _grow(folder, search, text), text, more, say), folder)


def _plan_stages(search: Search, epochs: float | None) -> list[dict[str, Any]]:
    """Return the planned stages as the folder's file will hold them; none without a budget."""
    if search.budget is None:
        return []
    return search.budget.stages(epochs, search.strategy.resumes, search.shape)


def _extend(
    folder: SearchFolder, search: Search, text: str, more: float | None, say: Callable[[str], None]
) -> Search:
    """Return the search with stages for ``more`` epochs behind those that were planned.

    ``say`` is called for each stage that has begun and so knows nothing of the added epochs.
    """
    if more is None:
        return search
    if search.budget is None:
        raise ConfigError(
            f"--more {more:g}: the search lists its stages and has no [budget]; add another stage "
            "to the file"
        )
    budget = search.budget
    if more < budget.least_epochs:
        raise ConfigError(
            f"--more {more:g}: is less than one training of max_epochs = {budget.max_epochs}"
            f"{budget.repeats_in_words[0]}; add at least {budget.least_epochs}"
        )
    added = plan_more(more, budget.max_epochs, search.strategy.resumes, budget.repeats)
    names = [stage.name for stage in search.stages if stage.rungs]
    tables = [{**table, "more": True} for table in budget.name_stages(added, names)]
    longer = file_text(str(search.id), text, [*search.plan, *tables], search.folder)
    durable.replace(folder.search_file, longer.encode())
    taken = {stage.name for stage in search.stages}
    for stage in search.stages:
        if not stage.searches and folder.stage(stage.name).has_begun:
            free = next(
                name for n in itertools.count(2) if (name := f"{stage.name}{n}") not in taken
            )
            say(
                f"stage {stage.name!r} has begun, so it does not use the added epochs. To use "
                f"them, copy its table to the end of the search file as [stages.{free}]"
            )
    return parse_search(longer)


def plan_anew(launched: Launched, left: Sequence[StagePlan]) -> Launched:
    """Replace the planned stages that have not begun, also in the folder's search file.

    Args:
        launched: the search.
        left: plans of the stages that take their place.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    search, folder = launched.search, launched.folder
    assert search.budget is not None
    begun = [stage.name for stage in search.stages if folder.stage(stage.name).has_begun]
    replaced = [stage.name for stage in search.to_plan_anew(begun)]
    before, behind = (
        [own for own in search.plan if (own["name"] in begun) == early] for early in (True, False)
    )
    added = [own for own in behind if own["name"] not in replaced]
    names = [*replaced, *stage_names(len(left), [stage.name for stage in search.stages])][
        : len(left)
    ]
    fresh = [
        {**table, "name": name}
        for table, name in zip(search.budget.name_stages(left, begun), names, strict=True)
    ]
    plan = [*before, *fresh, *added]
    text = file_text(launched.id, read_text(folder.search_file), plan, search.folder)
    durable.replace(folder.search_file, text.encode())
    return Launched(parse_search(text), folder)


def _refuse_to_begin_on_remains(folder: SearchFolder) -> None:
    """Raise ConfigError if the folder holds remains of a search, but no search file.

    That search was launched before and lost its file. A new identity would take over its records.
    """
    if folder.search_file.exists():
        return
    remains = next((path for pattern in REMAINS for path in folder.path.glob(pattern)), None)
    if remains is not None:
        raise ConfigError(
            f"{folder.path}: has no search.toml, but files of an earlier search "
            f"({remains.relative_to(folder.path)}): "
            f"`{shell_command('master recover --config FILE')}` puts your copy of the search file "
            "back and goes on; --replace sets the folder aside, --new-name launches another search"
        )


def file_text(
    search_id: str, text: str, planned: Sequence[Mapping[str, Any]] = (), place: str | None = None
) -> str:
    """Return the content of ``search.toml`` in a search's folder.

    It is the file as launched, with the search's identity and protocol, the folder in which a task
    that is a program runs, and the planned stages.
    """
    tables = tomlkit.aot()
    for stage in planned:
        table = tomlkit.table()
        table.update(
            {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in stage.items()
            }
        )
        tables.append(table)
    behind = (
        f"\n# Planned by launch; --more adds to it.\n{tomlkit.dumps({'plan': tables})}"
        if planned
        else ""
    )
    head = {"id": search_id, "protocol": PROTOCOL} | ({"folder": place} if place else {})
    return f"{tomlkit.dumps(head)}{_rename(text, None)}{behind}"


def place_of(chosen: Chosen) -> str | None:
    """Return the folder in which a task that is a program runs: that of the user's search file."""
    search = chosen.search
    return search.folder or (str(chosen.base.resolve()) if search.is_command else None)


def _grow(folder: SearchFolder, search: Search, text: str) -> Search:
    """Return the search as it was launched before, with the additions that are allowed."""
    before = folder.search()
    assert before is not None and before.id is not None  # the file exists
    # The stages that launch planned do not fit another budget, so this comes before they are read.
    _refuse(search.name, _find_budget_changes(before.budget, search.budget))
    merged = file_text(before.id, text, before.plan, before.folder)
    now = parse_search(merged)
    _refuse(search.name, find_changes(before, now, folder))
    if now != before:
        durable.replace(folder.search_file, merged.encode())
    return now


def _refuse(name: str, differences: Sequence[str]) -> None:
    if differences:
        listed = "\n  ".join(differences)
        raise ConfigError(
            f"search {name!r} was launched before with other settings:\n  {listed}\n"
            "put them back, launch under another name with --new-name NAME, or set the old folder "
            "aside with --replace"
        )


def _find_budget_changes(before: Budget | None, now: Budget | None) -> list[str]:
    if before is None or now is None:
        return []
    return [
        f"[budget] {key}: {getattr(before, key):g} -> {getattr(now, key):g}"
        for key in ("max_epochs", "repeats")
        if getattr(before, key) != getattr(now, key)
    ]


def find_changes(before: Search, now: Search, folder: SearchFolder) -> list[str]:
    """Return a line for each change that is not allowed.

    More trials are allowed, changes to stages that have not been launched yet, and whether the CPU
    may stand in for GPUs.
    """
    # Of the code, the files themselves count.
    besides = {"stages", "space", "plan", "code", "code_from", "resources"}
    old, new = before.model_dump(exclude=besides), now.model_dump(exclude=besides)
    lines = [f"{key}: {old[key]!r} -> {new[key]!r}" for key in old if old[key] != new[key]]
    if before.resources.gpus != now.resources.gpus:
        lines.append(f"[resources] gpus: {before.resources.gpus} -> {now.resources.gpus}")
    old_space, new_space = before.space.plain(), now.space.plain()
    names = [*old_space, *(n for n in new_space if n not in old_space)]
    lines += [
        f"[space] {n}: {show_value(old_space.get(n))} -> {show_value(new_space.get(n))}"
        for n in names
        if old_space.get(n) != new_space.get(n)
    ]
    launched = [stage for stage in before.stages if folder.stage(stage.name).has_begun]
    names = [stage.name for stage in launched]
    if [stage.name for stage in now.stages if stage.name in names] != names or not _begins_alike(
        names, now
    ):
        return [
            *lines,
            f"[stages]: {[s.name for s in before.stages]} -> {[s.name for s in now.stages]}",
        ]
    for stage in launched:
        lines += _find_stage_changes(stage, now.stage(stage.name))
    return lines


def _begins_alike(launched: Sequence[str], now: Search) -> bool:
    """Return whether no stage of the user's own was put before one that was launched."""
    last = max((n for n, stage in enumerate(now.stages) if stage.name in launched), default=-1)
    return all(stage.name in launched or stage.rungs for stage in now.stages[: last + 1])


def _find_stage_changes(before: Stage, now: Stage) -> list[str]:
    old, new = before.model_dump(exclude={"trials"}), now.model_dump(exclude={"trials"})
    lines = [
        f"[stages.{now.name}] {key}: {_option(old[key])} -> {_option(new[key])}"
        for key in old
        if old[key] != new[key]
    ]
    if now.trials < before.trials:
        lines.append(
            f"[stages.{now.name}] trials: {before.trials} -> {now.trials} (more may be added, none "
            "taken away)"
        )
    return lines


def _option(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else show_value(value)


def show_value(value: object) -> str:
    """Return an option's value as messages show it."""
    return "not there" if value is None else repr(value)


def _rename(text: str, new_name: str | None) -> str:
    """Return the search file's text without what launch adds, renamed if a name is given.

    Comments stay.
    """
    document = tomlkit.parse(text)
    if new_name is None and not LAUNCHED & document.keys():
        return text
    for key in LAUNCHED:
        document.pop(key, None)
    if new_name is not None:
        document["name"] = new_name
    return tomlkit.dumps(document)


def _move_aside(folder: SearchFolder) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    # The name is hidden, so that the folder is not taken for a search.
    target = folder.root / f".{folder.name}-replaced-{stamp}"
    try:
        folder.path.rename(target)
    except OSError as error:
        raise durable.explain_os_error(error, folder.path) from error
    return target


def _task_code(search: Search, base: Path, folder: SearchFolder) -> Code | None:
    """Return what is shipped with the user's task, after checking it.

    Return None for a built-in task or a command, or if only the folder has the code.
    """
    if search.is_command:
        _check_program(search, base)
    code = collect_own(search, base, folder)
    if code is not None:
        _check_defined(search, code)
    return code


def _check_program(search: Search, base: Path) -> None:
    """Check that the program of the task is there, while the user still watches."""
    name = command.words_of(search.task)[0]
    if "{" not in name and command.find_program(name, search.folder or str(base)) is None:
        place = search.folder or base.resolve()
        where = f"no such file in {place}" if "/" in name else "not found on the PATH"
        raise TaskError(f"task command: the program {name!r} is {where}, or may not be run")


def _ship(
    search: Search, code: Code | None, folder: SearchFolder, say: Callable[[str], None]
) -> None:
    """Copy the task's code into the folder, where every worker finds it.

    Raises:
        ConfigError: other code was launched before.
        CheckpointError: the folder cannot be written.
    """
    if code is None:
        return
    launched = store.current(folder)
    if launched is None:
        store.keep(folder, code)
        launched = store.make_first(folder, code.digest)
        say(f"ships the code of {search.task!r} ({code.told})")
        if code.left_out:
            say(f"leaves out {', '.join(code.left_out)}, too large to be shipped with a task")
    if launched != code.digest:
        changes = store.explain_change(folder, launched, code)
        raise ConfigError(
            f"task = {search.task!r}: the code differs from what was launched "
            f"({listed(changes)}); "
            f"`{shell_command('master launch --stage NAME --search', search.name)}` goes on with "
            f"the launched code, `{shell_command('master retry --state failed')}` takes the new "
            "code for failed trials (and --state killed), --new-name NAME launches it as another "
            "search, --replace sets the old folder aside"
        )


def renew_task(chosen: Chosen, launched: Launched) -> bool:
    """Ship code that was corrected since the launch, for a retry.

    Returns:
        Whether the user's own files were found. Then the folder has them, and the frozen digest may
        follow.

    Raises:
        TaskError: they cannot be shipped, or do not define the task.
        CheckpointError: the folder cannot be written.
    """
    code = _task_code(chosen.search, chosen.base, launched.folder)
    if code is None:
        return False
    store.keep(launched.folder, code)
    store.make_current(launched.folder, code.digest)
    return True


def _check_defined(search: Search, code: Code) -> None:
    """Check, without running it, that the task's file can be compiled and defines the task.

    An error is raised here, while the user still watches.
    """
    task, source = search.task, code.manifest.file
    name = task.rpartition(":")[2]
    try:
        tree = ast.parse(code.source, source)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise TaskError(
            f"task = {task!r}: {source}, line {line}: not Python: {error.args[0]}"
        ) from None
    bound = {getattr(node, "name", None) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name)
    if name not in bound and "*" not in bound:
        raise TaskError(
            f"task = {task!r}: {source} defines no {name}; name a class or function that it has"
        )
    is_class = any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body)
    if is_class and (why := search.resources.refuse_class(task)) is not None:
        raise TaskError(why)

"""Read and validate a search file. Each error names the place, the value and the remedy."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from common import safe_read
from common.errors import ConfigError, ProtocolError
from common.search import command
from common.search.check_conditions import check_values
from common.search.check_space import check_space
from common.search.constraint import Constraint
from common.search.hyperparameters import BUILT_IN_TASKS
from common.search.kinds import FOLLOWING
from common.search.protocol import FIRST, PROTOCOL, tell_apart
from common.search.space import Space
from common.search.stage import (
    MAX_TRIALS,
    Budget,
    Explosion,
    Resources,
    Shape,
    Stage,
    Stragglers,
    Strategy,
    Table,
)
from common.search.trial import STAGE_PATTERN
from common.shell_command import shell_command

# One path component that is not hidden and does not leave the folder.
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED_STAGE = "all"
BUILTIN_TASKS = tuple(BUILT_IN_TASKS)  # any other task is a user's file
OTHER_FILES = frozenset({".ipynb", ".json", ".sh", ".toml", ".txt", ".yaml", ".yml"})
METRIC_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,31}")  # a metric is part of the names of checkpoints
# Metrics that are measured for every task, and their modes. Those with ema_ are of the averaged
# parameters.
ENGINE_METRICS: dict[str, Literal["max", "min"]] = {
    "val_acc": "max",
    "val_loss": "min",
    "ema_val_acc": "max",
    "ema_val_loss": "min",
}
AVERAGED = "ema_"  # prefix of metrics of the running average of the parameters
MAX_FILE_BYTES = 1 << 20  # a search file is about a page
PLAN_REMEDY = "launch wrote it: undo what was changed"

# Samplers that suggest each configuration from all results so far.
ASKING = frozenset({"tpe", "gp", "smac", "pbt"})

T = TypeVar("T", bound=BaseModel)


def _space(raw: object) -> Space:
    return raw if isinstance(raw, Space) else Space.parse(raw)


def _constraints(raw: object) -> tuple[str, ...]:
    listed = list(raw) if isinstance(raw, list | tuple) else [raw]
    return tuple(Constraint.parse(one).condition.text for one in listed)


def _patterns(raw: object) -> tuple[str, ...]:
    if isinstance(raw, tuple):
        return raw
    if not isinstance(raw, list) or not raw or not all(isinstance(one, str) for one in raw):
        raise ConfigError(f'code = {raw!r}: not a list of patterns; write code = ["*.py", "data"]')
    for pattern in raw:
        path = PurePosixPath(pattern)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in pattern:
            raise ConfigError(
                f"code = {pattern!r}: names no file in the folder that the task is imported from; "
                'write a path in it, such as "helpers.py", "*.py" or "data/**/*.csv"'
            )
    return tuple(raw)


def _folders(raw: object) -> tuple[str, ...]:
    if isinstance(raw, tuple):
        return raw
    if not isinstance(raw, list) or not all(isinstance(one, str) and one for one in raw):
        raise ConfigError(
            f'code_from = {raw!r}: not a list of folders; write code_from = ["../lib"]'
        )
    return tuple(raw)


def _stages(raw: object) -> tuple[Stage, ...]:
    if isinstance(raw, tuple):
        return raw
    if not isinstance(raw, Mapping) or not raw:
        raise ConfigError(
            f"[stages]: {raw!r} holds no stage; add [stages.coarse] with trials = 200 and epochs "
            "= 1, or a [budget]"
        )
    stages = tuple(_stage(str(name), table) for name, table in raw.items())
    if not stages[0].searches:
        raise ConfigError(
            f'[stages.{stages[0].name}] kind = "{stages[0].kind}": trains what earlier stages '
            "have found, and there is none; move it below a stage that searches"
        )
    return stages


def _stage(name: str, table: object) -> Stage:
    place = f"[stages.{name}]"
    if name == RESERVED_STAGE:
        raise ConfigError(
            f"{place}: the name {name!r} means every stage; choose another, such as coarse"
        )
    if not STAGE_PATTERN.fullmatch(name):
        raise ConfigError(
            f"{place}: {name!r} cannot be part of a file name; use letters, digits and _, a "
            "letter first, at most 32"
        )
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"{place}: {table!r} is not a table; write trials and epochs below {place}"
        )
    if "name" in table:
        raise ConfigError(
            f"{place} name: a stage is named by its header; remove name = {table['name']!r}"
        )
    for key in {"rungs", "keep", "more"} & table.keys():
        raise ConfigError(
            f"{place} {key}: is planned from a [budget]; remove {key} = {table[key]!r}, or the "
            "stage"
        )
    return _validate(Stage, {"name": name, **table}, place)


class Search(Table):
    """A whole search file. ``id``, ``protocol`` and ``plan`` are set once it has been launched.

    Its stages are planned from ``budget``, or listed by the user. Stages that confirm or distill
    may follow those of a budget.
    """

    name: str
    task: str
    seed: int = Field(default=0, ge=0, lt=2**63)
    id: str | None = Field(default=None, pattern=r"^[0-9a-f]{16}$")
    protocol: int = FIRST
    folder: str | None = None  # where a task that is a program runs; launch sets it
    sampler: Literal["staged", "random", "sobol", "grid", "tpe", "gp", "smac", "pbt"] = "staged"
    # "async" promotes as soon as a third of a rung is known.
    schedule: Literal["staged", "async"] = "staged"
    # Patterns of the files that are shipped with a user's task; empty: its folder or package.
    code: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()
    # Other folders from which a user's task imports; what it imports from there is shipped, too.
    code_from: Annotated[tuple[str, ...], BeforeValidator(_folders)] = ()
    keep: int = Field(default=50, ge=1, le=1_000_000)
    explosion_factor: float = Field(default=3.0, gt=1.0)
    explosion: Explosion = True  # what ends a trial as EXPLODED; a stage may say otherwise
    # The metric ranks trials, is part of file names, and tells whether the best trials lie at a
    # border.
    metric: str = Field(default="val_acc", pattern=f"^{METRIC_PATTERN.pattern}$")
    mode: Literal["max", "min"] = "max"
    # Constraints on metrics. A trial that violates one ranks after all that satisfy them.
    subject_to: Annotated[tuple[str, ...], BeforeValidator(_constraints)] = ()
    space: Annotated[Space, BeforeValidator(_space)]
    budget: Budget | None = None
    plan: tuple[dict[str, Any], ...] = ()  # the stages that launch planned from the budget
    stages: Annotated[tuple[Stage, ...], BeforeValidator(_stages)]
    strategy: Strategy = Strategy()
    stragglers: Stragglers = Stragglers()
    resources: Resources = Resources()

    @property
    def constraints(self) -> list[Constraint]:
        """What a trial's metrics have to satisfy."""
        return [Constraint.parse(text) for text in self.subject_to]

    @property
    def asks(self) -> bool:
        """Whether each configuration is drawn from all that is known when it is needed."""
        return self.sampler in ASKING or self.schedule == "async"

    @property
    def overlaps(self) -> bool:
        """Whether the last rung of a stage runs at the same time as the next stage.

        If the file does not say so, this is the case where the budget gives slots.
        """
        if self.strategy.overlap is not None:
            return self.strategy.overlap
        return self.budget is not None and self.budget.slots is not None

    @property
    def shape(self) -> Shape:
        """How the budget is spent."""
        return shape_of(self.sampler, self.schedule)

    @property
    def max_epochs(self) -> float:
        """The longest that a trial of the search may ever train."""
        if self.budget is not None:
            return float(self.budget.max_epochs)
        return max(stage.epochs for stage in self.stages)

    def stage(self, name: str) -> Stage:
        """Return the stage of that name.

        Raises:
            ConfigError: there is no such stage; the message lists all stages.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages)
        raise ConfigError(
            f"--stage {name}: no such stage in search {self.name!r}; use one of {names} or all"
        )

    @property
    def task_file(self) -> str | None:
        """The path in ``task = "path/to/my_task.py:MyTask"``, or the module; None for others."""
        path, colon, _ = self.task.rpartition(":")
        return path if colon and not self.is_command else None

    @property
    def is_built_in(self) -> bool:
        """Whether the task is one of ``BUILTIN_TASKS``."""
        return self.task_file is None and not self.is_command

    @property
    def is_command(self) -> bool:
        """Whether the task is a program, see ``common/search/command.py``."""
        return command.is_command(self.task)

    def before(self, name: str) -> Stage | None:
        """Return the stage that runs before ``name``; None for the first."""
        position = self.stages.index(self.stage(name))
        return self.stages[position - 1] if position else None

    def find_searched_before(self, name: str) -> Stage | None:
        """Return the last stage before ``name`` that searches.

        Other stages in between have no say in the ranges.
        """
        return next((stage for stage in reversed(self.up_to(name)[:-1]) if stage.searches), None)

    def up_to(self, name: str) -> tuple[Stage, ...]:
        """Return the stages up to ``name``, including it."""
        return self.stages[: self.stages.index(self.stage(name)) + 1]

    def to_plan_anew(self, begun: Collection[str]) -> list[Stage]:
        """Return the planned stages that have not ``begun``, except those that --more added."""
        return [
            stage
            for stage in self.stages
            if stage.rungs and not stage.more and stage.name not in begun
        ]

    def after(self, name: str) -> Stage | None:
        """Return the stage that runs after ``name``; None for the last."""
        position = self.stages.index(self.stage(name)) + 1
        return self.stages[position] if position < len(self.stages) else None


def check_name(name: str) -> str:
    """Return ``name`` if it can name a folder below the checkpoint root.

    Raises:
        ConfigError: it leaves the root, is hidden, or has characters that some file systems reject.
    """
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise ConfigError(
            f"name: {name!r} cannot be a folder below the checkpoint root; "
            "use letters, digits, '.', '_' and '-', a letter or digit first, no '..', at most 64"
        )
    return name


def parse_search(text: str, source: str = "search file") -> Search:
    """Parse and validate the text of a search file. Each message begins with ``source``.

    Raises:
        ConfigError: with the place, the value and the remedy.
        ProtocolError: another version of this program launched it, so the rest of it may mean
            something else.
    """
    try:
        raw = tomllib.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:
        # The TOML is broken, has a number of thousands of digits, or is nested too deeply.
        raise ConfigError(
            f"{source}: not valid TOML: {error}; strings need quotes, tables [brackets]"
        ) from None
    _check_protocol(raw, source)
    try:
        missing = [key for key in ("name", "task", "space") if key not in raw]
        missing += ["[budget]"] if not {"budget", "stages"} & raw.keys() else []
        if missing:
            raise ConfigError(
                f"{missing[0]} is missing; `{shell_command('master init')}` writes a complete "
                "example"
            )
        if isinstance(raw["task"], Mapping):
            raw["task"] = command.as_task(raw["task"])
        search = _validate(Search, _with_stages(raw), "")
        check_name(search.name)
        _check_task(search)
        _check_metric(search)
        check_values(search.space.parameters)
        check_space(search.task, search.space)
        _check_grid(search)
        _check_repeats(search)
        _check_constraints(search)
        if search.is_built_in and (why := search.resources.refuse_class(search.task)):
            raise ConfigError(why)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return search


def _check_protocol(raw: Mapping[str, Any], source: str) -> None:
    """Refuse a search that another version launched. A file without an id was not launched."""
    found = raw.get("protocol", FIRST)
    if isinstance(raw.get("id"), str) and type(found) is int and found != PROTOCOL:
        raise ProtocolError(
            f"{source}: {tell_apart('this program', str(raw.get('name')), found)}", raw["id"], found
        )


def _with_stages(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the file with all its stages: the planned ones, then those that the user lists.

    The planned stages are those of ``plan``, or else are planned from the budget.
    """
    listed = raw.get("stages", {})
    if "budget" not in raw:
        if raw.get("sampler") == "pbt":
            raise ConfigError(
                'sampler = "pbt": plans its population from a budget; write [budget] in place '
                "of [stages]"
            )
        return raw
    own = _following(listed)
    budget = (
        _validate(Budget, raw["budget"], "[budget]") if isinstance(raw["budget"], Mapping) else None
    )
    if budget is None:
        raise ConfigError(
            f"[budget]: {raw['budget']!r} is not a table; write epochs = 300 below [budget]"
        )
    strategy = _validate(Strategy, raw.get("strategy", {}), "[strategy]")
    shape = shape_of(raw.get("sampler", "staged"), raw.get("schedule", "staged"))
    plan = raw.get("plan", [])
    planned = (
        _fresh_plan(budget.stages(resumes=strategy.resumes, shape=shape))
        if plan == []
        else _read_launched_plan(plan, budget)
    )
    if taken := {stage.name for stage in planned} & {stage.name for stage in own}:
        raise ConfigError(
            f"[stages.{min(taken)}]: the budget plans a stage of this name; choose another"
        )
    return {**raw, "plan": tuple(plan), "stages": (*planned, *own)}


def shape_of(sampler: object, schedule: object) -> Shape:
    """Return how a budget is spent. Samplers without rungs train each trial to its end."""
    if sampler == "pbt":
        return "population"
    if sampler != "staged":
        return "full"
    return "async" if schedule == "async" else "staged"


def _following(listed: object) -> tuple[Stage, ...]:
    """Return the stages that follow those of a budget. They sample nothing."""
    if not isinstance(listed, Mapping):
        raise ConfigError(f"[stages]: {listed!r} is not a table; remove it")
    stages = tuple(_stage(str(name), table) for name, table in listed.items())
    for stage in stages:
        if stage.searches:
            raise ConfigError(
                f"[stages.{stage.name}]: the stages that search are planned from the [budget]; "
                f"remove one of the two, or give it a kind, one of {', '.join(sorted(FOLLOWING))}"
            )
    return stages


def _fresh_plan(tables: Sequence[Mapping[str, Any]]) -> tuple[Stage, ...]:
    most = max(table["trials"] for table in tables)
    if most > MAX_TRIALS:
        raise ConfigError(
            f"[budget]: comes to {most:,} trials in one stage, more than {MAX_TRIALS:,}; allow "
            "less, or raise max_epochs"
        )
    return tuple(_validate(Stage, table, "[budget]") for table in tables)


def _read_launched_plan(raw: object, budget: Budget) -> tuple[Stage, ...]:
    """Return the stages that launch planned, and refuse them if they were changed since."""
    if not isinstance(raw, list) or not all(isinstance(table, Mapping) for table in raw):
        raise ConfigError(f"[[plan]]: {raw!r} is no list of tables; {PLAN_REMEDY}")
    stages = tuple(_validate(Stage, _tuples(table), "[[plan]]") for table in raw)
    for stage in stages:
        rungs, keep = stage.plan.rungs, stage.plan.keep
        is_halving = (
            len(rungs) == len(keep)
            and list(rungs) == sorted(set(rungs))
            and list(keep) == sorted(keep, reverse=True)
        )
        begins = (rungs[:1], keep[:1]) == ((stage.epochs,), (stage.trials,))
        repeated = stage.repeats == budget.repeats and not any(n % budget.repeats for n in keep)
        fits = (
            is_halving and begins and repeated and keep[-1] > 0 and rungs[-1] <= budget.max_epochs
        )
        named = STAGE_PATTERN.fullmatch(stage.name) and stage.name != RESERVED_STAGE
        if (
            not (named and stage.searches and fits)
            or [s.name for s in stages].count(stage.name) > 1
        ):
            raise ConfigError(
                f"[[plan]] {stage.name!r}: {rungs} epochs, {keep} trials is no stage that launch "
                f"plans; {PLAN_REMEDY}"
            )
    return stages


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _check_task(search: Search) -> None:
    keys = {"code": search.code, "code_from": search.code_from}
    shipped = {key: value for key, value in keys.items() if value}
    if search.is_command:
        command.check(search.task, search.space.parameters)
        for key, value in shipped.items():
            raise ConfigError(
                f"{key} = {list(value)!r}: a task that is a command ships no code; remove it"
            )
        return
    if search.folder is not None:
        raise ConfigError(f"folder = {search.folder!r}: is for a task that is a command; remove it")
    path, colon, name = search.task.rpartition(":")
    if not colon and name not in BUILTIN_TASKS:
        known = ", ".join(BUILTIN_TASKS)
        raise ConfigError(
            f"task = {name!r}: no built-in task of that name; use one of {known}, or "
            '"path/to/my_task.py:MyTask"'
        )
    is_module = all(part.isidentifier() for part in path.split(".")) and (
        Path(path).suffix not in OTHER_FILES
    )
    if colon and not ((Path(path).suffix == ".py" or is_module) and name.isidentifier()):
        raise ConfigError(
            f'task = {search.task!r}: not a file and a name; write "path/to/my_task.py:MyTask", or '
            '"my_package.tasks:MyTask" for a module'
        )
    for key, value in shipped.items() if not colon else ():
        raise ConfigError(
            f"{key} = {list(value)!r}: the built-in task {search.task!r} ships no code; remove it"
        )


def _check_metric(search: Search) -> None:
    if search.is_built_in and search.metric not in ENGINE_METRICS:
        known = ", ".join(ENGINE_METRICS)
        raise ConfigError(
            f"metric = {search.metric!r}: the built-in task {search.task!r} measures {known}; "
            "use one of these"
        )
    if (
        search.is_built_in
        and search.metric.startswith(AVERAGED)
        and "ema" not in search.space.parameters
    ):
        raise ConfigError(
            f"metric = {search.metric!r}: needs the running average of the parameters; add ema = "
            "0.99 to [space]"
        )
    if search.metric.startswith(AVERAGED) and "ema" in search.space.conditions:
        raise ConfigError(
            f"[space] ema: when: metric = {search.metric!r} needs it in every trial; remove when"
        )
    meant = ENGINE_METRICS.get(search.metric, search.mode)
    if search.mode != meant:
        raise ConfigError(
            f"mode = {search.mode!r}: {search.metric} must be {meant}imised; write mode = {meant!r}"
        )


def _check_constraints(search: Search) -> None:
    """Refuse constraints on metrics that a built-in task does not measure."""
    for one in search.constraints if search.is_built_in else ():
        for name in one.metrics:
            if name not in ENGINE_METRICS:
                raise ConfigError(
                    f"subject_to = {one.condition.text!r}: the built-in task {search.task!r} "
                    f"does not measure {name}; use one of {', '.join(ENGINE_METRICS)}"
                )


def _check_repeats(search: Search) -> None:
    counts = {f"[stages.{own.name}]": own.repeats for own in search.stages if not own.rungs}
    for stage in search.stages:
        if stage.repeats > 1 and not stage.searches:
            raise ConfigError(
                f"[stages.{stage.name}] repeats = {stage.repeats}: this stage repeats "
                "configurations already; remove it, or write seeds"
            )
    if search.budget is not None:
        counts["[budget]"] = search.budget.repeats
    for place, repeats in counts.items():
        if repeats > 1 and search.asks:
            sampler = f'sampler = "{search.sampler}", schedule = "{search.schedule}"'
            raise ConfigError(
                f"{place} repeats = {repeats}: with {sampler} each trial is drawn from all results "
                'so far, one by one; use sampler = "staged" and schedule = "staged", or a stage of '
                'kind = "confirm" at the end'
            )


def _check_grid(search: Search) -> None:
    if search.sampler == "grid" and search.space.conditions:
        name = next(iter(search.space.conditions))
        raise ConfigError(
            f'[space] {name}: when: sampler = "grid" would train the same configuration several '
            f'times, once for each value of {name} where it is absent; use sampler = "sobol", or '
            "remove the condition"
        )


def load_search(path: Path) -> Search:
    """Read and validate a search file.

    Raises:
        ConfigError: it is unreadable or invalid.
        ProtocolError: another version of this program has launched it.
    """
    return parse_search(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Return the text of a search file or a ranges file.

    Raises:
        ConfigError: it is missing, unreadable, too large, or not UTF-8.
    """
    try:
        if path.is_dir():
            raise ConfigError(
                f"{path}: is a folder; give the search file in it, such as {path / 'search.toml'}"
            )
        # Some editors put a byte order mark before the text.
        text = safe_read.read_bytes(path, MAX_FILE_BYTES).decode("utf-8-sig")
        if (place := text.find("\0")) >= 0:
            raise ConfigError(
                f"{path}: has a NUL character in line {text.count(chr(10), 0, place) + 1}; save "
                "it again as plain text"
            )
        return text
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; `{shell_command('master init')}` writes one to start from"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); is it the right file, and may this user "
            "read it?"
        ) from None
    except ValueError as error:
        if not isinstance(error, UnicodeDecodeError):
            raise ConfigError(
                f"{str(path)!r}: no path that a file can have ({error}); correct it"
            ) from None
        raise ConfigError(
            f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None


def default_text() -> str:
    """Return the commented default search file: a search on digits.

    ``master init`` writes it, and it runs where there is no search file.
    """
    return (resources.files("common.search") / "templates" / "search.toml").read_text(
        encoding="utf-8"
    )


def _validate(model: type[T], raw: Mapping[str, Any], place: str) -> T:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain_problem(error, place, model)) from None


def _is_table(model: type[BaseModel], key: str) -> bool:
    kind = model.model_fields[key].annotation if key in model.model_fields else None
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _explain_problem(error: ValidationError, place: str, model: type[BaseModel]) -> str:
    """Return the first problem as one line: place, value, remedy."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    if not place and len(parts) > 1 and _is_table(model, parts[0]):
        parts[0] = f"[{parts[0]}]"
    where = " ".join([place, *parts]).strip()
    value = first.get("input")
    if first["type"] == "extra_forbidden":
        nested: Any = (
            model.model_fields[str(first["loc"][0])].annotation if len(first["loc"]) > 1 else model
        )
        known = ", ".join(getattr(nested, "model_fields", model.model_fields))
        return f"{where} = {value!r}: unknown key; remove it or use one of {known}"
    if first["type"] == "missing":
        return f"{where} is missing; add it"
    return f"{where} = {value!r}: {first['msg'][0].lower()}{first['msg'][1:]}"

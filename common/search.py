"""The search file: TOML in, validated models out, every refusal with place, value and remedy."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from common import bounded
from common.errors import ConfigError
from common.practice import BUILT_IN_TASKS
from common.space import Space
from common.trial import STAGE_PATTERN
from common.vet import check_space

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # one path component that is neither hidden nor climbs
RESERVED_STAGE = "all"
BUILTIN_TASKS = tuple(BUILT_IN_TASKS)  # what workers bring along; anything else is a file of the user's
METRIC_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,31}")  # part of the names of checkpoints
ENGINE_METRICS: dict[str, Literal["max", "min"]] = {  # measured for every task, and how they are meant; ema_: of the averaged parameters
    "val_acc": "max",
    "val_loss": "min",
    "ema_val_acc": "max",
    "ema_val_loss": "min",
}
AVERAGED = "ema_"  # what is measured of the running average of the parameters
MAX_FILE_BYTES = 1 << 20  # a search file is a page; anything larger is the wrong file

T = TypeVar("T", bound=BaseModel)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class Stage(_Table):
    """One round of a search. ``epochs`` may be a fraction.

    ``kind`` "seeds" trains the best configuration of the stage before again, ``trials`` times from different initial weights.
    """

    name: str
    trials: int = Field(gt=0, le=1_000_000)
    epochs: float = Field(gt=0, le=1_000_000)
    kind: Literal["search", "seeds"] = "search"
    patience: float | None = Field(default=None, gt=0)  # epochs without a better metric, then STOPPED
    chance_epochs: float | None = Field(default=None, gt=0)  # no better than guessing after so many epochs: STOPPED
    snapshots: int = Field(default=0, ge=0, le=1000)  # weights kept over time of trials that keep a checkpoint, evenly spread


class Stragglers(_Table):
    """When a trial is taken away from its worker; seconds."""

    lease_s: float = Field(default=30.0, ge=1.0, le=3600.0)
    stuck_s: float = Field(default=300.0, ge=1.0)
    slow_factor: float = Field(default=4.0, gt=1.0)


def _space(raw: object) -> Space:
    return raw if isinstance(raw, Space) else Space.parse(raw)


def _stages(raw: object) -> tuple[Stage, ...]:
    if isinstance(raw, tuple):
        return raw
    if not isinstance(raw, Mapping) or not raw:
        raise ConfigError(f"[stages]: {raw!r} holds no stage; add [stages.coarse] with trials = 200 and epochs = 1")
    stages = tuple(_stage(str(name), table) for name, table in raw.items())
    if stages[0].kind == "seeds":
        raise ConfigError(
            f'[stages.{stages[0].name}] kind = "seeds": trains the best configuration of the stage before it again, and there is none; '
            "move it below a stage that searches"
        )
    return stages


def _stage(name: str, table: object) -> Stage:
    place = f"[stages.{name}]"
    if name == RESERVED_STAGE:
        raise ConfigError(f"{place}: the name {name!r} means every stage; choose another, such as coarse")
    if not STAGE_PATTERN.fullmatch(name):
        raise ConfigError(f"{place}: {name!r} cannot be part of a file name; use letters, digits and _, a letter first, at most 32")
    if not isinstance(table, Mapping):
        raise ConfigError(f"{place}: {table!r} is not a table; write trials and epochs below {place}")
    if "name" in table:
        raise ConfigError(f"{place} name: a stage is named by its header; remove name = {table['name']!r}")
    return _validated(Stage, {"name": name, **table}, place)


class Search(_Table):
    """A whole search file. ``id`` is there once it has been launched."""

    name: str
    task: str
    seed: int = Field(default=0, ge=0, lt=2**63)
    id: str | None = Field(default=None, pattern=r"^[0-9a-f]{16}$")
    sampler: Literal["random", "sobol"] = "random"
    keep: int = Field(default=50, ge=1, le=1_000_000)
    explosion_factor: float = Field(default=3.0, gt=1.0)
    metric: str = Field(default="val_acc", pattern=f"^{METRIC_PATTERN.pattern}$")  # what ranks, names files and is watched for borders
    mode: Literal["max", "min"] = "max"
    space: Annotated[Space, BeforeValidator(_space)]
    stages: Annotated[tuple[Stage, ...], BeforeValidator(_stages)]
    stragglers: Stragglers = Stragglers()

    def stage(self, name: str) -> Stage:
        """The stage of that name.

        Raises:
            ConfigError: no such stage; the message lists those there are.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages)
        raise ConfigError(f"--stage {name}: no such stage in search {self.name!r}; use one of {names} or all")

    @property
    def task_file(self) -> str | None:
        """The path in ``task = "path/to/my_task.py:MyTask"``, None for a built-in task."""
        path, colon, _ = self.task.rpartition(":")
        return path if colon else None

    @property
    def task_in_folder(self) -> str:
        """The task as the search's folder holds it: a user's file lies beside ``search.toml``."""
        path, colon, name = self.task.rpartition(":")
        return f"{Path(path).name}:{name}" if colon else self.task

    def before(self, name: str) -> Stage | None:
        """The stage that runs before ``name``, None for the first."""
        position = self.stages.index(self.stage(name))
        return self.stages[position - 1] if position else None

    def searched_before(self, name: str) -> Stage | None:
        """The last stage before ``name`` that searches; a stage of seeds in between has nothing to say about ranges."""
        before = self.stages[: self.stages.index(self.stage(name))]
        return next((stage for stage in reversed(before) if stage.kind == "search"), None)

    def after(self, name: str) -> Stage | None:
        """The stage that runs after ``name``, None for the last."""
        position = self.stages.index(self.stage(name)) + 1
        return self.stages[position] if position < len(self.stages) else None


def check_name(name: str) -> str:
    """Returns ``name`` if it can name a folder below the checkpoint root.

    Raises:
        ConfigError: it climbs, hides, or has characters that file systems dislike.
    """
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise ConfigError(
            f"name: {name!r} cannot be a folder below the checkpoint root; "
            "use letters, digits, '.', '_' and '-', a letter or digit first, no '..', at most 64"
        )
    return name


def parse_search(text: str, source: str = "search file") -> Search:
    """Validates the text of a search file; ``source`` opens every message.

    Raises:
        ConfigError: with the place, the value and the remedy.
    """
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # broken TOML, a number of thousands of digits, brackets without end
        raise ConfigError(f"{source}: not valid TOML: {error}; strings need quotes, tables [brackets]") from None
    try:
        missing = [key for key in ("name", "task", "space", "stages") if key not in raw]
        if missing:
            raise ConfigError(f"{missing[0]} is missing; `master init` writes a complete example")
        search = _validated(Search, raw, "")
        check_name(search.name)
        _check_task(search)
        _check_metric(search)
        check_space(search.task, search.space)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return search


def _check_task(search: Search) -> None:
    path, colon, name = search.task.rpartition(":")
    if not colon and name not in BUILTIN_TASKS:
        known = ", ".join(BUILTIN_TASKS)
        raise ConfigError(f'task = {name!r}: no built-in task of that name; use one of {known}, or "path/to/my_task.py:MyTask"')
    if colon and (Path(path).suffix != ".py" or not name.isidentifier()):
        raise ConfigError(f'task = {search.task!r}: not a file and a name; write "path/to/my_task.py:MyTask"')


def _check_metric(search: Search) -> None:
    if search.task_file is None and search.metric not in ENGINE_METRICS:
        known = ", ".join(ENGINE_METRICS)
        raise ConfigError(f"metric = {search.metric!r}: the built-in task {search.task!r} measures {known}; use one of these")
    if search.task_file is None and search.metric.startswith(AVERAGED) and "ema" not in search.space.parameters:
        raise ConfigError(f"metric = {search.metric!r}: is of the running average of the parameters; add ema = 0.99 to [space]")
    meant = ENGINE_METRICS.get(search.metric, search.mode)
    if search.mode != meant:
        raise ConfigError(f"mode = {search.mode!r}: {search.metric} is best where it is {meant}imal; write mode = {meant!r}")


def load_search(path: Path) -> Search:
    """Reads and validates a search file.

    Raises:
        ConfigError: unreadable or invalid.
    """
    return parse_search(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a search file or ranges file.

    Raises:
        ConfigError: missing, unreadable, too large, or not UTF-8.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; give the search file in it, such as {path / 'search.toml'}")
        return bounded.read_bytes(path, MAX_FILE_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `master init` writes one to start from") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); is it the right file, and may this user read it?") from None
    except ValueError as error:
        if not isinstance(error, UnicodeDecodeError):
            raise ConfigError(f"{str(path)!r}: no path that a file can have ({error}); correct it") from None
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def default_text() -> str:
    """The commented search file that ``master init`` writes and that runs where there is none: digits."""
    return (resources.files("common") / "templates" / "search.toml").read_text(encoding="utf-8")


def _validated(model: type[T], raw: Mapping[str, Any], place: str) -> T:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explained(error, place, model)) from None


def _explained(error: ValidationError, place: str, model: type[BaseModel]) -> str:
    """The first problem as one line: place, value, remedy."""
    first = error.errors(include_url=False)[0]
    where = " ".join([place, *(str(part) for part in first["loc"])]).strip()
    value = first.get("input")
    if first["type"] == "extra_forbidden":
        nested: Any = model.model_fields[str(first["loc"][0])].annotation if len(first["loc"]) > 1 else model
        known = ", ".join(getattr(nested, "model_fields", model.model_fields))
        return f"{where} = {value!r}: unknown key; remove it or use one of {known}"
    if first["type"] == "missing":
        return f"{where} is missing; add it"
    return f"{where} = {value!r}: {first['msg'][0].lower()}{first['msg'][1:]}"

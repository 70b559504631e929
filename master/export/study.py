"""Studies in Optuna's storage, one a stage, so that its dashboard, its plots and its importances work on a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as State

from common import durable
from common.errors import CheckpointError, ConfigError
from common.record import Record
from common.search import Search
from common.space import Choice, Fixed, Parameter, Scalar
from common.trial import TrialState
from master import ranking
from master.export.ended import Ended, EndedStage, evaluations, times
from master.export.files import plain_path

STATES = {  # Optuna knows three ends; the user attribute "state" has the trial's own
    TrialState.COMPLETED: State.COMPLETE,
    TrialState.STOPPED: State.PRUNED,
    TrialState.EXPLODED: State.PRUNED,
    TrialState.KILLED: State.FAIL,
    TrialState.FAILED: State.FAIL,
}
SLOW = 500  # trials: from here on Optuna's transaction a trial, 10 ms with one evaluation and 25 with twenty, is worth a word


def write(stages: Sequence[EndedStage], out: str, search: Search, say: Callable[[str], None]) -> tuple[str, list[str]]:
    """Writes a study a stage; what an earlier export left there is kept, and only new trials are added.

    Args:
        stages: what to export.
        out: an SQLite file, or the URL of a database that Optuna's storage takes.
        search: it must have been launched.
        say: told where it takes a while.

    Returns:
        The storage's URL, without its password, and the names of the studies.

    Raises:
        ConfigError: the storage cannot take them: the message says why.
        CheckpointError: the database cannot be written or read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = _url(out)
    with _explained(url):
        storage = RDBStorage(url.render_as_string(hide_password=False))
        try:
            names = [_write_stage(storage, stage, search, say) for stage in stages]
        finally:
            storage.remove_session()
            storage.engine.dispose()
    return str(url), names


def _url(out: str) -> sqlalchemy.URL:
    """The storage's address.

    Raises:
        ConfigError: neither an address nor a file.
    """
    if "://" in out:
        try:
            return sqlalchemy.make_url(out)
        except (sqlalchemy.exc.ArgumentError, ValueError):  # the latter of a port that is no number
            raise ConfigError("--out: the URL cannot be read; write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE") from None
    path = plain_path(out)
    if path.is_dir() or "?" in out:
        raise ConfigError(f"--out {out}: cannot be an SQLite file; name a file without '?', such as study.db")
    durable.make_folder(path.parent)
    return sqlalchemy.URL.create("sqlite", database=str(path))


@contextmanager
def _explained(url: sqlalchemy.URL) -> Iterator[None]:
    """What the database says, as one message that shows no password."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"--out {url}: the database's driver is missing ({error}); install it with pip") from None
    except sqlalchemy.exc.NoSuchModuleError:
        raise ConfigError(f"--out {url}: no such kind of database; use sqlite, postgresql or mysql") from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        told = getattr(cause, "orig", None) or cause or error
        raise CheckpointError(f"{url}: the database refuses: {told}; name another --out, or mend it") from None
    except RuntimeError as error:
        raise CheckpointError(f"{url}: Optuna cannot use this database: {error}") from None


def _write_stage(storage: RDBStorage, stage: EndedStage, search: Search, say: Callable[[str], None]) -> str:
    name = f"{search.name}-{stage.stage.name}"
    study = _study(storage, name, stage, search)
    there = {t.user_attrs.get("trial"): t.user_attrs.get("attempt") for t in study.get_trials(deepcopy=False)}
    for record in stage.records:
        if there.get(record.trial, record.attempt) != record.attempt:
            raise ConfigError(
                f"study {name!r} holds attempt {there[record.trial]} of {record.trial}, which has been tried again since; a study forgets "
                "no trial, so delete it in Optuna, or name another --out"
            )
    missing = sorted((t for t in stage.trials if t.record.trial not in there), key=lambda t: t.record.index)
    if len(missing) >= SLOW:
        pace = "Optuna's storage takes 40 to 100 a second; interrupted, the same command goes on"
        say(f"writing {len(missing):,} trials into study {name!r}; {pace}")
    distributions = {n: distribution for n, p in stage.space.parameters.items() if (distribution := _distribution(p)) is not None}
    for trial in missing:
        study.add_trial(_trial(trial, distributions))
    return name


def _study(storage: RDBStorage, name: str, stage: EndedStage, search: Search) -> optuna.Study:
    """The study of that name, made where there is none."""
    metric, mode = ranking.metric_of(stage.records)
    direction = StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE
    study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
    found = study.user_attrs.get("search_id")
    if found is None and not study.get_trials(deepcopy=False):  # new, or an export that was interrupted at once
        for key, value in _about(stage, search, metric).items():
            study.set_user_attr(key, value)
    elif found != search.id:
        raise ConfigError(f"study {name!r} is there already and is not of this search; delete it in Optuna, or name another --out")
    return study


def _about(stage: EndedStage, search: Search, metric: str) -> dict[str, Any]:
    """What holds for all trials; the id last, which says that the rest is there."""
    parameters = stage.space.parameters
    return {
        "search": search.name,
        "stage": stage.stage.name,
        "metric": metric,
        "ranges": {name: p.plain() for name, p in parameters.items() if not isinstance(p, Fixed)},
        "fixed": {name: p.value for name, p in parameters.items() if isinstance(p, Fixed)},
        "search_id": search.id,
    }


def _distribution(parameter: Parameter) -> BaseDistribution | None:
    """How a hyperparameter was sampled; None of a fixed one, which the study's attributes tell."""
    if isinstance(parameter, Fixed):
        return None
    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.options)
    if parameter.integer:
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(float(parameter.low), float(parameter.high), log=parameter.log)


def _trial(trial: Ended, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    record = trial.record
    state, value = _outcome(record)
    params = {n: record.hyperparameters[n] for n, d in distributions.items() if _within(d, record.hyperparameters.get(n))}
    curve = ((e.step, e.values.get(record.metric)) for e in evaluations(record))
    made = optuna.create_trial(
        state=state,
        value=value,
        params=params,
        distributions={name: distributions[name] for name in params},
        user_attrs=_attributes(trial),
        intermediate_values={step: v for step, v in curve if v is not None},
    )
    start, end = times(record)
    if start and end:  # Optuna's times are the local clock's, without a zone
        made.datetime_start, made.datetime_complete = (moment.astimezone().replace(tzinfo=None) for moment in (start, end))
    return made


def _outcome(record: Record) -> tuple[State, float | None]:
    """Optuna's state and value: complete are those that `master rank` has above the others, so that both name the same best trial."""
    value = record.measured if record.measured is not None and math.isfinite(record.measured) else None
    if record.stopped_early and value is not None:
        return State.COMPLETE, value
    state = STATES[record.state]
    if state is State.COMPLETE and value is None:
        return State.FAIL, None
    return state, None if state is State.FAIL else value


def _within(distribution: BaseDistribution, value: Scalar | None) -> bool:
    """Whether the stage could have sampled it; Optuna refuses a trial with another value (only an edited record has one)."""
    if value is None:
        return False
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if isinstance(value, bool | str) or not isinstance(distribution, FloatDistribution | IntDistribution):
        return False
    return distribution.low <= value <= distribution.high and (isinstance(distribution, FloatDistribution) or float(value).is_integer())


def _attributes(trial: Ended) -> dict[str, Any]:
    """What Optuna has no place of its own for; nothing that later trials change, such as the rank."""
    record = trial.record
    known = {
        "trial": record.trial,
        "attempt": record.attempt,
        "state": record.state.value,
        "reason": record.reason,
        "diagnosis": record.diagnosis.word if record.diagnosis else None,
        "diagnosis_sentence": record.diagnosis.sentence if record.diagnosis else None,
        "epochs": record.epochs,
        "best_epoch": record.best_epoch,
        "metrics": {n: v if math.isfinite(v) else str(v) for n, v in record.metrics.items()} or None,
        "seed": record.seed,
        "checkpoint": trial.checkpoint,
        "worker": record.worker,
    }
    return {name: value for name, value in known.items() if value is not None}

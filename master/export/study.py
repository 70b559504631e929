"""Studies in Optuna's storage, one per stage.

Optuna's dashboard, plots and importances then work on a search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as State

from common.errors import CheckpointError, ConfigError
from common.folder import durable
from common.folder.record import Record
from common.search.parameters import ON_GRID, Choice, Fixed, Normal, Parameter
from common.search.search_file import Search
from common.search.trial import TrialState
from common.search.values import Scalar, flat
from master.export.ended import Ended, EndedStage, evaluations, times
from master.export.files import plain_path
from master.results import ranking
from master.results.lineage import longest_of

STATES = {  # Optuna has three end states; the user attribute "state" has the trial's own
    TrialState.COMPLETED: State.COMPLETE,
    TrialState.STOPPED: State.PRUNED,
    TrialState.EXPLODED: State.PRUNED,
    TrialState.KILLED: State.FAIL,
    TrialState.FAILED: State.FAIL,
}
# From this number of trials on, a message says that writing takes a while. Optuna's transaction for
# one trial takes 10 ms with one evaluation and 25 ms with twenty.
SLOW = 500


def write(
    stages: Sequence[EndedStage], out: str, search: Search, say: Callable[[str], None]
) -> tuple[str, list[str]]:
    """Write one study per stage. An existing study is kept, and only new trials are added.

    Args:
        stages: the stages to export.
        out: an SQLite file, or the URL of a database that Optuna's storage accepts.
        search: a search that has been launched.
        say: called with a message if writing takes a while.

    Returns:
        The URL of the storage without its password, and the names of the studies.

    Raises:
        ConfigError: the storage cannot take the studies; the message says why.
        CheckpointError: the database cannot be written or read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = _url(out)
    with _explain_errors(url):
        storage = RDBStorage(url.render_as_string(hide_password=False))
        try:
            names = [_write_stage(storage, stage, search, say) for stage in stages]
        finally:
            storage.remove_session()
            storage.engine.dispose()
    return str(url), names


def _url(out: str) -> sqlalchemy.URL:
    """Return the URL of the storage.

    Raises:
        ConfigError: ``out`` is neither a URL nor a file.
    """
    if "://" in out:
        try:
            return sqlalchemy.make_url(out)
        # sqlalchemy raises ValueError for a port that is not a number.
        except (sqlalchemy.exc.ArgumentError, ValueError):
            raise ConfigError(
                "--out: the URL cannot be read; write sqlite:///FILE or "
                "postgresql://USER:PASSWORD@HOST/DATABASE"
            ) from None
    path = plain_path(out)
    if path.is_dir() or "?" in out:
        raise ConfigError(
            f"--out {out}: cannot be an SQLite file; name a file without '?', such as study.db"
        )
    durable.make_folder(path.parent)
    return sqlalchemy.URL.create("sqlite", database=str(path))


@contextmanager
def _explain_errors(url: sqlalchemy.URL) -> Iterator[None]:
    """Turn the errors of the database into messages that show no password.

    Raises:
        ConfigError: the driver or the kind of database is missing.
        CheckpointError: the database refuses.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"--out {url}: the database's driver is missing ({error}); install it with pip"
        ) from None
    except sqlalchemy.exc.NoSuchModuleError:
        raise ConfigError(
            f"--out {url}: no such kind of database; use sqlite, postgresql or mysql"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = (
            error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        )
        told = getattr(cause, "orig", None) or cause or error
        raise CheckpointError(
            f"{url}: the database reports an error: {told}; fix it, or name another --out"
        ) from None
    except RuntimeError as error:
        raise CheckpointError(f"{url}: Optuna cannot use this database: {error}") from None


def _write_stage(
    storage: RDBStorage, stage: EndedStage, search: Search, say: Callable[[str], None]
) -> str:
    name = f"{search.name}-{stage.stage.name}"
    study = _study(storage, name, stage, search)
    there = {
        t.user_attrs.get("trial"): t.user_attrs.get("attempt")
        for t in study.get_trials(deepcopy=False)
    }
    for record in stage.records:
        if there.get(record.trial, record.attempt) != record.attempt:
            raise ConfigError(
                f"study {name!r} holds attempt {there[record.trial]} of {record.trial}, which has "
                "been promoted or tried again since. A study cannot replace a trial: delete the "
                "study in Optuna, or name another --out"
            )
    missing = sorted(
        (t for t in stage.trials if t.record.trial not in there), key=lambda t: t.record.index
    )
    if len(missing) >= SLOW:
        pace = "Optuna stores 40 to 100 a second. If interrupted, run the same command again"
        say(f"writing {len(missing):,} trials into study {name!r}; {pace}")
    distributions = {
        n: distribution
        for n, p in stage.space.parameters.items()
        if (distribution := _distribution(p)) is not None
    }
    longest = max((record.budget_epochs for record in ranking.best(stage.records)), default=0.0)
    for trial in missing:
        study.add_trial(_trial(trial, distributions, longest))
    return name


def _study(storage: RDBStorage, name: str, stage: EndedStage, search: Search) -> optuna.Study:
    """Return the study of that name; create it if there is none."""
    metric, mode = ranking.metric_of(stage.records)
    direction = StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE
    study = optuna.create_study(
        storage=storage, study_name=name, direction=direction, load_if_exists=True
    )
    found = study.user_attrs.get("search_id")
    # The study is new, or an export was interrupted at its beginning.
    if found is None and not study.get_trials(deepcopy=False):
        for key, value in _about(stage, search, metric).items():
            study.set_user_attr(key, value)
    elif found != search.id:
        raise ConfigError(
            f"study {name!r} exists already and belongs to another search; delete it in Optuna, "
            "or name another --out"
        )
    return study


def _about(stage: EndedStage, search: Search, metric: str) -> dict[str, Any]:
    """Return the attributes that all trials share.

    The id is last, so its presence shows that the others are there.
    """
    parameters = stage.space.parameters
    return {
        "search": search.name,
        "stage": stage.stage.name,
        "metric": metric,
        "ranges": {name: p.plain() for name, p in parameters.items() if not isinstance(p, Fixed)},
        "fixed": {name: flat(p.value) for name, p in parameters.items() if isinstance(p, Fixed)},
        "search_id": search.id,
    }


def _distribution(parameter: Parameter) -> BaseDistribution | None:
    """Return the distribution of a hyperparameter.

    Return None for a fixed one, which is an attribute of the study.
    """
    if isinstance(parameter, Fixed):
        return None
    if isinstance(parameter, Choice):
        return CategoricalDistribution([flat(option) for option in parameter.options])
    step = None if isinstance(parameter, Normal) else parameter.step
    if parameter.integer:
        ends = int(parameter.low), int(parameter.high)
        return IntDistribution(*ends, log=parameter.log, step=int(step or 1))
    return FloatDistribution(
        float(parameter.low), float(parameter.high), log=parameter.log, step=step
    )


def _trial(
    trial: Ended, distributions: Mapping[str, BaseDistribution], longest: float
) -> FrozenTrial:
    record = trial.record
    state, value = _outcome(record)
    if (
        state is State.COMPLETE and record.budget_epochs < longest
    ):  # not promoted so far, which Optuna calls pruned
        state = State.PRUNED
    values = {name: flat(value) for name, value in record.hyperparameters.items()}
    params = {n: values[n] for n, d in distributions.items() if _within(d, values.get(n))}
    curve = ((e.step, e.values.get(record.metric)) for e in evaluations(record))
    made = optuna.create_trial(
        state=state,
        value=value,
        params=params,
        distributions={name: distributions[name] for name in params},
        user_attrs=_attributes(trial),
        # Above 0 means for Optuna, too, that the trial is never the best.
        system_attrs={"constraints": [1.0]} if record.violates else {},
        intermediate_values={step: v for step, v in curve if v is not None},
    )
    start, end = times(record)
    if start and end:  # Optuna's times are local and have no time zone
        made.datetime_start, made.datetime_complete = (
            moment.astimezone().replace(tzinfo=None) for moment in (start, end)
        )
    return made


def _outcome(record: Record) -> tuple[State, float | None]:
    """Return Optuna's state and value.

    The complete trials are those that `master rank` ranks above the others, so both programs name
    the same best trial.
    """
    value = (
        record.measured if record.measured is not None and math.isfinite(record.measured) else None
    )
    if record.stopped_early and value is not None:
        return State.COMPLETE, value
    state = STATES[record.state]
    if state is State.COMPLETE and value is None:
        return State.FAIL, None
    return state, None if state is State.FAIL else value


def _within(distribution: BaseDistribution, value: Scalar | None) -> bool:
    """Return whether the stage could have sampled the value.

    Optuna refuses a trial with another value, which only an edited record has.
    """
    if value is None:
        return False
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if isinstance(value, bool | str) or not isinstance(
        distribution, FloatDistribution | IntDistribution
    ):
        return False
    return (
        distribution.low <= value <= distribution.high
        and (isinstance(distribution, FloatDistribution) or float(value).is_integer())
        and (not distribution.step or _on_grid((value - distribution.low) / distribution.step))
    )


def _on_grid(place: float) -> bool:
    return abs(place - round(place)) < ON_GRID


def _attributes(trial: Ended) -> dict[str, Any]:
    """Return what Optuna has no place for.

    Values that later trials change, such as the rank, are not included.
    """
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
        "budget_epochs": record.budget_epochs,
        "max_epochs": longest_of(record.budget_epochs, record.max_epochs),
        "rung": record.rung,
        "drawn": record.drawn or None,
        "parents": list(record.parents) or None,
        "metrics": {n: v if math.isfinite(v) else str(v) for n, v in record.metrics.items()}
        or None,
        "seed": record.seed,
        "checkpoint": trial.checkpoint,
        "worker": record.worker,
    }
    return {name: value for name, value in known.items() if value is not None}

"""Values to and from the JSON that Redis holds. No script reads it, so numbers keep all their digits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.trial import Fence, Progress, Result, Trial, TrialState

NON_FINITE = "$float"  # {"$float": "nan"}: strict JSON has no word for it, and a plain string could be the user's own
MOST_POINTS = 100  # of a curve that is sent while it grows: more than a screen shows, some kilobytes
ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
DEFAULTS = {name: field.default for name, field in Result.__dataclass_fields__.items()}
PROGRESS_FIELDS = [name for name in Progress.__dataclass_fields__ if name not in ("fence", "beat")]


def dumps(value: Any) -> str:
    """Compact strict JSON; non-finite floats survive as strings."""
    try:
        return ENCODER.encode(value)
    except ValueError:
        return ENCODER.encode(_marked(value))


def loads(stored: str | bytes) -> Any:
    """The inverse of ``dumps``."""
    return json.loads(stored, object_hook=_unmarked) if NON_FINITE in text(stored) else json.loads(stored)


def _marked(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {NON_FINITE: str(float(value))}
    if isinstance(value, dict):
        return {key: _marked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item) for item in value]
    return value


def _unmarked(value: dict[str, Any]) -> Any:
    return float(value[NON_FINITE]) if value.keys() == {NON_FINITE} else value


def text(value: str | bytes) -> str:
    """A reply as text, whether or not the client decodes."""
    return value if isinstance(value, str) else value.decode()


def trial_out(trial: Trial) -> str:
    """A trial's configuration; its id is the field that it is stored under."""
    return dumps([trial.stage, trial.index, trial.seed, trial.epochs, trial.hyperparameters, trial.group])


def trial_in(trial_id: str | bytes, configuration: str | bytes) -> Trial:
    """The inverse of ``trial_out``."""
    return Trial(text(trial_id), *loads(configuration))


def result_out(result: Result) -> str:
    """A result without the fields that say nothing."""
    return dumps({name: value for name, value in vars(result).items() if name == "state" or value != DEFAULTS[name]})


def result_in(stored: str | bytes) -> Result:
    """The inverse of ``result_out``; fields of a later version are passed over."""
    fields = {name: value for name, value in loads(stored).items() if name in DEFAULTS}
    return Result(**fields | {"state": TrialState(fields["state"])})


def curves_out(curves: Mapping[str, Sequence[float | None]]) -> str:
    """Curves for people to watch: at most ``MOST_POINTS`` of each, the last among them, in five digits.

    They may be growing in another thread: what is not there for every name yet is left out.
    """
    length = min((len(values) for values in curves.values()), default=0)
    step = -(-length // MOST_POINTS) or 1
    places = [*range(length - 1, -1, -step)][::-1]
    return dumps({name: [_five_digits(values[place]) for place in places] for name, values in curves.items()})


def curves_in(stored: str | bytes) -> dict[str, list[float | None]]:
    """The inverse of ``curves_out``, but for what it left out."""
    found: dict[str, list[float | None]] = loads(stored)
    return found


def _five_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def progress_out(progress: Progress) -> str:
    """What a heartbeat says, but for the fence and the beat, which the script compares."""
    return dumps([getattr(progress, name) for name in PROGRESS_FIELDS])


def progress_in(fence: Fence, beat: int, stored: str | bytes) -> Progress:
    """The inverse of ``progress_out``."""
    return Progress(fence, beat, **dict(zip(PROGRESS_FIELDS, loads(stored), strict=False)))

"""Values to and from the JSON that Redis holds. No script reads it, so numbers keep all their digits.

What comes back may have been written by anybody who has a password: each value is checked before anything is made of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import DamagedReplyError
from common.trial import ENDED, TRIAL_PATTERN, Fence, Progress, Result, Trial, TrialState, WorkerInfo, trial_id

NON_FINITE = "$float"  # {"$float": "nan"}: strict JSON has no word for it, and a plain string could be the user's own
MOST_CHARACTERS = 1 << 20  # of one value: a configuration is smaller than its search file, anything larger is not ours
MOST_DIGITS = 18  # of a number in a text: below 2^63
MOST_SHOWN = 60  # characters of a damaged value in a message
MOST_WHOLE = 1 << 63  # no whole number of ours is as large, and not every larger one becomes a float
MOST_POINTS = 100  # of a curve that is sent while it grows: more than a screen shows, some kilobytes
ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
DEFAULTS = {name: field.default for name, field in Result.__dataclass_fields__.items()}
NUMBER, TEXT = (int, float), (str,)
KINDS: dict[str, tuple[type, ...]] = {"str": TEXT, "int": (int,), "float": NUMBER, "bool": (bool,)}  # by a field's annotation
SCALARS = (bool, int, float, str)
HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # what JSON can say and no terminal, file or server takes
PROGRESS_FIELDS = [name for name in Progress.__dataclass_fields__ if name not in ("fence", "beat")]


def dumps(value: Any) -> str:
    """Compact strict JSON; non-finite floats survive as strings."""
    try:
        return ENCODER.encode(value)
    except ValueError:
        return ENCODER.encode(_marked(value))


def loads(stored: str | bytes) -> Any:
    """The inverse of ``dumps``, for what a script of ours has put together.

    Raises:
        ValueError, TypeError, RecursionError: it is something else.
    """
    plain = text(stored)
    found = json.loads(plain, object_hook=_unmarked) if NON_FINITE in plain else json.loads(plain)
    if HALF_A_PAIR.search(plain):
        json.dumps(found, ensure_ascii=False).encode()
    return found


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
    return value if isinstance(value, str) else value.decode(errors="replace")


def whole_in(stored: str | bytes | int | None, what: str) -> int:
    """A number that a script counts or numbers things with: whole, not negative.

    Raises:
        DamagedReplyError: no script has written it.
    """
    if isinstance(stored, str | bytes) and len(stored) < MOST_DIGITS and (digits := text(stored)).isascii() and digits.isdecimal():
        return int(digits)
    if isinstance(stored, int) and not isinstance(stored, bool) and 0 <= stored < MOST_WHOLE:
        return stored
    raise unwritten(what, stored)


def reply_in(stored: str | bytes | None, what: str) -> list[Any]:
    """The array that a script answers.

    Raises:
        DamagedReplyError: it has put values into it that this program has not written.
    """
    try:
        found = loads(stored or "")
    except (ValueError, TypeError, RecursionError):
        raise unwritten(what, stored) from None
    if not isinstance(found, list):
        raise unwritten(what, stored)
    return found


def trial_out(trial: Trial) -> str:
    """A trial's configuration; its id is the field that it is stored under."""
    return dumps([trial.stage, trial.index, trial.seed, trial.epochs, trial.hyperparameters, trial.group])


def trial_in(stored_id: str | bytes, configuration: str | bytes) -> Trial:
    """The inverse of ``trial_out``.

    Raises:
        DamagedReplyError: this program has not written it.
    """
    found, what = _value(configuration, "trial"), text(stored_id)
    if not isinstance(found, list) or len(found) != 6:
        raise unwritten("trial", configuration)
    trial = Trial(what, *found)
    _check(trial, "trial", configuration)
    named = TRIAL_PATTERN.fullmatch(what) and trial.id == trial_id(trial.stage, trial.index)
    plain = isinstance(trial.hyperparameters, dict) and all(isinstance(value, SCALARS) for value in trial.hyperparameters.values())
    if not named or not plain or not 0 < trial.epochs < math.inf:
        raise unwritten(f"trial {what[:MOST_SHOWN]!r}", configuration)
    return trial


def result_out(result: Result) -> str:
    """A result without the fields that say nothing."""
    return dumps({name: value for name, value in vars(result).items() if name == "state" or value != DEFAULTS[name]})


def result_in(stored: str | bytes) -> Result:
    """The inverse of ``result_out``; fields of a later version are passed over.

    Raises:
        DamagedReplyError: this program has not written it.
    """
    found = _table(stored, "result")
    if not isinstance(found.get("state"), str) or found["state"] not in ENDED:
        raise unwritten("result", stored)
    result = Result(**{name: value for name, value in found.items() if name in DEFAULTS} | {"state": TrialState(found["state"])})
    _check(result, "result", stored)
    return result


def state_in(stored: str | bytes) -> dict[str, Any]:
    """Where a trial stands, as the scripts keep it; ``shared.lua`` says what its fields mean.

    Raises:
        DamagedReplyError: no script has written it.
    """
    found = _table(stored, "state")
    if not isinstance(found.get("s"), str) or found["s"] not in set(TrialState):
        raise unwritten("state", stored)
    leased = found["s"] == TrialState.RUNNING
    numbers = [found.get(field) for field in ("g", "i", "a", *("c" if leased else ""))]
    texts = [found.get(field) for field in ("t", "w")] + [found.get("v") or ""]
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < MOST_WHOLE for n in numbers) or not all(
        isinstance(value, str) or (value is None and not leased) for value in texts
    ):
        raise unwritten("state", stored)
    return found


def worker_in(stored: str | bytes) -> WorkerInfo:
    """What a worker says of itself; fields of a later version are passed over.

    Raises:
        DamagedReplyError: no worker has said it.
    """
    found = _table(stored, "worker")
    try:
        info = WorkerInfo(**{name: value for name, value in found.items() if name in WorkerInfo.__dataclass_fields__})
    except TypeError:
        raise unwritten("worker", stored) from None
    _check(info, "worker", stored)
    return info


def options_in(stored: str | bytes) -> dict[str, Any]:
    """A stage's frozen options.

    Raises:
        DamagedReplyError: this program has not written them.
    """
    return _table(stored, "stage's options")


def curves_out(curves: Mapping[str, Sequence[float | None]]) -> str:
    """Curves for people to watch: at most ``MOST_POINTS`` of each, the last among them, in five digits.

    They may be growing in another thread: what is not there for every name yet is left out.
    """
    length = min((len(values) for values in curves.values()), default=0)
    step = -(-length // MOST_POINTS) or 1
    places = [*range(length - 1, -1, -step)][::-1]
    return dumps({name: [_five_digits(values[place]) for place in places] for name, values in curves.items()})


def curves_in(stored: str | bytes) -> dict[str, list[float | None]]:
    """The inverse of ``curves_out``, but for what it left out.

    Raises:
        DamagedReplyError: this program has not written them.
    """
    found = _table(stored, "curves")
    for values in found.values():
        if not isinstance(values, list) or not all(value is None or (isinstance(value, NUMBER) and _fits(value)) for value in values):
            raise unwritten("curves", stored)
    return found


def _five_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def progress_out(progress: Progress) -> str:
    """What a heartbeat says, but for the fence and the beat, which the script compares."""
    return dumps([getattr(progress, name) for name in PROGRESS_FIELDS])


def progress_in(fence: Fence, beat: int, stored: str | bytes) -> Progress:
    """The inverse of ``progress_out``.

    Raises:
        DamagedReplyError: this program has not written it.
    """
    found = _value(stored, "heartbeat")
    if not isinstance(found, list):
        raise unwritten("heartbeat", stored)
    progress = Progress(fence, beat, **dict(zip(PROGRESS_FIELDS, found, strict=False)))
    _check(progress, "heartbeat", stored)
    return progress


def _value(stored: str | bytes | None, what: str) -> Any:
    if not isinstance(stored, str | bytes) or len(stored) > MOST_CHARACTERS:
        raise unwritten(what, stored)
    try:
        return loads(stored)
    except (ValueError, TypeError, RecursionError):
        raise unwritten(what, stored) from None


def _table(stored: str | bytes | None, what: str) -> dict[str, Any]:
    found = _value(stored, what)
    if not isinstance(found, dict):
        raise unwritten(what, stored)
    return found


def _check(value: Trial | Result | Progress | WorkerInfo, what: str, stored: str | bytes) -> None:
    """Each field is of the kind that its annotation says; those of other kinds are looked at by the caller."""
    for name, field in value.__dataclass_fields__.items():
        plain, _, none = str(field.type).partition(" | ")
        found, kinds = getattr(value, name), KINDS.get(plain)
        if kinds is None or (found is None and none == "None"):
            continue
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds) or not _fits(found):
            raise unwritten(what, stored)


def _fits(value: Any) -> bool:
    return not isinstance(value, int) or -MOST_WHOLE <= value < MOST_WHOLE


def unwritten(what: str, stored: Any) -> DamagedReplyError:
    """The error for a value that this program has not written; ``what`` it was to be."""
    whole = stored if isinstance(stored, str | bytes) else repr(stored)
    shown = repr(whole[:MOST_SHOWN]) + (f" and {len(whole) - MOST_SHOWN} more" if len(whole) > MOST_SHOWN else "")
    return DamagedReplyError(
        f"Redis holds a {what} that this program has not written ({shown}); see who else uses this Redis, then run `master recover`"
    )

"""Convert values to and from the JSON in Redis. No script reads it, so numbers keep all digits.

Anybody with a password may have written a value, so each one is checked before it is used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from common.errors import DamagedReplyError
from common.search.trial import (
    ENDED,
    TRIAL_PATTERN,
    Fence,
    Progress,
    Result,
    Trial,
    TrialState,
    WorkerInfo,
    trial_id,
)
from common.search.values import is_value

# {"$float": "nan"}: strict JSON cannot express it, and a plain string could be the user's own
# value.
NON_FINITE = "$float"
# Of one value. A configuration is smaller than its search file; a larger value is not this
# program's.
MOST_CHARACTERS = 1 << 20
MOST_DIGITS = 18  # of a number in a text, so that it is below 2^63
MOST_SHOWN = 60  # characters of a damaged value in a message
# No whole number of this program is as large, and larger ones may not fit in a float.
MOST_WHOLE = 1 << 63
# Of a curve that is sent while it grows: more than a screen shows, some kilobytes.
MOST_POINTS = 100
ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
DEFAULTS = {name: field.default for name, field in Result.__dataclass_fields__.items()}
# Half of a surrogate pair: JSON allows it, but terminals, files and servers reject it.
HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
TOO_LARGE = re.compile(r"[0-9]{309}")  # a whole number beyond the largest double
TRIAL_FIELDS = [name for name in Trial.__dataclass_fields__ if name != "id"]
PROGRESS_FIELDS = [name for name in Progress.__dataclass_fields__ if name not in ("fence", "beat")]
Whole = Annotated[int, Field(ge=-MOST_WHOLE, lt=MOST_WHOLE)]


def _fields_of(kind: type, names: Iterable[str], **other: Any) -> TypeAdapter[dict[str, Any]]:
    """Return a validator of those fields of a dataclass that are there, by their annotations.

    It converts nothing and ignores names that it does not know.
    """
    hints = get_type_hints(kind)
    fields = {name: Whole if hints[name] is int else hints[name] for name in names} | other
    make: Any = TypedDict  # type checkers want its fields written out
    table = make(kind.__name__, fields, total=False)
    return TypeAdapter(with_config(ConfigDict(strict=True, extra="ignore"))(table))


RESULT = _fields_of(Result, Result.__dataclass_fields__, state=str)
WORKER = _fields_of(WorkerInfo, WorkerInfo.__dataclass_fields__)
TRIAL = _fields_of(Trial, TRIAL_FIELDS, passed=list[float], parents=list[str])
PROGRESS = _fields_of(Progress, PROGRESS_FIELDS)
CURVES = TypeAdapter(dict[str, list[float | None]], config=ConfigDict(strict=True))


def dumps(value: Any) -> str:
    """Return compact strict JSON. Non-finite floats are written as strings."""
    try:
        return ENCODER.encode(value)
    except ValueError:
        return ENCODER.encode(_mark(value))


def loads(stored: str | bytes) -> Any:
    """Return the inverse of ``dumps``, for values that this program's scripts have composed.

    Raises:
        ValueError, TypeError, RecursionError: it is something else.
    """
    plain = text(stored)
    found = json.loads(plain, object_hook=_unmark) if NON_FINITE in plain else json.loads(plain)
    if HALF_A_PAIR.search(plain):
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _mark(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {NON_FINITE: str(float(value))}
    if isinstance(value, dict):
        return {key: _mark(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mark(item) for item in value]
    return value


def _unmark(value: dict[str, Any]) -> Any:
    return float(value[NON_FINITE]) if value.keys() == {NON_FINITE} else value


def text(value: str | bytes) -> str:
    """Return a reply as text, whether or not the client decodes replies."""
    return value if isinstance(value, str) else value.decode(errors="replace")


def whole_in(stored: str | bytes | int | None, what: str) -> int:
    """Return a number with which scripts count or enumerate: whole and not negative.

    Raises:
        DamagedReplyError: no script has written it.
    """
    if (
        isinstance(stored, str | bytes)
        and len(stored) < MOST_DIGITS
        and (digits := text(stored)).isascii()
        and digits.isdecimal()
    ):
        return int(digits)
    if isinstance(stored, int) and not isinstance(stored, bool) and 0 <= stored < MOST_WHOLE:
        return stored
    raise unwritten(what, stored)


def reply_in(stored: str | bytes | None, what: str) -> list[Any]:
    """Return the array that a script replied with.

    Raises:
        DamagedReplyError: it has values that this program did not write.
    """
    try:
        found = loads(stored or "")
    except (ValueError, TypeError, RecursionError):
        raise unwritten(what, stored) from None
    if not isinstance(found, list):
        raise unwritten(what, stored)
    return found


def trial_out(trial: Trial) -> str:
    """Encode a trial's configuration. Its id is the field under which it is stored."""
    known = [trial.stage, trial.index, trial.seed, trial.epochs, trial.hyperparameters, trial.group]
    line = [trial.max_epochs, trial.passed, trial.drawn, trial.parents]
    return dumps(known + line if any(line) else known)


def trial_in(stored_id: str | bytes, configuration: str | bytes) -> Trial:
    """Return the inverse of ``trial_out``.

    Raises:
        DamagedReplyError: this program has not written it.
    """
    what, row = text(stored_id), _value(configuration, "trial")
    if not isinstance(row, list) or len(row) not in (6, 10):
        raise unwritten("trial", configuration)
    found = _valid(TRIAL, dict(zip(TRIAL_FIELDS, row, strict=False)), "trial", configuration)
    for name in ("passed", "parents"):
        found[name] = tuple(found.get(name, ()))
    trial = Trial(what, **found)
    named = TRIAL_PATTERN.fullmatch(what) and trial.id == trial_id(trial.stage, trial.index)
    budgets = [*trial.passed, trial.epochs]
    if (
        not named
        or not is_value(trial.hyperparameters)
        or not all(0 < budget < math.inf for budget in budgets)
        or budgets != sorted(set(budgets))
    ):
        raise unwritten(f"trial {what[:MOST_SHOWN]!r}", configuration)
    return trial


def result_out(result: Result) -> str:
    """Encode a result, without the fields that have their default value."""
    return dumps(
        {
            name: value
            for name, value in vars(result).items()
            if name == "state" or value != DEFAULTS[name]
        }
    )


def result_in(stored: str | bytes) -> Result:
    """Return the inverse of ``result_out``. Fields of a later version are ignored.

    Raises:
        DamagedReplyError: this program has not written it.
    """
    found = _read(RESULT, stored, "result")
    if found.get("state") not in ENDED:
        raise unwritten("result", stored)
    return Result(**found | {"state": TrialState(found["state"])})


def state_in(stored: str | bytes) -> dict[str, Any]:
    """Return a trial's state as the scripts keep it; ``shared.lua`` says what its fields mean.

    Raises:
        DamagedReplyError: no script has written it.
    """
    found = _table(stored, "state")
    if not isinstance(found.get("s"), str) or found["s"] not in set(TrialState):
        raise unwritten("state", stored)
    leased = found["s"] == TrialState.RUNNING
    rung = found.get("r", 0)
    numbers = [found.get(field) for field in ("g", "i", "a", *("c" if leased else ""))] + [rung]
    texts = [found.get(field) for field in ("t", "w")]
    if not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < MOST_WHOLE for n in numbers
    ) or not all(isinstance(value, str) or (value is None and not leased) for value in texts):
        raise unwritten("state", stored)
    return found


def worker_in(stored: str | bytes) -> WorkerInfo:
    """Return what a worker reports about itself. Fields of a later version are ignored.

    Raises:
        DamagedReplyError: no worker has written it.
    """
    try:
        return WorkerInfo(**_read(WORKER, stored, "worker"))
    except TypeError:  # a field is missing
        raise unwritten("worker", stored) from None


def options_in(stored: str | bytes) -> dict[str, Any]:
    """Return a stage's frozen options.

    Raises:
        DamagedReplyError: this program has not written them.
    """
    return _table(stored, "stage's options")


def curves_out(curves: Mapping[str, Sequence[float | None]]) -> str:
    """Encode curves for display, with five digits and at most ``MOST_POINTS`` points each.

    The last point is always included. The curves may be growing in another thread, so points that
    some of them do not have yet are left out.
    """
    length = min((len(values) for values in curves.values()), default=0)
    step = -(-length // MOST_POINTS) or 1
    places = [*range(length - 1, -1, -step)][::-1]
    return dumps(
        {name: [_five_digits(values[place]) for place in places] for name, values in curves.items()}
    )


def curves_in(stored: str | bytes) -> dict[str, list[float | None]]:
    """Return the inverse of ``curves_out``, except for the points that it left out.

    Raises:
        DamagedReplyError: this program has not written them.
    """
    return _read(CURVES, stored, "curves")


def _five_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def progress_out(progress: Progress) -> str:
    """Encode a heartbeat without the fence and the beat, which the script compares."""
    return dumps([getattr(progress, name) for name in PROGRESS_FIELDS])


def progress_in(fence: Fence, beat: int, stored: str | bytes) -> Progress:
    """Return the inverse of ``progress_out``.

    Raises:
        DamagedReplyError: this program has not written it.
    """
    found = _value(stored, "heartbeat")
    if not isinstance(found, list):
        raise unwritten("heartbeat", stored)
    row = dict(zip(PROGRESS_FIELDS, found, strict=False))
    return Progress(fence, beat, **_valid(PROGRESS, row, "heartbeat", stored))


def _read(fields: TypeAdapter[dict[str, Any]], stored: str | bytes, what: str) -> dict[str, Any]:
    """Parse and check an object in one pass, four times as fast as one after the other."""
    if not isinstance(stored, str | bytes) or NON_FINITE in text(stored):
        return _valid(fields, _value(stored, what), what, stored)
    if len(stored) > MOST_CHARACTERS or TOO_LARGE.search(text(stored)):
        raise unwritten(what, stored)
    try:
        return fields.validate_json(stored)
    except ValidationError:
        raise unwritten(what, stored) from None


def _valid(
    fields: TypeAdapter[dict[str, Any]], found: Any, what: str, stored: str | bytes
) -> dict[str, Any]:
    try:
        return fields.validate_python(found)
    except ValidationError:
        raise unwritten(what, stored) from None


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


def unwritten(what: str, stored: Any) -> DamagedReplyError:
    """Return the error for a value that this program has not written.

    Args:
        what: what the value should be, such as "trial".
        stored: the value.
    """
    whole = stored if isinstance(stored, str | bytes) else repr(stored)
    shown = repr(whole[:MOST_SHOWN]) + (
        f" and {len(whole) - MOST_SHOWN} more" if len(whole) > MOST_SHOWN else ""
    )
    return DamagedReplyError(
        f"Redis holds a {what} that this program has not written ({shown}); see who else uses "
        "this Redis, then run `master recover`"
    )

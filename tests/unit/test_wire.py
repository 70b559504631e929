"""Every value comes back from its JSON as it went, and the JSON is strict."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from common.queue import wire
from common.search.trial import ENDED, Fence, Progress, Result, Trial, trial_id

SCALARS = st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)
NUMBERS = st.none() | st.floats(allow_nan=False)
RESULTS = st.builds(
    Result,
    state=st.sampled_from(sorted(ENDED)),
    reason=st.none() | st.text(),
    val_acc=NUMBERS,
    val_loss=NUMBERS,
    epochs=st.floats(allow_nan=False),
    array_width=st.integers(1, 2**60),
)


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


TRIALS = st.builds(
    lambda stage, index, *rest: Trial(trial_id(stage, index), stage, index, *rest),
    st.sampled_from(["coarse", "f1_NE"]),
    st.integers(0, 10**9 - 1),
    st.integers(0, 2**63 - 1),
    st.floats(0, exclude_min=True, allow_infinity=False),
    st.dictionaries(st.text(), VALUES),
    st.text(),
)


@given(TRIALS)
def test_a_trial_comes_back(trial: Trial) -> None:
    stored = wire.trial_out(trial)
    json.loads(stored, parse_constant=refuse)
    assert (
        wire.trial_in(trial.id, stored)
        == wire.trial_in(trial.id.encode(), stored.encode())
        == trial
    )


@given(RESULTS)
def test_a_result_comes_back(result: Result) -> None:
    stored = wire.result_out(result)
    json.loads(stored, parse_constant=refuse)
    assert wire.result_in(stored) == wire.result_in(stored.encode()) == result


def test_not_a_number_comes_back() -> None:
    result = wire.result_in(wire.result_out(Result(sorted(ENDED)[0], val_loss=math.nan)))
    assert result.val_loss is not None and math.isnan(result.val_loss)
    nested = wire.loads(wire.dumps({"a": [math.inf, (-math.inf,)], "b": {"$float": 3, "c": "nan"}}))
    assert nested == {"a": [math.inf, [-math.inf]], "b": {"$float": 3, "c": "nan"}}


def test_progress_comes_back() -> None:
    progress = Progress(
        Fence("coarse-0001", 2, "t"), 7, "evaluating", math.inf, 0.5, 0.25, 1.5, "a b", 64, 0.75
    )
    assert wire.progress_in(progress.fence, 7, wire.progress_out(progress)) == progress


def test_a_result_of_a_later_version_is_read() -> None:
    assert wire.result_in('{"state":"stopped","new":[1]}').state == "stopped"

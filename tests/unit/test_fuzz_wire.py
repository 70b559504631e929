"""Whatever Redis answers: a value of the right kind, or a refusal that says what was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DamagedReplyError
from common.queue import view, wire
from common.queue.answers import read_taken
from common.queue.second_tries import answer_in, put_aside
from common.search.trial import TRIAL_PATTERN, Fence, Progress, WorkerInfo
from tests.unit.fuzzing import BYTES, JSON, SCALARS, TEXT, fuzzed, refusal, with_changes
from tests.unit.test_fuzz_records import RESULT, TRIAL

FENCE = Fence("coarse-0001", 1, "t")
STATE = {
    "s": "running",
    "g": 1 << 20,
    "i": 1,
    "a": 2,
    "t": "token",
    "w": "worker",
    "c": 5,
    "l": ["w"],
}
CURVES = {"epoch": [1.0, 2.0], "val_acc": [0.5, None]}
WORKER = {**vars(WorkerInfo("w", "host", 1, "cpu")), "of_a_later_version": [1]}
PROGRESS = wire.progress_out(Progress(FENCE, 3, "training", 5.0, 0.5, 0.1, 0.2, "cpu", 4, 0.5, 0.5))
READ: dict[str, tuple[Callable[[str], Any], str]] = {
    "trial": (lambda stored: wire.trial_in("coarse-0001", stored), wire.trial_out(TRIAL)),
    "result": (wire.result_in, wire.result_out(RESULT)),
    "progress": (lambda stored: wire.progress_in(FENCE, 1, stored), PROGRESS),
    "curves": (wire.curves_in, json.dumps(CURVES)),
    "state": (wire.state_in, json.dumps(STATE)),
    "worker": (wire.worker_in, json.dumps(WORKER)),
    "options": (
        wire.options_in,
        '{"ranges":{"learning_rate":{"log_uniform":[1e-6,1.0]}},"seed":1}',
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_what_was_written_is_read(kind: str) -> None:
    read, valid = READ[kind]
    assert read(valid) is not None


@pytest.mark.parametrize("kind", READ)
@fuzzed
@given(data=st.data())
def test_a_changed_value(kind: str, data: st.DataObject) -> None:
    read, valid = READ[kind]
    stored = data.draw(
        with_changes(json.loads(valid)).map(json.dumps)
        | JSON.map(json.dumps)
        | BYTES.map(lambda b: b.decode("latin-1"))
    )
    value = refusal(DamagedReplyError, lambda: read(stored))
    if kind == "trial" and value is not None:
        assert isinstance(value.group, str) and value.epochs > 0 and isinstance(value.seed, int)
    if kind == "result" and value is not None:
        assert wire.result_in(wire.result_out(value)).state is value.state


@pytest.mark.parametrize(
    ("read", "stored"),
    [
        (
            wire.worker_in,
            json.dumps({**WORKER, "reason": "\ud800"}),
        ),  # no terminal and no file takes half a pair
        (wire.worker_in, json.dumps({**WORKER, "trials": 10**400})),  # no float is as large
        (wire.result_in, '{"state":"completed","val_acc":1' + "0" * 400 + "}"),
        (wire.curves_in, '{"epoch":[1' + "0" * 400 + "]}"),
        (wire.state_in, json.dumps({**STATE, "c": "x"})),
        (wire.state_in, json.dumps({**STATE, "t": 5})),
        (wire.state_in, json.dumps({**STATE, "w": None})),
        (wire.state_in, json.dumps({**STATE, "a": True})),
        (wire.state_in, json.dumps({**STATE, "c": 1e999})),
        (wire.state_in, json.dumps({**STATE, "g": -1})),
        (lambda stored: wire.whole_in(stored, "count"), "-1"),
        (lambda stored: wire.whole_in(stored, "count"), "\u0661"),
        (lambda stored: wire.whole_in(stored, "count"), "9" * 5000),
        (lambda stored: wire.reply_in(stored, "claim"), "{}"),
        (lambda stored: read_taken("coarse-0001", [stored, "pending", "w", ""], FENCE), "x"),
        (lambda stored: read_taken("coarse-0001", [1, stored, "w", ""], FENCE), "ruled"),
        (lambda stored: read_taken("coarse-0001", [1, "pending", stored, ""], FENCE), 5),
        (lambda stored: read_taken("coarse-0001", [stored], FENCE), 1),
        (answer_in, [["A"]]),
        (answer_in, [["A", 1, None, "it raised"]]),
        (answer_in, [["A", "x", "w", "it raised"]]),
        (answer_in, 5),
        (answer_in, "else"),
        (put_aside, ["aside"]),
        (put_aside, ["aside", None]),
    ],
)
def test_what_was_found(read: Callable[[Any], Any], stored: Any) -> None:
    with pytest.raises(DamagedReplyError) as caught:
        read(stored)
    assert len(str(caught.value).splitlines()) == 1


@fuzzed
@given(BYTES | TEXT.map(lambda text: text.encode("utf-8", "replace")))
def test_bytes_that_are_no_text(stored: bytes) -> None:
    for read, _ in READ.values():
        refusal(DamagedReplyError, lambda: read(stored))  # type: ignore[arg-type]  # noqa: B023


@fuzzed
@given(TEXT)
def test_no_id_but_a_trials_own(text: str) -> None:
    stored = wire.trial_out(TRIAL)
    trial = refusal(DamagedReplyError, lambda: wire.trial_in(text, stored))
    assert trial is None or TRIAL_PATTERN.fullmatch(trial.id)


@fuzzed
@given(
    TEXT
    | BYTES.map(lambda b: b.decode("latin-1"))
    | st.tuples(SCALARS, SCALARS, SCALARS).map(lambda t: " ".join(map(str, t)))
)
def test_endings_results_and_heartbeats(text: str) -> None:
    attempt, trial_id = view._ending(text)
    assert isinstance(attempt, int) and isinstance(trial_id, str)
    view._readable(text)
    running = view._running(10, "coarse-0001", json.dumps(STATE), wire.trial_out(TRIAL), text)
    assert running is not None and (
        running.progress is None or running.progress.fence.trial_id == "coarse-0001"
    )


@fuzzed
@given(
    with_changes(STATE).map(json.dumps),
    with_changes(json.loads(wire.trial_out(TRIAL))).map(json.dumps),
    TEXT,
)
def test_a_running_trial(state: str, configuration: str, heartbeat: str) -> None:
    view._running(10, "coarse-0001", state, configuration, heartbeat)

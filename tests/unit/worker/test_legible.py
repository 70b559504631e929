"""What a task's errors say can be written down, whatever it is."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from common import error_text
from common.folder.record import Record
from common.folder.records import MAX_RECORD_BYTES
from common.queue import wire
from common.search.trial import Claim, Fence, Result, Trial, TrialState
from worker.training.types import Outcome

TRIAL = Trial("coarse-0001", "coarse", 1, 1, 4.0, {}, "{}")
ANYTHING = st.text(st.characters(), max_size=300)  # lone surrogates, too


def failed(reason: str, traceback: str) -> Outcome:
    return Outcome(Claim(TRIAL, Fence(TRIAL.id, 1, "token")), TrialState.FAILED, reason, traceback)


@given(ANYTHING, st.integers(min_value=10, max_value=300))
def test_what_is_legible_is_utf_8_and_no_longer_than_it_may_be(text: str, most: int) -> None:
    found = error_text.legible(text, most)
    assert found.encode().decode() == found
    assert len(found) <= most + len("... (000,000 characters left out) ...")
    assert error_text.legible(found, len(found)) == found


def test_what_is_fine_stays_as_it_is() -> None:
    outcome = failed("ValueError: größer als \U0001f600\n", "Traceback\n  1\n")
    assert (outcome.reason, outcome.traceback) == (
        "ValueError: größer als \U0001f600\n",
        "Traceback\n  1\n",
    )
    assert Outcome(outcome.claim, TrialState.COMPLETED).reason is None


def test_the_name_of_a_file_that_is_no_utf_8_is_told_by_its_bytes() -> None:
    error = FileNotFoundError(2, "No such file", b"caf\xe9.csv".decode("utf-8", "surrogateescape"))
    assert (
        failed(str(error), "").reason
        == r"[Errno 2] No such file: 'caf\udce9.csv'"
        == str(error).replace("\\\\", "\\")
    )
    assert failed("caf\udce9", "caf\udce9").traceback == r"caf\udce9"


def test_a_message_of_megabytes_fits_a_record_and_redis_with_its_begin_and_its_end() -> None:
    outcome = failed(
        "ValueError: " + "\udce9" * (2 << 20) + " is no number",
        "Traceback:\n" + "\x00\n" * (20 << 20) + "ValueError: the end",
    )
    result = Result(TrialState.FAILED, outcome.reason)
    assert wire.result_in(wire.result_out(result)) == result
    content = Record.of("0" * 16, TRIAL, 1, result, traceback=outcome.traceback).model_dump_json()
    assert len(content.encode()) < MAX_RECORD_BYTES
    told = json.loads(content)
    assert told["reason"].startswith("ValueError: ") and told["reason"].endswith(" is no number")
    assert told["traceback"].startswith("Traceback:") and told["traceback"].endswith(
        "ValueError: the end"
    )

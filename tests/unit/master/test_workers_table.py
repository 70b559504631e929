from __future__ import annotations

from common.search.protocol import PROTOCOL
from common.search.trial import WorkerInfo
from master.commands.redis_commands import worker_row, workers_text

ASIDE = WorkerInfo(
    "b-1",
    "b",
    1,
    "cpu",
    state="aside",
    reason="this machine is put aside: coarse-0001 raised here",
    machine="boot",
)


def test_who_is_put_aside_is_named_with_the_reason() -> None:
    text = workers_text([WorkerInfo("a-1", "a", 1, "cpu"), ASIDE])
    told = "b-1 is set aside: this machine is put aside: coarse-0001 raised here"
    assert told in text.splitlines()
    assert "a-1 is" not in text
    assert worker_row(ASIDE)["state"] == "aside" and worker_row(ASIDE)["reason"] == ASIDE.reason


def test_who_speaks_another_protocol_is_named_with_both() -> None:
    other = WorkerInfo("c-1", "c", 1, "cpu", protocol=PROTOCOL + 1)
    lines = workers_text([WorkerInfo("a-1", "a", 1, "cpu", protocol=PROTOCOL), other]).splitlines()
    assert (
        f"c-1 speaks protocol {PROTOCOL + 1}, this program {PROTOCOL}: install the same "
        "version of coarsefine on c"
    ) in lines
    assert (
        sum("protocol" in line for line in lines) == 1
        and worker_row(other)["protocol"] == PROTOCOL + 1
    )


def test_what_fails_together_is_the_machine_and_the_host_where_that_is_not_known() -> None:
    assert ASIDE.place == "boot" and WorkerInfo("a-1", "a", 1, "cpu").place == "a"


def test_the_id_of_a_job_is_shown_where_a_worker_has_one() -> None:
    here, there = WorkerInfo("a-1", "a", 1, "cpu"), WorkerInfo("b-1", "b", 1, "cpu", job="1234_7")
    assert " job " not in workers_text([here])
    head, _, row = workers_text([here, there]).splitlines()[:3]
    assert " job " in head and " 1234_7 " in row
    assert worker_row(there)["job"] == "1234_7"

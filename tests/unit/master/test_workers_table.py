from __future__ import annotations

from common.trial import WorkerInfo
from master.commands import worker_row, workers_text

ASIDE = WorkerInfo("b-1", "b", 1, "cpu", state="aside", reason="this machine is put aside: coarse-0001 raised here", machine="boot")


def test_who_is_put_aside_is_named_with_the_reason() -> None:
    text = workers_text([WorkerInfo("a-1", "a", 1, "cpu"), ASIDE])
    assert "b-1 is aside: this machine is put aside: coarse-0001 raised here" in text.splitlines()
    assert "a-1 is" not in text
    assert worker_row(ASIDE)["state"] == "aside" and worker_row(ASIDE)["reason"] == ASIDE.reason


def test_what_fails_together_is_the_machine_and_the_host_where_that_is_not_known() -> None:
    assert ASIDE.place == "boot" and WorkerInfo("a-1", "a", 1, "cpu").place == "a"

"""Trials that end their worker's process as if it had left by itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from common.search.search_file import load_search
from master.stages.sampling import configurations
from master.stages.source import first_source
from tests.integration.commands import DEADLINE_S, Place
from tests.integration.test_faults import ended_once

TASKS = Path(__file__).parent / "tasks"

pytestmark = pytest.mark.faults


def test_a_trial_that_exits_with_status_0_fails_alone_and_the_pool_lives_on(here: Place) -> None:
    shutil.copy(TASKS / "trouble.py", here.path)
    file = here.write_search(
        task="trouble.py:Task",
        space="marker = { uniform = [0.0, 1.0] }",
        lease_s=1.5,
        trials=6,
        hidden="16",
    )
    search = load_search(file)
    markers = {
        t.id: t.hyperparameters["marker"]
        for t in configurations(search, search.stage("coarse"), first_source(search), range(6))
    }
    victim, highest = max(markers.items(), key=lambda item: item[1])
    planted = {"TROUBLE": "exit", "TROUBLE_STATUS": "0", "TROUBLE_BOUND": str(highest)}
    master = here.start(
        "master", "launch", "--stage", "coarse", "--workers", "2", log="m.log", **planted
    )
    assert master.wait(DEADLINE_S) == 0, here.output("m.log")
    ended_once(here, 6)
    rows = {r["trial"]: r for r in here.rank()}
    assert rows[victim]["state"] == "failed" and "3 attempts while alone" in rows[victim]["reason"]
    assert {r["state"] for t, r in rows.items() if t != victim} <= {"completed", "exploded"}
    assert here.output("m.log").count("died (exit status 0)") >= 3

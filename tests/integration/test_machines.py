"""Two machines, one of which fails every trial that it claims.

Two workers name different boots, on one Redis and one folder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.commands import DEADLINE_S, Place, wait_for

TASK = Path(__file__).parent / "tasks" / "machines.py"
ANOTHER_BOOT = """
import os, time
from pathlib import Path

if "MACHINE" in os.environ:
    import common.broker.embedded_folder

    def boot_id():
        while os.environ["MACHINE"] == "bad" and not (Path(os.environ["MEETING"]) / "good").exists():
            time.sleep(0.01)
        return os.environ["MACHINE"]

    common.broker.embedded_folder.boot_id = boot_id
"""  # noqa: E501


@pytest.mark.slow
def test_a_machine_that_fails_what_another_completes_is_put_aside(
    here: Place, open_server: str
) -> None:
    here.redis_url = open_server
    shutil.copy(TASK, here.path)
    (here.path / "sitecustomize.py").write_text(ANOTHER_BOOT)
    here.write_search(task="machines.py:Task", trials=16, hidden="16", high=0.1)
    both = {"PYTHONPATH": str(here.path), "MEETING": str(here.path)}
    master = here.start("master", "launch", "--stage", "coarse", "--workers", "0", log="master.log")
    for machine in ("bad", "good"):
        here.start(
            "worker", "start", "--array-width", "4", log=f"{machine}.log", MACHINE=machine, **both
        )
    wait_for(lambda: "is put aside" in here.output("master.log"), "the master to tell it")
    (here.path / "told").touch()
    assert master.wait(DEADLINE_S) == 0, here.output("master.log")

    records = here.records()
    assert (
        len(records) == 16
        and {r["state"] for r in records} == {"completed"}
        and {r["attempt"] for r in records} == {1, 2}
        and len({r["worker"] for r in records}) == 1
    )
    said = here.output("bad.log")
    assert (
        said.count("this machine is put aside") == 1
        and "raised here and ended well elsewhere" in said
    )
    assert (
        "ImportError: No module named 'planted'" in said and "Traceback" in said
    )  # the user sees what to mend
    assert here.output("master.log").count("is put aside") == 1

    def rows_by_state() -> dict[str, dict]:
        return {
            row["state"]: row for row in json.loads(here.run("master", "workers", "--json").stdout)
        }

    wait_for(
        lambda: "training" not in rows_by_state(),
        "the good one to say that it is idle: it says so once a second",
    )
    rows = rows_by_state()
    assert (
        set(rows) == {"aside", "idle"}
        and "planted" in rows["aside"]["reason"]
        and not rows["idle"]["reason"]
    )

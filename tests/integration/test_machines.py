"""Two machines, one of which fails whatever it claims: two workers that name different boots, on one Redis and one folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.integration.commands import Place, wait_for

TASK = Path(__file__).parent / "tasks" / "machines.py"
ANOTHER_BOOT = """
import os, time
from pathlib import Path

if "MACHINE" in os.environ:
    import common.embedded_place

    def boot_id():
        while os.environ["MACHINE"] == "bad" and not (Path(os.environ["MEETING"]) / "good").exists():
            time.sleep(0.01)
        return os.environ["MACHINE"]

    common.embedded_place.boot_id = boot_id
"""


def test_a_machine_that_fails_what_another_completes_is_put_aside(here: Place, open_server: str) -> None:
    here.redis_url = open_server
    shutil.copy(TASK, here.path)
    (here.path / "sitecustomize.py").write_text(ANOTHER_BOOT)
    here.write_search(task="machines.py:Task", trials=16, hidden="16", high=0.1)
    both = {"PYTHONPATH": str(here.path), "MEETING": str(here.path)}
    master = here.start("master", "launch", "--stage", "coarse", "--workers", "0", log="master.log")
    for machine in ("bad", "good"):
        here.start("worker", "start", "--array-width", "4", log=f"{machine}.log", MACHINE=machine, **both)
    wait_for(lambda: "is put aside" in here.output("master.log"), "the master to tell it")
    (here.path / "told").touch()
    assert master.wait(60) == 0, here.output("master.log")

    records = here.records()
    assert (
        len(records) == 16
        and {r["state"] for r in records} == {"completed"}
        and {r["attempt"] for r in records} == {1, 2}
        and len({r["worker"] for r in records}) == 1
    )
    said = here.output("bad.log")
    assert said.count("this machine is put aside") == 1 and "raised here and ended well elsewhere" in said
    assert "ImportError: No module named 'planted'" in said and "Traceback" in said  # the user sees what to mend
    assert here.output("master.log").count("is put aside") == 1
    rows = {row["state"]: row for row in json.loads(here.run("master", "workers", "--json").stdout)}
    assert set(rows) == {"aside", "idle"} and "planted" in rows["aside"]["reason"] and not rows["idle"]["reason"]

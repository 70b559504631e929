"""Two masters on one search at the same time.

Each act happens once, whoever does it and whichever master dies.
"""

from __future__ import annotations

import re
import signal

import pytest

from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from tests.integration.commands import Place, wait_for
from tests.integration.test_faults import ended_once, half_way

pytestmark = pytest.mark.faults

TRIALS = 24
NEW = re.compile(r"(\d+) new$", re.MULTILINE)
LAUNCH = ("master", "launch", "--stage", "coarse", "--workers", "0")


def endings(here: Place) -> list[tuple[str, int]]:
    """(trial, attempt) of each ending that Redis noted, in their order."""
    search = SearchFolder(here.root, "digits").search()
    assert search is not None and search.id is not None
    with here.connection() as client:
        return [
            (trial, attempt)
            for _, trial, attempt, _ in TrialQueue(client, search.id).read_endings(0)
        ]


def test_two_masters_of_one_stage_and_one_of_them_killed_and_launched_again(
    here: Place, open_server: str
) -> None:
    here.redis_url = open_server
    here.write_search(trials=TRIALS, epochs=150, high=0.05)
    stays, dies = here.start(*LAUNCH, log="stays.log"), here.start(*LAUNCH, log="dies.log")
    worker = here.start("worker", "start", log="worker.log")
    wait_for(lambda: half_way(here), "running trials")
    wait_for(
        lambda: all(NEW.search(here.output(log)) for log in ("stays.log", "dies.log")),
        "both masters to watch",
    )
    dies.send_signal(signal.SIGKILL)
    dies.wait()
    again = here.start(*LAUNCH, log="again.log")
    wait_for(lambda: " 0 new" in here.output("again.log"), "the second master to attach again")
    assert stays.poll() is None and len(endings(here)) < TRIALS, (
        "the search was over before the second master was back"
    )
    wait_for(lambda: None not in (stays.poll(), again.poll()), "both masters to end")
    assert (stays.returncode, again.returncode, worker.poll()) == (0, 0, None), here.output(
        "stays.log"
    ) + here.output("again.log")
    named = [(f"coarse-{i:04d}", 1) for i in range(TRIALS)]
    assert sorted(endings(here)) == named  # Redis: each ended once, at its first attempt
    assert (
        sorted((record["trial"], record["attempt"]) for record in here.records()) == named
    )  # and so says the folder
    assert sorted(ended_once(here, TRIALS).items()) == named
    first = [int(NEW.search(here.output(log))[1]) for log in ("stays.log", "dies.log")]
    assert sorted(first) == [0, TRIALS]  # published by one of them

"""Local workers stay a minute after their launch has ended.

The tests cover the next command, another command, and the removal of the folder.
"""

from __future__ import annotations

import shutil

import pytest

from tests.integration.commands import Place, wait_for
from tests.integration.processes import alive

SOON_S = 50.0  # less than the minute that workers stay
LAUNCH = ("master", "launch", "--workers", "2", "--stage")


def launched(here: Place, stage: str, *options: str, **environment: str) -> str:
    done = here.run(*LAUNCH, stage, *options, **environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_next_stage_is_trained_by_the_workers_of_the_one_before(here: Place) -> None:
    here.write_search(trials=8)
    launched(here, "coarse")
    first, redis = sorted(here.worker_pids()), here.redis_pid()
    assert len(first) == 2
    launched(here, "fine")
    assert sorted(here.worker_pids()) == first and here.redis_pid() == redis
    assert len(here.records(stage="fine")) == 8
    assert {r["worker"].split("-")[-2] for r in here.records(stage="fine")} <= set(map(str, first))


@pytest.mark.slow
def test_others_are_started_where_the_next_command_wants_other_data_or_more_of_them(
    here: Place,
) -> None:
    here.write_search(trials=8)
    launched(here, "coarse")
    first = here.worker_pids()
    launched(here, "fine", "--data-dir", "elsewhere")
    wait_for(lambda: not any(map(alive, first)), "the first have left")
    second = here.worker_pids()
    assert len(second) == 2
    here.write_search(trials=12)
    done = here.run(
        "master", "launch", "--stage", "coarse", "--workers", "1", "--data-dir", "elsewhere"
    )
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not any(map(alive, second)), "the second have left")
    assert len(here.worker_pids()) == 1


@pytest.mark.slow
def test_a_search_that_is_replaced_is_trained_as_the_new_one(here: Place) -> None:
    here.write_search(trials=8)
    launched(here, "coarse")
    here.write_search(trials=8, seed=2)
    launched(here, "coarse", "--replace")
    assert len(here.records()) == 8
    wait_for(lambda: len(here.worker_pids()) == 2, "those of the older search have left")
    assert {r["state"] for r in here.records()} <= {"completed", "exploded"}


@pytest.mark.slow
def test_they_leave_when_the_folder_is_removed_and_do_not_make_it_again(here: Place) -> None:
    here.write_search(trials=8)
    launched(here, "coarse")
    pids, server = here.worker_pids(), here.redis_pid()
    shutil.rmtree(here.root)
    wait_for(lambda: not any(map(alive, pids)), "the workers have left", SOON_S)
    wait_for(lambda: not alive(server), "their server has ended", SOON_S)
    assert not here.root.exists()


@pytest.mark.slow
def test_a_folder_that_was_removed_and_made_again_has_workers_and_a_server_of_its_own(
    here: Place,
) -> None:
    here.write_search(trials=8)
    launched(here, "coarse")
    first = here.worker_pids()
    shutil.rmtree(here.root)
    launched(here, "coarse")
    assert len(here.records()) == 8
    wait_for(lambda: not any(map(alive, first)), "those of the removed folder have left", SOON_S)
    assert here.status()["stages"]["coarse"]["pending"] == 0

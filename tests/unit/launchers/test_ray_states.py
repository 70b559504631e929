"""What Ray and its actors say, read and put into words."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import ConfigError
from master.launchers.cluster import Ending, Phase
from master.launchers.ray.actor import Ended
from master.launchers.ray.options import (
    convert,
    count_gpus,
    find_lacking,
    parse_options,
    request_gpus,
)
from master.launchers.ray.states import Seen, describe

GONE = Seen("gone")
NODES = [
    {"Alive": True, "Resources": {"CPU": 8.0, "memory": 2.0**34}},
    {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0, "memory": 2.0**33}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0, "memory": 2.0**40}},
]


def test_an_actor_that_is_well_needs_no_words() -> None:
    assert describe(Seen("running", "n1"), None) == (Phase.RUNNING, "", Ending.LEFT, "")
    assert describe(Seen("waiting"), None) == (Phase.QUEUED, "", Ending.LEFT, "")


def test_an_actor_that_ray_started_again_says_where_and_when() -> None:
    phase, _, _, moved = describe(Seen("running", "n2", "03:15:07"), None)
    assert phase is Phase.RUNNING
    assert moved == "lost its process, and got another on n2 at 03:15:07"


def test_an_actor_that_no_node_can_have_is_told_with_the_remedy() -> None:
    phase, words, _, _ = describe(Seen("waiting"), None, "num_gpus=8")
    assert phase is Phase.QUEUED
    assert words.startswith("waits: no node of the cluster has num_gpus=8; cancel it with `master ")


@pytest.mark.parametrize(
    ("ended", "words", "ending"),
    [
        (Ended(node="n1", exit_code=0), "", Ending.LEFT),
        (Ended(node="n1", exit_code=143), "on n1 left before its end, as it was told", Ending.LOST),
        (Ended(node="n1", exit_code=-10), "on n1 left before its end, as it was told", Ending.LOST),
        (Ended(node="n1", exit_code=2), "on n1 ended with exit status 2", Ending.FAILED),
        (Ended(node="n1", exit_code=-11), "on n1 was ended by SIGSEGV", Ending.FAILED),
        (Ended(node="n1", exit_code=-9), "on n1 was killed (SIGKILL), perhaps", Ending.FAILED),
        (Ended(node="n1", exit_code=143, cancelled=True), "was cancelled, and", Ending.CANCELLED),
    ],
)
def test_how_a_worker_ended_is_told_by_what_its_actor_noted(
    ended: Ended, words: str, ending: Ending
) -> None:
    phase, told, found, _ = describe(GONE, ended)
    assert (phase, found) == (Phase.ENDED, ending)
    assert told.startswith(words) and bool(told) == bool(words)


def test_a_worker_that_was_killed_is_told_that_memory_may_be_the_cause() -> None:
    assert "--job-option memory=16G" in describe(GONE, Ended(node="n1", exit_code=-9))[1]


def test_an_actor_that_is_gone_without_a_note_is_replaced() -> None:
    _, words, ending, _ = describe(GONE, None)
    assert words == "is gone from Ray; its trials go on elsewhere from their saved states"
    assert ending is Ending.LOST
    told = describe(Seen("gone", cause="The actor died.\n\tpid: 7\nNo more nodes.\n"), None)[1]
    assert "(No more nodes.)" in told


def test_an_actor_that_could_not_begin_says_why() -> None:
    cause = (
        "The actor died because of an error raised in its creation task, ray::RayWorker.__init__()"
        "\n  File actor.py, line 1\ncommon.errors.ConfigError: n1 does not see /shared/digits"
    )
    _, words, ending, _ = describe(Seen("gone", cause=cause), None)
    assert words == "could not begin: n1 does not see /shared/digits" and ending is Ending.FAILED


def test_an_actor_that_somebody_killed_is_not_replaced() -> None:
    cause = "The actor died unexpectedly.\nThe actor is dead because it was killed by `ray.kill`."
    _, words, ending, _ = describe(Seen("gone", cause=cause), None)
    assert words.startswith("was cancelled, and no other") and ending is Ending.CANCELLED


@pytest.mark.parametrize(
    ("options", "lacking"),
    [
        ({"num_cpus": 8, "num_gpus": 0, "accelerator_type": "A100"}, ""),
        ({"num_cpus": 1, "num_gpus": 2}, ""),
        ({"num_cpus": 8, "num_gpus": 1}, "num_cpus=8 and num_gpus=1"),  # no node has both
        ({"num_cpus": 1, "num_gpus": 8}, "num_cpus=1 and num_gpus=8"),
        ({"num_cpus": 1, "num_gpus": 0, "memory": 2**35}, "num_cpus=1 and memory=34359738368"),
        ({}, ""),
    ],
)
def test_what_no_node_has_as_a_whole_is_found(options: dict[str, Any], lacking: str) -> None:
    assert find_lacking(options, NODES) == lacking


def test_what_an_actor_asks_for_is_read_and_converted_for_ray() -> None:
    assert convert(parse_options([])) == {"num_cpus": 1, "num_gpus": 0}
    words = ["num_gpus=2", "num_cpus=8", "memory=16G", "accelerator_type=A100", "--num_gpus=1"]
    found = parse_options(words)
    assert count_gpus(found) == 1 and request_gpus(1) == "--job-option num_gpus=1"
    assert convert(found) == {
        "num_cpus": 8,
        "num_gpus": 1,
        "memory": 16 << 30,
        "accelerator_type": "A100",
    }


@pytest.mark.parametrize(
    "word",
    ["", "num_gpus", "num_gpus=0.5", "num_gpus=1G", "gpus=1", "memory=lots", "num_cpus=٣"],
)
def test_what_is_no_option_of_an_actor_is_refused_with_an_example(word: str) -> None:
    with pytest.raises(ConfigError, match="not an option of an actor; use num_gpus=1, num_cpus=4"):
        parse_options([word])

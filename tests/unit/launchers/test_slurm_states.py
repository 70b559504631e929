"""What Slurm answers, read and put into words."""

from __future__ import annotations

import pytest

from master.launchers.cluster import ClusterError, Ending, Phase
from master.launchers.slurm import parse_exit, parse_queue, parse_submitted
from master.launchers.slurm_states import describe


def test_the_number_of_an_array_gives_the_ids_of_its_jobs() -> None:
    assert parse_submitted("17\n", 2) == ["17_1", "17_2"]
    assert parse_submitted("17;alps\n", 1) == ["17_1"]


def test_an_answer_without_a_number_is_refused() -> None:
    with pytest.raises(ClusterError, match="sbatch answered 'Welcome!'"):
        parse_submitted("Welcome!", 1)


def test_the_queue_is_read_line_by_line_and_other_lines_are_left_out() -> None:
    answer = "slurm: a new message of the day\n17_1|RUNNING|None|n1\n17_2|PENDING|Resources|\n"
    assert parse_queue(answer) == {
        "17_1": ("RUNNING", "None", "n1"),
        "17_2": ("PENDING", "Resources", ""),
    }
    assert parse_queue("") == {}


def test_exit_status_and_signal_are_read_from_scontrol() -> None:
    assert parse_exit("JobState=FAILED DerivedExitCode=0:0 ExitCode=1:0 RunTime=00:00:07") == (1, 0)
    assert parse_exit("ExitCode=0:9") == (0, 9)
    assert parse_exit("slurm_load_jobs error") == (0, 0)


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING", "CONFIGURING", "PENDING"])
def test_a_job_that_is_well_needs_no_words(state: str) -> None:
    phase, words, _ = describe(state, "Resources", "n1")
    assert phase is not Phase.ENDED and words == ""


def test_a_job_that_waits_in_vain_is_told_with_the_remedy() -> None:
    assert describe("PENDING", "PartitionTimeLimit")[1] == (
        "waits (PartitionTimeLimit): its time limit is above that of the partition; cancel it, and "
        "launch again with a smaller --slurm-option time=HH:MM:SS"
    )
    assert "scontrol release" in describe("PENDING", "JobHeldAdmin")[1]
    assert describe("PENDING", "SomethingNew")[1] == "waits (SomethingNew)"


@pytest.mark.parametrize(
    ("state", "words", "ending"),
    [
        ("COMPLETED", "", Ending.LEFT),
        ("TIMEOUT", "on n1 reached its time limit", Ending.LOST),
        ("PREEMPTED", "on n1 was preempted", Ending.LOST),
        ("NODE_FAIL", "on n1 lost its node", Ending.LOST),
        ("CANCELLED", "was cancelled, and no other takes its place", Ending.CANCELLED),
        ("OUT_OF_MEMORY", "on n1 was killed because it used more memory", Ending.FAILED),
        ("SOMETHING_NEW", "on n1 ended as SOMETHING_NEW", Ending.FAILED),
    ],
)
def test_each_end_is_a_sentence_and_says_what_comes_next(
    state: str, words: str, ending: Ending
) -> None:
    phase, told, found = describe(state, "None", "n1")
    assert (phase, found) == (Phase.ENDED, ending)
    assert told.startswith(words) and bool(told) == bool(words)


@pytest.mark.parametrize("code", [(138, 0), (140, 0), (143, 0), (129, 0), (0, 10)])
def test_a_worker_that_leaves_because_it_was_told_to_has_not_failed(code: tuple[int, int]) -> None:
    _, words, ending = describe("FAILED", "NonZeroExitCode", "n1", *code)
    assert ending is Ending.LOST and "as it was told to" in words


def test_a_failure_is_told_with_its_exit_status_or_signal() -> None:
    failed = describe("FAILED", "NonZeroExitCode", "n1", 2)
    assert failed == (Phase.ENDED, "on n1 ended with exit status 2", Ending.FAILED)
    assert "(JobLaunchFailure)" in describe("FAILED", "JobLaunchFailure", "n1", 1)[1]
    assert "was ended by SIGSEGV" in describe("FAILED", "None", "n1", 0, 11)[1]


@pytest.mark.parametrize("code", [(0, 9), (137, 0)])
def test_a_job_that_was_killed_is_told_that_memory_may_be_the_cause(code: tuple[int, int]) -> None:
    _, words, ending = describe("FAILED", "JobLaunchFailure", "n1", *code)
    assert ending is Ending.FAILED and "--slurm-option mem=" in words

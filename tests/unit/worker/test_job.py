"""What a worker reads of its scheduler's job."""

from __future__ import annotations

import pytest

from worker.run.job import HOUR_S, find_job_id, find_leave_time

NOW_S = 1_000_000.0


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "17"}, "17"),
        ({"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "1"}, "17_1"),
        ({"PBS_JOBID": "9.head"}, "9.head"),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "2"}, "5_2"),
        ({"LSB_JOBID": "5"}, "5"),
        ({"SLURM_JOB_ID": ""}, ""),
        ({"COARSEFINE_JOB": "lab/coarsefine-digits-1-2"}, "lab/coarsefine-digits-1-2"),
    ],
)
def test_the_id_of_the_job_is_what_its_scheduler_calls_it(
    environ: dict[str, str], job: str
) -> None:
    assert find_job_id(environ) == job


def test_an_id_that_is_no_id_stays_short_and_legible() -> None:
    assert len(find_job_id({"SLURM_JOB_ID": "x" * 10_000})) == 128
    assert "\x1b" not in find_job_id({"SLURM_JOB_ID": "\x1b[31m"})


def test_it_leaves_with_time_to_stop_before_the_limit() -> None:
    at_s = find_leave_time(10.0, 8.0, {}, NOW_S)
    assert at_s == NOW_S + 10 * HOUR_S - 8.0 - 60.0
    slurm = {"SLURM_JOB_END_TIME": f"{NOW_S + 7200:.0f}"}
    assert find_leave_time(None, 30.0, slurm, NOW_S) == NOW_S + 7200 - 30.0 - 60.0
    assert find_leave_time(1.0, 8.0, slurm, NOW_S) == NOW_S + HOUR_S - 68.0  # asked for comes first


def test_of_a_short_time_most_is_used() -> None:
    at_s = find_leave_time(0.05, 8.0, {}, NOW_S)
    assert at_s == NOW_S + 180 - 8 - 18


@pytest.mark.parametrize("end", ["", "soon", "-5", "1e9"])
def test_an_end_that_is_no_time_limits_nothing(end: str) -> None:
    assert find_leave_time(None, 8.0, {"SLURM_JOB_END_TIME": end}, NOW_S) is None

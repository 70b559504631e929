"""What the job of a scheduler says of itself in the environment: its id, and when it ends."""

from __future__ import annotations

from collections.abc import Mapping

LONGEST_ID = 128  # a job of Kubernetes has a namespace of 63 letters and a name of 63
# The first that is set counts. Slurm and LSF number the jobs of an array twice.
IDS = (
    ("COARSEFINE_JOB",),  # of a launcher whose scheduler sets none
    ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
    ("SLURM_JOB_ID",),
    ("PBS_JOBID",),
    ("LSB_JOBID", "LSB_JOBINDEX"),
    ("LSB_JOBID",),
    ("OAR_JOB_ID",),
)
SLURM_END = "SLURM_JOB_END_TIME"  # seconds since 1970
# The worker leaves so much before its job's end: a scheduler also needs time for its own scripts.
MARGIN_S = 60.0
MARGIN_SHARE = 0.1  # at most so much of the time that is left
HOUR_S = 3600.0


def find_job_id(environ: Mapping[str, str]) -> str:
    """Return the id of the job, such as 1234 or 1234_7; empty outside a job."""
    for names in IDS:
        if all(environ.get(name) for name in names):
            found = "_".join(environ[name] for name in names)
            return "".join(letter for letter in found if letter.isprintable())[:LONGEST_ID]
    return ""


def find_leave_time(
    max_hours: float | None, stop_grace_s: float, environ: Mapping[str, str], now_s: float
) -> float | None:
    """Return when a worker should begin to leave; None if nothing limits it.

    That is early enough to stop and to save before the limit.

    Args:
        max_hours: The limit that was asked for, from now on. Without it, Slurm's counts.
        stop_grace_s: How long the worker may take to stop.
        environ: The environment.
        now_s: The time, as ``time.time``.
    """
    if max_hours is not None:
        left_s = max_hours * HOUR_S
    elif environ.get(SLURM_END, "").isdecimal():
        left_s = float(environ[SLURM_END]) - now_s
    else:
        return None
    return now_s + left_s - stop_grace_s - min(MARGIN_S, MARGIN_SHARE * max(left_s, 0.0))

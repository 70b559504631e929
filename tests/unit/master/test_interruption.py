"""What a launch says when a signal ends it is true at every moment of it."""

from __future__ import annotations

from common.errors import QueueError
from master.run.interruption import ALL_ENDED, NOTHING_BEGAN, HowFar, describe_trials_that_go_on


def test_from_before_the_first_trial_to_the_last_report() -> None:
    waiting = [24]
    how_far = HowFar(lambda: waiting[0])
    assert how_far.describe() == NOTHING_BEGAN
    how_far.training("coarse")
    assert how_far.describe() == describe_trials_that_go_on()
    waiting[0] = 0  # a rung is complete, and nobody decides who goes on
    assert how_far.describe() == f"{ALL_ENDED}. The same launch command goes on with stage 'coarse'"
    how_far.note_ended("coarse", "fine")
    assert how_far.describe() == f"{ALL_ENDED}. The same launch command goes on with stage 'fine'"
    how_far.training("fine")
    waiting[0] = 8
    how_far.note_ranked("coarse")
    assert how_far.describe() == describe_trials_that_go_on()
    waiting[0] = 0
    how_far.note_ended("fine", None)
    assert (
        "`master rank` ranks them; the same launch command prints the outcome, and draws the report"
    ) in how_far.describe()
    how_far.note_ranked("fine")
    assert how_far.describe() == (
        f"{ALL_ENDED} and is ranked. `master report --stage coarse --stage fine` draws "
        "the report, which is missing"
    )
    how_far.note_drawn()
    assert how_far.describe() == f"{ALL_ENDED} and is ranked; nothing is missing"


def test_where_redis_cannot_be_asked_the_trials_are_taken_to_go_on_until_the_last_has_ended() -> (
    None
):
    def away() -> int:
        raise QueueError("away")

    how_far = HowFar(away)
    how_far.training("coarse")
    assert how_far.describe() == describe_trials_that_go_on()
    how_far.note_ended("coarse", None)
    assert how_far.describe().startswith(ALL_ENDED)

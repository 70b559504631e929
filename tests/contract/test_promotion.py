"""Promotion of completed trials to a longer budget.

It happens once, such trials come first in their stage, and no accepted result is forgotten.
"""

from __future__ import annotations

import pytest

from common.queue.trial_queue import TrialQueue
from common.search.trial import ENDED, Claim, Fence, Result, Trial, TrialState
from tests.contract.trials import DONE, GROUP, at_rung, ids, lose, made

PENDING, COMPLETED, KILLED = TrialState.PENDING, TrialState.COMPLETED, TrialState.KILLED


def complete(queue: TrialQueue, n: int = 1) -> list[Claim]:
    """The next trials, trained to their budget."""
    claims = queue.claim("w", n, f"complete {len(list(queue.read_ended()))}")
    assert len(claims) == n
    queue.finish([(claim.fence, DONE) for claim in claims])
    return claims


def promoted(trials: list[Trial]) -> list[Trial]:
    return [at_rung(trial, trial.rung + 1) for trial in trials]


def test_a_promoted_trial_waits_again_with_its_longer_budget(queue: TrialQueue) -> None:
    queue.publish(made(1))
    complete(queue)
    assert queue.promote(promoted(made(1))) == []
    assert (queue.state("coarse-0000"), queue.result("coarse-0000")) == (PENDING, None)
    assert queue.counts()["coarse"] == {"pending": 1} | dict.fromkeys(
        [s for s in TrialState if s != "pending"], 0
    )
    (claim,) = queue.claim("w", 1, "again")
    assert claim.trial == promoted(made(1))[0]
    assert claim.fence.attempt == 2
    assert [running.trial.epochs for running in queue.running()] == [2.0]
    queue.finish([(claim.fence, DONE)])
    assert [row[:2] for row in queue.read_ended()] == [("coarse-0000", 2)]
    assert [row[:3] for row in queue.read_endings(0)] == [
        (2, "coarse-0000", 2)
    ]  # the first ending is undone


def test_saying_it_again_changes_nothing_wherever_the_trial_stands(queue: TrialQueue) -> None:
    queue.publish(made(1))
    complete(queue)
    longer = promoted(made(1))
    for _ in range(2):
        assert queue.promote(longer) == []
    (claim,) = queue.claim("w", 1, "again")
    assert queue.promote(longer) == []
    assert queue.finish([(claim.fence, DONE)]) == ["ok"]
    assert queue.promote(longer) == queue.promote(made(1)) == []
    assert (queue.state("coarse-0000"), queue.attempt("coarse-0000")) == (COMPLETED, 2)


def test_who_finished_it_is_told_ok_for_ever(queue: TrialQueue) -> None:
    queue.publish(made(1))
    held: list[Fence] = []
    for rung in range(3):
        (claim,) = queue.claim("w", 1, f"{rung}")
        held.append(claim.fence)
        assert queue.finish([(fence, DONE) for fence in held]) == ["ok"] * len(
            held
        )  # the last one holds it
        queue.promote([at_rung(claim.trial, rung + 1)])
        assert queue.finish([(fence, DONE) for fence in held]) == ["ok"] * len(held)
    strangers = [Fence("coarse-0000", 2, held[0].token), Fence("coarse-0000", 1, "another")]
    assert queue.finish([(fence, DONE) for fence in strangers]) == ["lost", "lost"]
    assert queue.state("coarse-0000") is PENDING


def test_what_runs_is_to_be_asked_for_again_once_it_has_ended(queue: TrialQueue) -> None:
    queue.publish(made(2))
    (first,) = complete(queue)
    (second,) = queue.claim("w", 1, "second")
    both = promoted(made(2))
    assert queue.promote(both) == [both[1]]
    assert queue.renew("w", []) == {}
    queue.finish([(second.fence, DONE)])
    assert queue.promote(both[1:]) == []
    assert {claim.trial.rung for claim in queue.claim("w", 2, "longer")} == {1}
    assert first.trial.id != second.trial.id


@pytest.mark.parametrize("state", sorted(ENDED - {COMPLETED}))
def test_what_ended_in_another_way_stays_and_is_not_asked_for_again(
    queue: TrialQueue, state: TrialState
) -> None:
    queue.publish(made(1))
    (claim,) = queue.claim("w", 1, "r")
    queue.finish([(claim.fence, Result(state))])
    assert queue.promote(promoted(made(1))) == []
    assert queue.state("coarse-0000") is state
    assert queue.trial("coarse-0000") == made(1)[0]


def test_what_waits_on_an_earlier_rung_waits_on_with_the_longer_budget(queue: TrialQueue) -> None:
    """Redis has lost its end; the folder knows the attempt."""
    queue.publish(made(2))
    assert queue.promote([at_rung(made(1)[0], 2)], {"coarse-0000": 4}) == []
    (claim,) = queue.claim("w", 1, "r")
    assert (claim.trial, claim.fence.attempt) == (at_rung(made(1)[0], 2), 5)


def test_what_redis_does_not_know_is_to_be_asked_for_again(queue: TrialQueue) -> None:
    longer = promoted(made(1))
    assert queue.promote(longer) == longer
    assert queue.publish(longer) == 1
    assert queue.promote(longer) == []
    assert queue.claim("w", 1, "r")[0].trial == longer[0]


def test_a_publication_changes_no_budget(queue: TrialQueue) -> None:
    queue.publish(made(1))
    assert queue.publish(promoted(made(1))) == 0
    assert queue.trial("coarse-0000") == made(1)[0]


def test_the_late_end_of_an_earlier_rung_does_not_end_the_later_one(queue: TrialQueue) -> None:
    queue.publish(made(1))
    (claim,) = queue.claim("w", 1, "r")
    assert queue.take(claim.fence)
    assert (
        queue.promote(promoted(made(1))) == []
    )  # by its record in the folder, of which Redis has not heard
    assert queue.finish([(claim.fence, DONE)]) == ["lost"]
    assert (queue.state("coarse-0000"), queue.trial("coarse-0000")) == (
        TrialState.PENDING,
        promoted(made(1))[0],
    )


def test_losses_and_doubts_are_forgotten(queue: TrialQueue, brief: TrialQueue) -> None:
    queue.publish(made(1))
    lose(queue, brief, "coarse-0000", "w", "lost")
    (claim,) = queue.claim("w", 1, "alone")
    assert claim.alone
    queue.finish([(claim.fence, DONE)])
    queue.promote(promoted(made(1)))
    queue.renew("other", [])
    (claim,) = queue.claim("w", 1, "again")
    assert not claim.alone


def test_a_retry_keeps_the_rung_and_a_verdict_names_it(queue: TrialQueue) -> None:
    queue.publish(made(1))
    complete(queue)
    queue.promote(promoted(made(1)))
    taken = queue.kill("coarse-0000", "by hand")
    assert taken and taken.result and (taken.result.state, taken.result.rung) == (KILLED, 1)
    assert queue.retry("coarse-0000")
    assert queue.claim("w", 1, "r")[0].trial == promoted(made(1))[0]


# --- who comes first ---


def test_the_longest_budgets_of_a_stage_come_first_and_earlier_stages_before(
    queue: TrialQueue,
) -> None:
    queue.publish(made(6, group=lambda i: "ab"[i % 2]))
    complete(queue, 3)  # all of one group: 0, 2, 4
    queue.promote(promoted(made(6))[:4:2])
    queue.publish(promoted(made(2, "fine")))
    assert ids(queue.claim("w", 9, "1")) == ["coarse-0000", "coarse-0002"]
    assert ids(queue.claim("w", 9, "2")) == ["coarse-0001", "coarse-0003", "coarse-0005"]
    assert ids(queue.claim("w", 9, "3")) == ["fine-0000", "fine-0001"]


def test_a_suspect_comes_after_all_rungs_of_its_stage(queue: TrialQueue) -> None:
    queue.publish([*made(1), at_rung(made(2)[1], 1)])
    queue.take(queue.claim("w", 1, "1")[0].fence, "stuck")  # the promoted one
    queue.publish(made(1, "fine"))
    assert ids(queue.claim("w", 9, "2")) == ["coarse-0000"]
    (claim,) = queue.claim("w", 9, "3")
    assert (claim.trial.id, claim.alone) == ("coarse-0001", True)
    assert ids(queue.claim("w", 9, "4")) == ["fine-0000"]


def test_a_claim_has_one_budget_and_a_refill_takes_all_of_its_group_longest_first(
    queue: TrialQueue,
) -> None:
    trials = [at_rung(trial, rung) for trial, rung in zip(made(6), (0, 1, 0, 2, 1, 0), strict=True)]
    queue.publish(trials)
    assert ids(queue.claim("w", 9, "1")) == ["coarse-0003"]
    assert ids(queue.claim("w", 3, "2", group=GROUP, alone=False)) == [
        "coarse-0001",
        "coarse-0004",
        "coarse-0000",
    ]
    assert ids(queue.claim("w", 9, "3", group=GROUP, alone=False)) == ["coarse-0002", "coarse-0005"]


@pytest.mark.parametrize(
    ("n", "workers", "shares"),
    [(1, 3, [1, 0, 0]), (2, 3, [1, 1, 0]), (3, 2, [2, 1]), (4, 3, [2, 1, 1]), (5, 4, [2, 1, 1, 1])],
)
def test_the_last_array_of_a_rung_is_shared_between_idle_workers(
    queue: TrialQueue, n: int, workers: int, shares: list[int]
) -> None:
    names = [f"w{number}" for number in range(workers)]
    for name in names:
        queue.renew(name, [])
    queue.publish(made(n))
    complete_by = {name: queue.claim(name, n, "first") for name in names}
    queue.finish([(claim.fence, DONE) for claims in complete_by.values() for claim in claims])
    queue.promote(promoted(made(n)))
    assert [len(queue.claim(name, 64, "second")) for name in names] == shares


def test_however_often_it_is_promoted_it_comes_before_those_that_were_not(
    queue: TrialQueue,
) -> None:
    queue.publish([*made(2), at_rung(made(3)[2], 9)])
    assert queue.promote([at_rung(made(3)[2], 10)]) == []
    (claim,) = queue.claim("w", 1, "1")
    assert (claim.trial.id, claim.trial.rung) == ("coarse-0002", 10)


def test_a_thousand_trials_are_promoted_by_one_word(queue: TrialQueue) -> None:
    queue.publish(made(1200))
    complete(queue, 1200)
    assert queue.promote(promoted(made(1200))) == []
    assert len(queue.claim("w", 2000, "r")) == 1200

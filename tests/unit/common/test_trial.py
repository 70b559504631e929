from __future__ import annotations

from common.search.trial import ENDED, RETRYABLE, TRANSITIONS, TrialState, trial_id, trial_seed


def test_every_state_has_its_ways_out() -> None:
    assert TRANSITIONS.keys() == set(TrialState)
    assert TrialState.PENDING not in ENDED and TrialState.RUNNING not in ENDED and len(ENDED) == 5


def test_an_ended_trial_stays_ended_unless_it_may_be_retried_or_promoted() -> None:
    for state in ENDED:
        goes_back = state in RETRYABLE or state is TrialState.COMPLETED
        assert TRANSITIONS[state] == ({TrialState.PENDING} if goes_back else frozenset())


def test_states_read_as_scripts_expect() -> None:
    assert [str(s) for s in TrialState] == [
        "pending",
        "running",
        "completed",
        "exploded",
        "stopped",
        "killed",
        "failed",
    ]


def test_trial_names_sort_as_their_numbers() -> None:
    assert trial_id("coarse", 42) == "coarse-0042"
    assert [trial_id("a", i) for i in range(0, 9999, 77)] == sorted(
        trial_id("a", i) for i in range(0, 9999, 77)
    )


def test_a_trials_seed_never_changes() -> None:
    assert trial_seed(231, "coarse", 0) == 6828934193058218898
    seeds = {
        trial_seed(s, stage, i)
        for s in range(3)
        for stage in ("coarse", "fine")
        for i in range(100)
    }
    assert len(seeds) == 600 and all(0 <= seed < 2**63 for seed in seeds)

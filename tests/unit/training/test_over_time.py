"""What depends on a trial's own time: schedules, plateaus, averages, stops.

It depends on no neighbour and continues after a resume.
"""

import pytest

from common.search.stage import Stage
from common.search.trial import TrialState
from tests.unit.training.helpers import StopAfter, boundaries, job, outcomes, state
from tests.unit.training.test_slots import assert_same

N = 5
EPOCHS = [2.4, 4, 3, 4, 2]
PRACTICES = {
    "plateau": {
        **{
            "optimizer": "rmsprop",
            "schedule": "plateau",
            "plateau_epochs": 0.5,
            "plateau_momentum_off": True,
            "momentum": 0.9,
        },
        **{
            "momentum_start": 0.3,
            "momentum_epochs": 1.5,
            "ema": 0.8,
            "max_norm": 1.0,
            "clip_norm": 1.0,
        },
    },
    "cosine": {
        **{
            "optimizer": "adamw",
            "schedule": "cosine",
            "warmup_epochs": 1.5,
            "fade": 0.6,
            "weight_decay": 0.1,
            "l1": 1e-3,
        },
        **{"clip_value": 0.01, "ema": 0.5, "decay_biases": True},
    },
    "step": {
        "optimizer": "adagrad",
        "schedule": "step",
        "step_epochs": 0.7,
        "l1": 1e-3,
        "fade": 1.0,
        "val_passes": 2,
    },
}


def trial(index, kind, resume=None):
    rates = {"learning_rate": 0.05 * 0.5**index, "dropout": 0.1 * index, "drop": 0.2 + 0.1 * index}
    return job(index, EPOCHS[index], resume, **PRACTICES[kind], **rates)


@pytest.mark.parametrize("kind", PRACTICES)
def test_neighbours_come_and_go(kind):
    jobs = [trial(index, kind) for index in range(N)]
    together = outcomes(jobs, width=N)
    assert {outcome.state for outcome in together.values()} == {TrialState.COMPLETED}
    assert_same(outcomes(jobs, width=2), together)


@pytest.mark.parametrize("kind", PRACTICES)
@pytest.mark.parametrize("beats", [8, 19])
def test_a_resumed_trial_goes_on_where_it_was(kind, beats):
    whole = outcomes([trial(index, kind) for index in range(N)], width=N)
    ended, resumed = {}, []
    for boundary in boundaries(
        [trial(index, kind) for index in range(N)], watch=StopAfter(beats + N + 1), width=N
    ):
        ended |= {outcome.trial.id: outcome for outcome in boundary.ended}
        resumed = [trial(view.trial.index, kind, state(view)) for view in boundary.running]
    assert len(resumed) > 1
    assert_same({**ended, **outcomes(resumed, width=N)}, whole)


def stages(**policy):
    return {"coarse": Stage(name="coarse", trials=3, epochs=6.0, **policy)}


def test_patience_ends_a_trial_that_makes_no_progress_and_no_other():
    jobs = [
        job(0, 6, learning_rate=0.05),
        job(1, 6, learning_rate=0.0),
        job(2, 2, learning_rate=0.0),
    ]
    free, patient = outcomes(jobs), outcomes(jobs, stages=stages(patience=3))
    stopped = patient["coarse-0001"]
    assert (stopped.state, stopped.epochs, stopped.best_epoch) == (TrialState.STOPPED, 4, 1)
    assert (
        stopped.reason
        == f"no progress: best value {stopped.val_acc:.4g} at epoch 1, none better in 3 epochs"
    )
    assert stopped.checkpoint is not None
    assert_same({"coarse-0000": patient["coarse-0000"]}, {"coarse-0000": free["coarse-0000"]})
    assert patient["coarse-0002"].state == TrialState.COMPLETED  # its budget ended first


def test_a_trial_at_chance_ends_after_its_grace():
    jobs = [job(0, 6, learning_rate=0.05), job(2, 6, learning_rate=1e-8)]
    ended = outcomes(jobs, stages=stages(chance_epochs=2))
    assert ended["coarse-0000"].state == TrialState.COMPLETED
    assert (ended["coarse-0002"].state, ended["coarse-0002"].epochs) == (TrialState.STOPPED, 2)
    assert "no better than guessing after 2 epochs" in ended["coarse-0002"].reason

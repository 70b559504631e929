"""Loops of the user's own, trained as the engine trains arrays: jobs in, boundaries out."""

from __future__ import annotations

import io
import math
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from common.errors import TaskError
from common.search.search_file import Search, parse_search
from common.search.trial import Claim, Fence, Trial, TrialState
from tests.unit.worker.looped import Noted, own_of
from worker.own import OwnLoop, OwnTrial, TrialEnded, load_state
from worker.own.messages import Report
from worker.own.output import last_words
from worker.own.saved import frozen, thaw
from worker.training.history.diagnosis import diagnose_trial
from worker.training.types import Boundary, Outcome, View

SEARCH = """
name = "own"
task = "my_loop.py:train"
metric = "{metric}"
mode = "{mode}"
[space]
learning_rate = 0.1
[stages.coarse]
trials = 4
epochs = 4
{options}
"""


class Watch:
    """What the heartbeat is to the loop; a test decides what is lost and when to stop.

    So may the loop, by a note: ``lost`` or ``stop``.
    """

    def __init__(self, noted: Noted | None = None) -> None:
        self.gone: set[str] = set()
        self.stop = False
        self.noted = noted
        self.phases: list[tuple[str, float | None]] = []

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        self.phases.append((phase, limit_s))

    def lost(self) -> Collection[str]:
        if self.noted is not None and "lost" in self.noted:
            return {"coarse-0000"}
        return self.gone

    def stopping(self) -> bool:
        return self.stop or (self.noted is not None and "stop" in self.noted)


def search(metric: str = "val_acc", mode: str = "max", options: str = "") -> Search:
    return parse_search(SEARCH.format(metric=metric, mode=mode, options=options))


def job(
    index: int = 0, epochs: float = 4, resume: dict[str, Any] | None = None, **hp: Any
) -> Claim:
    trial = Trial(
        f"coarse-{index:04d}",
        "coarse",
        index,
        11 + index,
        epochs,
        {"learning_rate": 0.1, **hp},
        "{}",
    )
    return Claim(trial, Fence(trial.id, 1 if resume is None else 2, "token"), resume=resume)


def own(
    train: Callable[[OwnTrial], object],
    found: Search | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> OwnLoop:
    return own_of(train, found or search(), log)


def boundaries(
    train: Callable[[OwnTrial], object], *jobs: Claim, watch: Watch | None = None, **more: Any
) -> list[Boundary]:
    return list(own(train, **more).train(list(jobs or [job()]), lambda n: [], watch or Watch()))


def outcome(train: Callable[[OwnTrial], object], *jobs: Claim, **more: Any) -> Outcome:
    ended = [one for boundary in boundaries(train, *jobs, **more) for one in boundary.ended]
    assert len(ended) == 1
    return ended[0]


def loaded(content: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(content), weights_only=True)


def reports(*points: dict[str, Any]) -> Callable[[OwnTrial], None]:
    """A loop that says these, one an epoch."""

    def train(trial: OwnTrial) -> None:
        assert trial.hp["learning_rate"]
        for epoch, point in enumerate(points, start=1):
            trial.report(epoch, **point)

    return train


# -- what comes of a trial -------------------------------------------------------------------------


def test_a_loop_is_handed_its_trial_and_its_reports_become_the_outcome(tmp_path: Path) -> None:
    noted = Noted(tmp_path)

    def train(trial: OwnTrial) -> None:
        noted.add(trial.id, trial.epochs, trial.seed, trial.device, trial.gpus)
        noted.add(trial.resume, dict(trial.hp))
        for epoch in range(1, 5):
            trial.report(
                epoch,
                train_loss=1 / epoch,
                val_acc=[0.2, 0.8, 0.8, 0.5][epoch - 1],
                val_loss=2.0 - 0.1 * epoch,
                val_f1=epoch / 10,
            )

    found = outcome(train, job(hidden=3))
    hp = str({"learning_rate": 0.1, "hidden": 3})
    assert noted.all() == ["coarse-0000", "4", "11", "cpu", "3", "None", hp]
    assert (found.state, found.reason, found.epochs, found.first_loss) == (
        TrialState.COMPLETED,
        None,
        4.0,
        1.0,
    )
    assert (found.value, found.val_acc, found.val_loss, found.best_epoch) == (
        0.8,
        0.8,
        1.7,
        3.0,
    )  # of equals the lower loss
    assert found.metrics["val_f1"] == 0.3 and found.curves["epoch"] == [1.0, 2.0, 3.0, 4.0]
    assert (
        found.curves["train_loss"] == [1.0, 0.5, pytest.approx(1 / 3), 0.25]
        and len(found.curves["seconds"]) == 4
    )
    assert found.epoch_s is not None and found.checkpoint is None


def test_the_smallest_is_the_best_where_the_search_says_so() -> None:
    found = outcome(
        reports({"val_mae": 3.0}, {"val_mae": 1.0}, {"val_mae": 2.0}),
        found=search("val_mae", "min"),
    )
    assert (found.value, found.best_epoch, found.val_acc) == (1.0, 2.0, None)


@pytest.mark.parametrize(
    ("points", "metric", "mode", "reason"),
    [
        (
            [{"train_loss": 1.0}, {"train_loss": 3.5}],
            "val_acc",
            "max",
            "train_loss 3.5 above 3 x its first value 1 after 2 epochs",
        ),
        (
            [{"train_loss": math.nan}],
            "val_acc",
            "max",
            "train_loss is not finite (nan) after 1 epochs",
        ),
        (
            [{"val_loss": 1.0}, {"val_loss": 9.0}],
            "val_acc",
            "max",
            "val_loss 9 above 3 x its first value 1",
        ),
        (
            [{"val_mae": 2.0}, {"val_mae": 6.1}],
            "val_mae",
            "min",
            "val_mae 6.1 above 3 x its first value 2",
        ),
        ([{"val_r2": -math.inf}], "val_r2", "max", "val_r2 is not finite (-inf)"),
    ],
)
def test_what_explodes_is_left_at_once(
    points: list[dict[str, Any]], metric: str, mode: str, reason: str, tmp_path: Path
) -> None:
    after = Noted(tmp_path)

    def train(trial: OwnTrial) -> None:
        try:
            reports(*points)(trial)
            after.add("went on")
        finally:
            after.add("tidied up")

    found = outcome(train, found=search(metric, mode))
    assert (
        found.state is TrialState.EXPLODED and found.reason is not None and reason in found.reason
    )
    assert after.all() == ["tidied up"]


def test_what_does_not_grow_threefold_goes_on() -> None:
    points = [
        {"train_loss": 1.0, "val_acc": 0.5},
        {"train_loss": 2.9, "val_acc": 0.4},
        {"train_loss": -8.0, "val_acc": 0.6},
    ]
    assert outcome(reports(*points)).state is TrialState.COMPLETED
    assert (
        outcome(
            reports({"train_loss": -1.0, "val_acc": 0.1}, {"train_loss": -0.1, "val_acc": 0.2})
        ).state
        is TrialState.COMPLETED
    )


@pytest.mark.parametrize(
    ("explosion", "values", "state"),
    [
        (True, [-1.0, -40.0, 20.0], TrialState.COMPLETED),  # negative at first: no measure
        (True, [1e-8, 5.0], TrialState.COMPLETED),  # tiny at first: no measure
        ("nan", [0.2, 90.0], TrialState.COMPLETED),
        ("nan", [0.2, math.nan], TrialState.EXPLODED),
        (False, [0.2, math.nan, 0.1], TrialState.COMPLETED),
    ],
)
def test_the_search_says_what_explodes(
    explosion: Any, values: list[float], state: TrialState
) -> None:
    points = [{"train_loss": value, "val_acc": 0.5} for value in values]
    of = search().model_copy(update={"explosion": explosion})
    assert outcome(reports(*points), found=of).state is state


def test_a_metric_that_is_no_number_is_no_best_epoch() -> None:
    of = search().model_copy(update={"explosion": False})
    found = outcome(reports({"val_acc": math.nan}, {"val_acc": 0.5}), found=of)
    assert (found.state, found.best_epoch, found.value) == (TrialState.COMPLETED, 2.0, 0.5)


def test_the_stage_s_policies_stop_it() -> None:
    flat = [{"val_acc": 0.5}] * 4
    stopped = outcome(reports(*flat), found=search(options="patience = 2"))
    assert (
        stopped.state is TrialState.STOPPED
        and stopped.epochs == 3.0
        and "no progress: best value 0.5 at epoch 1" in str(stopped.reason)
    )

    def guessing(trial: OwnTrial) -> None:
        trial.n_classes, trial.n_val = 2, 100
        reports(*flat)(trial)

    found = outcome(guessing, found=search(options="chance_epochs = 2"))
    assert (
        found.state is TrialState.STOPPED
        and found.epochs == 2.0
        and "no better than guessing" in str(found.reason)
    )
    said: list[str] = []
    assert (
        outcome(reports(*flat), found=search(options="chance_epochs = 2"), log=said.append).state
        is TrialState.COMPLETED
    )
    assert said[0:1] == [
        (
            "chance_epochs judges a loop only where it sets trial.n_classes and trial.n_val; "
            "this one does not"
        )
    ]


@pytest.mark.parametrize(
    ("n_classes", "n_val", "known"),
    [
        (4, 100, (0.25, 100)),
        (None, None, (None, None)),
        (1, 0, (None, None)),
        ("ten", 9.5, (None, None)),
    ],
)
def test_what_guessing_gives_is_known_where_the_loop_says_it(
    n_classes: Any, n_val: Any, known: tuple[Any, Any]
) -> None:
    def train(trial: OwnTrial) -> None:
        trial.n_classes, trial.n_val = n_classes, n_val
        reports({"val_acc": 0.5})(trial)

    found = outcome(train)
    assert (found.guess_acc, found.n_val) == known


def test_who_goes_on_beyond_the_budget_is_ended_and_what_was_within_counts() -> None:
    found = outcome(reports(*({"val_acc": 0.1 * epoch} for epoch in range(1, 9))))
    assert (found.state, found.epochs, found.value) == (
        TrialState.COMPLETED,
        4.0,
        pytest.approx(0.4),
    )


def no_report(trial: OwnTrial) -> None:
    assert trial.hp["learning_rate"]


def leaves(trial: OwnTrial) -> None:
    sys.exit("no luck")


def backwards(trial: OwnTrial) -> None:
    trial.report(2, val_acc=0.5)
    trial.report(2, val_acc=0.6)


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (
            no_report,
            (
                "my_loop.py:train returned without a report; call trial.report(epoch, ...) "
                "after every epoch"
            ),
        ),
        (leaves, r"SystemExit: no luck (test_own_loop.py, line"),
        (backwards, "report(epoch=2): 2 epochs are done already; count the epochs that are done"),
        (lambda trial: trial.hp["hidden"], "KeyError: 'hidden' (test_own_loop.py, line"),
        (reports({"val_acc": "good"}), "report(val_acc='good'): not a number"),
        (
            reports({"val_acc": np.zeros(3)}),
            "report(val_acc=<ndarray of shape (3,)>): not a number",
        ),
        (reports({"Val": 0.5}), "report(Val=...): not a name for a metric"),
        (
            reports({"val_acc": 0.5, "state": {"model": object()}}),
            "state['model'] is a builtins.object, which cannot be saved",
        ),
    ],
)
def test_a_loop_that_fails_says_why_and_the_next_goes_on(
    train: Callable[[OwnTrial], object], reason: str
) -> None:
    def first(trial: OwnTrial) -> object:
        return train(trial) if trial.id == "coarse-0000" else reports({"val_acc": 0.5})(trial)

    ended = [one for boundary in boundaries(first, job(0), job(1)) for one in boundary.ended]
    assert [one.state for one in ended] == [TrialState.FAILED, TrialState.COMPLETED]
    assert ended[0].reason is not None and reason in ended[0].reason


def test_a_single_report_without_an_epoch_counts_for_the_whole_budget() -> None:
    def train(trial: OwnTrial) -> None:
        assert trial.hp["learning_rate"]
        trial.report(train_loss=0.2, val_loss=0.1, val_acc=0.96, state={"model": "tree"})

    found = outcome(train)
    assert (found.state, found.epochs, found.best_epoch) == (TrialState.COMPLETED, 4, 4)
    assert diagnose_trial(found, "val_acc", "max") is None
    twice = outcome(lambda trial: [train(trial), train(trial)])
    assert "report(epoch=4): 4 epochs are done already" in str(twice.reason)


def test_numbers_may_be_of_any_framework() -> None:
    found = outcome(
        reports(
            {"train_loss": torch.tensor([0.5]), "val_acc": np.float32(0.25), "val_f1": np.array(1)}
        )
    )
    assert (found.curves["train_loss"], found.value, found.metrics["val_f1"]) == ([0.5], 0.25, 1.0)


def test_a_hyperparameter_that_nobody_reads_is_told_once() -> None:
    said: list[str] = []
    boundaries(
        reports({"val_acc": 0.5, "state": {}}), job(0, hiden=3), job(1, hiden=4), log=said.append
    )
    assert said == [
        (
            "hyperparameter hiden is not read by my_loop.py:train; remove it from [space] or "
            "read trial.hp['hiden']"
        )
    ]


# -- checkpoints and resume ------------------------------------------------------------------------

STATE = {
    "weights": np.arange(6, dtype=np.float64).reshape(2, 3),
    "words": np.array(["a", "bc"]),
    "none": np.zeros((0, 4), dtype=np.uint16),
    "tensor": torch.arange(3, dtype=torch.bfloat16),
    "list": [1, 2.5, None, True, "x", {"deep": np.float32(1.5)}],
    "pair": (0.9, 0.999),
    "raw": b"\x00\xff" * 3,
    "generator": np.random.default_rng(3).bit_generator.state,
    "python": random.Random(1).getstate(),
    3: "three",
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and one.dtype == other.dtype
            and np.array_equal(one, other)
        )
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_state_comes_back_from_a_file_as_it_was_without_pickle(tmp_path: Any) -> None:
    path = tmp_path / "state.pt"
    torch.save({"state": frozen(STATE)}, path)
    assert same(STATE, load_state(path))
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    assert same(thaw(frozen(optimizer.state_dict())), optimizer.state_dict())


class Moments(NamedTuple):
    """As optax has them."""

    mean: Any
    count: int


class Foreign:
    """An array of another library, on a device of its own."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.arange(3, dtype=np.float32)


class Shared:
    """An array that tells where its memory is."""

    __array_interface__ = STATE["weights"].__array_interface__  # type: ignore[attr-defined]


class Remote:
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        raise RuntimeError("it lies on other machines, too")


def test_whatever_numpy_can_read_comes_back_as_a_numpy_array() -> None:
    state = {"layers": [{"w": Foreign()}, Shared()], "moments": Moments(Foreign(), 3)}
    array = np.arange(3, dtype=np.float32)
    assert same(
        {"layers": [{"w": array}, STATE["weights"]], "moments": (array, 3)}, thaw(frozen(state))
    )
    with pytest.raises(
        TaskError, match=r"state\['w'\] is a .*Remote, which numpy cannot read \(it"
    ):
        frozen({"w": Remote()})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"a": [1, {"b": {1, 2}}]},
            (
                r"state\['a'\]\[1\]\['b'\] is a builtins.set, which cannot be saved; a state "
                r"holds tensors, arrays"
            ),
        ),
        ({"a": np.array([object()])}, r"state\['a'\] is an array of Python objects"),
        ({(1, 2): 3}, r"state has the key \(1, 2\); keys are strings or whole numbers"),
        ({"$array": 3}, "keys must not begin with"),
        (torch.nn.Linear(1, 1), "state is a torch.nn.modules.linear.Linear"),
    ],
)
def test_what_cannot_be_saved_is_refused_with_its_key(state: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        frozen(state)


def counting(trial: OwnTrial) -> None:
    """Its whole state is an array that it changes in place, as a framework does with weights."""
    assert trial.hp["learning_rate"]
    total = np.zeros(2) if trial.resume is None else trial.resume["total"]
    for epoch in range(int(trial.epoch) + 1, int(trial.epochs) + 1):
        total += epoch * trial.seed
        trial.report(
            epoch,
            train_loss=1.0 / float(total[0]),
            val_acc=0.5 - 0.1 * abs(epoch - 3),
            state={"total": total, "seed": trial.seed},
        )


def test_the_checkpoint_is_the_state_of_the_best_epoch(tmp_path: Any) -> None:
    found = outcome(counting)
    assert found.checkpoint is not None
    (tmp_path / "best.pt").write_bytes(found.checkpoint())
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    assert (content["epoch"], content["trial"], content["hyperparameters"]) == (
        3.0,
        "coarse-0000",
        {"learning_rate": 0.1},
    )
    state = load_state(tmp_path / "best.pt")
    assert (
        state["total"].tolist() == [66.0, 66.0] and state["seed"] == 11
    )  # 11 x (1 + 2 + 3): not what the last epoch made of it


@pytest.mark.parametrize("epoch", [1.0, 2.0, 3.0])
def test_a_trial_goes_on_where_the_last_state_was_given(epoch: float) -> None:
    whole = outcome(counting)
    views = [
        view
        for boundary in boundaries(counting)
        for view in boundary.running
        if view.epoch == epoch
    ]
    resumed = outcome(counting, job(resume=loaded(views[0].state())))
    for name in ("train_loss", "val_acc", "epoch"):
        assert resumed.curves[name] == whole.curves[name]
    assert (resumed.value, resumed.best_epoch, resumed.epochs, resumed.first_loss) == (
        whole.value,
        3.0,
        4.0,
        whole.first_loss,
    )
    assert resumed.checkpoint is not None and whole.checkpoint is not None
    assert same(loaded(resumed.checkpoint())["state"], loaded(whole.checkpoint())["state"])


def test_between_two_states_the_older_counts_and_without_any_a_trial_begins_anew() -> None:
    def seldom(trial: OwnTrial) -> None:
        assert trial.hp["learning_rate"]
        for epoch in range(int(trial.epoch) + 1, 5):
            trial.report(epoch, val_acc=0.1 * epoch, state={"epoch": epoch} if epoch == 2 else None)

    views = [view for boundary in boundaries(seldom) for view in boundary.running]
    assert [loaded(view.state())["loop"] is None for view in views] == [True, False, False, False]
    resumed = outcome(seldom, job(resume=loaded(views[2].state())))
    assert resumed.curves["epoch"] == [1.0, 2.0, 3.0, 4.0]
    assert outcome(seldom, job(resume=loaded(views[0].state()))).curves["epoch"] == [
        1.0,
        2.0,
        3.0,
        4.0,
    ]
    said: list[str] = []
    assert outcome(seldom, log=said.append).checkpoint is None
    assert said == [
        (
            "the best epoch was reported without a state, so it leaves no checkpoint; pass "
            "state= with every report"
        )
    ]


@pytest.mark.parametrize(
    "state",
    [
        {"format": 1},
        {"format": 1, "trial": "coarse-0009", "loop": None},
        {"format": 7, "trial": "x", "loop": {}},
    ],
)
def test_a_state_that_does_not_fit_is_told_and_the_trial_begins_anew(state: dict[str, Any]) -> None:
    said: list[str] = []
    assert outcome(counting, job(resume=state), log=said.append).epochs == 4.0
    assert len(said) == 1 and said[0].startswith("coarse-0000: its saved state does not fit")


# -- boundaries, kills, stops ----------------------------------------------------------------------


def test_a_boundary_follows_each_report_with_where_the_trial_stands() -> None:
    found = boundaries(counting, job(0), job(1))
    assert [[view.epoch for view in b.running] for b in found] == [
        [1.0],
        [2.0],
        [3.0],
        [4.0],
        [],
        [1.0],
        [2.0],
        [3.0],
        [4.0],
        [],
    ]
    assert [view.value for b in found[:4] for view in b.running] == pytest.approx(
        [0.3, 0.4, 0.5, 0.5]
    )
    assert [len(b.waiting) for b in found] == [1] * 5 + [0] * 5
    assert [[one.trial.id for one in b.ended] for b in found if b.ended] == [
        ["coarse-0000"],
        ["coarse-0001"],
    ]


def test_it_asks_for_one_more_at_a_time_and_says_that_it_is_a_loop() -> None:
    asked, more, watch = [], [job(1), job(2)], Watch()

    def refill(n: int) -> list[Claim]:
        asked.append(n)
        return [more.pop()] if more else []

    ended = [one.trial.id for b in own(counting).train([job(0)], refill, watch) for one in b.ended]
    assert ended == ["coarse-0000", "coarse-0002", "coarse-0001"] and asked == [1, 1, 1]
    assert ("own_loop", None) in watch.phases and own(counting).width({}) == 1


def test_a_kill_ends_the_loop_at_its_next_report_and_nothing_is_recorded(tmp_path: Path) -> None:
    watch, trace = Watch(), Noted(tmp_path)

    def train(trial: OwnTrial) -> None:
        try:
            for epoch in range(1, 5):
                trace.add(epoch)
                trial.report(epoch, val_acc=0.5)
        except TrialEnded:
            trace.add("told")
            raise

    found = []
    for boundary in own(train).train([job(0), job(1)], lambda n: [], watch):
        found.append(boundary)
        if (
            boundary.running
            and boundary.running[0].trial.id == "coarse-0000"
            and boundary.running[0].epoch == 2
        ):
            watch.gone = {"coarse-0000"}
    assert trace.all() == ["1", "2", "told", "1", "2", "3", "4"]
    assert [one.trial.id for b in found for one in b.ended] == ["coarse-0001"]


def hurried(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    for name, limit_s in {"ASKED_S": 0.05, "INTERRUPTED_S": 5.0, **limits}.items():
        monkeypatch.setattr(f"worker.own.process.{name}", limit_s)


def busy() -> None:
    while True:
        sum(range(1000))


@pytest.mark.parametrize("works", [busy, lambda: time.sleep(100)])
def test_a_loop_that_does_not_report_is_interrupted_where_it_is(
    works: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It tidies up, and its process trains the next trial."""
    hurried(monkeypatch)
    noted = Noted(tmp_path)

    def train(trial: OwnTrial) -> None:
        noted.add(os.getpid())
        if trial.id != "coarse-0000":
            return trial.report(1, val_acc=0.5)
        try:
            noted.add("lost")
            works()
        finally:
            noted.add("tidied up")

    found = boundaries(train, job(0), job(1), watch=Watch(noted))
    assert [one.trial.id for boundary in found for one in boundary.ended] == ["coarse-0001"]
    first, _, tidied, second = noted.all()
    assert tidied == "tidied up" and first == second


def test_a_loop_that_was_told_may_take_its_time_to_tidy_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hurried(monkeypatch, ASKED_S=0.01, INTERRUPTED_S=0.01)
    noted = Noted(tmp_path)

    def train(trial: OwnTrial) -> None:
        try:
            reports({"train_loss": 1.0}, {"train_loss": 9.0})(trial)
        finally:
            for _ in range(20):
                time.sleep(0.01)
            noted.add("tidied up")

    assert outcome(train).state is TrialState.EXPLODED and "tidied up" in noted


def test_a_loop_that_never_lets_go_is_killed_and_the_next_trial_gets_a_new_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hurried(monkeypatch, INTERRUPTED_S=0.1)
    noted = Noted(tmp_path)

    def train(trial: OwnTrial) -> None:
        noted.add(os.getpid())
        if trial.id != "coarse-0000":
            return trial.report(1, val_acc=0.5)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        noted.add("lost")
        busy()

    found = boundaries(train, job(0), job(1), watch=Watch(noted))
    assert [one.trial.id for boundary in found for one in boundary.ended] == ["coarse-0001"]
    first, _, second = noted.all()
    assert first != second and not Path(f"/proc/{first}").exists()


def poison() -> None:
    """Raise as a GPU does after an assertion in a kernel."""
    raise torch.AcceleratorError("the last words")


CRASHES: dict[str, tuple[Callable[[], object], str]] = {
    "os._exit": (lambda: os._exit(3), "its process ended with exit status 3, as os._exit(3) does"),
    "os._exit(0)": (lambda: os._exit(0), "its process ended with exit status 0"),
    "SIGKILL": (
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        "its process was ended by SIGKILL, as the kernel does where memory runs out",
    ),
    "a poisoned device": (poison, "the device served its process no more"),
    "SIGSEGV": (
        lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "its process was ended by SIGSEGV, a crash in native code",
    ),
}


@pytest.mark.parametrize("way", CRASHES)
def test_a_loop_that_ends_its_process_fails_its_trial_in_words_and_takes_nothing_along(
    way: str,
) -> None:
    end, reason = CRASHES[way]

    def train(trial: OwnTrial) -> None:
        trial.report(1, val_acc=0.25)
        if trial.id == "coarse-0000":
            print("the last words", flush=True)
            end()
        trial.report(2, val_acc=0.5)

    ended = [one for b in boundaries(train, job(0), job(1)) for one in b.ended]
    assert [one.state for one in ended] == [TrialState.FAILED, TrialState.COMPLETED]
    assert reason in str(ended[0].reason), ended[0].reason
    assert re.search("its output ends: .*the last words", str(ended[0].reason))
    assert "the last words" in str(ended[0].traceback) and ended[0].value == 0.25


def test_a_crash_names_the_line() -> None:
    output = """epoch 3
Fatal Python error: Segmentation fault

Current thread 0x00007f (most recent call first):
  File "/a/ctypes/__init__.py", line 519 in string_at
  File "/a/my_loop.py", line 7 in train
  File "/a/worker/own/child.py", line 99 in _run

Extension modules: numpy, torch (total: 40)
"""
    told = last_words(output)
    assert told.startswith("; its output ends: Fatal Python error: Segmentation fault | File ")
    assert 'File "/a/my_loop.py", line 7 in train' in told and "Extension" not in told
    assert last_words("\n \n") == ""


def test_what_a_process_sends_is_checked() -> None:
    def nonsense(trial: OwnTrial) -> None:
        if trial.id == "coarse-0000":
            trial._hand_over(Report(1.0, {"val_acc": "0.5"}, None, 0.0))  # type: ignore[dict-item]
        trial.report(1, val_acc=0.5)

    ended = [one for b in boundaries(nonsense, job(0), job(1)) for one in b.ended]
    assert [one.state for one in ended] == [TrialState.FAILED, TrialState.COMPLETED]
    assert "its process sent what cannot be read: val_acc = '0.5'" in str(ended[0].reason)


def test_told_to_stop_the_last_boundary_has_the_state_to_go_on_from() -> None:
    watch, last = Watch(), Boundary([], [], [])
    for last in own(counting).train([job(0), job(1)], lambda n: [], watch):
        watch.stop = bool(last.running) and last.running[0].epoch == 2
    assert [view.epoch for view in last.running] == [2.0] and [one.id for one in last.waiting] == [
        "coarse-0001"
    ]
    assert outcome(counting, job(resume=loaded(last.running[0].state()))).value == 0.5


def test_told_to_stop_before_the_first_report_the_trial_waits_as_if_it_had_never_begun(
    tmp_path: Path,
) -> None:
    watch = Watch(Noted(tmp_path))
    assert watch.noted is not None
    note = watch.noted.add

    def train(trial: OwnTrial) -> None:
        trial.beat(limit_s=60)
        time.sleep(0.2)
        note("stop")
        while True:
            trial.beat(limit_s=60)

    found = boundaries(train, job(0), job(1), watch=watch)
    assert [one.id for one in found[-1].waiting] == ["coarse-0000", "coarse-0001"] and found[
        -1
    ].running == []
    assert ("own_loop", 60) in watch.phases


class LateWatch(Watch):
    """A worker that hears a moment later than its loop that its job is to end."""

    def __init__(self, noted: Noted) -> None:
        super().__init__(noted)
        self.looks = 0

    def stopping(self) -> bool:
        if self.noted is not None and "ending" in self.noted:
            self.looks += 1
        return self.looks > 4


@pytest.mark.parametrize("handler", ["of the process", "of the system"])
def test_a_loop_that_a_scheduler_ends_with_its_worker_has_not_failed_nor_completed(
    tmp_path: Path, handler: str
) -> None:
    watch = LateWatch(Noted(tmp_path))
    assert watch.noted is not None
    note = watch.noted.add

    def train(trial: OwnTrial) -> None:
        trial.report(1, val_acc=0.25, state={"epoch": 1})
        note("ending")
        if handler == "of the system":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    found = boundaries(train, job(0), watch=watch)
    assert not [one for boundary in found for one in boundary.ended]
    assert [view.epoch for view in found[-1].running] == [1.0]


def test_a_worker_that_cannot_write_leaves_no_loop_behind(tmp_path: Path) -> None:
    tidied = Noted(tmp_path)

    def train(trial: OwnTrial) -> None:
        try:
            reports(*[{"val_acc": 0.5}] * 4)(trial)
        finally:
            tidied.add("tidied up")

    found = own(train).train([job()], lambda n: [], Watch())
    view: View = next(iter(found)).running[0]
    assert view.epoch == 1.0
    del found
    assert "tidied up" in tidied


@pytest.mark.parametrize("name", ["n_classes", "n_val"])
def test_a_count_that_is_none_is_refused_where_it_is_set(name: str) -> None:
    def sets(value: Any) -> Callable[[OwnTrial], None]:
        def train(trial: OwnTrial) -> None:
            setattr(trial, name, value)
            trial.report(1, val_acc=0.5)

        return train

    for value in ("ten", 2.5, 0, [10]):
        found = outcome(sets(value))
        assert (
            found.state is TrialState.FAILED
            and f"trial.{name} = {value!r}: a whole number" in str(found.reason)
        )
    assert (
        getattr(outcome(sets(np.int64(10))), name) == 10
        and getattr(outcome(sets(None)), name) is None
    )


def test_what_a_loop_makes_of_its_trial_fails_it_and_not_the_worker() -> None:
    def again(trial: OwnTrial) -> None:
        for _ in range(2):
            trial.epoch = 0
            trial.report(1, val_acc=0.5)

    broken, sound = job(0), job(1)

    def train(trial: OwnTrial) -> None:
        again(trial) if trial.id == "coarse-0000" else reports({"val_acc": 0.25})(trial)

    ended = [one for boundary in boundaries(train, broken, sound) for one in boundary.ended]
    assert [one.state for one in ended] == [TrialState.FAILED, TrialState.COMPLETED]
    assert "its report cannot be processed: ValueError: epoch 1 after epoch 1" in str(
        ended[0].reason
    ) and "Traceback" in str(ended[0].traceback)


def test_a_configuration_that_a_loop_has_replaced_is_no_harm() -> None:
    def train(trial: OwnTrial) -> None:
        trial.hp = {**trial.hp}  # type: ignore[assignment]
        trial.report(1, val_acc=0.5)

    assert outcome(train).state is TrialState.COMPLETED

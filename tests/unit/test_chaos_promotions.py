"""What the chaos witnesses see of promotions. Each defect is planted once and found by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.chaos import promotion_witness
from tests.chaos.arena import Arena
from tests.chaos.witnesses import Account
from tests.unit import ended_search
from tests.unit.ended_search import FIRST, LATER, LEFT, Original, Scene

Plants = dict[str, tuple[Callable[[Scene], object], str]]
NOT_OURS = "a file that nobody should have written"


@pytest.fixture(scope="module")
def original() -> Iterator[Original]:
    with ended_search.original() as made:
        yield made


@pytest.fixture
def scene(original: Original, tmp_path: Path) -> Iterator[Scene]:
    with original.copied(tmp_path) as copied:
        yield copied


def test_the_search_has_what_is_to_be_seen(scene: Scene) -> None:
    ends = {trial.id: (trial.passed, trial.epochs) for trial in scene.calm.trials}
    assert (ends[FIRST], ends[LATER], ends[LEFT]) == (((1.0,), 3.0), ((1.0,), 3.0), ((), 1.0))
    named = {stage: scene.read(scene.decision(stage))["trials"] for stage in ("coarse", "fine")}
    assert FIRST in named["coarse"] and LATER in named["fine"] and LATER not in named["coarse"]
    assert scene.state().exists() and not scene.state(FIRST).exists()
    assert scene.findings() == []


# -- decisions -------------------------------------------------------------------------------------


def named(change: Callable[[list[str]], list[str]], scene: Scene, stage: str = "coarse") -> None:
    """Changes whom a decision names."""
    path = scene.decision(stage)
    scene.rewrite(path, trials=change(scene.read(path)["trials"]))


def in_two_parts(scene: Scene) -> None:
    second = scene.decision().with_name("epochs=3-part=2.json")
    shutil.copy(scene.decision(), second)
    scene.rewrite(scene.decision(), complete=False)
    scene.rewrite(second, trials=[FIRST])


def to_an_epoch_of_no_rung(scene: Scene) -> None:
    shutil.copy(scene.decision(), scene.decision().with_name("epochs=2-part=1.json"))


def put(name: str, scene: Scene) -> None:
    scene.decision().with_name(name).write_text("")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DECISIONS: Plants = {
    "a trial twice": (
        partial(named, lambda trials: [*trials, FIRST]),
        r"double: coarse 3: promoted twice: \['coarse-0000'\]",
    ),
    "a trial in two parts": (in_two_parts, r"double: coarse 3: promoted twice: \['coarse-0000'\]"),
    "a trial by two stages": (
        partial(named, lambda trials: [*trials, FIRST], stage="fine"),
        r"double: coarse-0000: was promoted in fine 3, without faults it is not",
    ),
    "a trial that is lost": (
        partial(named, lambda trials: [trial for trial in trials if trial != LATER], stage="fine"),
        rf"lost: {LATER}: was not promoted in fine 3",
    ),
    "another instead: who came": (
        partial(named, lambda trials: [LEFT if trial == FIRST else trial for trial in trials]),
        rf"double: {LEFT}: was promoted in coarse 3, without faults it is not",
    ),
    "another instead: who did not": (
        partial(named, lambda trials: [LEFT if trial == FIRST else trial for trial in trials]),
        r"lost: coarse-0000: was not promoted in coarse 3",
    ),
    "nobody's trial": (
        partial(named, lambda trials: [*trials, "coarse-0099"]),
        r"double: coarse-0099: was promoted in coarse 3",
    ),
    "no decision": (
        lambda scene: scene.decision().unlink(),
        r"lost: coarse-0000: was not promoted in coarse 3",
    ),
    "an open decision": (
        lambda scene: scene.rewrite(scene.decision(), complete=False),
        r"lost: the decision coarse 3 is not whole",
    ),
    "a part that is missing": (
        lambda scene: scene.decision().rename(scene.decision().with_name("epochs=3-part=2.json")),
        r"lost: the decision coarse 3 is not whole: parts \['?2",
    ),
    "half a decision": (
        lambda scene: half(scene.decision()),
        r"epochs=3-part=1.json: not a whole decision",
    ),
    "a decision without its trials": (
        lambda scene: scene.decision().write_text("{}"),
        r"epochs=3-part=1.json: not a whole decision",
    ),
    "another search's decision": (
        lambda scene: scene.rewrite(scene.decision(), search_id="f" * 16),
        r"lost: coarse-0000: was not promoted in coarse 3",
    ),
    "a budget of no rung": (
        to_an_epoch_of_no_rung,
        r"double: coarse-0000: was promoted in coarse 2, without faults it is not",
    ),
    "a file among the decisions": (
        partial(put, "epochs=3.json"),
        rf"promotions/epochs=3.json: {NOT_OURS}",
    ),
    "a damaged decision set aside": (
        partial(put, "epochs=3-part=1.json.damaged"),
        rf"damaged: {NOT_OURS}",
    ),
    "a temporary file of a decision": (
        partial(put, ".tmp-1-a"),
        r"promotions/.tmp-1-a: a temporary file left over",
    ),
}

# -- budgets, in Redis and in the records ----------------------------------------------------------


def configured(trial: str, epochs: float, passed: list[float], scene: Scene) -> None:
    """Gives a trial another budget in Redis."""

    def changed(stored: str) -> str:
        own = json.loads(stored)
        own[3], own[7] = epochs, passed
        return json.dumps(own)

    scene.change("trials", trial, changed)


def once_more(scene: Scene, trial: str = FIRST, attempt: int = 2, **new: Any) -> None:
    """Another attempt with a record, after the last one."""
    later = scene.record(trial, attempt + 1)
    shutil.copy(scene.record(trial, attempt), later)
    scene.rewrite(later, **{"attempt": attempt + 1, **new})


def curves(change: Callable[[dict[str, list[Any]]], dict[str, list[Any]]], scene: Scene) -> None:
    scene.rewrite(scene.record(), curves=change(scene.read(scene.record())["curves"]))


BUDGETS: Plants = {
    "a budget that shrank in Redis": (
        partial(configured, FIRST, 1.0, []),
        r"coarse-0000: Redis has promoted it to \[1.0\] epochs, without faults to \[1.0, 3.0\]",
    ),
    "a budget that grew in Redis": (
        partial(configured, LEFT, 3.0, [1.0]),
        rf"{LEFT}: Redis has promoted it to \[1.0, 3.0\] epochs, without faults to \[1.0\]",
    ),
    "a rung that was passed over": (
        partial(configured, FIRST, 3.0, []),
        r"coarse-0000: Redis has promoted it to \[3.0\] epochs",
    ),
    "a budget that shrank": (
        partial(once_more, budget_epochs=1.0, passed=[]),
        r"coarse-0000: its budget shrank from one attempt to the next: \[1.0, 3.0, 1.0\]",
    ),
    "a promoted trial without its last record": (
        lambda scene: scene.record().unlink(),
        r"lost: coarse-0000: has no record of the rungs \[3.0\]",
    ),
    "a promoted trial without its first record": (
        lambda scene: scene.record(attempt=1).unlink(),
        r"lost: coarse-0000: has no record of the rungs \[1.0\]",
    ),
    "a trial that nobody promoted": (
        partial(once_more, trial=LEFT, attempt=1, budget_epochs=3.0, passed=[1.0]),
        rf"double: {LEFT}: trained to \[3.0\] epochs, without faults to \[1.0\]",
    ),
    "a trial that went too far": (
        partial(once_more, budget_epochs=9.0, passed=[1.0, 3.0]),
        r"double: coarse-0000: trained to \[9.0\] epochs, without faults to \[1.0, 3.0\]",
    ),
    "a rung with two results": (
        partial(once_more, value=0.1),
        r"double: coarse-0000: has records of 3 epochs that differ: \{(0.9, 0.1|0.1, 0.9)\}",
    ),
    "another way to the rung": (
        lambda scene: scene.rewrite(scene.record(), passed=[2.0]),
        r"coarse-0000 attempt 2: was promoted by way of \[2.0\]",
    ),
    "no way to the rung": (
        lambda scene: scene.rewrite(scene.record(), passed=[]),
        r"attempt 2: was promoted by way of \[\]",
    ),
    "a result of the rung before": (
        lambda scene: scene.change(
            "results", FIRST, lambda result: result.replace('"rung":1', '"rung":0')
        ),
        r"double: coarse-0000 attempt 2: two results count, .*'rung'",
    ),
    "curves that do not go on": (
        partial(curves, lambda own: own | {"val_acc": [0.5, *own["val_acc"][1:]]}),
        r"coarse-0000 attempt 2: its curves do not go on where attempt 1 ended",
    ),
    "curves of the last rung alone": (
        partial(curves, lambda own: {name: values[1:] for name, values in own.items()}),
        r"coarse-0000 attempt 2: its curves do not go on where attempt 1 ended",
    ),
    "a curve that is gone": (
        partial(
            curves, lambda own: {name: values for name, values in own.items() if name != "val_acc"}
        ),
        r"coarse-0000 attempt 2: its curves do not go on where attempt 1 ended",
    ),
    "an epoch told twice": (
        partial(curves, lambda own: {name: [values[0], *values] for name, values in own.items()}),
        (
            r"coarse-0000 attempt 2: its curves tell of an epoch twice, or go back: \[1.0, "
            r"1.0, 2.0, 3.0\]"
        ),
    ),
}

# -- states to go on from --------------------------------------------------------------------------


def saved(trial: str, attempt: int, scene: Scene) -> None:
    shutil.copy(
        scene.state(),
        scene.root / "chaos" / trial.partition("-")[0] / "resume" / f"{trial}-try={attempt}.pt",
    )


def as_if_it_had(state: str, scene: Scene) -> None:
    """The record of a trial whose state is kept says that it ended otherwise."""
    scene.rewrite(scene.record(LEFT, 1), state=state)


FOR_GOOD = "the resume state of a trial that has ended for good"
STATES: Plants = {
    "a state of a promoted trial": (
        partial(saved, FIRST, 2),
        rf"resume/coarse-0000-try=2.pt: {FOR_GOOD}",
    ),
    "a state from before its promotion": (
        partial(saved, FIRST, 1),
        rf"resume/coarse-0000-try=1.pt: {FOR_GOOD}",
    ),
    "a state of a trial that exploded": (
        partial(as_if_it_had, "exploded"),
        rf"resume/{LEFT}-try=1.pt: {FOR_GOOD}",
    ),
    "a state of no trial": (
        partial(saved, "coarse-0099", 1),
        r"resume/coarse-0099-try=1.pt: the resume state of no trial that has ended",
    ),
    "a state of no attempt": (
        partial(saved, LEFT, 2),
        rf"resume/{LEFT}-try=2.pt: of an attempt that does not count, 1 does",
    ),
    "half a state": (lambda scene: half(scene.state()), rf"resume/{LEFT}-try=1.pt: cannot be read"),
    "a state that runs code": (
        lambda scene: torch.save(scene.notes.append, scene.state()),
        rf"resume/{LEFT}-try=1.pt: cannot be read",
    ),
    "a state beyond those that may go on": (
        partial(saved, "fine-0014", 1),
        r"fine/resume: states of 10 trials that stand at 1 epochs, 9 may go on",
    ),
}

# -- what a stage has frozen -----------------------------------------------------------------------


def frozen(name: str, old: str, new: str, scene: Scene) -> None:
    path = scene.stages[1] / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


DAMAGED = r"fine: ranges.toml or strategy.json is damaged"
FROZEN: Plants = {
    "other ranges": (
        partial(frozen, "ranges.toml", "16", "17"),
        r"fine: has frozen other ranges than a run without faults",
    ),
    "another parent": (
        partial(frozen, "strategy.json", FIRST, LEFT),
        r"fine: has frozen other strategy than a run without faults",
    ),
    "half the ranges": (lambda scene: half(scene.stages[1] / "ranges.toml"), DAMAGED),
    "half the strategy": (lambda scene: half(scene.stages[1] / "strategy.json"), DAMAGED),
    "no ranges": (lambda scene: (scene.stages[1] / "ranges.toml").unlink(), DAMAGED),
    "no strategy": (lambda scene: (scene.stages[1] / "strategy.json").unlink(), DAMAGED),
}


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        pytest.param(*row, id=f"{where}: {name}")
        for where, rows in (
            ("decision", DECISIONS),
            ("budget", BUDGETS),
            ("state", STATES),
            ("frozen", FROZEN),
        )
        for name, row in rows.items()
    ],
)
def test_what_is_planted_is_found(
    scene: Scene, plant: Callable[[Scene], object], expected: str
) -> None:
    plant(scene)
    found = scene.findings()
    assert any(re.search(expected, finding) for finding in found), found


# -- what is as promised ---------------------------------------------------------------------------


def test_whoever_decides_again_after_a_lost_file_may_name_a_trial_twice(scene: Scene) -> None:
    in_two_parts(scene)
    assert scene.findings() != []
    scene.lost_decisions.add("coarse 3")
    assert scene.findings() == []


@pytest.mark.parametrize(
    "change", [lambda trials: trials[1:], lambda trials: [*trials, LEFT]], ids=["lost", "too many"]
)
def test_a_lost_file_excuses_no_other_promotions(
    scene: Scene, change: Callable[[list[str]], list[str]]
) -> None:
    scene.lost_decisions.add("coarse 3")
    named(change, scene)
    assert any("promoted in coarse 3" in finding for finding in scene.findings())


def test_two_records_of_a_rung_that_say_the_same_are_no_finding(scene: Scene) -> None:
    """As of one who was late and one who took over."""
    first, last = scene.read(scene.record(attempt=1)), scene.read(scene.record())
    attempts = {
        1: {"passed": [], **first},
        2: {"passed": [], **first, "attempt": 2},
        3: {**last, "attempt": 3},
    }
    account = Account(records={FIRST: attempts})
    promotion_witness.look_at_rungs(
        [trial for trial in scene.calm.trials if trial.id == FIRST], account
    )
    assert account.findings == []


# -- what faults go by while a search runs ---------------------------------------------------------


def seen(scene: Scene) -> Any:
    return SimpleNamespace(stages=scene.stages, _budgets={}, record=scene.record)


def test_a_trial_ends_once_at_each_rung_however_many_records_it_has(scene: Scene) -> None:
    assert Arena.ended(seen(scene)) == scene.calm.n_ends == 40
    once_more(scene)
    assert Arena.ended(seen(scene)) == 40
    scene.record(LATER).unlink()
    assert Arena.ended(seen(scene)) == 39


@pytest.mark.parametrize(
    ("trial", "epochs", "is_decided"),
    [(FIRST, 3.0, True), (LATER, 3.0, True), (FIRST, 2.0, False), (LEFT, 3.0, False)],
)
def test_a_promotion_is_decided_where_any_stage_has_a_file_that_says_so(
    scene: Scene, trial: str, epochs: float, is_decided: bool
) -> None:
    assert Arena.is_decided(seen(scene), trial, epochs) is is_decided

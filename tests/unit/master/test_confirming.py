"""Results of a stage that trains the best again.

The tests cover means, both numbers, which trials are as good, and the messages.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence

import pytest
from rich.console import Console
from scipy import stats

from common.folder.record import Record
from common.search.trial import TrialState
from master.results.confirming import Confirmed, confirm, rows, sentence, table, text
from tests.unit.master.made import record

SELECTED = {"fine-0001": 0.9861, "fine-0002": 0.9850, "coarse-0003": 0.9840}
AGAIN = {
    "fine-0001": [0.976, 0.977, 0.978],
    "fine-0002": [0.981, 0.982, 0.983],
    "coarse-0003": [0.950, 0.951, 0.952],
}


def parents() -> list[Record]:
    made = []
    for trial, value in SELECTED.items():
        stage, _, number = trial.partition("-")
        made.append(
            record(int(number), {"hidden": int(number)}, trial=trial, stage=stage, val_acc=value)
        )
    return made


def run(index: int, parent: str, value: float | None, **more: object) -> Record:
    named = {
        "trial": f"sure-{index:04d}",
        "stage": "sure",
        "parents": (parent,),
        "drawn": "repeat",
        "val_acc": value,
    }
    checkpoint = (
        f"val_acc={value:.4f}-trial=sure-{index:04d}-epoch=001-try=1.pt"
        if value is not None
        else None
    )
    return record(index, {"hidden": int(parent[-1])}, **{**named, "checkpoint": checkpoint, **more})


def again(values: dict[str, list[float]] = AGAIN) -> list[Record]:
    pairs = [(parent, value) for parent, own in values.items() for value in own]
    return [run(i, parent, value) for i, (parent, value) in enumerate(pairs)]


def found(records: Sequence[Record] | None = None) -> Confirmed:
    return confirm(again() if records is None else records, parents(), 115)


def drawn(outcome: Confirmed) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(table(outcome))
    console.print(text(outcome, [str(r.checkpoint) for r in again()]))
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


def test_the_best_mean_is_picked_and_not_what_was_selected_first() -> None:
    ranked = found().configurations
    assert [one.trial for one in ranked] == ["fine-0002", "fine-0001", "coarse-0003"]
    assert [one.mean for one in ranked] == pytest.approx([0.982, 0.977, 0.951])
    assert ranked[0].error == pytest.approx(0.001 / math.sqrt(3))
    assert sentence(found()) == (
        "selected 0.9850 over 115 trials; trained again under 3 seeds: 0.9820 on average "
        "(standard error 0.0006)"
    )


def test_a_smaller_loss_is_better_where_the_search_says_so() -> None:
    loss = {"metric": "val_loss", "mode": "min"}
    runs = [
        run(i, parent, None, val_loss=value, **loss)
        for i, (parent, value) in enumerate([("fine-0001", 0.3), ("fine-0002", 0.2)])
    ]
    assert [one.trial for one in found(runs).configurations] == ["fine-0002", "fine-0001"]


def test_the_intervals_are_those_of_a_pooled_t_test() -> None:
    noisy = {
        "fine-0001": [0.97, 0.98, 0.99],
        "fine-0002": [0.975, 0.985, 0.995],
        "coarse-0003": [0.90, 0.91, 0.92],
    }
    outcome = found(again(noisy))
    assert [one.trial for one in outcome.ties] == ["fine-0001"]
    gap = outcome.configurations[1].gap
    assert gap is not None and gap.value == pytest.approx(0.005)
    half = stats.t.ppf(0.975, 6) * 0.01 * math.sqrt(2 / 3)  # each has a standard deviation of 0.01
    assert (gap.low, gap.high) == pytest.approx((0.005 - half, 0.005 + half))
    assert "cannot distinguish it from fine-0001" in drawn(outcome)
    assert found().ties == [] and "All others are worse" in drawn(found())


def test_with_one_seed_nobody_knows_how_sure_it_is() -> None:
    outcome = found(again({parent: own[:1] for parent, own in AGAIN.items()}))
    assert (
        outcome.pick is not None
        and outcome.pick.trial == "fine-0002"
        and outcome.pick.error is None
    )
    assert all(one.gap is None for one in outcome.configurations)
    assert sentence(outcome).endswith("trained again under 1 seed: 0.9810 on average")


def test_a_configuration_that_explodes_under_some_seed_ranks_below() -> None:
    records = again()
    records[3] = run(3, "fine-0002", None, state=TrialState.EXPLODED)
    outcome = found(records)
    assert [one.trial for one in outcome.configurations] == [
        "fine-0001",
        "coarse-0003",
        "fine-0002",
    ]
    assert "2 of 3" in drawn(outcome)
    only = confirm(
        [run(0, "fine-0002", None, state=TrialState.EXPLODED), run(1, "fine-0002", 0.9)],
        parents(),
        115,
    )
    assert "1 of its 2 runs did not end well and is not in the mean" in drawn(only)


def test_nothing_is_confirmed_where_nothing_ended_well() -> None:
    outcome = found(
        [
            run(0, "fine-0001", None, state=TrialState.FAILED),
            run(1, "fine-0001", None, state=TrialState.EXPLODED),
        ]
    )
    assert outcome.pick is None and "nothing is confirmed" in drawn(outcome)
    assert confirm([], [], 0).pick is None


def test_the_single_model_is_the_best_run_of_the_pick_that_has_kept_its_weights() -> None:
    outcome = found()
    names = [str(one.checkpoint) for one in again()]
    assert (
        rows(outcome, names)[0]["best_run"] == "sure-0005"
        and rows(outcome, names)[0]["checkpoint"] == names[5]
    )
    assert rows(outcome, names[:5])[0]["best_run"] == "sure-0004"
    assert (
        rows(outcome, [])[0]["best_run"] == "sure-0005"
        and rows(outcome, [])[0]["checkpoint"] is None
    )
    assert f"Its best single model: sure-0005, val_acc 0.9830, {names[5]}." in drawn(outcome)


def test_both_numbers_are_in_the_table_and_in_the_rows() -> None:
    shown = drawn(found())
    assert all(f"{value:.4f}" in shown for value in [*SELECTED.values(), 0.982, 0.977, 0.951])
    first = json.loads(json.dumps(rows(found(), ()), allow_nan=False))[0]
    assert (first["trial"], first["selected"], first["selected_over"], first["n"]) == (
        "fine-0002",
        0.9850,
        115,
        3,
    )
    assert first["mean"] == pytest.approx(0.982) and first["runs"] == [
        "sure-0003",
        "sure-0004",
        "sure-0005",
    ]


def test_a_narrow_terminal_shows_every_figure_whole() -> None:
    for width, has in ((80, False), (120, True)):
        console = Console(file=io.StringIO(), width=width)
        console.print(table(found(), width))
        written = console.file
        assert isinstance(written, io.StringIO)
        shown = written.getvalue()
        assert (
            "…" not in shown
            and all(len(line) <= width for line in shown.splitlines())
            and ("hidden" in shown) is has
        )
        assert "0.0050 (+0.0030 to +0.0070)" in shown and "coarse-0003" in shown


def test_another_budget_than_at_the_selection_is_told() -> None:
    records = [one.model_copy(update={"budget_epochs": 20.0}) for one in again()]
    assert sentence(found(records)).startswith(
        "selected 0.9850 over 115 trials after 1 epoch; trained again"
    )


def test_a_stage_of_seeds_is_the_same_with_one_configuration() -> None:
    outcome = found(again({"fine-0001": AGAIN["fine-0001"]}))
    assert len(outcome.configurations) == 1
    assert (
        "Confirmed: fine-0001, val_acc selected 0.9861 over 115 trials; trained again "
        "under 3 seeds: 0.9770"
    ) in drawn(outcome)


def test_runs_that_name_no_parent_are_one_configuration() -> None:
    records = [run(i, "fine-0001", value, parents=()) for i, value in enumerate([0.9, 0.92])]
    assert "trained again under 2 seeds: 0.9100" in sentence(confirm(records, [], 0))

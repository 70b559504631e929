"""Searches in ranges in which nothing learns.

The tests check messages, proposed ranges, and what the next stage samples.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import Place, wait_for

pytestmark = pytest.mark.faults

PROPOSED = re.compile(r"^learning_rate = \{ log_uniform = \[(\S+), (\S+)\] \}$", re.MULTILINE)
SENTENCE = "Nothing was learned: "


def ranges(here: Place, stage: str) -> dict[str, Any]:
    return tomllib.loads((here.root / "digits" / stage / "ranges.toml").read_text())


def best_of(here: Place) -> float:
    return max(row["val_acc"] or 0.0 for row in here.rank())


@pytest.mark.parametrize(
    ("low", "high", "word", "code"), [(1e-9, 1e-7, "raise", 0), (1e2, 1e5, "lower", 3)]
)
def test_a_range_far_off_is_told_with_the_direction_and_the_proposed_one_learns(
    here: Place, low: float, high: float, word: str, code: int
) -> None:
    here.write_search(low=low, high=high, trials=16)
    done = here.run("master", "launch", "--stage", "coarse")
    assert done.returncode == code, done.stderr
    out = " ".join(done.stdout.split())
    assert SENTENCE in out and f"{word} learning_rate" in out
    assert "border" not in out and "Most common diagnosis" not in out
    assert "With another range: master launch --stage coarse --replace" in out

    # the same in the ranking, as JSON, among the borders and in the report
    shown = here.run("master", "rank").stdout
    assert SENTENCE in shown and f"{word} learning_rate" in shown
    told = here.rank()[0]["guessing"]
    assert told["direction"] == word and told["sentence"] in shown
    borders = here.run("master", "borders", "--json")
    assert json.loads(borders.stdout) == [] and told["sentence"] in borders.stderr
    assert told["sentence"] in here.run("master", "borders").stdout
    report = here.root / "digits" / "coarse" / "report.html"
    wait_for(report.exists, "the report, which is drawn in the background")
    assert SENTENCE in report.read_text() and "border: " not in report.read_text()

    # the proposal is a line of a search file, and learns
    (found,) = PROPOSED.findall(done.stdout)
    assert [float(end) for end in found] == told["ranges"]["learning_rate"]["log_uniform"]
    here.write_search(low=found[0], high=found[1], trials=16)
    again = here.run("master", "launch", "--stage", "coarse", "--replace")
    assert again.returncode == 0, again.stderr
    assert SENTENCE not in again.stdout and best_of(here) > 0.5
    assert SENTENCE not in here.run("master", "rank").stdout and "guessing" not in here.rank()[0]


def test_the_next_stages_draw_from_the_whole_range_and_say_so(here: Place) -> None:
    here.write_search(low=1e-9, high=1e-7, trials=16)
    done = here.run("master", "launch", "--stage", "all")
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count(SENTENCE) == 2
        and "Noise does not narrow the ranges" in done.stdout
        and "border" not in done.stdout
    )
    for stage in ("coarse", "fine"):
        assert ranges(here, stage)["ranges"]["learning_rate"] == {"log_uniform": [1e-9, 1e-7]}
    assert ranges(here, "coarse")["next"]["ranges"]["weight_decay"] == {"log_uniform": [1e-7, 1e-2]}
    assert {record["drawn"] for record in here.records(stage="fine")} == {"sobol"}
    strategy = json.loads((here.root / "digits" / "fine" / "strategy.json").read_text())
    assert (
        strategy["frozen"]["parents"]
        == strategy["frozen"]["good"]
        == strategy["frozen"]["bad"]
        == []
    )


def test_some_explode_and_the_rest_stay_at_chance(here: Place) -> None:
    file = here.write_search(trials=12)
    file.write_text(
        re.sub(
            r"learning_rate = .*",
            "learning_rate = { choice = [1e-9, 1e-8, 1e3, 1e4] }",
            Path(file).read_text(),
        )
    )
    done = here.run("master", "launch", "--stage", "coarse")
    assert done.returncode == 0, done.stderr
    states = {record["state"] for record in here.records()}
    assert states == {"completed", "exploded"}
    out = " ".join(done.stdout.split())
    assert SENTENCE in out and "trials exploded: move learning_rate" in out
    ((low, high),) = PROPOSED.findall(done.stdout)
    assert 1e-8 < float(low) < 1e-1 < float(high) < 1e3


def test_a_search_that_learns_a_little_is_not_told(here: Place) -> None:
    here.write_search(low=3e-3, high=3e-2, trials=12)
    done = here.run("master", "launch", "--stage", "coarse")
    assert done.returncode == 0, done.stderr
    assert SENTENCE not in done.stdout and SENTENCE not in here.run("master", "rank").stdout

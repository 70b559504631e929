"""`master plan` as a table and as JSON.

It also shows what a budget in minutes buys at a given pace.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.folder.chosen import Chosen
from common.folder.records import SearchFolder
from common.search.search_file import Search, parse_search
from master.run import planning
from master.run.minutes import epochs_within, estimate_s
from master.run.planning import count_epochs, describe_stage, measure_paces, plan, resolve

HEAD = (
    'name = "s"\ntask = "mine.py:Mine"\n[space]\nx = { uniform = [0, 1] }\n'
    "hidden = { choice = [16, 32] }\n"
)
PACES = {1: 1.0, 8: 2.0, 32: 4.0}  # seconds of an epoch of a whole array


@pytest.fixture(autouse=True)
def paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, and a machine whose pace is known."""
    monkeypatch.setattr(planning, "auto_count", lambda resources: 2)
    monkeypatch.setattr(planning, "measure_paces", lambda arguments, say: PACES)


def search(text: str) -> Search:
    return parse_search(HEAD + text)


def chosen(text: str) -> Chosen:
    return Chosen(search(text), HEAD + text, Path(), SearchFolder(Path("checkpoints"), "s"))


def shown(text: str, as_json: bool = False) -> str:
    return plan(chosen(text), [], as_json, pytest.fail)


def test_the_table_has_every_rung_with_its_trials_and_what_they_pay() -> None:
    lines = shown("[budget]\nepochs = 300\n").splitlines()
    assert lines[0] == "search 's'" and lines[1].split() == [
        "stage",
        "kind",
        "trials",
        "epochs",
        "each",
        "paid",
    ]
    rows = [line.split() for line in lines[2:-1]]
    assert rows[:2] == [
        ["coarse", "new", "56", "1", "56"],
        ["best", "go", "on", "19", "1", "to", "2", "19"],
    ]
    assert [row[0] for row in rows if row[0] != "best"] == ["coarse", "middle", "fine", "finer"]
    assert (
        sum(float(row[-1]) for row in rows)
        == count_epochs(search("[budget]\nepochs = 300\n"))
        <= 300
    )
    assert lines[-1].startswith("115 trials, 281 epochs in all; about ") and lines[-1].endswith(
        " with 2 local workers"
    )


def test_where_promotions_cannot_resume_every_rung_pays_its_epochs_anew() -> None:
    text = "[budget]\nepochs = 300\n[strategy]\nresumes = false\n"
    rows = [line.split() for line in shown(text).splitlines()[2:-1]]
    assert not any("to" in row for row in rows)
    assert sum(float(row[-1]) for row in rows) == count_epochs(search(text)) <= 300


def test_following_stages_are_shown_by_their_kind() -> None:
    own = '[stages.sure]\nkind = "confirm"\nepochs = 20\n'
    lines = shown(f"[budget]\nepochs = 300\n{own}").splitlines()
    assert lines[-2].split() == ["sure", "confirm", "15", "20", "300"] and lines[-1].startswith(
        "130 trials, 581 epochs"
    )


def test_the_json_says_the_same_for_scripts() -> None:
    told = json.loads(shown("[budget]\nepochs = 300\n", as_json=True))
    assert list(told) == ["search", "stages", "epochs", "expected_s", "workers"]
    assert told["stages"][1] == {
        "stage": "middle",
        "kind": "search",
        "rungs": [1.0, 2.0, 7.0],
        "trials": [39, 13, 4],
        "repeats": 1,
        "epochs": 72.0,
    }
    assert (told["search"], told["workers"], told["epochs"]) == ("s", 2, 281.0)
    assert (
        told["epochs"] == sum(stage["epochs"] for stage in told["stages"])
        and told["expected_s"] > 0
    )


def test_configurations_under_several_seeds_are_shown_as_such() -> None:
    text = "[budget]\nepochs = 300\nrepeats = 3\n"
    rows = [line.split("  ") for line in shown(text).splitlines()[2:-1]]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[:2] == [
        ["coarse", "new", "26 x 3", "1", "78"],
        ["best go on", "9 x 3", "1 to 2", "27"],
    ]
    assert sum(float(row[-1]) for row in cells) == count_epochs(search(text)) <= 300
    told = json.loads(shown(text, as_json=True))["stages"][0]
    assert (told["trials"][0], told["repeats"]) == (78, 3)


def test_without_a_pace_the_plan_is_shown_and_the_time_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "measure_paces", lambda arguments, say: {})
    assert shown("[budget]\nepochs = 300\n").endswith(
        "115 trials, 281 epochs in all; expected time unknown"
    )
    assert json.loads(shown("[budget]\nepochs = 300\n", as_json=True))["expected_s"] is None


@pytest.mark.parametrize(
    ("minutes", "paces"), [(5, PACES), (60, PACES), (30, {1: 0.01}), (20, {1: 1.0, 8: 8.0})]
)
def test_minutes_come_to_as_many_epochs_as_fit_into_them(
    minutes: float, paces: dict[int, float]
) -> None:
    own = search(f"[budget]\nminutes = {minutes}\n")
    epochs = epochs_within(own, paces)

    def seconds(total: float) -> float:
        planned = resolve(search(f"[budget]\nepochs = {total}\n"), paces)
        return estimate_s([stage.plan for stage in planned.stages], paces, 2, planned)

    assert seconds(epochs) <= 60 * minutes * 1.01 and seconds(1.2 * epochs) > 60 * minutes
    found = resolve(own, paces)
    assert count_epochs(found) <= epochs + 1 and [s.plan for s in found.stages] == [
        s.plan for s in resolve(own, paces).stages
    ]


def test_twice_the_time_or_twice_the_pace_are_about_twice_the_epochs() -> None:
    one = epochs_within(search("[budget]\nminutes = 30\n"), PACES)
    assert epochs_within(search("[budget]\nminutes = 60\n"), PACES) > 1.5 * one
    assert (
        epochs_within(search("[budget]\nminutes = 30\n"), {w: s / 2 for w, s in PACES.items()})
        > 1.5 * one
    )


def test_a_stage_that_confirms_stays_behind_what_the_minutes_plan() -> None:
    found = resolve(
        search('[budget]\nminutes = 10\n[stages.sure]\nkind = "confirm"\nepochs = 20\n'), PACES
    )
    assert found.stages[-1].name == "sure" and found.stages[0].name == "coarse"


def test_minutes_without_a_pace_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"\[budget\] minutes = 5: the time of an epoch is unknown .* give epochs "
            r"= or full"
        ),
    ):
        epochs_within(search("[budget]\nminutes = 5\n"), {})


def test_minutes_that_pay_for_no_search_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"\[budget\] minutes = 0.1: 3 trainings of max_epochs = 20 already take about .* "
            r"allow more"
        ),
    ):
        epochs_within(search("[budget]\nminutes = 0.1\n"), PACES)


def test_more_workers_and_a_faster_machine_need_less_time() -> None:
    own = search("[budget]\nepochs = 300\n")
    plans = [stage.plan for stage in own.stages]
    assert (
        estimate_s(plans, PACES, 1, own)
        > estimate_s(plans, PACES, 2, own)
        > estimate_s(plans, PACES, 8, own)
    )
    assert estimate_s(plans, PACES, 2, own) > estimate_s(
        plans, {w: s / 2 for w, s in PACES.items()}, 2, own
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[budget]\nepochs = 300\n", "56 new trials of 1 epoch, 19 to 2"),
        ("[stages.coarse]\ntrials = 200\nepochs = 1\n", "200 trials of 1 epoch"),
        ("[stages.coarse]\ntrials = 3\nepochs = 0.5\n", "3 trials of 0.5 epochs"),
        (
            "[stages.coarse]\ntrials = 3\nepochs = 1\nrepeats = 2\n",
            "6 trials of 1 epoch, each configuration under 2 seeds",
        ),
    ],
)
def test_a_stage_in_words(text: str, told: str) -> None:
    assert describe_stage(search(text).stages[0]) == told


@pytest.mark.parametrize(
    ("stdout", "stderr", "told"),
    [
        (
            "",
            "warning\nerror: mine.py: no such file\n",
            "how long an epoch takes is unknown: mine.py: no such file",
        ),
        ("[1]", "", "how long an epoch takes is unknown: its process ended with exit status 1"),
        ("{}x", "error: no data\n", "how long an epoch takes is unknown: no data"),
        ('{"1": null}', "error: no data\n", "how long an epoch takes is unknown: no data"),
    ],
)
def test_a_pace_that_cannot_be_measured_is_told_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, stdout: str, stderr: str, told: str
) -> None:
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, 1, stdout, stderr),
    )
    said: list[str] = []
    assert measure_paces(["--search", "s"], said.append) == {} and said == [told]
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, 0, '{"1": 0.5, "8": 1.0}', ""),
    )
    assert measure_paces([], pytest.fail) == {1: 0.5, 8: 1.0}


def test_how_the_process_that_measures_the_pace_crashed_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for code, told in (
        (-11, "was ended by SIGSEGV: line 3 in model"),
        (0, "ended with exit status 0: line 3 in model"),
    ):
        done = subprocess.CompletedProcess([], code, "", "Fatal\nline 3 in model\n")
        monkeypatch.setattr(subprocess, "run", lambda command, done=done, **_: done)
        said: list[str] = []
        assert measure_paces([], said.append) == {} and said == [
            f"how long an epoch takes is unknown: its process {told}"
        ]


def test_a_pace_that_takes_too_long_to_measure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", slow)
    said: list[str] = []
    assert measure_paces([], said.append) == {} and said == [
        "how long an epoch takes is unknown: no answer within 300 s"
    ]

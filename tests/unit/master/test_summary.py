from __future__ import annotations

import shlex

import pytest
from rich.console import Console, RenderableType

from common.diagnosis import SUGGESTIONS, DiagnosisWord
from common.record import Diagnosis
from common.space import Space
from common.trial import TrialState
from master.borders import borders
from master.stages import propose
from master.summary import best_line, border_lines, change, counts, diagnosis_line, next_command, stage_end
from tests.unit.master.made import COARSE, FINE, exploded, peak, ranking, record, sampled

SPACE = Space.parse({"learning_rate": {"log_uniform": [1e-6, 1e-3]}, "hidden": {"choice": [32, 64, 128]}, "optimizer": "sgd"})


def drawn(renderable: RenderableType) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_end_of_a_stage_says_all_and_fits_80_columns() -> None:
    records = [*sampled(SPACE, peak(0.1)), *exploded([1e-3] * 7)]
    found, proposal = borders(records, SPACE), propose(records, SPACE, SPACE, COARSE, FINE)
    text = drawn(stage_end(records, found, SPACE, proposal, next_command("fine", {"--search": "digits"})))
    assert "207 trials ended: 200 completed, 7 exploded" in text
    assert text.index("coarse-") < text.index("selected over 200 trials") < text.index("border: the best learning_rate")
    assert "learning_rate  log_uniform [1e-06, 0.001] -> [" in text
    assert "moved past it" in text and "hidden  choice [32, 64, 128]" in text
    assert "Next: master launch --stage fine --search digits" in text
    assert sum(line.split()[1:2] != [] and line.split()[1].startswith("coarse-") for line in text.splitlines()) >= 10
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "\x1b" not in text


def test_the_best_is_told_with_the_search_s_own_metric() -> None:
    records = [record(i, {"x": 1}, metric="val_mae", mode="min", value=2.5 + i) for i in range(3)]
    assert best_line(records).plain.startswith("Best: coarse-0000, val_mae 2.5000, selected over 3 trials")


def test_after_the_last_stage_there_is_no_next_one() -> None:
    records = sampled(SPACE, peak(1e-4), n=20)
    text = drawn(stage_end(records, borders(records, SPACE), SPACE))
    assert "Next:" not in text and "next stage" not in text
    assert "selected over 20 trials" in text


def test_a_stage_without_a_completed_trial_says_so_without_a_best_one() -> None:
    text = drawn(stage_end(exploded([1e-3] * 3), [], SPACE))
    assert "3 trials ended: 3 exploded" in text and "Best" not in text
    assert str(best_line(exploded([1e-3]))) == "No trial completed, so there is no best one."


def test_no_trials_at_all() -> None:
    assert str(counts([])) == "0 trials ended: none"
    assert drawn(stage_end([], [], SPACE)).strip() == "0 trials ended: none"


def test_the_commonest_reason_of_failures_is_told() -> None:
    failures = [record(i, {}, state=TrialState.FAILED, reason="RuntimeError: [red] no\nmore") for i in range(3)]
    other = record(9, {}, state=TrialState.FAILED, reason="ValueError: x")
    assert "3 failed: RuntimeError: [red] no\n" in drawn(counts([*failures, other]))
    long = "TaskError: the model makes (64, 5) of 64 examples; logits of shape (64, 3) are needed, so correct the last layer"
    assert long in str(counts([record(0, {}, state=TrialState.FAILED, reason=long)]))  # with the remedy, which stands last


def test_a_single_trial_was_not_selected() -> None:
    assert "selected" not in str(best_line(ranking([1e-4])))


def test_no_border_is_told_as_such() -> None:
    assert "No best value" in str(border_lines([]))


def test_changes_are_shown_old_to_new() -> None:
    other = Space.parse(
        {"learning_rate": {"log_uniform": [1e-4, 1e-3]}, "hidden": {"choice": [64]}, "optimizer": "sgd"},
    )
    old, new = SPACE.parameters, other.parameters
    assert change(old["learning_rate"], new["learning_rate"]) == "log_uniform [1e-06, 0.001] -> [0.0001, 0.001]"
    assert change(old["hidden"], new["hidden"]) == "choice [32, 64, 128] -> [64]"
    assert change(old["optimizer"], new["optimizer"]) == "fixed sgd"


@pytest.mark.parametrize("path", ["search.toml", "my search.toml", "/a/" + "long/" * 20 + "it's.toml"])
def test_the_command_survives_a_shell(path: str) -> None:
    command = next_command("fine", {"--config": path, "--redis": None})
    assert shlex.split(command.replace("\\\n", " ")) == ["master", "launch", "--stage", "fine", "--config", path]
    assert "\\\n" not in command or len(path) > 60


def test_the_commonest_diagnosis_is_named_with_what_it_suggests() -> None:
    words = ["still improving", "overfitting", "still improving", "a word of a later version"]
    records = [record(i, {}, val_acc=0.5, diagnosis=Diagnosis(word=word, sentence=".")) for i, word in enumerate(words)]
    records.append(record(9, {}, state=TrialState.KILLED))
    told = "Most common diagnosis: still improving (2 of 4): train longer."
    assert told in drawn(stage_end(records, [], SPACE))
    assert str(diagnosis_line(records[3:])) == "Most common diagnosis: a word of a later version (1 of 1)."
    assert diagnosis_line(records[4:]) is None


def test_every_word_suggests_something_in_one_line() -> None:
    assert set(SUGGESTIONS) == set(DiagnosisWord)
    for word in DiagnosisWord:
        records = [record(i, {}, diagnosis=Diagnosis(word=word, sentence=".")) for i in range(100)]
        assert len(str(diagnosis_line(records))) <= 80

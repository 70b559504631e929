from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from common.diagnosis import SUGGESTIONS, DiagnosisWord
from common.folder.record import Diagnosis, Record
from common.search.space import Space
from common.search.stage import Stage
from common.search.trial import TrialState
from master.report.kinds import REPORTS
from master.report.lines import Ended, best_line, border_lines, counts, diagnosis_line
from master.report.summary import change, next_command, stage_between, stage_end
from master.stages.standings import make_seen
from master.strategy.borders import Border, borders
from master.strategy.box import Proposal, propose
from master.strategy.guessing import guessing
from tests.unit.master.made import COARSE, exploded, peak, ranking, record, sampled, searching

SPACE = Space.parse(
    {
        "learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "hidden": {"choice": [32, 64, 128]},
        "optimizer": "sgd",
    }
)


def drawn(renderable: RenderableType) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def ended(
    records: Sequence[Record], found: Sequence[Border] = (), whole: Sequence[Record] | None = None
) -> Ended:
    """The first stage has ended; without ``whole`` it is the only one."""
    return Ended(
        searching(SPACE), COARSE, records, records if whole is None else whole, found, SPACE
    )


def proposed(records: Sequence[Record]) -> Proposal:
    return propose(SPACE, SPACE, make_seen(records, {"coarse": 0}, 1.0, {}))


def test_the_end_of_a_stage_says_all_and_fits_80_columns() -> None:
    records = [*sampled(SPACE, peak(0.1)), *exploded([1e-3] * 7)]
    text = drawn(
        stage_end(
            ended(records, borders(records, SPACE)),
            proposed(records),
            next_command("fine", {"--search": "digits"}),
        )
    )
    assert "207 trials ended: 200 completed, 7 exploded" in text
    assert (
        text.index("coarse-")
        < text.index("selected over 200 trials")
        < text.index("border: the best learning_rate")
    )
    assert "learning_rate  log_uniform [1e-06, 0.001] -> [1e-06, 0.0316]" in text
    assert (
        "high end moved from 0.001 to 0.0316: best value on the high border" in text
        and "hidden  choice [32, 64, 128]" in text
    )
    assert "Next: master launch --stage fine --search digits" in text
    assert (
        sum(
            line.split()[1:2] != [] and line.split()[1].startswith("coarse-")
            for line in text.splitlines()
        )
        >= 10
    )
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "\x1b" not in text


def test_the_end_of_a_later_stage_ranks_the_whole_search_and_counts_its_own() -> None:
    before = sampled(SPACE, peak(1e-4), n=30)
    own = [
        record(
            i,
            {"learning_rate": 1e-4},
            trial=f"fine-{i:04d}",
            stage="fine",
            val_acc=0.7,
            budget_epochs=7.0,
        )
        for i in range(3)
    ]
    text = drawn(stage_end(ended(own, whole=[*before, *own])))
    assert text.startswith("3 trials ended: 3 completed")
    assert "Best: fine-0000, val_acc 0.7000, selected over 33 trials" in " ".join(text.split())
    lines = [
        line
        for line in text.splitlines()
        if line.strip()[:1].isdigit() and "-0" in line and "ended" not in line
    ]
    assert [line.split()[1] for line in lines[:3]] == [
        "fine-0000",
        "fine-0001",
        "fine-0002",
    ]  # the longest trained first
    assert len(lines) == 10


def test_where_nothing_was_learned_no_border_is_told_and_the_range_stands_on_a_line_of_its_own(
) -> None:  # fmt: skip
    records = exploded([1e-6 * (i + 1) for i in range(7)])
    nothing = guessing(records)
    text = drawn(
        stage_end(
            replace(ended(records), guessing=nothing), anew="master launch --stage coarse --replace"
        )
    )
    assert "\nlearning_rate = { log_uniform = [1e-12, 1e-06] }\n" in text
    assert "7 of 7 trials exploded: lower learning_rate; try\n" in text
    assert (
        "With another range: master launch --stage coarse --replace" in text
        and "Most common diagnosis" not in text
    )
    lucky = [record(i, {"learning_rate": 1e-6}, val_acc=0.1) for i in range(3)]
    own = replace(ended(lucky, borders(lucky, SPACE)), guessing=nothing)
    assert (
        own.borders
        and "border" not in drawn(stage_end(own))
        and "border" not in drawn(stage_between(own, None))
    )
    assert "Noise does not narrow the ranges" in drawn(stage_between(own, None))


def test_a_border_that_was_told_after_an_earlier_stage_is_only_named() -> None:
    records = sampled(SPACE, peak(0.1))
    found = borders(records, SPACE)
    assert [own.hyperparameter for own in found] == ["learning_rate"]
    own = ended(records, found)
    again = drawn(stage_between(own, None, {border.key for border in found}))
    assert "border: the best" not in again
    assert "Still on the border: learning_rate (high)." in again
    assert "border: the best" in drawn(stage_between(own, None, {("learning_rate", "low")}))


def test_between_two_stages_only_what_is_new_is_said() -> None:
    records = [*sampled(SPACE, peak(0.1)), *exploded([1e-3] * 7)]
    text = drawn(stage_between(ended(records, borders(records, SPACE)), proposed(records)))
    assert (
        text.index("207 trials ended")
        < text.index("Best: coarse-")
        < text.index("border: the best")
        < text.index("-> [1e-06, 0.0316]")
    )
    assert (
        "Next:" not in text and "kept" not in text and "hidden" not in text
    )  # what stays as it is is not listed
    inside = sampled(SPACE, peak(3e-5))
    assert "->" not in drawn(stage_between(ended(inside), proposed(inside)))
    assert "Best" not in drawn(stage_between(ended(exploded([1e-3])), None))


def test_what_the_next_stage_does_is_told_where_it_samples_nothing() -> None:
    def line(**options: object) -> str:
        stage = Stage.model_validate({"name": "sure", "epochs": 2, **options})
        return str(REPORTS[stage.kind].describe_plan(stage, "coarse-0007"))

    assert (
        line(kind="seeds", trials=1)
        == "Stage sure trains coarse-0007 again, 1 time from other initial weights."
    )
    assert line(kind="confirm") == "Stage sure trains the best 5 again, under 3 new seeds each."
    assert (
        line(kind="distill", trials=4)
        == "Stage sure trains coarse-0007 again, 4 times, on what the best models predict together."
    )


def test_the_best_is_told_with_the_search_s_own_metric() -> None:
    records = [record(i, {"x": 1}, metric="val_mae", mode="min", value=2.5 + i) for i in range(3)]
    assert best_line(records).plain.startswith(
        "Best: coarse-0000, val_mae 2.5000, selected over 3 trials"
    )


def test_after_the_last_stage_there_is_no_next_one() -> None:
    records = sampled(SPACE, peak(1e-4), n=20)
    text = drawn(stage_end(ended(records, borders(records, SPACE))))
    assert "Next:" not in text and "next stage" not in text
    assert "selected over 20 trials" in text


def test_a_stage_without_a_completed_trial_says_so_without_a_best_one() -> None:
    text = drawn(stage_end(ended(exploded([1e-3] * 3))))
    assert "3 trials ended: 3 exploded" in text and "Best" not in text
    assert str(best_line(exploded([1e-3]))) == "No trial completed, so there is no best one."


def test_no_trials_at_all() -> None:
    assert str(counts([])) == "0 trials ended: none"
    assert drawn(stage_end(ended([]))).strip() == "0 trials ended: none"


def test_the_commonest_reason_of_failures_is_told() -> None:
    failures = [
        record(i, {}, state=TrialState.FAILED, reason="RuntimeError: [red] no\nmore")
        for i in range(3)
    ]
    other = record(9, {}, state=TrialState.FAILED, reason="ValueError: x")
    assert "3 failed: RuntimeError: [red] no\n" in drawn(counts([*failures, other]))
    long = (
        "TaskError: the model returns (64, 5) for 64 examples; logits of shape (64, 3) are "
        "needed, so correct the last layer"
    )
    assert long in str(
        counts([record(0, {}, state=TrialState.FAILED, reason=long)])
    )  # with the remedy, which stands last


def test_a_single_trial_was_not_selected() -> None:
    assert "selected" not in str(best_line(ranking([1e-4])))


def test_no_border_is_told_as_such() -> None:
    assert "No best value" in str(border_lines([]))


def test_changes_are_shown_old_to_new() -> None:
    other = Space.parse(
        {
            "learning_rate": {"log_uniform": [1e-4, 1e-3]},
            "hidden": {"choice": [64]},
            "optimizer": "sgd",
        },
    )
    old, new = SPACE.parameters, other.parameters
    assert (
        change(old["learning_rate"], new["learning_rate"])
        == "log_uniform [1e-06, 0.001] -> [0.0001, 0.001]"
    )
    assert change(old["hidden"], new["hidden"]) == "choice [32, 64, 128] -> [64]"
    assert change(old["optimizer"], new["optimizer"]) == "fixed sgd"


@pytest.mark.parametrize(
    "path", ["search.toml", "my search.toml", "/a/" + "long/" * 20 + "it's.toml"]
)
def test_the_command_survives_a_shell(path: str) -> None:
    command = next_command("fine", {"--config": path, "--redis": None})
    assert shlex.split(command.replace("\\\n", " ")) == [
        "master",
        "launch",
        "--stage",
        "fine",
        "--config",
        path,
    ]
    assert "\\\n" not in command or len(path) > 60


def test_the_commonest_diagnosis_is_named_with_what_it_suggests() -> None:
    words = ["still improving", "overfitting", "still improving", "a word of a later version"]
    records = [
        record(i, {}, val_acc=0.5, diagnosis=Diagnosis(word=word, sentence="."))
        for i, word in enumerate(words)
    ]
    records.append(record(9, {}, state=TrialState.KILLED))
    told = "Most common diagnosis: still improving (2 of 4): train longer."
    assert told in drawn(stage_end(ended(records)))
    assert (
        str(diagnosis_line(records[3:]))
        == "Most common diagnosis: a word of a later version (1 of 1)."
    )
    assert diagnosis_line(records[4:]) is None


def test_every_word_suggests_something_in_one_line() -> None:
    assert set(SUGGESTIONS) == set(DiagnosisWord)
    for word in DiagnosisWord:
        records = [record(i, {}, diagnosis=Diagnosis(word=word, sentence=".")) for i in range(100)]
        assert len(str(diagnosis_line(records))) <= 80

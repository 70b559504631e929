"""What a launch compares, copies and freezes, on real folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.code import store
from common.errors import ConfigError, TaskError
from common.folder.chosen import Chosen, choose
from common.folder.records import SearchFolder
from common.search.protocol import PROTOCOL
from common.search.search_file import default_text, parse_search
from master.stages.prepare import Launched, find_changes, settle
from master.strategy.ranges import write_frozen
from tests.search_files import staged_text

STAGED = staged_text()


def chosen(root: Path, text: str, base: Path = Path()) -> Chosen:
    search = parse_search(text)
    return Chosen(search, text, base, SearchFolder(root, search.name))


def first(root: Path, text: str = STAGED, base: Path = Path()) -> Launched:
    return settle(chosen(root, text, base), None, None, print)


def launch_coarse(launched: Launched) -> None:
    """As far as the folder shows that the stage has begun."""
    folder = launched.folder.stage("coarse")
    folder.make()
    write_frozen(folder.ranges, launched.search.space)


def test_the_file_as_launched_lies_in_the_folder_with_its_id(tmp_path: Path) -> None:
    launched = first(tmp_path)
    text = launched.folder.search_file.read_text()
    assert text == f'id = "{launched.id}"\nprotocol = {PROTOCOL}\n{STAGED}'  # comments and all
    assert first(tmp_path).id == launched.id
    assert first(tmp_path / "elsewhere").id != launched.id  # two people's "digits" never mix


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seed = 231", "seed = 5", "seed: 231 -> 5"),
        ("[0.0, 0.8]", "[0.0, 0.7]", "[space] dropout"),
        ("depth         = 2", "", "[space] depth: 2 -> not there"),
        ("trials = 200\nepochs = 1", "trials = 199\nepochs = 1", "trials: 200 -> 199"),
        ("trials = 200\nepochs = 1", "trials = 200\nepochs = 2", "epochs: 1 -> 2"),
        ("[stages.coarse]", "[stages.rough]", "[stages]"),
        ("# sampler", "sampler", "sampler: 'staged' -> 'random'"),
        (
            "seed = 231",
            'seed = 231\nmetric = "val_loss"\nmode = "min"',
            "metric: 'val_acc' -> 'val_loss'\n  mode: 'max' -> 'min'",
        ),
        ("epochs = 1\n", "epochs = 1\npatience = 3\n", "[stages.coarse] patience: not there -> 3"),
    ],
)
def test_a_change_after_the_launch_is_shown_and_refused(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    launch_coarse(first(tmp_path))
    before = (tmp_path / "digits" / "search.toml").read_bytes()
    assert old in STAGED
    with pytest.raises(ConfigError) as refusal:
        first(tmp_path, STAGED.replace(old, new, 1))
    assert (
        told in str(refusal.value)
        and "--new-name" in str(refusal.value)
        and "--replace" in str(refusal.value)
    )
    assert (tmp_path / "digits" / "search.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("trials = 200", "trials = 300"),
        ("trials = 50\nepochs = 20", "trials = 40\nepochs = 30"),  # has not been launched yet
        ("# [stragglers]", "[stages.finest]\ntrials = 5\nepochs = 50\n# [stragglers]"),
        ("# A search:", "# My search:"),
    ],
)
def test_more_trials_and_what_has_not_begun_may_change(tmp_path: Path, old: str, new: str) -> None:
    launched = first(tmp_path)
    launch_coarse(launched)
    grown = first(tmp_path, STAGED.replace(old, new, 1))
    assert grown.id == launched.id
    assert grown.folder.search() == grown.search  # workers read it there


BUDGETED = default_text()


def planned(launched: Launched) -> list[str]:
    return [stage.name for stage in launched.search.stages if stage.rungs]


def test_a_budget_s_stages_are_fixed_in_the_folder_at_the_first_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later version may plan otherwise; what was launched stays."""
    launched = first(tmp_path, BUDGETED)
    text = launched.folder.search_file.read_text()
    assert text.startswith(f'id = "{launched.id}"\nprotocol = {PROTOCOL}\n{BUDGETED}')
    assert launched.search.plan and launched.folder.search() == launched.search
    assert [(s.name, s.plan) for s in launched.search.stages] == [
        (s.name, s.plan) for s in parse_search(BUDGETED).stages
    ]
    monkeypatch.setattr("common.search.plan.ETA", 4)
    assert parse_search(BUDGETED).stages != launched.search.stages
    again = first(tmp_path, BUDGETED)
    assert again.search == launched.search and launched.folder.search_file.read_text() == text


def test_more_epochs_add_stages_behind_those_that_were_planned(tmp_path: Path) -> None:
    launched = first(tmp_path, BUDGETED)
    launch_coarse(launched)
    longer = settle(chosen(tmp_path, BUDGETED), None, None, print, more=200.0)
    assert longer.id == launched.id and longer.folder.search() == longer.search
    *before, confirm = launched.search.stages
    n = len(before)
    assert longer.search.stages[:n] == tuple(before) and longer.search.stages[-1] == confirm
    added = longer.search.stages[n:-1]
    assert (
        not {stage.name for stage in added} & set(planned(launched))
        and 0 < sum(s.plan.cost() for s in added) <= 200
    )
    assert planned(first(tmp_path, BUDGETED)) == planned(
        longer
    )  # the same file again neither adds nor takes away
    twice = settle(chosen(tmp_path, BUDGETED), None, None, print, more=200.0)
    assert len(set(planned(twice))) == len(planned(twice)) > len(planned(longer))


def test_more_epochs_say_which_stage_has_not_heard_of_them(tmp_path: Path) -> None:
    launched = first(tmp_path, BUDGETED)
    said: list[str] = []
    settle(chosen(tmp_path, BUDGETED), None, None, said.append, more=200.0)
    assert not said
    launched.folder.stage("confirm").make()
    write_frozen(launched.folder.stage("confirm").ranges, launched.search.space, ["coarse-0000"])
    settle(chosen(tmp_path, BUDGETED), None, None, said.append, more=200.0)
    assert (
        len(said) == 1
        and "stage 'confirm' has begun" in said[0]
        and said[0].endswith("as [stages.confirm2]")
    )


@pytest.mark.parametrize(
    ("text", "more", "told"),
    [
        (
            STAGED,
            300.0,
            (
                r"--more 300: the search lists its stages and has no \[budget\]; add another "
                r"stage to the file"
            ),
        ),
        (
            BUDGETED,
            10.0,
            r"--more 10: is less than one training of max_epochs = 20; add at least 20",
        ),
    ],
)
def test_more_that_cannot_be_added_is_refused_and_changes_nothing(
    tmp_path: Path, text: str, more: float, told: str
) -> None:
    before = first(tmp_path, text).folder.search_file.read_bytes()
    with pytest.raises(ConfigError, match=told):
        settle(chosen(tmp_path, text), None, None, print, more=more)
    assert (tmp_path / "digits" / "search.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("epochs = 300 ", "epochs = 400 ", "budget: "),
        ("max_epochs = 20", "max_epochs = 30", r"\[budget\] max_epochs: 20 -> 30"),
        ("[stragglers]", "[strategy]\nplain = 0.5\n# [stragglers]", "strategy: "),
    ],
)
def test_a_budget_stays_as_it_was_launched(tmp_path: Path, old: str, new: str, told: str) -> None:
    launch_coarse(first(tmp_path, BUDGETED))
    assert old in BUDGETED
    with pytest.raises(ConfigError, match=told):
        first(tmp_path, BUDGETED.replace(f"# {old}" if "[stragglers]" in old else old, new, 1))


def test_stages_that_follow_a_budget_may_be_added_at_its_end(tmp_path: Path) -> None:
    launch_coarse(first(tmp_path, BUDGETED))
    grown = first(tmp_path, f'{BUDGETED}\n[stages.sure]\nkind = "confirm"\nepochs = 20\n')
    assert [stage.name for stage in grown.search.stages][
        -1
    ] == "sure" and grown.folder.search() == grown.search


def test_minutes_that_were_measured_are_what_is_planned(tmp_path: Path) -> None:
    text = BUDGETED.replace("epochs = 300 ", "minutes = 5 ", 1)
    launched = settle(chosen(tmp_path, text), None, None, print, epochs=600.0)
    assert 550 < sum(stage.plan.cost() for stage in launched.search.stages if stage.searches) <= 600
    assert first(tmp_path, text).search == launched.search  # it is not measured again


def test_nothing_differs_from_itself(tmp_path: Path) -> None:
    launched = first(tmp_path)
    launch_coarse(launched)
    assert find_changes(launched.search, launched.search, launched.folder) == []


def test_a_new_name_and_a_replacement(tmp_path: Path) -> None:
    launched = first(tmp_path)
    renamed = settle(chosen(tmp_path, STAGED), "other", None, print)
    assert renamed.search.name == "other" and renamed.id != launched.id
    assert "# the folder below the checkpoint root" in renamed.folder.search_file.read_text()
    launched.folder.path.joinpath("mine").touch()
    said: list[str] = []
    replaced = settle(chosen(tmp_path, STAGED), None, lambda folder: None, said.append)
    assert replaced.id != launched.id and not replaced.folder.path.joinpath("mine").exists()
    assert list(tmp_path.glob(".digits-replaced-*/mine")) and "lies in" in said[0]


def test_a_search_that_has_lost_its_file_is_not_begun_anew(tmp_path: Path) -> None:
    launched = first(tmp_path)
    launched.folder.search_file.unlink()
    again = first(tmp_path)  # nothing had been launched in it
    launch_coarse(again)
    again.folder.search_file.unlink()
    with pytest.raises(ConfigError, match=r"coarse/ranges\.toml.*master recover --config"):
        first(tmp_path)
    assert not again.folder.search_file.exists()
    replaced = settle(chosen(tmp_path, STAGED), None, lambda folder: None, print)
    assert replaced.id != again.id and not replaced.folder.stage("coarse").ranges.exists()


def test_a_launch_of_the_folders_own_file_is_the_same_search(tmp_path: Path) -> None:
    launched = first(tmp_path)
    again = choose(tmp_path, None, "digits", print)
    assert settle(again, None, None, print).id == launched.id


def test_the_users_task_is_copied_and_may_not_change(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    text = STAGED.replace('task = "digits"', 'task = "tasks/my.py:Task"')
    with pytest.raises(TaskError, match=r"tasks/my.py.*no such file.*folder of the search file"):
        first(tmp_path / "root", text, mine)
    (mine / "tasks").mkdir()
    source = mine / "tasks" / "my.py"
    source.write_text("import beside\nclass Task: ...\n")
    (source.parent / "beside.py").write_text("X = 1\n")
    said = list[str]()
    launched = settle(chosen(tmp_path / "root", text, mine), None, None, said.append)
    assert said == ["ships the code of 'tasks/my.py:Task' (2 files, 1 KiB)"]
    digest = store.task_digest(launched.search, launched.folder)
    (copy,) = [path for path in launched.folder.code.iterdir() if path.is_dir()]
    assert {path.name: path.read_text() for path in copy.iterdir()} == {
        "my.py": source.read_text(),
        "beside.py": "X = 1\n",
    }
    assert first(tmp_path / "root", text, mine).id == launched.id
    (source.parent / "beside.py").write_text("X = 2\n")
    (source.parent / "more.py").touch()
    source.write_text("import beside, more\nclass Task: ...\n")
    with pytest.raises(
        ConfigError,
        match=r"differs from what was launched \(changed beside.py, new more.py, changed my.py\); "
        "`master launch --stage NAME --search digits` goes on with the launched code",
    ):
        first(tmp_path / "root", text, mine)
    narrowed = f'code = ["my.py"]\n{text}'  # is no change of the settings; the files count
    with pytest.raises(ConfigError, match=r"\(gone beside.py, changed my.py\)"):
        first(tmp_path / "root", narrowed, mine)
    kept = choose(tmp_path / "root", None, "digits", print)
    assert settle(kept, None, None, print).id == launched.id
    source.unlink()
    assert first(tmp_path / "root", text, mine).id == launched.id  # the folder has the code
    assert store.task_digest(launched.search, launched.folder) == digest


def test_a_class_is_refused_several_gpus_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text("class Task: ...\ndef train(trial): ...\n")
    text = STAGED.replace('task = "digits"', 'task = "my.py:Task"') + "\n[resources]\ngpus = 2\n"
    with pytest.raises(TaskError, match=r"\[resources\] gpus = 2: is for loops and programs"):
        first(tmp_path / "root", text, tmp_path)
    assert not (tmp_path / "root").exists()
    assert (
        first(tmp_path / "root", text.replace(":Task", ":train"), tmp_path).search.resources.gpus
        == 2
    )


def test_the_cpu_may_stand_in_later_but_the_number_of_gpus_stays(tmp_path: Path) -> None:
    text = STAGED.replace('task = "digits"', 'task = { command = "true" }')
    launch_coarse(first(tmp_path, text + "\n[resources]\ngpus = 2\n"))
    later = first(tmp_path, text + "\n[resources]\ngpus = 2\non_cpu = true\n")
    assert later.search.resources.on_cpu and "on_cpu" in later.folder.search_file.read_text()
    with pytest.raises(ConfigError, match=r"\[resources\] gpus: 2 -> 3"):
        first(tmp_path, text + "\n[resources]\ngpus = 3\n")


@pytest.mark.parametrize(
    ("was", "now", "line"),
    [
        ("epochs = 300", "epochs = 300\nrepeats = 2", r"\[budget\] repeats: 1 -> 2"),
        ("max_epochs = 20", "max_epochs = 10", r"\[budget\] max_epochs: 20 -> 10"),
    ],
)
def test_another_budget_is_named_before_its_stages_are_compared(
    tmp_path: Path, was: str, now: str, line: str
) -> None:
    text = default_text()
    assert was in text
    launch_coarse(first(tmp_path, text))
    with pytest.raises(ConfigError, match=rf"launched before with other settings:\n  {line}"):
        first(tmp_path, text.replace(was, now, 1))

"""What a launch compares, copies and freezes, on real folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError, TaskError
from common.records import SearchFolder
from common.search import default_text, parse_search
from common.select import Chosen, choose
from master.prepare import Launched, changed, settle
from master.ranges import write_frozen


def chosen(root: Path, text: str, base: Path = Path()) -> Chosen:
    search = parse_search(text)
    return Chosen(search, text, base, SearchFolder(root, search.name))


def first(root: Path, text: str = default_text(), base: Path = Path()) -> Launched:
    return settle(chosen(root, text, base), None, None, print)


def launch_coarse(launched: Launched) -> None:
    """As far as the folder shows that the stage has begun."""
    folder = launched.folder.stage("coarse")
    folder.make()
    write_frozen(folder.ranges, launched.search.space)


def test_the_file_as_launched_lies_in_the_folder_with_its_id(tmp_path: Path) -> None:
    launched = first(tmp_path)
    text = launched.folder.search_file.read_text()
    assert text == f'id = "{launched.id}"\n{default_text()}'  # comments and all
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
        ("# sampler", "sampler", "sampler: 'random' -> 'sobol'"),
        ("seed = 231", 'seed = 231\nmetric = "val_loss"\nmode = "min"', "metric: 'val_acc' -> 'val_loss'\n  mode: 'max' -> 'min'"),
        ("epochs = 1\n", "epochs = 1\npatience = 3\n", "[stages.coarse] patience: not there -> 3"),
    ],
)
def test_a_change_after_the_launch_is_shown_and_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    launch_coarse(first(tmp_path))
    before = (tmp_path / "digits" / "search.toml").read_bytes()
    assert old in default_text()
    with pytest.raises(ConfigError) as refusal:
        first(tmp_path, default_text().replace(old, new, 1))
    assert told in str(refusal.value) and "--new-name" in str(refusal.value) and "--replace" in str(refusal.value)
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
    grown = first(tmp_path, default_text().replace(old, new, 1))
    assert grown.id == launched.id
    assert grown.folder.search() == grown.search  # workers read it there


def test_nothing_differs_from_itself(tmp_path: Path) -> None:
    launched = first(tmp_path)
    launch_coarse(launched)
    assert changed(launched.search, launched.search, launched.folder) == []


def test_a_new_name_and_a_replacement(tmp_path: Path) -> None:
    launched = first(tmp_path)
    renamed = settle(chosen(tmp_path, default_text()), "other", None, print)
    assert renamed.search.name == "other" and renamed.id != launched.id
    assert "# the folder below the checkpoint root" in renamed.folder.search_file.read_text()
    launched.folder.path.joinpath("mine").touch()
    said: list[str] = []
    replaced = settle(chosen(tmp_path, default_text()), None, lambda folder: None, said.append)
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
    replaced = settle(chosen(tmp_path, default_text()), None, lambda folder: None, print)
    assert replaced.id != again.id and not replaced.folder.stage("coarse").ranges.exists()


def test_a_launch_of_the_folders_own_file_is_the_same_search(tmp_path: Path) -> None:
    launched = first(tmp_path)
    again = choose(tmp_path, None, "digits", print)
    assert settle(again, None, None, print).id == launched.id


def test_the_users_task_is_copied_and_may_not_change(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    text = default_text().replace('task = "digits"', 'task = "tasks/my.py:Task"')
    with pytest.raises(TaskError, match=r"tasks/my.py.*relative to the search file"):
        first(tmp_path / "root", text, mine)
    (mine / "tasks").mkdir()
    source = mine / "tasks" / "my.py"
    source.write_text("class Task: ...\n")
    launched = first(tmp_path / "root", text, mine)
    assert (launched.folder.path / "my.py").read_text() == source.read_text()
    assert first(tmp_path / "root", text, mine).id == launched.id
    source.write_text("class Task: pass\n")
    with pytest.raises(ConfigError, match=r"differs from the code that was launched"):
        first(tmp_path / "root", text, mine)

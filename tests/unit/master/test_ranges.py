from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomlkit

from common.errors import CheckpointError, ConfigError
from common.folder.records import SearchFolder
from common.search.search_file import default_text, parse_search
from common.search.space import Space
from master.stages.source import find_source
from master.strategy.box import Proposal
from master.strategy.ranges import (
    load_ranges,
    read_frozen,
    read_proposal,
    write_frozen,
    write_proposal,
)

SPACE = Space.parse(
    {
        "learning_rate": {"log_uniform": [1e-6, 1e1]},
        "dropout": {"uniform": [0.0, 0.8], "limits": [0.0, 0.9]},
        "depth": {"int_uniform": [1, 4]},
        "hidden": {"choice": [32, 64, 128]},
        "optimizer": "sgd",
        "nesterov": True,
    }
)
NARROW = Space.parse(
    SPACE.plain()
    | {
        "learning_rate": {"log_uniform": [3.1e-4, 0.5]},
        "hidden": {"choice": [64]},
        "depth": {"int_uniform": [2, 4]},
    }
)
NOTES = {
    "learning_rate": "low end cut: the best 20 keep away from it",
    "dropout": "kept",
    "depth": "é\n# [next]",
    "hidden": "dropped 32",
}
PROPOSAL = Proposal(NARROW, NOTES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_frozen(tmp_path / "ranges.toml", SPACE)
    return tmp_path / "ranges.toml"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_frozen_ranges_read_back(path: Path) -> None:
    assert read_frozen(path, SPACE) == SPACE
    assert Space.parse(tomllib.loads(path.read_text())["ranges"]) == SPACE


def test_the_first_launch_counts(path: Path) -> None:
    write_frozen(path, NARROW)
    assert read_frozen(path, SPACE) == SPACE


def test_a_proposal_reads_back_and_leaves_the_frozen_ranges(path: Path) -> None:
    assert read_proposal(path, SPACE) is None
    written = write_proposal(path, "fine", PROPOSAL)
    assert (written.path, written.edited) == (path, False)
    assert read_proposal(path, SPACE) == load_ranges(path, SPACE) == NARROW
    assert read_frozen(path, SPACE) == SPACE


def test_the_file_says_why_and_how_to_use_it(path: Path) -> None:
    write_proposal(path, "fine", PROPOSAL)
    text = path.read_text()
    lines = text.splitlines()
    assert (
        lines[lines.index("learning_rate = {log_uniform = [0.00031, 0.5]}") - 1]
        == f"# {NOTES['learning_rate']}"
    )
    assert "--stage fine samples what is here" in " ".join(text.replace("#", " ").split())
    assert tomllib.loads(text)["next"]["stage"] == "fine"


def test_writing_the_same_proposal_again_changes_nothing(path: Path) -> None:
    write_proposal(path, "fine", PROPOSAL)
    text = path.read_text()
    write_proposal(path, "fine", PROPOSAL)
    assert path.read_text() == text


def test_an_unedited_proposal_is_replaced_by_a_newer_one(path: Path) -> None:
    write_proposal(path, "fine", PROPOSAL)
    write_proposal(path, "fine", Proposal(SPACE, {}))
    assert read_proposal(path, SPACE) == SPACE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[0.00031, 0.5]", "[0.001, 0.5]"),
        ("[0.00031, 0.5]", "[0.00031, 0.5"),  # no TOML any more
        ("[0.00031, 0.5]", "[nan, 'a']"),
        ("[next.ranges]", "[next.rangs]"),
        ("digest = ", "# digest = "),
    ],
)
def test_an_edited_proposal_is_never_overwritten(path: Path, old: str, new: str) -> None:
    write_proposal(path, "fine", PROPOSAL)
    edit(path, old, new)
    edited = path.read_text()
    written = write_proposal(path, "fine", Proposal(SPACE, {"learning_rate": "newer"}))
    assert written.edited and written.path.name == "ranges.proposed.toml"
    assert path.read_text() == edited
    assert load_ranges(written.path, SPACE) == SPACE


def test_an_edit_back_to_the_newer_proposal_needs_no_second_file(path: Path) -> None:
    write_proposal(path, "fine", PROPOSAL)
    edit(path, "[0.00031, 0.5]", "[0.001, 1]")
    agreed = Space.parse(NARROW.plain() | {"learning_rate": {"log_uniform": [1e-3, 1.0]}})
    assert write_proposal(path, "fine", Proposal(agreed, {})).edited is False
    assert not path.with_name("ranges.proposed.toml").exists()


def test_a_comment_of_the_users_is_no_edit_of_the_values(path: Path) -> None:
    write_proposal(path, "fine", PROPOSAL)
    edit(path, "log_uniform = [0.00031, 0.5]", "log_uniform = [3.1e-4, 0.50]")
    assert write_proposal(path, "fine", Proposal(SPACE, {})).edited is False


def test_an_edited_proposal_is_what_the_next_stage_gets(path: Path) -> None:
    write_proposal(path, "fine", PROPOSAL)
    edit(path, "[0.00031, 0.5]", "[0.001, 0.25]")
    assert load_ranges(path, SPACE).numeric["learning_rate"].low == 1e-3


@pytest.mark.parametrize("table", ["ranges", "space"])
def test_a_plain_table_is_taken(tmp_path: Path, table: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        f'[{table}]\noptimizer = "adam"\nnesterov = false\nhidden = {{ choice = [256] }}\n'
        f"depth = {{ int_uniform = [2, 3] }}\n"
        "dropout = { uniform = [0.1, 0.2] }\nlearning_rate = { log_uniform = [1e-3, 1e-2] }\n"
    )
    given = load_ranges(path, SPACE)
    assert list(given.parameters) == list(
        SPACE.parameters
    )  # the order of the search, whatever the file's
    assert given.numeric["dropout"].limits == (0.0, 0.9)  # the user's limits are the search's
    assert given.plain()["optimizer"] == "adam"


WHOLE = {
    "learning_rate": "{ log_uniform = [1e-3, 1e-2] }", "dropout": "{ uniform = [0.1, 0.2] }",
    "depth": "{ int_uniform = [2, 3] }",
    "hidden": "{ choice = [64] }", "optimizer": '"sgd"', "nesterov": "true",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"depht": "1"},
            (
                r"\[ranges\] depht: the search has no such hyperparameter; remove it or use "
                r"one of learning_rate"
            ),
        ),
        (
            {"dropout": ""},
            r"dropout is missing; add dropout = \{uniform = \[0.0, 0.8\], limits = \[0.0, 0.9\]\}",
        ),
        (
            {"learning_rate": "{ uniform = [0.1, 1] }"},
            r"learning_rate = \{uniform.*is log_uniform in the search",
        ),
        ({"hidden": "64"}, r"hidden = 64: is choice in the search; write it the same way"),
        ({"optimizer": '{ choice = ["sgd"] }'}, r"optimizer = .*is fixed in the search"),
        (
            {"dropout": "{ uniform = [0.1, 0.95] }"},
            r"dropout: the range \[0.1, 0.95\] exceeds the limits \[0, 0.9\]",
        ),
        (
            {"depth": "{ int_uniform = [0, 3] }"},
            r"depth: the range \[0, 3\] exceeds the limits \[1, inf\]",
        ),
        (
            {"learning_rate": "{ log_uniform = [1, 0.1] }"},
            r"\[ranges\] learning_rate: the range \[1, 0.1\] is upside down",
        ),
        ({"learning_rate": "{ log_uniform = [nan, 1] }"}, r"not a finite number"),
        ({"learning_rate": "{ log_uniform = [0.1, "}, r"not valid TOML"),
    ],
)
def test_what_does_not_fit_the_search_is_an_error(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[ranges]\n"
        + "".join(f"{name} = {value}\n" for name, value in (WHOLE | change).items() if value)
    )
    with pytest.raises(ConfigError, match=message) as error:
        load_ranges(path, SPACE)
    assert str(error.value).startswith(str(path))


def test_a_file_without_ranges_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="holds none of the tables"):
        load_ranges(path, SPACE)
    with pytest.raises(ConfigError, match="no such file"):
        load_ranges(tmp_path / "missing.toml", SPACE)


@pytest.mark.parametrize(
    ("old", "new"),
    [("[ranges]", "[rangers]"), ("1e-06", "50.0"), ("{log_uniform", "{{log_uniform")],
)
def test_damaged_frozen_ranges_are_an_error_of_the_folder(path: Path, old: str, new: str) -> None:
    edit(path, old, new)
    with pytest.raises(CheckpointError, match="frozen ranges; undo what was changed"):
        read_frozen(path, SPACE)


def test_a_proposal_that_was_edited_into_nonsense_is_an_error(path: Path) -> None:
    write_proposal(path, "fine", PROPOSAL)
    edit(path, "[0.00031, 0.5]", "[-1.0, 0.5]")
    with pytest.raises(
        ConfigError, match=r"\[next.ranges\] learning_rate: the range \[-1, 0.5\] touches zero"
    ):
        read_proposal(path, SPACE)


def test_ranges_of_a_built_in_task_are_vetted_as_its_space_is(tmp_path: Path) -> None:
    search, path = parse_search(default_text()), tmp_path / "mine.toml"
    path.write_text(tomlkit.dumps({"ranges": {**search.space.plain(), "optimizer": "nonsense"}}))
    with pytest.raises(
        ConfigError, match=r'mine.toml: optimizer = "nonsense": use one of sgd, adagrad'
    ):
        find_source(search, SearchFolder(tmp_path, "digits"), search.stages[0], path, print)

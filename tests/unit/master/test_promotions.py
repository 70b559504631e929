"""Decisions in the stage's folder.

They have parts, each part is written once by the first writer, and damage is reported by name.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import CheckpointError
from common.folder.records import SearchFolder
from common.search.stage import Stage
from master.stages.promotions import Decision, read_decisions, write_part

ID, OTHER = "0" * 16, "1" * 16
STAGE = Stage(name="middle", trials=9, epochs=2.0, rungs=(2.0, 6.5, 20.0), keep=(9, 3, 1))
NONE = Decision("middle", 6.5)


@pytest.fixture
def folder(tmp_path: Path) -> SearchFolder:
    return SearchFolder(tmp_path, "digits")


def read(folder: SearchFolder, search: str = ID) -> Decision:
    return read_decisions(folder, search, [STAGE])[0]


def part(folder: SearchFolder, number: int = 1) -> Path:
    return folder.stage("middle").promotions / f"epochs=6.5-part={number}.json"


def test_before_anything_is_decided_every_rung_but_the_first_has_an_empty_decision(
    folder: SearchFolder,
) -> None:
    alone = Stage(name="again", trials=5, epochs=20.0)
    assert read_decisions(folder, ID, [STAGE, alone]) == [NONE, Decision("middle", 20.0)]


def test_parts_add_up_until_the_last_and_read_back(folder: SearchFolder) -> None:
    one = write_part(folder, ID, NONE, ["middle-0004"], complete=False)
    assert one == read(folder) == Decision("middle", 6.5, ("middle-0004",), False, 1)
    both = write_part(folder, ID, one, ["middle-0001", "middle-0008"], complete=True)
    assert (
        both
        == read(folder)
        == Decision("middle", 6.5, ("middle-0004", "middle-0001", "middle-0008"), True, 2)
    )
    assert read_decisions(folder, ID, [STAGE])[1] == Decision("middle", 20.0)
    assert sorted(path.name for path in folder.stage("middle").promotions.iterdir()) == [
        "epochs=6.5-part=1.json",
        "epochs=6.5-part=2.json",
    ]


def test_a_decision_that_nobody_goes_on_is_one(folder: SearchFolder) -> None:
    assert (
        write_part(folder, ID, NONE, [], complete=True)
        == read(folder)
        == Decision("middle", 6.5, (), True, 1)
    )


def test_of_two_masters_the_first_writer_s_part_counts_for_both(folder: SearchFolder) -> None:
    first = write_part(folder, ID, NONE, ["middle-0004"], complete=False)
    before = part(folder).read_bytes()
    assert write_part(folder, ID, NONE, ["middle-0004", "middle-0001"], complete=True) == first
    assert part(folder).read_bytes() == before


def test_a_master_that_lags_behind_catches_up_with_all_parts(folder: SearchFolder) -> None:
    first = write_part(folder, ID, NONE, ["middle-0004"], complete=False)
    whole = write_part(folder, ID, first, ["middle-0001"], complete=True)
    assert write_part(folder, ID, NONE, ["middle-0004"], complete=False) == whole
    assert write_part(folder, ID, first, ["middle-0001", "middle-0002"], complete=True) == whole


def test_a_trial_that_two_parts_name_goes_on_once(folder: SearchFolder) -> None:
    first = write_part(folder, ID, NONE, ["middle-0004"], complete=False)
    assert write_part(folder, ID, first, ["middle-0004", "middle-0001"], complete=True).trials == (
        "middle-0004",
        "middle-0001",
    )


def test_what_follows_a_missing_or_the_last_part_does_not_count(folder: SearchFolder) -> None:
    last = write_part(folder, ID, NONE, ["middle-0004"], complete=True)
    part(folder, 2).write_bytes(part(folder).read_bytes().replace(b"0004", b"0005"))
    assert read(folder) == last
    part(folder).unlink()
    assert read(folder) == NONE


def test_a_decision_of_another_search_of_this_name_is_none_and_gives_way(
    folder: SearchFolder,
) -> None:
    write_part(folder, OTHER, NONE, ["middle-0004"], complete=True)
    before = part(folder).read_bytes()
    assert read(folder) == NONE
    assert (
        write_part(folder, ID, NONE, ["middle-0001"], complete=True)
        == read(folder)
        == Decision("middle", 6.5, ("middle-0001",), True, 1)
    )
    (aside,) = [path for path in part(folder).parent.iterdir() if path != part(folder)]
    assert aside.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 512,
        b'{"format": 1, "search',
        b"[]",
        b'"x"',
        b'{"search_id": "0000000000000000"}',
        b"\xff",
    ],
)
def test_a_damaged_part_is_told_by_name_with_the_remedy(
    folder: SearchFolder, content: bytes
) -> None:
    write_part(folder, ID, NONE, ["middle-0004"], complete=False)
    part(folder).write_bytes(content)
    for ask in (
        lambda: read(folder),
        lambda: write_part(folder, ID, NONE, ["middle-0004"], complete=False),
    ):
        with pytest.raises(CheckpointError) as error:
            ask()
        assert str(error.value).startswith(
            f"{part(folder)}: damaged ("
        ) and "`master recover` sets it aside" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [{"trials": 3}, {"trials": [3]}, {"complete": "yes"}, {"epochs": -1.0}, {"stage": None}],
)
def test_a_part_with_values_of_another_kind_is_damaged(
    folder: SearchFolder, change: dict[str, object]
) -> None:
    write_part(folder, ID, NONE, ["middle-0004"], complete=False)
    part(folder).write_text(json.dumps(json.loads(part(folder).read_text()) | change))
    with pytest.raises(CheckpointError, match=r"part=1\.json: damaged"):
        read(folder)


def test_a_folder_in_a_part_s_place_is_one_message(folder: SearchFolder) -> None:
    part(folder).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"part=1\.json"):
        read(folder)

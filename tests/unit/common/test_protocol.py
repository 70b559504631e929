"""A search that another version launched is refused in one sentence, whatever is in its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import CheckpointError, ConfigError, ProtocolError
from common.folder.chosen import Chosen, choose
from common.folder.records import SearchFolder
from common.search.protocol import FIRST, PROTOCOL
from common.search.search_file import parse_search
from master.stages.prepare import settle
from tests.search_files import staged_text

TEXT = staged_text()
ID = "0123456789abcdef"
OTHER = PROTOCOL + 1


def launched(root: Path, head: str) -> SearchFolder:
    folder = SearchFolder(root, "digits")
    folder.path.mkdir()
    folder.search_file.write_text(f"{head}{TEXT}")
    return folder


def test_what_is_launched_bears_the_number_once(tmp_path: Path) -> None:
    # A copy of a launched file, as users make them.
    copied = f'id = "{ID}"\nprotocol = {PROTOCOL}\n{TEXT}'
    done = settle(
        Chosen(parse_search(copied), copied, tmp_path, SearchFolder(tmp_path, "digits")),
        None,
        None,
        print,
    )
    lines = done.folder.search_file.read_text().splitlines()
    assert lines[:2] == [f'id = "{done.id}"', f"protocol = {PROTOCOL}"] and done.id != ID
    assert sum(line.startswith("protocol") for line in lines) == 1
    assert done.search.protocol == PROTOCOL


@pytest.mark.parametrize("unknown", ["", 'a_key_of_tomorrow = "x"\n'])
def test_another_number_is_told_with_both_before_anything_else_is_read(
    tmp_path: Path, unknown: str
) -> None:
    folder = launched(tmp_path, f'id = "{ID}"\nprotocol = {OTHER}\n{unknown}')
    with pytest.raises(ProtocolError) as caught:
        folder.search()
    told = str(caught.value)
    assert told.startswith(
        f"{folder.search_file}: this program speaks protocol {PROTOCOL}, search 'digits' "
        f"was launched by protocol {OTHER}"
    )
    assert told.endswith("install the same version of coarsefine")
    assert (caught.value.search_id, caught.value.found) == (ID, OTHER)


def test_a_search_without_a_number_is_of_the_first_protocol(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError) as caught:
        launched(tmp_path, f'id = "{ID}"\n').search()
    assert caught.value.found == FIRST != PROTOCOL


@pytest.mark.parametrize("value", ['"2"', "true", "2.5", "[2]"])
def test_what_is_no_number_is_damage(tmp_path: Path, value: str) -> None:
    with pytest.raises(CheckpointError, match="protocol") as caught:
        launched(tmp_path, f'id = "{ID}"\nprotocol = {value}\n').search()
    assert not isinstance(caught.value, ProtocolError)


def test_who_reads_the_records_alone_is_told_by_a_file_of_ones_own_too(tmp_path: Path) -> None:
    folder = launched(tmp_path, f'id = "{ID}"\nprotocol = {OTHER}\n')
    own = tmp_path / "own.toml"
    own.write_text(TEXT)
    with pytest.raises(ProtocolError):
        choose(tmp_path, own, None, print)
    begun = choose(tmp_path, own, None, print, builtin=True)
    with pytest.raises(ProtocolError):
        settle(begun, None, None, print)
    assert settle(begun, "another", None, print).search.protocol == PROTOCOL, (
        "under another name it can be launched"
    )
    folder.search_file.write_text("damaged")
    assert choose(tmp_path, own, None, print).search.name == "digits", (
        "which `master recover` needs"
    )


def test_a_file_of_ones_own_has_no_protocol() -> None:
    assert parse_search(f"protocol = {OTHER}\n{TEXT}").id is None
    with pytest.raises(ConfigError):
        parse_search(f'protocol = "x"\n{TEXT}')

"""Parts of a file that grows: from where the last one ended, whole characters, bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.folder.output import read_part


def test_parts_follow_each_other(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_bytes(b"one\n")
    first = read_part(file, 100)
    assert (first.text, first.begin, first.end, first.size) == ("one\n", 0, 4, 4)
    again = read_part(file, 100, first.end, first.file)
    assert (again.text, again.begin, again.end) == ("", 4, 4)
    with file.open("ab") as more:
        more.write(b"two\nthree\n")
    second = read_part(file, 4, first.end, first.file)
    assert (second.text, second.end, second.size) == ("two\n", 8, 14)
    assert read_part(file, 100, second.end, second.file).text == "three\n"


def test_the_end_of_a_long_file_begins_with_a_line(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_bytes(b"".join(b"line %d\n" % n for n in range(1000)))
    part = read_part(file, 30)
    assert part.text.startswith("line 99") and part.text.endswith("line 999\n")
    assert part.begin + len(part.text) == part.end == part.size


@pytest.mark.parametrize("most", range(4, 12))
def test_no_character_is_cut(tmp_path: Path, most: int) -> None:
    file, text = tmp_path / "log.txt", "aé€😀" * 6
    file.write_text(text, encoding="utf-8")
    found, at = "", 0
    while at < file.stat().st_size:
        part = read_part(file, most, at)
        assert part.end > at
        found, at = found + part.text, part.end
    assert found == text
    end = read_part(file, most)
    assert text.endswith(end.text) and "�" not in end.text


def test_a_file_that_was_replaced_or_cut_is_shown_from_its_end(tmp_path: Path) -> None:
    file, other = tmp_path / "log.txt", tmp_path / "other"
    file.write_bytes(b"x" * 50)
    first = read_part(file, 100)
    other.write_bytes(b"head\n" + b"new\n" * 20)
    other.replace(file)
    part = read_part(file, 20, first.end, first.file)
    assert part.file != first.file and part.text == "new\n" * 4 and part.end == part.size == 85
    file.write_bytes(b"again\n")
    assert read_part(file, 20, part.end, part.file).text == "again\n"


def test_bytes_that_are_no_text_are_shown_as_such_and_do_not_stop_it(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_bytes(b"\xff\xfe\x80ok\xf0")
    part = read_part(file, 100)
    assert "ok" in part.text and part.end == 5, "the last byte may begin a character"
    assert read_part(file, 100, part.end).text == ""

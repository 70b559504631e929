"""Every promise in docs/guarantees.md names tests that exist and run."""

from __future__ import annotations

import textwrap

import pytest

from tests.unit.named_tests import ROOT, named_in, names_of, rows, wrong_names

COLUMNS = 4


def promises() -> str:
    return (ROOT / "docs" / "guarantees.md").read_text()


def test_every_test_that_a_promise_names_exists_and_runs() -> None:
    assert wrong_names(promises()) == []


def test_every_promise_names_a_test() -> None:
    found = rows(promises(), "The promises")
    assert len(found) > 20
    for row in found:
        assert len(row) == COLUMNS and all(row) and named_in(row[-1]), row


def test_a_name_that_is_not_there_is_seen() -> None:
    here = "tests/unit/test_guarantees.py"
    text = (
        f"`{here}::test_a_name_that_is_not_there_is_seen`, `{here}::test_gone`, "
        "`tests/unit/test_gone.py::test_a`"
    )
    assert wrong_names(text) == [f"{here}::test_gone", "tests/unit/test_gone.py::test_a"]


def test_what_is_named_like_a_test_and_is_none_is_seen() -> None:
    helper, file, group = (
        "`tests/unit/test_guarantees.py::promises`",
        "`tests/unit/fuzzing.py::test_a`",
        "`tests/unit/test_wire.py::TestAll`",
    )
    assert wrong_names(f"{helper}, {file}, {group}") == [helper, file, group]


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.skip\ndef test_a(): ...",
        "@pytest.mark.skip(reason='flaky')\ndef test_a(): ...",
        "@pytest.mark.xfail\ndef test_a(): ...",
        "@pytest.mark.xfail(strict=True, reason='later')\ndef test_a(): ...",
        "@pytest.mark.skipif(True, reason='for now')\ndef test_a(): ...",
        "@mark.skip\ndef test_a(): ...",
        "pytestmark = pytest.mark.skip\ndef test_a(): ...",
        "pytestmark = [pytest.mark.faults, pytest.mark.xfail(reason='x')]\ndef test_a(): ...",
        "pytest.skip('not yet', allow_module_level=True)\ndef test_a(): ...",
        "def test_a():\n    pytest.skip('not yet')",
        "def helper():\n    def test_a(): ...",
        "def test_a(): ...\n@pytest.mark.skip\ndef test_a(): ...",
        "class Helper:\n    def test_a(self): ...",
        "@pytest.mark.skip\nclass TestAll:\n    def test_a(self): ...",
        "class TestAll:\n    pytestmark = pytest.mark.skip\n    def test_a(self): ...",
    ],
)
def test_a_test_that_never_runs_shows_nothing(source: str) -> None:
    assert names_of(source) == set()


def test_what_runs_is_counted() -> None:
    source = """
    @pytest.mark.faults
    @pytest.mark.skipif(os.name == "nt", reason="no signals")
    def test_a():
        if not there():
            pytest.skip("no network namespaces")
    class TestAll:
        @pytest.mark.xfail(sys.platform == "darwin", reason="its clock")
        def test_b(self): ...
        def helper(self): ...
    """
    assert names_of(textwrap.dedent(source)) == {"test_a", "TestAll::test_b"}

"""A test that names a version of Redis runs on that version or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.redis_server import VERSIONS, is_of, program, start_redis


@pytest.mark.parametrize(
    ("found", "fits"),
    [
        ("7.0.15", ("7",)),
        ("8.1.1", ("7",)),
        ("6.2.14", ("6.2",)),
        ("6.0.16", ()),
        ("5.0.3", ()),
        ("6.20.1", ()),
        ("", ()),
    ],
)
def test_which_server_may_stand_for_which_version(found: str, fits: tuple[str, ...]) -> None:
    assert tuple(version for version in VERSIONS if is_of(found, version)) == fits


@pytest.mark.parametrize("version", VERSIONS)
def test_the_server_that_answers_is_the_one_in_the_name(version: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="cf-") as folder,
        start_redis(Path(folder), version) as server,
        server.client() as client,
    ):
        assert is_of(str(client.info("server")["redis_version"]), version)


def test_another_version_that_answers_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    other = program("6.2")
    monkeypatch.setattr("tests.redis_server.program", lambda version: other)
    with (
        tempfile.TemporaryDirectory(prefix="cf-") as folder,
        pytest.raises(AssertionError, match=r"Redis 6\.2\.\d+ answers where 7 is wanted"),
        start_redis(Path(folder), "7"),
    ):
        pass


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_a_version_that_is_not_there_is_left_out_and_in_ci_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no redis-server 7"):
        program("7")
    assert program("6.2") == program()  # the wheel's own

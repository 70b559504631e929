"""Which versions of a server let scripts out of their sandbox."""

from __future__ import annotations

import pytest

from common.broker.sandbox import remedy_of


@pytest.mark.parametrize(
    ("program", "version", "remedy"),
    [
        ("Redis", "5.0.14", "6.2.20"),
        ("Redis", "6.0.20", "6.2.20"),  # branches that have ended have no version of their own
        ("Redis", "6.2.19", "6.2.20"),
        ("Redis", "6.2.20", None),
        ("Redis", "6.2.21", None),
        ("Redis", "7.0.15", "7.2.11"),
        ("Redis", "7.2.4", "7.2.11"),
        ("Redis", "7.2.11", None),
        ("Redis", "7.4.5", "7.4.6"),
        ("Redis", "7.4.6", None),
        ("Redis", "7.9.240", "8.0.4"),  # a release candidate of 8.0
        ("Redis", "8.0.3", "8.0.4"),
        ("Redis", "8.0.10", None),
        ("Redis", "8.2.1", "8.2.2"),
        ("Redis", "8.2.2", None),
        ("Redis", "8.4.0", None),
        ("Redis", "255.255.255", None),  # built from the development branch
        ("Redis", "", None),
        ("Redis", "unknown", None),
        ("Valkey", "7.2.10", "7.2.11"),
        ("Valkey", "7.2.11", None),
        ("Valkey", "8.0.5", "8.0.6"),
        ("Valkey", "8.0.6", None),
        ("Valkey", "8.1.3", "8.1.4"),
        ("Valkey", "8.1.4", None),
        ("Valkey", "9.0.0", None),
    ],
)
def test_each_branch_has_its_first_version_with_the_fix(
    program: str, version: str, remedy: str | None
) -> None:
    assert remedy_of(program, version) == remedy

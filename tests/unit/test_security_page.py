"""docs/security.md says what is: its rules are those that are tested, and each test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

from tests.acl import ROLES, flat_rules, rules

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_its_rules_are_those_of_compose() -> None:
    for role in ROLES:
        assert f'ACL SETUSER {role} reset on ">PASSWORD-OF-{role.upper()}S" {rules(role)}\n' in PAGE
    assert f'ACL SETUSER worker reset on ">PASSWORD-OF-WORKERS" {flat_rules("worker")}\n' in PAGE


def test_each_test_that_it_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 20
    for file, name in named:
        assert re.search(rf"^\s*(?:def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line.count("|") == 5 and "shown by" not in line]
    assert all("`tests/" in row or "**Not stopped**" in row for row in rows) and len(rows) > 10


def test_the_message_of_a_refusal_leads_to_it() -> None:
    from common.redis_errors import REFUSALS

    assert "docs/security.md" in REFUSALS["NOPERM"]

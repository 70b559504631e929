"""docs/security.md is accurate.

Its rules are those that are tested, and each test that it names exists.
"""

from __future__ import annotations

from tests.acl import USERS, flat_rules, rules
from tests.unit.named_tests import ROOT, named_in, rows, wrong_names

COLUMNS = 4

PAGE = (ROOT / "docs" / "security.md").read_text()


def unshown(page: str) -> list[list[str]]:
    """Return the rows of the table of threats without a test in their last column.

    Rows that begin by saying that nothing stops the threat are left out.
    """
    return [row for row in rows(page, "Threats") if not _is_shown(row)]


def _is_shown(row: list[str]) -> bool:
    whole = len(row) == COLUMNS and all(row[:-1])
    return whole and (named_in(row[-1]) or (row[2].startswith("**Not stopped**") and not row[-1]))


def test_its_rules_are_those_of_compose() -> None:
    for role in USERS:
        assert f'ACL SETUSER {role} reset on ">PASSWORD-OF-{role.upper()}S" {rules(role)}\n' in PAGE
    assert f'ACL SETUSER worker reset on ">PASSWORD-OF-WORKERS" {flat_rules("worker")}\n' in PAGE


def test_each_test_that_it_names_exists_and_runs() -> None:
    assert wrong_names(PAGE) == []


def test_each_threat_is_stopped_by_what_a_test_shows_or_is_said_not_to_be() -> None:
    assert unshown(PAGE) == []
    assert len(rows(PAGE, "Threats")) > 10


def test_a_threat_that_no_test_shows_is_seen() -> None:
    shown = "`tests/unit/test_security_page.py::test_a_threat_that_no_test_shows_is_seen`"
    table = f"""## Threats

| who | could | what stops them | shown by |
|---|---|---|---|
| one | a | its rights | {shown} |
| two | b | **Not stopped**: nothing is signed | |
| three | c | **Not stopped**: use Redis 7 | {shown}, {shown} |
| four | d | its rights | |
| five | e | its rights, but **Not stopped** over the wire | |
| six | see {shown} | its rights, see {shown} | a test |
| seven | f | its rights | {shown} | more |
| eight | g | | {shown} |
"""
    assert [row[0] for row in unshown(table)] == ["four", "five", "six", "seven", "eight"]


def test_the_message_of_a_refusal_leads_to_it() -> None:
    from common.broker.errors import REFUSALS

    assert "docs/security.md" in REFUSALS["NOPERM"]

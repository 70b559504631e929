"""Text in a CSV file that a spreadsheet must not take for a formula."""

from __future__ import annotations

from typing import TypeVar

# The characters that begin a formula, also in full width. A spreadsheet drops a leading tab or line
# end.
OPENING = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")

T = TypeVar("T")


def defuse(value: T) -> T | str:
    """Return the value of a cell. Text that could be a formula gets an apostrophe in front.

    OWASP recommends the apostrophe. Numbers stay as they are, and so does text that is only a
    number, such as "-1".
    """
    if not isinstance(value, str) or not value.startswith(OPENING) or _is_number(value):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and text == text.strip()

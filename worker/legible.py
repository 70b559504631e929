"""What a task's errors say, as text that JSON, Redis and a terminal take, and no more of it than anybody reads."""

from __future__ import annotations

MOST_REASON = 3000  # characters: a screenful, as of a message of our own; Redis hands out none that is longer than a megabyte
MOST_TRACEBACK = 100_000  # characters: some thousand frames; a record of more than 16 MB counts as damaged


def reason(text: str | None) -> str | None:
    """Why a trial ended, for its record and for Redis."""
    return None if text is None else legible(text, MOST_REASON)


def traceback(text: str | None) -> str | None:
    """Where it raised, for its record."""
    return None if text is None else legible(text, MOST_TRACEBACK)


def legible(text: str, most: int) -> str:
    """The text in characters that UTF-8 has, its middle left out where it is longer than ``most`` characters.

    The name of a file whose bytes are no UTF-8 comes with lone surrogates, which no JSON and no terminal takes; ``\\udce9`` is written for
    each. What raised stands at the end of a traceback, the remedy at the end of a message, so both ends are kept.
    """
    clean = text.encode("utf-8", "backslashreplace").decode()
    if len(clean) <= most:
        return clean
    end = most // 3
    return f"{clean[: most - end]}... ({len(clean) - most:,} characters left out) ...{clean[-end:]}"

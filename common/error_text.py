"""Texts of a task's errors: valid in JSON, Redis and a terminal, and of limited length."""

from __future__ import annotations

# Characters: a screenful, as for this program's own messages. A value in Redis may have up to a
# megabyte (``wire.MOST_CHARACTERS``).
MOST_REASON = 3000
# Characters: some thousand frames. A record above 16 MB counts as damaged.
MOST_TRACEBACK = 100_000


def reason(text: str | None) -> str | None:
    """Return the reason of a trial's end, for its record and for Redis."""
    return None if text is None else legible(text, MOST_REASON)


def traceback(text: str | None) -> str | None:
    """Return the traceback of a trial's error, for its record."""
    return None if text is None else legible(text, MOST_TRACEBACK)


def legible(text: str, most: int) -> str:
    """Return the text as valid UTF-8, with its middle left out if it exceeds ``most`` characters.

    A file name whose bytes are not UTF-8 contains lone surrogates, which JSON and terminals reject.
    Each is written as ``\\udce9``. Both ends of a text are kept, since a traceback ends with the
    exception, and a message with the remedy.
    """
    clean = text.encode("utf-8", "backslashreplace").decode()
    if len(clean) <= most:
        return clean
    end = most // 3
    return f"{clean[: most - end]}... ({len(clean) - most:,} characters left out) ...{clean[-end:]}"

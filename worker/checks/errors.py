"""Errors of the user's code as one line."""

from __future__ import annotations

import traceback
from pathlib import Path

from common.errors import SearchError


def explained(error: Exception) -> str:
    """The error, and the line that raised it unless its message is one of ours."""
    if isinstance(error, SearchError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"

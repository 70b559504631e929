"""Description of an error in the user's code in one line."""

from __future__ import annotations

import traceback
from pathlib import Path

from common.errors import SearchError


def explain_task_error(error: Exception) -> str:
    """Return the error's message and where it was raised.

    The file and line are left out for a ``SearchError``, whose message is our own.
    """
    if isinstance(error, SearchError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"

"""What a part of the harness needs of the machine. A laptop may leave that part out; CI may not."""

from __future__ import annotations

import os

import pytest


def needed(there: bool, what: str) -> None:
    """Skips the test where ``there`` is false, and fails it in CI."""
    if there:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}; in CI no part may be left out")
    pytest.skip(what)

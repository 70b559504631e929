"""Search files for tests: the built-in one, with stages of the test's own instead of its budget."""

from __future__ import annotations

import re

from common.search.search_file import default_text

BUDGET = re.compile(r"^\[budget\].*?\n\n", re.MULTILINE | re.DOTALL)


def staged_text(
    coarse: str = "trials = 200\nepochs = 1\n", fine: str = "trials = 50\nepochs = 20\n"
) -> str:
    """Return the file of `master init`, changed as its comments say for stages of one's own."""
    text, n_found = BUDGET.subn(
        f"[stages.coarse]\n{coarse}\n[stages.fine]\n{fine}\n", default_text(), count=1
    )
    assert n_found == 1, "the built-in file has a [budget]"
    return text

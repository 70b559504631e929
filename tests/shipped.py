"""Code in a search's folder, as a launch ships it."""

from __future__ import annotations

from pathlib import Path

from common.code import store
from common.code.choose import collect
from common.folder.records import SearchFolder


def ship(folder: SearchFolder, task: str, base: Path) -> str:
    """Ship what a task of the folder ``base`` consists of, and return its digest."""
    code = collect(task, base)
    store.keep(folder, code)
    store.make_current(folder, code.digest)
    return code.digest

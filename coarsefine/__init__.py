"""The names that a task imports, and the interface for notebooks and scripts.

The modules behind the names (and torch or pandas) are imported at the first use of a name.

Example:
    >>> from coarsefine import Data, Part
    >>> import coarsefine as cf
    >>> cf.load("checkpoints/digits").best
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coarsefine.isolation.ours import import_ours, keep_apart

if TYPE_CHECKING:
    from coarsefine.reporting import beat, report
    from common.errors import SearchError
    from master.scripting.draft import search
    from master.scripting.loaded import load
    from worker.own.trial import OwnTrial as Trial
    from worker.tasks.base import Data, Part, Task
    from worker.tasks.loading import Loaded

__all__ = [
    "Data",
    "Loaded",
    "Part",
    "SearchError",
    "Task",
    "Trial",
    "beat",
    "load",
    "report",
    "search",
]

SOURCES = {
    "Data": ("worker.tasks.base", "Data"),
    "Loaded": ("worker.tasks.loading", "Loaded"),
    "Part": ("worker.tasks.base", "Part"),
    "SearchError": ("common.errors", "SearchError"),
    "Task": ("worker.tasks.base", "Task"),
    "Trial": ("worker.own.trial", "OwnTrial"),
    "beat": ("coarsefine.reporting", "beat"),
    "load": ("master.scripting.loaded", "load"),
    "report": ("coarsefine.reporting", "report"),
    "search": ("master.scripting.draft", "search"),
}


def __getattr__(name: str) -> object:
    if name not in SOURCES:
        raise AttributeError(
            f"module 'coarsefine' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    module, attribute = SOURCES[name]
    if not module.startswith("coarsefine."):
        keep_apart()  # in a process that a task has started, nobody has done so yet
    return getattr(import_ours(module), attribute)


def __dir__() -> list[str]:
    return __all__

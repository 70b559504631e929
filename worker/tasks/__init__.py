"""Tasks: the built-in ones, and the loader for your own."""

from worker.tasks.base import Data, Loop, Part, Task
from worker.tasks.loader import load_class, load_launched, load_task

__all__ = [
    "Data",
    "Loop",
    "Part",
    "Task",
    "load_class",
    "load_launched",
    "load_task",
]

"""Tasks: the built-in ones, and the loader of the user's own."""

from worker.tasks.base import Data, Loop, Part, Task
from worker.tasks.loader import load_class, load_task, task_digest

__all__ = ["Data", "Loop", "Part", "Task", "load_class", "load_task", "task_digest"]

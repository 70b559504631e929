"""Tasks: the built-in ones, and the loader of the user's own."""

from worker.tasks.base import Data, Part, Task
from worker.tasks.loader import load_task, task_digest

__all__ = ["Data", "Part", "Task", "load_task", "task_digest"]

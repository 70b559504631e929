"""The queue of trials in Redis: its values, its scripts, and its workers."""

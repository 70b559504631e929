"""Checks of a search's task before any trial is trained: data, first loss, gradient, learning."""

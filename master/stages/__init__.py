"""Stages before and while they run: what they sample, which trials are promoted, what is queued."""

"""Starts workers. So far, on this machine only."""

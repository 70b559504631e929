"""Starts workers: on this machine for now."""

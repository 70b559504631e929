"""Curves of one trial and their interpretation: patience, stopping, diagnosis."""

"""Samplers, which choose the next configuration from all results so far."""

"""Stacked models: their structure, their layers and the numbers that differ between slots."""

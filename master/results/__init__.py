"""The outcome of trials: rankings, lineage and time spent.

These modules compute values from records and decide nothing.
"""

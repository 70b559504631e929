"""Figures of a search.

Each module makes one figure: it takes a table of trials and returns a plotly figure, without side
effects.
"""

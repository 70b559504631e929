"""Figures of a search: each module one, a table of trials in and a plotly figure out, without side effects."""

"""The default search strategy, as pure functions: no files, no clock, no Redis.

docs/strategy.md gives the reasons.

- ``freezing``   what a stage knows of the trials before it; fixed at its launch
- ``drawing``    configuration number n of a stage
- ``promotion``  which trials are promoted to the next rung
- ``box``        the ranges of the next stage: an end moves out past a border, no range narrows

If the best trial cannot be distinguished from guessing (``master/strategy/guessing.py``), a stage
is frozen as if there were no earlier trials.
"""

"""Searches whose processes, servers, disks, networks and clocks are broken while they run, and two witnesses of what came of it.

`make chaos` runs them all; ``CHAOS_FAULTS=2000`` makes it longer, ``CHAOS_SEED=7`` another. A seed repeats the search and the
plan of its faults: which kinds, in which order, when at the earliest, and what each draws. It does not repeat timing: whom a
fault finds at work, and in the middle of what, is up to the machine, and a fault that hit nothing is made again.
"""

"""Searches under faults in processes, servers, disks, networks and clocks.

Independent witnesses check the outcome. `make chaos` runs all of them; ``CHAOS_FAULTS=2000`` makes
it longer, and ``CHAOS_SEED=7`` gives another run. A seed repeats the search and the plan of its
faults: the kinds, their order, the earliest time of each, and what each draws. It does not repeat
timing. Which process a fault hits, and in the middle of what, depends on the machine. A fault that
hit nothing is made again.
"""

"""Points of a grid: every combination of a few values of each hyperparameter.

The grid exists for comparison; random points do better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from common.search.parameters import Choice, Numeric


def grid_points(
    parameters: Sequence[Numeric | Choice], n_points: int, indices: range
) -> Iterator[list[float]]:
    """Yield points of the smallest grid that has at least ``n_points`` points, each (d,) in [0, 1).

    Each choice has all its options. All numbers have the same number of values, each in the middle
    of an equal share. If the grid has more than ``n_points`` points, evenly spaced points of it are
    taken.

    Args:
        parameters: the sampled hyperparameters.
        n_points: number of points in all.
        indices: numbers of the points wanted, below ``n_points``.
    """
    n_options = [len(own.options) if isinstance(own, Choice) else 0 for own in parameters]
    n_values = 1
    while math.prod(n or n_values for n in n_options) < n_points and 0 in n_options:
        n_values += 1
    sizes = [n or n_values for n in n_options]
    total = math.prod(sizes)
    for index in indices:
        place = (index * total // n_points) % total if total >= n_points else index % total
        point = []
        for size in sizes:
            place, step = divmod(place, size)
            point.append((step + 0.5) / size)
        yield point

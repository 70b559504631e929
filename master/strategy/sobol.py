"""Points of a scrambled Sobol sequence, for the start of a search, when nothing is known yet.

scipy has one too, but its import takes more than a second of processor time, at the start of every
search.

Source: Sobol, "On the distribution of points in a cube", USSR Comp. Math. 7 (1967); Joe and Kuo,
"Constructing Sobol sequences with better two-dimensional projections", SIAM J. Sci. Comput. 30
(2008) (the direction numbers); Matousek, "On the L2-discrepancy for anchored boxes", J. Complexity
14 (1998) (the scrambling).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# Bits of a point. A double in [0, 1) holds more, and 2**52 points are more than any search draws.
BITS = 52
# One entry per dimension after the first: its primitive polynomial as bits, then its first
# direction numbers.
DIRECTIONS = (
    (3, 1),
    (7, 1, 3),
    (11, 1, 3, 1),
    (13, 1, 1, 1),
    (19, 1, 1, 3, 3),
    (25, 1, 3, 5, 13),
    (37, 1, 1, 5, 5, 17),
    (41, 1, 1, 5, 5, 5),
    (47, 1, 1, 7, 11, 19),
    (55, 1, 1, 5, 1, 1),
    (59, 1, 1, 1, 3, 11),
    (61, 1, 3, 5, 5, 31),
    (67, 1, 3, 3, 9, 7, 49),
    (91, 1, 1, 1, 15, 21, 21),
    (97, 1, 3, 1, 13, 27, 49),
    (103, 1, 1, 1, 15, 7, 5),
    (109, 1, 3, 1, 15, 13, 25),
    (115, 1, 1, 5, 5, 19, 61),
    (131, 1, 3, 7, 11, 23, 15, 103),
    (137, 1, 3, 7, 13, 13, 15, 69),
    (143, 1, 1, 3, 13, 7, 35, 63),
    (145, 1, 3, 5, 9, 1, 25, 53),
    (157, 1, 3, 1, 13, 9, 35, 107),
    (167, 1, 3, 1, 5, 27, 61, 31),
    (171, 1, 1, 5, 11, 19, 41, 61),
    (185, 1, 3, 5, 3, 3, 13, 69),
    (191, 1, 1, 7, 13, 1, 19, 1),
    (193, 1, 3, 7, 5, 13, 19, 59),
    (203, 1, 1, 3, 9, 25, 29, 41),
    (211, 1, 3, 5, 13, 23, 1, 55),
    (213, 1, 3, 7, 3, 13, 59, 17),
)
# Hyperparameters beyond this number are drawn independently. Few searches have that many.
DIMENSIONS = len(DIRECTIONS) + 1


def sobol_points(
    search_seed: int, stage: str, n_dimensions: int, indices: range
) -> Iterator[Sequence[float]]:
    """Return the points with the given numbers of one sequence, each (n_dimensions,) in [0, 1).

    Args:
        search_seed: the seed of the search.
        stage: the name of the stage; each stage has its own sequence.
        n_dimensions: number of sampled hyperparameters, in the order of their sorted names.
        indices: numbers of the points wanted, from 0, ascending.
    """
    if not n_dimensions or not indices:
        return iter([()] * len(indices))
    n_own = min(n_dimensions, DIMENSIONS)
    directions, shift = _scramble(_generator(f"sobol/{search_seed}/{stage}"), n_own)
    numbers = np.array(indices, np.uint64)
    gray = numbers ^ (numbers >> np.uint64(1))
    points = np.tile(shift, (len(numbers), 1))  # (n, d)
    for bit in range(int(numbers[-1]).bit_length()):
        has_bit = (gray >> np.uint64(bit) & np.uint64(1)).astype(bool)
        points[has_bit] ^= directions[bit]
    units = points * 2.0**-BITS
    if n_dimensions > DIMENSIONS:
        others = [
            _generator(f"beyond/{search_seed}/{stage}/{index}").random(n_dimensions - DIMENSIONS)
            for index in indices
        ]
        units = np.concatenate([units, others], axis=1)
    return iter(units)


def _generator(key: str) -> np.random.Generator:
    return np.random.Generator(
        np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16]))
    )


def _scramble(
    generator: np.random.Generator, n_dimensions: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return scrambled direction numbers (BITS, d) and a random shift (d,).

    A random lower triangular matrix mixes the direction numbers. The random bits come from
    ``random`` alone, whose numbers stay the same in later versions of numpy.
    """
    columns, shifts = [], []
    places = np.arange(BITS - 1, -1, -1, dtype=np.uint64)  # the most significant bit first
    for dimension in range(n_dimensions):
        plain = (_directions(dimension)[None, :] >> places[:, None] & np.uint64(1)).astype(
            np.int64
        )  # (bit, number)
        matrix = np.tril((generator.random((BITS, BITS)) < 0.5).astype(np.int64), -1) + np.eye(
            BITS, dtype=np.int64
        )
        mixed = (matrix @ plain % 2).astype(np.uint64)
        columns.append((mixed << places[:, None]).sum(axis=0, dtype=np.uint64))
        shifts.append(
            ((generator.random(BITS) < 0.5).astype(np.uint64) << places).sum(dtype=np.uint64)
        )
    return np.stack(columns, axis=1), np.array(shifts, np.uint64)


def _directions(dimension: int) -> NDArray[np.uint64]:
    """Return the direction numbers of a dimension, (BITS,).

    Each is shifted to the left end of its BITS bits.
    """
    if not dimension:
        return np.array([1 << (BITS - 1 - k) for k in range(BITS)], np.uint64)
    polynomial, *m = DIRECTIONS[dimension - 1]
    degree = polynomial.bit_length() - 1
    for k in range(degree, BITS):
        value = m[k - degree] ^ (m[k - degree] << degree)
        for step in range(1, degree):
            if polynomial >> (degree - step) & 1:
                value ^= m[k - step] << step
        m.append(value)
    return np.array([m[k] << (BITS - 1 - k) for k in range(BITS)], np.uint64)

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from master.strategy import sobol
from master.strategy.sobol import DIMENSIONS, sobol_points


def points(n: int, d: int, seed: int = 3, stage: str = "coarse", start: int = 0) -> np.ndarray:
    return np.array(list(sobol_points(seed, stage, d, range(start, n))))


@pytest.mark.parametrize("dimension", range(DIMENSIONS))
def test_the_direction_numbers_are_the_published_ones(dimension: int) -> None:
    """Without scrambling the points are those that scipy makes of the same table."""
    from scipy.stats import qmc

    directions = sobol._directions(dimension)
    own = [0]
    for n in range(1, 512):  # by the lowest set bit, as Antonov and Saleev have it
        own.append(own[-1] ^ int(directions[(n & -n).bit_length() - 1]))
    assert np.array_equal(
        np.array(own) * 2.0**-sobol.BITS,
        qmc.Sobol(DIMENSIONS, scramble=False).random(512)[:, dimension],
    )


def test_each_dimension_has_one_of_256_points_in_each_of_256_cells() -> None:
    cells = np.sort((points(256, DIMENSIONS) * 256).astype(int), axis=0)
    assert (cells == np.arange(256)[:, None]).all()


def test_points_fill_the_cube_far_more_evenly_than_random_ones() -> None:
    from scipy.stats import qmc

    assert qmc.discrepancy(points(256, 8)) < 0.3 * qmc.discrepancy(
        np.random.default_rng(0).random((256, 8))
    )


def test_a_point_does_not_depend_on_how_many_are_asked_for() -> None:
    assert np.array_equal(points(99, 40)[37:], points(99, 40, start=37))


def test_each_seed_and_stage_has_a_sequence_of_its_own() -> None:
    assert (
        len(
            {points(1, 5, seed, stage).tobytes() for seed in (1, 2) for stage in ("coarse", "fine")}
        )
        == 4
    )


def test_hyperparameters_beyond_its_dimensions_are_drawn_independently() -> None:
    more = points(400, DIMENSIONS + 9)
    assert (
        np.array_equal(more[:, :DIMENSIONS], points(400, DIMENSIONS))
        and ((more >= 0) & (more < 1)).all()
    )
    correlations = np.corrcoef(more[:, DIMENSIONS - 1 :].T) - np.eye(10)
    assert np.abs(correlations).max() < 0.25 and abs(more[:, DIMENSIONS:].mean() - 0.5) < 0.02


def test_nothing_of_scipy_is_loaded_for_it() -> None:
    use = "list(sobol.sobol_points(1, 'coarse', 5, range(9)))"
    code = (
        f"import sys; from master.strategy import drawing, sobol; {use}; print('scipy' in "
        "sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert told.strip() == "False"

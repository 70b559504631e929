from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A cluster of three nodes on this machine."""
    with (
        tempfile.TemporaryDirectory(prefix="coarsefine-slurm-") as folder,
        cluster(Path(folder)) as up,
    ):
        yield up

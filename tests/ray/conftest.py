from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.cluster import Cluster, cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """A cluster of two nodes on this machine. Its sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, cluster(Path(folder)) as up:
        yield up

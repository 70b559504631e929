from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.integration.commands import Place, place

torch.set_num_threads(1)  # models this small are slower on more


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    """A folder on the embedded server."""
    with place(tmp_path) as opened:
        yield opened

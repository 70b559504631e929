"""What all tests share: a PATH in which messages name the commands as ``master`` and ``worker``."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def commands_in_the_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put these two into the PATH, and nothing else of this environment."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("master", "worker"):
        (folder / name).symlink_to(Path(sys.executable).parent / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join([os.environ.get("PATH", os.defpath), str(folder)]))
        patch.delenv("COLUMNS", raising=False)
        yield

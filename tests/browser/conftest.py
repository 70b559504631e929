"""The browser fixtures.

They use Debian's browser package and download nothing. Without a browser the tests are skipped; in
CI they fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# A folder for the screenshots; without it they stay in the test's own folder.
PICTURES = "BROWSER_PICTURES"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        told = "no chromium on the PATH: apt-get install chromium"
        assert os.environ.get("CI") != "true", told
        pytest.skip(told)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    folder = (
        Path(os.environ[PICTURES])
        if PICTURES in os.environ
        else tmp_path_factory.mktemp("pictures")
    )
    folder.mkdir(parents=True, exist_ok=True)
    return folder

"""Programs that are watched while they run: servers, searches, and Chromium."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from playwright.sync_api import Browser, BrowserContext, sync_playwright

T = TypeVar("T")
PATIENCE_S = 300.0  # only there to stop a hang
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program beside, with its output in a file, and end it."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def wait(condition: Callable[[], T], process: subprocess.Popen[bytes]) -> T:
    """Return what ``condition`` returns, once that is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args}: did not begin, see its log")
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run the Chromium of this machine."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_find_chromium(), args=["--no-sandbox"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def chromium_of_a_person(folder: Path, width: int, height: int) -> Iterator[BrowserContext]:
    """Run Chromium with the profile in a folder, which keeps files and compiled scripts."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder,
            executable_path=_find_chromium(),
            args=["--no-sandbox"],
            viewport={"width": width, "height": height},
        )
        try:
            yield context
        finally:
            context.close()


def _find_chromium() -> str:
    program = next((found for name in CHROMIUMS if (found := shutil.which(name))), None)
    if program is None:
        raise SystemExit(f"no {' or '.join(CHROMIUMS)} in the PATH; apt-get install chromium")
    return program

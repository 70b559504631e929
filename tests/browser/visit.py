"""What a visitor of the dashboard does and sees, in a real browser, beside real processes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.integration.commands import Place, wait_for

PATIENCE_MS = 150_000  # only there to stop a hang
expect.set_options(timeout=PATIENCE_MS)
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 400, "height": 850}


def serve(here: Place, *options: str, log: str = "serve.log") -> str:
    """Starts `master serve` on a free port; the address that it prints, with the token."""
    here.start("master", "serve", "--port", "0", *options, log=log)
    found = wait_for(
        lambda: re.search(r"dashboard: (http\S+)", here.output(log)), "the address of the dashboard"
    )
    return str(found[1])


@contextlib.contextmanager
def visit(
    browser: Browser, address: str, size: dict[str, int] = DESK, silent: bool = True
) -> Iterator[Page]:
    """Open a page and fail on any console error, or on a reload that the test did not ask for."""
    complaints: list[str] = []
    with browser.new_context(
        viewport=size, permissions=["clipboard-read", "clipboard-write"]
    ) as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                complaints.append(f"asks {request.url}")
                if _elsewhere(request.url, address)
                else None
            ),
        )
        page.goto(address)
        page.wait_for_selector("h1")
        page.evaluate("window.sinceTheStart = true")
        yield page
        assert page.evaluate("window.sinceTheStart") is True, "the page was loaded again"
    if silent:
        assert complaints == [], complaints


def _elsewhere(url: str, address: str) -> bool:
    return not url.startswith(("data:", "blob:", "/".join(address.split("/")[:3])))


def go(page: Page, search: str, name: str) -> None:
    """Shows another page of the dashboard without loading the document again."""
    page.evaluate("hash => { location.hash = hash }", f"#/s/{search}/{name}")


def picture(page: Page, folder: Path, name: str) -> None:
    """Take a screenshot of the whole page and check that nothing has to be scrolled sideways."""
    wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wider <= 0, f"{name}: {wider} pixels wider than the window"
    page.screenshot(path=folder / f"{name}.png", full_page=True)

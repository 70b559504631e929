"""What a visitor of the dashboard does and sees, in a real browser, beside real processes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.accessible import find_violations
from tests.integration.commands import Place, wait_for

PATIENCE_MS = 150_000  # only there to stop a hang
expect.set_options(timeout=PATIENCE_MS)
HEIGHT = 900
Theme = Literal["light", "dark"]


@dataclass(frozen=True)
class Screen:
    """The width of a window in pixels, and the colours that its system prefers."""

    width: int
    theme: Theme = "light"

    def __str__(self) -> str:
        return f"{self.width}-{self.theme}"


DESK, PHONE = Screen(1440), Screen(400)
SCREENS = (DESK, Screen(1024, "dark"), PHONE)  # what a user does is done on each


def serve(here: Place, *options: str, log: str = "serve.log") -> str:
    """Starts `master serve` on a free port; the address that it prints, with the token."""
    here.start("master", "serve", "--port", "0", *options, log=log)
    found = wait_for(
        lambda: re.search(r"dashboard: (http\S+)", here.output(log)), "the address of the dashboard"
    )
    return str(found[1])


@contextlib.contextmanager
def visit(
    browser: Browser, address: str, screen: Screen = DESK, silent: bool = True
) -> Iterator[Page]:
    """Open a page and fail on any console error, or on a reload that the test did not ask for."""
    complaints: list[str] = []
    with browser.new_context(
        viewport={"width": screen.width, "height": HEIGHT},
        color_scheme=screen.theme,
        permissions=["clipboard-read", "clipboard-write"],
    ) as context:
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


def look(page: Page, folder: Path, name: str) -> None:
    """Take a picture in light and in dark, and check that axe-core finds nothing wrong."""
    width = page.evaluate("window.innerWidth")
    preferred = page.evaluate(
        "matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'"
    )
    for theme in get_args(Theme):
        page.emulate_media(color_scheme=theme)
        told = find_violations(page)
        assert not told, f"{name} at {width} pixels, {theme}: {told}"
        picture(page, folder, f"{name}-{width}-{theme}")
    page.emulate_media(color_scheme=preferred)


def hover(page: Page, point: Locator) -> str:
    """Move the mouse to a point, where it is now, and return what the figures say of it."""
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(0, 0)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(300)
    return " ".join(page.locator(".hoverlayer").all_text_contents())

"""What a visit of a page costs, in Chromium: bytes, and seconds to the first text and figure."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from playwright.sync_api import BrowserContext

from benchmarks.watched.programs import chromium_of_a_person
from benchmarks.watched.servers import Served

STARTED_S = 3.0  # a browser that has just started has much to do
SETTLED_S = 2.0  # after its first figure; a page may load more for the next ones
PATIENCE_MS = 180_000  # only there to stop a hang
# A figure that has been drawn: its axes, bars or lines are there.
DRAWN = """() => [...document.querySelectorAll('.main-svg, figure svg, figure canvas')].some(
  (one) => one.getBoundingClientRect().width > 100
    && (one.tagName === 'CANVAS' || one.querySelector('path, rect, circle, line')))"""
# Bytes on the wire, headers included. Chromium's protocol would tell them too, and slow the page.
RECEIVED = """() => [...performance.getEntriesByType('navigation'),
  ...performance.getEntriesByType('resource')].reduce((sum, one) => sum + one.transferSize, 0)"""
SHOWS = "(pattern) => new RegExp(pattern).test(document.body?.innerText)"


@dataclass(frozen=True)
class Visit:
    """One visit: bytes on the wire, and seconds from the address to the text and to a figure."""

    n_bytes: int
    content_s: float
    figure_s: float


def visit_three_times(served: Served) -> tuple[Visit, ...]:
    """Visit a page in a browser that has never seen it, and twice more.

    Chromium keeps the compiled code of a script from its second run on.
    """
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        chromium_of_a_person(Path(profile), 1280, 900) as context,
    ):
        return tuple(_visit(context, served) for _ in range(3))


def middle(visits: list[Visit]) -> Visit:
    """Return the medians of several visits."""
    return Visit(
        int(median(one.n_bytes for one in visits)),
        median(one.content_s for one in visits),
        median(one.figure_s for one in visits),
    )


def _visit(context: BrowserContext, served: Served) -> Visit:
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.wait_for_timeout(STARTED_S * 1000)
    started = time.perf_counter()
    page.goto(served.address, wait_until="commit")
    page.wait_for_function(SHOWS, arg=served.content, polling="raf")
    content_s = time.perf_counter() - started
    page.wait_for_function(DRAWN, polling="raf")
    figure_s = time.perf_counter() - started
    page.wait_for_timeout(SETTLED_S * 1000)
    n_bytes = page.evaluate(RECEIVED)
    page.close()
    return Visit(n_bytes, content_s, figure_s)

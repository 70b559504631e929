"""Checks a page with axe-core, the usual rules of accessibility."""

from __future__ import annotations

from functools import cache
from importlib import resources

from playwright.sync_api import Page


@cache
def _axe() -> str:
    return (resources.files("axe_playwright_python") / "axe.min.js").read_text("utf-8")


def find_violations(page: Page) -> list[str]:
    """Return what axe-core finds wrong, a line for each kind with the elements."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(_axe())
    found = page.evaluate("async () => (await axe.run(document)).violations")
    return [
        f"{one['id']} ({one['help']}): {[node['target'] for node in one['nodes'][:5]]}"
        for one in found
    ]

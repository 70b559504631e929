"""Take the pictures of the dashboard for docs/dashboard.md, from real runs, in Chromium.

`make pictures` runs it on a search that has just ended. Beside that search it launches one that
trains while the pictures are taken, so workers have something to show.

    python docs/pictures/take.py CHECKPOINTS [--out docs/pictures] [--search digits]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `benchmarks` is not installed

from benchmarks.watched.programs import PATIENCE_S, chromium, running, wait
from benchmarks.watched.servers import serve_ours

WIDTH, HEIGHT = 1280, 900  # pixels, when a page is opened
LEAST, TALLEST = 300, 1400  # pixels of a picture; of a longer page the top is shown
COLOURS = 128  # of the palette
MOST_BYTES = 200_000
LIVE = """
name = "live"
task = "digits"
[space]
learning_rate = { log_uniform = [1e-4, 1.0] }
hidden = { choice = [64, 128, 256] }
[stages.coarse]
trials = 200
epochs = 100
"""
# The view's address behind that of its search, whether it is dark, and the name of its picture.
VIEWS = (
    ("overview", False, "dashboard"),
    (
        "trials?figure=parallel&filter=learning_rate>%3D0.003 learning_rate<%3D0.1 dropout<%3D0.4",
        False,
        "dashboard-trials",
    ),
    ("trial/{best}", True, "dashboard-trial-dark"),
    ("compare?trials={few}", False, "dashboard-compare"),
    ("figures", False, "dashboard-figures"),
)
# The view's address, the name of its picture, and a button that is pressed first.
LIVE_VIEWS = (
    ("#/s/live/workers", "dashboard-workers", "Log of worker"),
    ("#/searches", "dashboard-searches", None),
)
# A drawn figure in the window, and none that is still empty.
DRAWN = """() => [...document.querySelectorAll('main figure, main .plot')]
  .filter((one) => one.getBoundingClientRect().top < innerHeight)
  .every((one) => one.querySelector('svg, canvas, img'))"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--search", default="digits")
    options = parser.parse_args()
    root = options.checkpoints.resolve()
    ranked = json.loads(run(root, "rank", "--search", options.search, "--format", "json"))
    names = [row["trial"] for row in ranked]
    known = {"best": names[0], "few": ",".join(names[:4])}
    with serve_ours(root, names[0]) as served, chromium() as browser:
        address = served.address
        for view, dark, name in VIEWS:
            place = f"#/s/{options.search}/{view.format(**known)}"
            take(browser, address, place, options.out / f"{name}.png", dark)
        with live_search(root):
            for place, name, press in LIVE_VIEWS:
                take(browser, address, place, options.out / f"{name}.png", press=press)


def take(
    browser: Browser,
    address: str,
    place: str,
    out: Path,
    dark: bool = False,
    press: str | None = None,
) -> None:
    """Take a picture of one view. Its palette has few colours, so that the file is small."""
    with browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="dark" if dark else "light"
    ) as context:
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("h1")
        page.evaluate("(hash) => { location.hash = hash }", place)
        if press is not None:
            page.get_by_role("button", name=press).first.click()
        settle(page)
        height = page.evaluate("Math.ceil(document.body.getBoundingClientRect().bottom)")
        page.set_viewport_size({"width": WIDTH, "height": max(LEAST, min(TALLEST, height))})
        settle(page)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    small = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(out, optimize=True)
    size = out.stat().st_size
    print(f"{out}: {size / 1e3:.0f} kB")
    if size > MOST_BYTES:
        raise SystemExit(f"{out}: larger than {MOST_BYTES / 1e3:.0f} kB")


def settle(page: Page) -> None:
    """Wait until the figures in the window are drawn and nothing moves any more."""
    deadline, before = time.monotonic() + PATIENCE_S, b""
    while time.monotonic() < deadline:
        page.wait_for_timeout(700)
        now = page.screenshot()
        if now == before and page.evaluate(DRAWN):
            return
        before = now
        if page.locator(".card[data-worker]").count():  # it moves as long as it trains
            return
    raise SystemExit(f"{page.url}: does not come to rest")


def run(root: Path, *words: str) -> str:
    done = subprocess.run(master(root, *words), check=True, text=True, capture_output=True)
    return done.stdout


def master(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "master", "--checkpoints", str(root), *words]


@contextlib.contextmanager
def live_search(root: Path) -> Iterator[None]:
    """Launch a search that trains for longer than the pictures take, and end it."""
    file = root / "live.toml"
    file.write_text(LIVE)
    words = ("launch", "--config", str(file), "--stage", "all", "--skip-check", "--workers", "2")
    with running(master(root, *words), root / "live.log") as launch:
        try:
            wait(lambda: (root / "live" / "coarse" / "resume").is_dir(), launch)
            wait(lambda: '"training"' in run(root, "workers", "--json"), launch)
            yield
        finally:
            run(root, "kill", "--search", "live", "--stage", "coarse", "--yes")


if __name__ == "__main__":
    main()

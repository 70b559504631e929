"""An HTML file that needs no network.

It contains the text, the figures as JSON, and a content security policy that allows nothing else
but the script that draws them, plotly.js. This script is part of the file, or it is a file that
several pages share.

A figure is drawn when it comes near the window. plotly.js runs with the first of them, so the text
is visible at once. On a phone, the panels of a figure are stacked.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go

from master.figures.style import CONFIG

NARROW_PIXELS = 700  # in a window narrower than this, the figures of one column are drawn
NEAR_PIXELS = 400  # figures this close above or below the window are already drawn
NOTHING = "'none'"
NO_SCRIPT = "<noscript><p>The figures need JavaScript.</p></noscript>"
LONG = 40  # characters; a longer cell may wrap
_WRAP = ' class="wrap"'
STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1280px; padding: 0 16px 48px; color: #222; background: #fff;\
 line-height: 1.45;
  font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
h1 { font-size: 1.5rem; margin: 24px 0 4px; } h2 { font-size: 1.15rem; margin: 32px 0 8px;\
 border-bottom: 1px solid #ddd; }
p { margin: 6px 0; max-width: 75ch; }
.warning { border-left: 4px solid #d55e00; padding-left: 10px; } .small { color: #555;\
 font-size: .85rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem;\
 font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid #e4e4e4;\
 vertical-align: top; white-space: nowrap; }
td.wrap { white-space: normal; min-width: 16ch; } code, pre { font-size: .85rem;\
 background: #f4f4f4; padding: 1px 4px; }
pre { overflow-x: auto; padding: 8px; } figure { margin: 16px 0 0; } .plot { width: 100%; }
@media (max-width: 700px) { body { padding: 0 8px 32px; } .words td { white-space: normal;\
 padding-right: 8px; min-width: 0; } }
"""
SCRIPT = """
const config = CONFIG;
let loading = null;
function load() {
  if (!loading) loading = new Promise((done, failed) => {
    const script = document.createElement('script');
    const own = document.getElementById('plotly');
    const { library, nonce } = document.body.dataset;
    if (own) {
      script.textContent = own.textContent;
    } else {
      script.nonce = nonce;
      script.src = library;
      script.onload = done;
      script.onerror = failed;
    }
    document.head.append(script);
    if (own) done();
  });
  return loading;
}
function draw(place) {
  load().then(() => plot(place), () => miss(place));
}
function miss(place) {
  place.style.minHeight = '';
  place.className = 'plot warning';
  place.textContent = `This figure is not drawn: ${document.body.dataset.library}, which draws it,`
    + ' is not where this page looks for it. Copy the whole folder of the search, or write one file'
    + ' that needs no other: master report --stage NAME --out FILE.';
}
function plot(place) {
  const both = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  const figure = window.innerWidth < NARROW && both.narrow ? both.narrow : both.wide;
  place.style.minHeight = '';
  Plotly.newPlot(place, figure.data || both.wide.data, figure.layout, config);
}
const places = document.querySelectorAll('.plot');
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target);\
 draw(entry.target); }
}, { rootMargin: 'NEARpx' });
places.forEach((place) => seen.observe(place));
// Loaded ahead, since printing does not wait for it.
window.addEventListener('load', () =>
  (window.requestIdleCallback || setTimeout)(() => places.length && load().catch(() => {})));
window.addEventListener('beforeprint', () => places.forEach((place) =>\
 { if (!place.querySelector('.main-svg')) draw(place); }));
"""


@dataclass(frozen=True)
class Drawn:
    """A figure on the page.

    ``narrow`` is the figure for a phone; None if it is the same.
    """

    name: str
    wide: go.Figure
    narrow: go.Figure | None = None


def page(title: str, body: str, figures: Sequence[Drawn], library: str | None = None) -> str:
    """Return the whole file.

    Args:
        title: plain text.
        body: HTML in which all text from outside is escaped; ``place`` makes the places of the
            figures.
        figures: the figures that have a place in ``body``.
        library: the address of plotly.js, relative to the page. None puts all of it, 4.8 MB, into
            the page.
    """
    own = (
        SCRIPT.replace("CONFIG", json.dumps(CONFIG))
        .replace("NARROW", str(NARROW_PIXELS))
        .replace("NEAR", str(NEAR_PIXELS))
    )
    nonce = secrets.token_urlsafe(16)  # no text on the page could know it
    attributes = f' data-library="{html.escape(library)}" data-nonce="{nonce}"' if library else ""
    scripts = ([own] if library else [plotly_js(), own]) if figures else []
    sources = [f"'sha256-{_hash(script)}'" for script in scripts]
    allowed = " ".join([*sources, *([f"'nonce-{nonce}'"] if figures and library else [])])
    policy = (
        f"default-src 'none'; script-src {allowed or NOTHING}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body{attributes}>",
            body,
            *(
                '<script type="application/json" '
                f'id="figure-{figure.name}">{_json(figure)}</script>'
                for figure in figures
            ),
            *(
                [f'<script type="text/plain" id="plotly">{plotly_js()}</script>']
                if figures and not library
                else []
            ),
            *([f"<script>{own}</script>", NO_SCRIPT] if figures else []),
            "</body></html>\n",
        ]
    )


def place(figure: Drawn) -> str:
    """Return the element in which a figure will be drawn.

    It has the height of the figure, so nothing moves when the figure appears.
    """
    height = int(figure.wide.layout.height or 420)
    return (
        f'<figure><div class="plot" data-figure="figure-{figure.name}" style="min-height: '
        f'{height}px"></div></figure>'
    )


@cache
def library_name() -> str:
    """Return the name of the file with plotly.js. Other versions of it have other names."""
    return f"plotly-{hashlib.sha256(plotly_js().encode()).hexdigest()[:8]}.min.js"


@cache
def plotly_js() -> str:
    """Return the plotly.js of the installed plotly package.

    Newlines are those that a browser sees, because the policy contains the hash of the script.
    """
    return (
        (files("plotly") / "package_data" / "plotly.min.js")
        .read_text(encoding="utf-8")
        .replace("\r\n", "\n")
        .replace("</script", "<\\/script")
    )


def _json(figure: Drawn) -> str:
    """Return the figure as JSON that cannot end the script element around it.

    The data of the narrow figure are left out if they are the same as those of the wide one.
    """
    wide = json.loads(figure.wide.to_json())
    narrow = json.loads(figure.narrow.to_json()) if figure.narrow is not None else None
    if narrow is not None and narrow["data"] == wide["data"]:
        del narrow["data"]
    return json.dumps(
        {"wide": wide, "narrow": narrow}, allow_nan=False, separators=(",", ":")
    ).replace("<", "\\u003c")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def cells(values: Sequence[Any], tag: str = "td") -> str:
    """Return a row of a table, escaped. Long cells may wrap."""
    texts = [html.escape("" if value is None else str(value)) for value in values]
    return (
        "<tr>"
        + "".join(f"<{tag}{_WRAP if len(text) > LONG else ''}>{text}</{tag}>" for text in texts)
        + "</tr>"
    )

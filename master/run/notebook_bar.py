"""A progress bar in the output of a notebook's cell, redrawn in place."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A moment of the bar. A notebook shows it as HTML, or as text where it cannot."""

    label: str
    done: int
    total: int
    text: str

    def __repr__(self) -> str:
        return f"{self.label} {self.done}/{self.total} {self.text}"

    def _repr_html_(self) -> str:
        return (
            f'<div><progress value="{self.done}" max="{self.total}"></progress> '
            f"{escape(self.label)} {self.done}/{self.total} &nbsp; {escape(self.text)}</div>"
        )


class NotebookBar:
    """The bar of one stage. It needs IPython, which every notebook has, and no widgets."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._last: Bar | None = None

    def show(self, bar: Bar) -> None:
        """Draw the bar, or redraw it where it is if something has changed."""
        from IPython.display import display

        if self._handle is None:
            self._handle = display(bar, display_id=True)
        elif bar != self._last:
            self._handle.update(bar)
        self._last = bar

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from types import ModuleType

import pytest
from rich.console import Console

from common.search.trial import TrialState
from master.run.progress import LiveProgress, Pace, Snapshot, describe_pace, duration


def snapshot(done: int = 5, running: int = 2, pace: float | None = 2.0) -> Snapshot:
    counts = dict.fromkeys(TrialState, 0) | {
        TrialState.COMPLETED: done - 1,
        TrialState.EXPLODED: 1,
        TrialState.RUNNING: running,
    }
    return Snapshot("coarse", counts | {TrialState.PENDING: 20 - done - running}, 0.9361, pace, 2)


def test_a_snapshot_says_all_that_one_asks() -> None:
    text = str(snapshot())
    for part in ("2 running", "1 exploded", "best 0.9361", "2.0 trials/s", "8 s left", "2 workers"):
        assert part in text
    assert (snapshot().done, snapshot().total) == (5, 20)
    assert "pace unknown" in str(snapshot(pace=None)) and "time left unknown" in str(
        snapshot(pace=None)
    )


def test_a_metric_that_is_no_accuracy_is_named_beside_its_best() -> None:
    error = replace(snapshot(), best=12.5, metric="val_mae")
    assert "best val_mae 12.5000" in str(error) and "best val_mae 12.5000" in error.short
    assert "best none yet" in str(replace(error, best=None))


def test_the_pace_is_that_of_the_last_minute() -> None:
    pace = Pace()
    assert pace.update(0.0, 0) is None
    assert pace.update(10.0, 20) == 2.0
    for second in range(20, 200, 10):
        latest = pace.update(second, 20 + second)
    assert latest is not None and abs(latest - 1.0) < 0.05


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 12, 200, 3720)] == [
        "0 s",
        "12 s",
        "3 min 20 s",
        "1 h 02 min",
    ]


def test_a_notebook_has_one_bar_that_is_redrawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, object]] = []

    class Handle:
        def update(self, what: object) -> None:
            shown.append(("again", what))

    def display(what: object, display_id: bool) -> Handle:
        shown.append(("new", what))
        return Handle()

    module = ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    out = io.StringIO()
    with LiveProgress(Console(file=out, force_jupyter=True, width=60)) as progress:
        progress.show(snapshot(5))
        progress.show(snapshot(5))  # nothing has changed
        progress.show(replace(snapshot(6), stage="<coarse>"))
    assert [how for how, _ in shown] == ["new", "again"]
    first, last = (what for _, what in shown)
    assert repr(first).startswith("coarse 5/20 best 0.9361")
    assert '<progress value="6" max="20">' in last._repr_html_()  # type: ignore[attr-defined]
    assert "&lt;coarse&gt;" in last._repr_html_()  # type: ignore[attr-defined]
    assert out.getvalue() == ""  # no lines beside it


def test_without_a_terminal_lines_take_the_place_of_the_bar() -> None:
    out = io.StringIO()
    with LiveProgress(Console(file=out, width=60)) as display:
        display.show(snapshot(5))
        display.show(snapshot(6))  # too soon for another line
        display.show(snapshot(20, 0), final=True)
    lines = out.getvalue().splitlines()
    assert (
        len(lines) == 2
        and lines[0].startswith("coarse: 5/20 trials done, 2 running")
        and lines[1].startswith("coarse: 20/20")
    )


def test_on_a_terminal_the_bar_shows_the_same() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160)
    with LiveProgress(console) as display:
        display.show(snapshot(5))
        display._bar.refresh()
    assert "5/20" in out.getvalue() and "best 0.9361" in out.getvalue()


def test_a_narrow_terminal_keeps_the_bar_and_the_counts() -> None:
    out = io.StringIO()
    with LiveProgress(Console(file=out, force_terminal=True, width=60)) as display:
        display.show(snapshot(5))
        display._bar.refresh()
    line = _plain(out.getvalue()).rstrip().splitlines()[-1]
    assert re.fullmatch(r"coarse 5/20 [━╸╺]+ best 0.9361, 8 s left, 2 running *", line)


def test_a_slow_pace_is_told_in_seconds_a_trial() -> None:
    assert describe_pace(2.0) == "2.0 trials/s"
    assert describe_pace(0.04) == "25 s a trial"


@pytest.mark.parametrize(("width", "bar"), [(40, 10), (60, 12), (80, 16), (120, 24), (200, 100)])
def test_the_bar_grows_with_the_window_and_the_line_never_breaks_a_number(
    width: int, bar: int
) -> None:
    out = io.StringIO()
    with LiveProgress(Console(file=out, force_terminal=True, width=width)) as display:
        display.show(snapshot())
        display._bar.refresh()
    drawn = [line for line in _plain(out.getvalue()).splitlines() if "coarse 5/20" in line][-1]
    assert drawn.count("━") + drawn.count("╸") + drawn.count("╺") == bar
    assert len(drawn.rstrip()) <= width
    parts = drawn.rstrip().rpartition("━ ")[2].split(", ")
    whole = ["best 0.9361", "8 s left", "2 running", "1 exploded", "2.0 trials/s", "2 workers"]
    assert parts in ([""], whole[: len(parts)])


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")

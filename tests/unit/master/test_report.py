"""The report of a stage and one figure to a file, as a user gets them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from common.errors import ConfigError
from common.folder.chosen import Chosen
from common.folder.record import Diagnosis, Record
from common.folder.records import SearchFolder
from common.search.search_file import parse_search
from common.search.trial import TrialState
from master.figures.names import FIGURES
from master.report import browser, stage_report
from master.report.page import plotly_js
from master.report.plotting import plot
from master.run import finish
from master.stages.prepare import Launched
from master.stages.source import Before
from master.stages.standings import Standings
from master.strategy.ranges import read_proposal, write_frozen
from tests.unit.master.made import peak, record, sampled

EVIL = "<script>alert(1)</script><img src=http://evil/>"
TEXT = """
name = "look"
task = "digits"
[space]
learning_rate = { log_uniform = [1e-6, 1e-3] }
hidden = { choice = [32, 64] }
[stages.coarse]
trials = 40
epochs = 1
[stages.fine]
trials = 10
epochs = 5
"""
SEARCH = parse_search(f'id = "{"0" * 16}"\nprotocol = 2\n{TEXT}')


@pytest.fixture
def chosen(tmp_path: Path) -> Chosen:
    return made(tmp_path)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Chosen:
    """For tests that only read: its report is written once."""
    return made(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def page(once: Chosen) -> str:
    return written(once)


def made(root: Path) -> Chosen:
    """Make a coarse stage whose best learning rates are at the high end.

    One trial failed with an evil reason.
    """
    folder = SearchFolder(root, SEARCH.name)
    folder.stage("coarse").make()
    folder.search_file.write_text(f'id = "{"0" * 16}"\nprotocol = 2\n{TEXT}')
    write_frozen(folder.stage("coarse").ranges, SEARCH.space)
    word = Diagnosis(word="still improving", sentence=f"It fell until the end {EVIL}.")
    records = [
        r.model_copy(update={"diagnosis": word, "worker": EVIL, "ended_at": 1e9 + r.index})
        for r in sampled(SEARCH.space, peak(1e-3), n=40)
    ]
    failed = record(
        40,
        dict(records[0].hyperparameters),
        state=TrialState.FAILED,
        reason=EVIL,
        val_acc=None,
        val_loss=None,
    )
    folder.stage("coarse").write_records([*records, failed])
    return Chosen(SEARCH, TEXT, root, folder)


def written(chosen: Chosen) -> str:
    said = stage_report.report(chosen, None, pytest.fail)
    path = chosen.folder.stage("coarse").path / "report.html"
    assert said == f"wrote {path}"
    return path.read_text(encoding="utf-8")


def best(chosen: Chosen) -> Record:
    return max(chosen.folder.stage("coarse").records(pytest.fail), key=lambda r: r.val_acc or 0)


def test_the_report_opens_with_what_was_found(once: Chosen, page: str) -> None:
    top = best(once)
    words = page[: page.index("<h2>Ranking</h2>")]
    assert "41 trials ended: 40 completed, 1 failed" in words
    assert f"Best: {top.trial}, val_acc {top.val_acc:.4f}, selected over 40 trials" in words
    assert f"<td>{top.hyperparameters['learning_rate']:.3g}</td>" in words
    assert "border: the best learning_rate" in words
    assert "Most common diagnosis: still improving (40 of 40): train longer." in words
    assert re.search(r"learning_rate</td><td[^>]*>log_uniform \[1e-06, 0.001\] -&gt; \[", words)
    assert "master launch --stage fine --search look" in words


def test_the_report_needs_no_network_and_lets_nothing_in(page: str) -> None:
    assert not re.search(r"""<[^>]*\s(src|action)\s*=|url\(|@import""", page)
    assert re.findall(r'<a href="([^"]*)"', page) == ["../report.html"]
    policy = policy_of(page)
    own = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    nonce = re.search(r'data-nonce="([\w-]+)"', page)
    assert nonce is not None and len(nonce[1]) > 16 and len(own) == 1
    assert f"script-src '{digest(own[0])}' 'nonce-{nonce[1]}';" in policy


def policy_of(page: str) -> str:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None and "unsafe-eval" not in policy[1]
    assert policy[1].startswith("default-src 'none'; script-src ")
    return policy[1]


def digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def test_the_pages_of_a_search_share_one_script_and_one_page_leads_to_them(
    once: Chosen, page: str
) -> None:
    assert plotly_js() not in page and len(page) < 1e6
    library = re.search(r'data-library="\.\./(plotly-[0-9a-f]{8}\.min\.js)"', page)
    assert library is not None
    assert (once.folder.path / library[1]).read_text(encoding="utf-8") == plotly_js()
    contents = (once.folder.path / "report.html").read_text()
    assert '<a href="coarse/report.html">report</a>' in contents and "fine/report" not in contents
    assert "script-src 'none'" in policy_of(contents)


def test_a_report_of_one_file_needs_no_other(once: Chosen, tmp_path: Path) -> None:
    out = tmp_path / "new" / "coarse.html"
    assert stage_report.report(once, "coarse", pytest.fail, out) == f"wrote {out}"
    page = out.read_text(encoding="utf-8")
    assert plotly_js() in page
    rest = page.replace(plotly_js(), "")
    assert "data-library" not in rest and "<a href" not in rest
    own = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    policy = policy_of(page)
    assert digest(plotly_js()) in policy and digest(own[0]) in policy and "nonce" not in policy
    assert [path.name for path in out.parent.iterdir()] == ["coarse.html"]


def test_what_comes_from_records_is_shown_letter_by_letter(page: str) -> None:
    assert (
        "&lt;script&gt;alert(1)" in page and "alert(1)</script>" not in page and "<img" not in page
    )


def test_every_figure_is_on_the_page_for_a_screen_and_a_phone(page: str) -> None:
    for name in FIGURES:
        assert f'data-figure="figure-{name}"' in page
        found = re.search(
            rf'<script type="application/json" id="figure-{name}">(.*?)</script>', page, re.DOTALL
        )
        assert found is not None
        both = json.loads(found[1])
        assert both["wide"]["layout"]["title"]["text"]
        assert (both["narrow"] is not None) == (name in stage_report.WITH_COLUMNS)


def test_an_edited_proposal_is_the_one_that_is_shown(chosen: Chosen) -> None:
    ranges = chosen.folder.stage("coarse").ranges
    ranges.write_text(
        ranges.read_text()
        + (
            '\n[next]\nstage = "fine"\ndigest = "0"\n[next.ranges]\n'
            "learning_rate = {log_uniform = [2e-4, 5e-4]}\nhidden = {choice = [64]}\n"
        )
    )
    page = written(chosen)
    assert "[0.0002, 0.0005]" in page and "edited by hand" in page


def conclude(chosen: Chosen) -> list[str]:
    """What the end of the coarse stage says to stderr."""
    said: list[str] = []
    published = SimpleNamespace(stage=SEARCH.stages[0], space=SEARCH.space)
    out = Console(width=80, quiet=True)
    records = chosen.folder.stage("coarse").records(said.append)
    before = Before(records, [], Standings(SEARCH))
    finish.conclude(
        Launched(SEARCH, chosen.folder),
        published,  # type: ignore[arg-type]
        before,
        out,
        said.append,
        {},
    )
    return said


def test_a_report_that_cannot_be_drawn_fails_no_launch(
    chosen: Chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish, "draw_reports_in_background", lambda *_: None)
    said: list[str] = []
    reports = finish.Reports(chosen.folder, said.append)
    reports.add("coarse")
    reports.draw()
    assert said == ["no report is drawn; `master report` draws it"]


def test_reports_of_a_short_launch_are_drawn_together_at_its_end_and_of_a_long_one_stage_by_stage(
    chosen: Chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[str]] = []
    monkeypatch.setattr(
        finish,
        "draw_reports_in_background",
        lambda _, stages: drawn.append(list(stages)) or Path("log"),
    )
    said: list[str] = []
    now = 0.0
    reports = finish.Reports(chosen.folder, said.append, lambda: now)
    reports.add("coarse")
    reports.add("fine")
    assert drawn == []
    reports.draw()
    reports.draw()
    assert drawn == [["coarse", "fine"]]
    assert said == [f"being drawn: {chosen.folder.path / 'report.html'} (coarse, fine)"]
    now = 61.0
    reports.add("finer")
    assert drawn == [["coarse", "fine"], ["finer"]]


def test_the_end_of_a_stage_proposes_the_ranges_of_the_next_one(chosen: Chosen) -> None:
    """The best learning rates lie at the high end, so it moves out; nothing narrows."""
    conclude(chosen)
    proposal = read_proposal(chosen.folder.stage("coarse").ranges, SEARCH.space)
    assert proposal is not None
    assert proposal.plain() == SEARCH.space.plain() | {
        "learning_rate": {"log_uniform": [1e-6, 0.0316]}
    }


def test_one_figure_to_a_page_or_json(once: Chosen, tmp_path: Path) -> None:
    out = tmp_path / "new" / "narrowing.json"
    assert plot(once, "hyperparameters", out, None, [], pytest.fail) == f"wrote {out}"
    assert json.loads(out.read_text())["layout"]["xaxis"]["type"] == "log"
    page = tmp_path / "timeline.html"
    plot(once, "timeline", page, "coarse", [], pytest.fail)
    assert "newPlot" in page.read_text() and "figure-only" in page.read_text()


def test_a_picture_without_a_browser_says_what_is_missing(
    once: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    monkeypatch.setattr(browser.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"kaleido .*chromium.* or write .html"):
        plot(once, "progress", tmp_path / "x.png", None, [], pytest.fail)


@pytest.mark.parametrize(
    ("name", "out", "trials", "told"),
    [
        ("nothing", "x.html", [], "hyperparameters"),
        ("losses", "x.pdf", [], ".html, .png, .json"),
        ("losses", "x.json", ["coarse-9999"], "coarse-9999"),
        ("timeline", "x.json", ["coarse-0001"], "losses, accuracies"),
    ],
)
def test_what_cannot_be_plotted_says_what_can(
    once: Chosen, tmp_path: Path, name: str, out: str, trials: list[str], told: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        plot(once, name, tmp_path / out, None, trials, pytest.fail)
    assert not (tmp_path / out).exists()

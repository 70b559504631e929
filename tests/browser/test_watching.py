"""What somebody does who leaves the dashboard open: follow logs and numbers, write tags and notes.

All is done on three screens, and each page is seen in light and in dark.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from common.folder.notes import Note, change_note, read_notes
from common.folder.records import SearchFolder
from tests.browser.visit import DESK, PHONE, SCREENS, go, look, serve, visit
from tests.integration.commands import Place, place, wait_for

PROGRAM = """
e=0
while [ $e -lt $1 ]; do
  e=$((e + 1))
  echo "epoch $e <b>of</b> $1"
  sleep 0.2
  echo "{\\"epoch\\": $e, \\"val_acc\\": 0.$((100 + e))}" >> "$COARSEFINE_REPORTS"
done
"""
SEARCH = """
name = "program"
task = {{ command = "sh {program} {{epochs}}" }}
[space]
learning_rate = {{ log_uniform = [1e-3, 1.0] }}
[stages.coarse]
trials = 2
epochs = 4
[stages.fine]
trials = 40
epochs = 3000
"""


def run_a_program(here: Place) -> None:
    program = here.path / "train.sh"
    program.write_text(PROGRAM)
    (here.path / "search.toml").write_text(SEARCH.format(program=program))
    here.start("master", "launch", "--stage", "all", "--workers", "1", log="launch.log")


@pytest.mark.timeout(600)
def test_a_running_search_is_watched_and_written_about(
    tmp_path: Path, browser: Browser, pictures: Path
) -> None:
    with place(tmp_path) as here:
        run_a_program(here)
        address = serve(here)
        for screen in SCREENS:
            with visit(browser, address, screen) as page:
                _sees_live_numbers(page, pictures)
                _follows_the_output_of_a_trial(page, pictures)
                _follows_the_log_of_a_worker(page, pictures)
                _writes_tags_and_a_note(here, page, pictures, str(screen))
        with (
            visit(browser, address, DESK) as page,
            visit(browser, address, PHONE, silent=False) as other,
        ):
            _both_write_at_once(here, page, other, pictures)


def _sees_live_numbers(page: Page, pictures: Path) -> None:
    card = page.locator('.card[data-stage="coarse"]')
    expect(card.locator(".done")).to_contain_text("2 of 2 trials")
    expect(card.locator(".cost")).to_contain_text("device-")
    expect(page.locator("#best")).to_contain_text("0.1040")
    numbers = page.locator("#live-numbers")
    expect(numbers).to_contain_text("Pace")
    expect(numbers).to_contain_text(re.compile(r"\d+(\.\d)? (s|min \d\d s) a trial"))
    expect(numbers).to_contain_text(re.compile(r"Time left\s*about \d+"))
    expect(numbers).to_contain_text(re.compile(r"Cost so far\s*[\d.]+ device-"))
    row = numbers.get_by_role("region", name="Who trains what").locator("tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("1 trial of fine")
    look(page, pictures, "watch-overview")


def _follows_the_output_of_a_trial(page: Page, pictures: Path) -> None:
    go(page, "program", "trial/fine-0000")
    expect(page.get_by_role("heading", level=1)).to_contain_text("running")
    output = page.locator("#output pre")
    expect(output).to_contain_text("<b>of</b> 3000")  # text, not markup
    last = re.compile(r"epoch (\d+) \S+ 3000\s*$")

    def epoch() -> int:
        found = last.search(output.inner_text())
        return int(found[1]) if found else 0

    before = epoch()
    wait_for(lambda: epoch() > before + 5, "the output to grow on the page")
    expect(page.locator("#output")).to_contain_text("followed live")
    look(page, pictures, "watch-trial")
    go(page, "program", "trial/coarse-0000")
    expect(page.locator("#output")).to_contain_text("ended")
    expect(page.locator("#output pre")).to_contain_text("epoch 4")
    expect(page.locator(".facts").first).to_contain_text(re.compile(r"Cost\s*[\d.]+ device-"))


def _follows_the_log_of_a_worker(page: Page, pictures: Path) -> None:
    page.get_by_role("link", name="Workers").click()
    page.get_by_role("button", name=re.compile("^Log of worker")).click()
    log = page.locator(".card[data-worker] pre")
    expect(log).to_contain_text("search 'program' runs a program")
    expect(page.locator(".card[data-worker]")).to_contain_text("followed live")
    page.get_by_text("Logs in the folder of the search").click()
    page.locator("#log-files").get_by_role("button", name="worker-1.log").click()
    expect(page.locator("#log-files pre")).to_contain_text("runs a program")
    look(page, pictures, "watch-workers")


def _write(page: Page, tags: str, note: str) -> None:
    page.get_by_role("button", name=re.compile("tags")).click()
    page.get_by_label("Tags, separated by spaces").fill(tags)
    page.get_by_label("Note", exact=True).fill(note)
    page.get_by_role("button", name="Save").click()


def _writes_tags_and_a_note(here: Place, page: Page, pictures: Path, words: str) -> None:
    go(page, "program", "trial/coarse-0001")
    _write(page, "keep baseline", f"<i>the</i> best so far, {words}")
    expect(page.locator(".notes .note")).to_have_text(f"<i>the</i> best so far, {words}")
    expect(page.locator(".notes .tag")).to_have_text(["keep", "baseline"])
    look(page, pictures, "watch-note")
    page.get_by_role("link", name="Overview").click()
    _write(page, "demo", f"of the whole search, {words}")
    expect(page.locator(".notes")).to_contain_text(f"of the whole search, {words}")
    expect(page.locator("#noted li").filter(has_text="coarse-0001")).to_have_count(1)
    known = read_notes(SearchFolder(here.root, "program"))
    assert known.of("coarse-0001").tags == ("keep", "baseline") and known.of(None).tags == ("demo",)
    page.get_by_role("link", name="Trials").click()
    page.get_by_label("Filter").fill("tag:keep")
    expect(page.locator("#ranking tbody tr")).to_have_count(1)
    expect(page.locator("#ranking tbody .tag")).to_have_text(["keep", "baseline"])
    done = here.run("master", "note", "--search", "program", "coarse-0000", "--tag", "from-a-shell")
    assert done.returncode == 0, done.stderr
    page.get_by_label("Filter").fill("tag:from-a-shell")
    expect(page.locator("#ranking tbody tr")).to_have_count(1)
    expect(page.locator("#ranking tbody")).to_contain_text("coarse-0000")


def _both_write_at_once(here: Place, page: Page, other: Page, pictures: Path) -> None:
    for one in (page, other):
        go(one, "program", "trial/coarse-0001")
        one.get_by_role("button", name="Edit tags and note").click()
        expect(one.get_by_label("Tags, separated by spaces")).to_have_value("keep baseline")
    page.get_by_label("Note", exact=True).fill("from the desk")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".notes .note")).to_have_text("from the desk")
    other.get_by_label("Note", exact=True).fill("from the phone")
    other.get_by_role("button", name="Save").click()
    alert = other.locator(".notes").get_by_role("alert")
    expect(alert).to_contain_text("somebody else has changed this meanwhile")
    expect(alert).to_contain_text("It says now: keep baseline | from the desk")
    expect(other.get_by_label("Note", exact=True)).to_have_value("from the phone")
    look(other, pictures, "watch-conflict")
    note = read_notes(SearchFolder(here.root, "program")).of("coarse-0001")
    assert note.note == "from the desk"
    other.get_by_label("Tags, separated by spaces").fill("what?")
    other.get_by_role("button", name="Save").click()
    expect(alert).to_contain_text("tag 'what?': use 1 to 32 letters")
    other.get_by_role("button", name="Cancel").click()
    expect(other.locator(".notes .note")).to_have_text("from the desk")


@pytest.mark.timeout(600)
def test_several_searches_and_the_line_of_descent(
    tmp_path: Path, browser: Browser, pictures: Path
) -> None:
    from tests.unit.master.test_serve_rungs import began

    with place(tmp_path, "unix:///nowhere/redis.sock") as here:
        played = began(here.root)
        played.run_all()
        text = played.folder.search_file.read_text()
        other = SearchFolder(here.root, "other")
        other.path.mkdir()
        changed = text.replace('name = "digits"', 'name = "other"').replace("0123", "4567")
        other.search_file.write_text(changed)
        change_note(other, None, lambda before: Note(tags=("later",)))
        change_note(played.folder, None, lambda before: Note(tags=("a",)))
        address = serve(here, "--host", "0.0.0.0")  # where everything needs the token
        _signs_in_and_keeps_the_address(browser, *address.split("?token="))
        for screen in SCREENS:
            with visit(browser, address, screen, silent=False) as page:
                _starts_with_all_searches(page, pictures)
                _follows_the_line_of_descent(page, pictures)
                _never_shows_another_search(page)


def _starts_with_all_searches(page: Page, pictures: Path) -> None:
    cards = page.locator(".card[data-search]")
    expect(cards).to_have_count(2)
    expect(page.get_by_role("heading", level=1)).to_have_text("Searches")
    first = page.locator('.card[data-search="digits"]')
    expect(first).to_contain_text("Best 0.")
    expect(first.locator(".tag")).to_have_text(["a"])
    expect(page.locator('.card[data-search="other"]')).to_contain_text("No trial has ended well")
    look(page, pictures, "watch-searches")
    first.get_by_role("link").last.click()  # its best trial
    expect(page).to_have_url(re.compile(r"#/s/digits/trial/"))


def _follows_the_line_of_descent(page: Page, pictures: Path) -> None:
    descent = page.locator("#descent")
    expect(descent).to_contain_text("Its configuration: ")
    expect(descent.locator("tbody tr").last).to_contain_text("promoted in stage")
    stage = descent.locator("tbody tr").last.get_by_role("link")
    expect(stage).to_have_attribute("href", re.compile(r"#/s/digits/trials\?stage="))
    children = descent.locator("p").filter(has_text="drawn from it").get_by_role("link")
    expect(children.first).to_be_visible()
    parent = page.get_by_role("heading", level=1).inner_text().split()[0]
    name = children.first.inner_text()
    look(page, pictures, "watch-descent")
    children.first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(name)
    back = page.locator("#descent p").first.get_by_role("link", name=parent)
    back.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(parent)


def _never_shows_another_search(page: Page) -> None:
    for name in ("overview", "trials", "trial/coarse-0001"):
        go(page, "digits", "overview")
        expect(page.locator("#best")).to_be_visible()
        go(page, "nosuch", name)
        expect(page.locator("#alerts")).to_contain_text('There is no search "nosuch"')
        expect(page.locator("#best, .card[data-stage], #ranking tbody tr")).to_have_count(
            1 if name == "overview" else 0  # the card of the best, which is hidden
        )
        expect(page.locator("#best")).not_to_be_visible()
        assert "0.8" not in page.locator("main").inner_text()


def _signs_in_and_keeps_the_address(browser: Browser, address: str, token: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{address}#/s/digits/trial/coarse-0003")
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("coarse-0003")
        assert "token" not in page.url and page.url.endswith("#/s/digits/trial/coarse-0003")
        page.reload()
        expect(page.get_by_role("heading", level=1)).to_contain_text("coarse-0003")

"""A search runs, the page moves, and a trial is killed from it: real processes, a real browser."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, expect

from common.broker.connection import open_broker
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from common.search.trial import ENDED, TrialState
from tests.browser.visit import (
    PHONE,
    SCREENS,
    Screen,
    Theme,
    go,
    hover,
    look,
    picture,
    serve,
    visit,
)
from tests.integration.commands import Place, place, wait_for

WITHIN_S = 10.0  # two seconds on a machine that does nothing else
SEARCH = "digits"


@pytest.mark.timeout(600)
def test_a_search_from_its_launch_to_a_kill(
    tmp_path: Path, browser: Browser, pictures: Path
) -> None:
    with place(tmp_path) as here:
        file = here.write_search(trials=120, epochs=10, low=1e-3, high=10.0)
        file.write_text(
            file.read_text().replace("epochs = 3", "epochs = 20000")
        )  # the second stage is there to be killed
        address = serve(here)
        with visit(browser, address) as page:
            expect(page.locator("main")).to_contain_text(
                "No search has been launched"
            )  # an empty folder: the page says so
            picture(page, pictures, "nothing-yet")
            here.start("master", "launch", "--stage", "all", "--workers", "0", log="launch.log")
            card = page.locator('.card[data-stage="coarse"]')  # and goes on by itself
            expect(card.locator(".count .pending")).to_be_visible()
            here.start(
                "worker", "start", "--array-width", "8", log="worker.log"
            )  # narrow, so that trials end one after the other
            expect(card.locator(".count .running")).to_be_visible()
            _page_follows(here, page)
            _sorts_and_filters(here, page, pictures)
            killed = _kills_a_running_trial(here, page, pictures)
            _shows_the_killed_one(here, page, killed)
            _shows_workers(page, pictures)
            _kills_the_stage(here, page)
            _overview(page, pictures)
        with visit(browser, address, PHONE) as page:
            _fits_a_phone(page, pictures, killed)


def _queue(here: Place) -> Any:
    return open_broker(here.redis_url, here.root)


def _page_follows(here: Place, page: Page) -> None:
    """Each ending in Redis is on the page soon, and nobody reloads it."""
    done = page.locator('.card[data-stage="coarse"] .done')
    search = SearchFolder(here.root, SEARCH).search()
    assert search is not None and search.id is not None
    with _queue(here) as broker:
        queue, slowest = TrialQueue(broker.client, search.id), 0.0
        for _ in range(3):
            before = sum(queue.counts()["coarse"][state] for state in ENDED)
            now = wait_for(
                lambda: (
                    (n := sum(queue.counts()["coarse"][state] for state in ENDED))
                    # Called in this turn of the loop only.
                    > before  # noqa: B023
                    and n
                ),
                "a trial to end",
            )
            began = time.monotonic()
            shown = lambda: (  # noqa: E731
                int(
                    re.search(  # type: ignore[index]
                        r"[\d,]+",
                        done.inner_text(),
                    )[0].replace(",", "")
                )
                >= now  # noqa: B023
            )
            wait_for(shown, "the page to show it")
            slowest = max(slowest, time.monotonic() - began)
        print(f"slowest of three endings to reach the page: {slowest:.2f} s")
        assert slowest < WITHIN_S


def _rows(page: Page, column: int) -> list[str]:
    return page.locator(f"#ranking tbody tr > :nth-child({column})").all_inner_texts()


def _sorts_and_filters(here: Place, page: Page, pictures: Path) -> None:
    page.get_by_role("link", name="Trials").click()
    page.locator("#stage").select_option("coarse")
    expect(page.locator("#ranking tbody tr").first).to_be_visible()
    _same_as_the_command(here, page)
    page.get_by_role("button", name="learning_rate").click()
    expect(page.locator('th[aria-sort="ascending"]')).to_contain_text("learning_rate")
    column = page.locator("#ranking thead th").all_inner_texts().index("learning_rate ▲") + 1
    wait_for(
        lambda: (found := [float(cell) for cell in _rows(page, column)]) and found == sorted(found),
        "the rows in order",
    )
    picture(page, pictures, "trials")
    page.get_by_label("Filter").fill("learning_rate<0.01")
    wait_for(
        lambda: (
            (found := [float(cell) for cell in _rows(page, column)])
            and all(rate <= 0.01 for rate in found)
        ),
        "the filtered rows",
    )
    page.get_by_label("Filter").fill("learning_rate>a_lot")
    expect(page.get_by_role("alert").filter(has_text="not a number")).to_be_visible()
    page.get_by_label("Filter").fill("")
    page.get_by_role("button", name="#", exact=True).focus()
    page.keyboard.press("Enter")  # the keyboard will do
    expect(page.locator('th[aria-sort="ascending"]')).to_contain_text("#")


def _same_as_the_command(here: Place, page: Page) -> None:
    """Check that the page and `master rank` show the same numbers at the same moment.

    Retry until no trial ends between the two.
    """

    def same() -> bool:
        before = _rows(page, 3), _rows(page, 5)
        ranked = here.rank()[:50]
        if (_rows(page, 3), _rows(page, 5)) != before:
            return False
        accuracies = ["–" if row["val_acc"] is None else f"{row['val_acc']:.4f}" for row in ranked]
        return before == ([row["trial"] for row in ranked], accuracies)

    wait_for(same, "the page and `master rank` to agree")


def _kills_a_running_trial(here: Place, page: Page, pictures: Path) -> str:
    expect(page.locator("#stage").locator("option")).to_have_count(
        3
    )  # all stages, and two: the second has begun
    page.locator("#stage").select_option("fine")
    page.locator("#state").select_option("running")
    expect(page.locator("#summary")).to_contain_text("running")
    page.locator('#ranking tr[data-trial^="fine-"] th a').last.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("running")
    trial = page.get_by_role("heading", level=1).inner_text().split()[0]
    curves = page.locator('figure[aria-label="Accuracy"] .scatterlayer .trace').first
    expect(curves).to_be_visible()  # as they come: from Redis, since it has no record yet
    points = "() => document.querySelector('figure[aria-label=\"Accuracy\"]').data[0].x.at(-1)"
    before = page.evaluate(points)
    wait_for(lambda: page.evaluate(points) > before, "the curve to grow")
    picture(page, pictures, "trial-running")
    page.get_by_role("button", name="Copy as TOML").click()
    expect(page.get_by_text("copied")).to_be_visible()
    assert "learning_rate = " in page.evaluate("navigator.clipboard.readText()")
    page.get_by_role("button", name="Kill this trial").click()
    picture(page, pictures, "question")
    page.keyboard.press("Escape")  # means no
    assert _in_redis(here, trial) is TrialState.RUNNING
    page.get_by_role("button", name="Kill this trial").click()
    page.get_by_role("button", name="Kill it").click()
    expect(page.locator("#dialog-text")).to_contain_text(f"{trial}: killed")
    assert _in_redis(here, trial) is TrialState.KILLED
    page.get_by_role("button", name="OK").click()
    return trial


def _in_redis(here: Place, trial: str) -> TrialState | None:
    search = SearchFolder(here.root, SEARCH).search()
    assert search is not None and search.id is not None
    with _queue(here) as broker:
        return TrialQueue(broker.client, search.id).state(trial)


def _shows_the_killed_one(here: Place, page: Page, trial: str) -> None:
    expect(page.get_by_role("heading", level=1)).to_contain_text("killed")
    expect(page.get_by_text("killed by the user").first).to_be_visible()
    page.get_by_role("link", name="Trials").click()
    page.locator("#state").select_option("killed")
    expect(page.locator(f'tr[data-trial="{trial}"]')).to_be_visible()
    assert trial in [row["trial"] for row in here.rank("fine") if row["state"] == "killed"]


def _shows_workers(page: Page, pictures: Path) -> None:
    page.get_by_role("link", name="Workers").click()
    card = page.locator(".card[data-worker]")
    expect(card).to_have_count(1)
    expect(card).to_contain_text("training")
    for word in ("Device", "Pace", "Array width", "Steps", "Last seen"):
        expect(card).to_contain_text(word)
    picture(page, pictures, "workers")


def _kills_the_stage(here: Place, page: Page) -> None:
    page.get_by_role("link", name="Overview").click()
    card = page.locator('.card[data-stage="fine"]')
    card.get_by_role("button", name="Kill the stage").click()
    page.get_by_role("button", name="Kill them all").click()
    expect(page.locator("#dialog-text")).to_contain_text("stage fine: killed")
    page.get_by_role("button", name="OK").click()
    expect(card.locator(".done")).to_contain_text("8 of 8 trials")
    status = here.status()["stages"]["fine"]
    assert status["pending"] == status["running"] == 0


def _overview(page: Page, pictures: Path) -> None:
    expect(page.locator('[data-figure="hyperparameters"] .main-svg').first).to_be_visible()
    expect(page.locator('[data-figure="progress"] .main-svg').first).to_be_visible()
    picture(page, pictures, "overview")
    page.get_by_role("link", name="Figures").click()
    boxes = page.locator("figure[data-figure]")
    expect(boxes.first).to_be_visible()
    for place_ in range(boxes.count()):
        boxes.nth(place_).scroll_into_view_if_needed()
        expect(boxes.nth(place_).locator(".main-svg").first).to_be_visible()
    picture(page, pictures, "figures")


def _fits_a_phone(page: Page, pictures: Path, trial: str) -> None:
    for name in ("overview", "trials", "figures", "workers", f"trial/{trial}"):
        go(page, SEARCH, name)
        page.wait_for_selector("h1")
        page.wait_for_timeout(
            500
        )  # no condition holds on every page: let it draw before it is looked at
        picture(page, pictures, f"{name.partition('/')[0]}-phone")


@pytest.mark.timeout(600)
def test_redis_goes_and_comes_back(tmp_path: Path, browser: Browser, pictures: Path) -> None:
    """The page says what is going on, and recovers by itself."""
    from tests.redis_server import start_redis

    with place(tmp_path, f"unix://{tmp_path}/redis-any.sock") as here:
        here.write_search(trials=4)
        address = serve(here)
        with visit(browser, address) as page:
            expect(page.locator("#alerts")).to_contain_text("Redis is away")
            picture(page, pictures, "redis-away")
            with start_redis(tmp_path):
                expect(page.locator("#live")).to_contain_text("live")
                assert (
                    here.run(
                        "master", "launch", "--stage", "coarse", "--workers", "0", "--detach"
                    ).returncode
                    == 0
                )
                expect(page.locator('.card[data-stage="coarse"] .count .pending')).to_be_visible()
            expect(page.locator("#alerts")).to_contain_text("Redis is away")
            expect(
                page.locator('.card[data-stage="coarse"]')
            ).to_be_visible()  # what the folder tells stays
            with start_redis(tmp_path):
                expect(page.locator("#alerts")).to_be_empty()


@pytest.mark.timeout(600)
def test_what_a_record_says_is_never_markup(tmp_path: Path, browser: Browser) -> None:
    """A reason, a curve's name and a worker's name would run as a script if inserted as HTML."""
    from tests.unit.master.test_serve import launched, records

    bad = "<img src=x onerror=window.hacked=1>"
    with place(tmp_path, "unix:///nowhere/redis.sock") as here:
        search = launched(here.root)
        more = {
            "reason": bad,
            "worker": bad,
            "traceback": bad,
            "curves": {"epoch": [1.0, 2.0], bad: [1.0, 2.0], "val_loss": [1.0, 0.5]},
        }
        search.folder.stage("coarse").write_records(records(search, 0, 10, **more))
        with visit(browser, serve(here)) as page:
            for name in ("overview", "trials", "figures", "workers", "trial/coarse-0004"):
                go(page, SEARCH, name)
                page.wait_for_selector("h1")
                page.wait_for_timeout(700)
            expect(page.locator("main")).to_contain_text(bad)
            assert page.evaluate("window.hacked") is None
            assert page.locator("img[src=x]").count() == 0


@pytest.mark.timeout(600)
def test_the_api_page_needs_nobody_else(tmp_path: Path, browser: Browser, pictures: Path) -> None:
    with place(tmp_path, "unix:///nowhere/redis.sock") as here:
        address = serve(here)
        with visit(browser, address.replace("/?", "/api/docs?")) as page:
            expect(
                page.get_by_role(
                    "heading", name="GET /api/searches/{search}/trials/{trial}", exact=True
                )
            ).to_be_visible()
            picture(page, pictures, "api")


@pytest.mark.timeout(600)
def test_ten_thousand_trials(tmp_path: Path, browser: Browser, pictures: Path) -> None:
    """The page is there at once, and sorting and turning pages takes no noticeable time."""
    from tests.unit.master.test_serve import launched, records

    with place(tmp_path, "unix:///nowhere/redis.sock") as here:
        search = launched(here.root)
        search.folder.stage("coarse").write_records(records(search, 0, 10_000))
        with visit(browser, serve(here)) as page:
            expect(page.locator('.card[data-stage="coarse"] .done')).to_contain_text("10,000")
            began = time.monotonic()
            go(page, SEARCH, "trials?sort=val_acc&order=desc")
            expect(page.locator("#ranking tbody tr")).to_have_count(50)
            page.get_by_label("Filter").fill("learning_rate<1e-3")
            expect(page.locator("#summary")).not_to_contain_text("10,000 of")
            page.get_by_role("button", name="Next").click()
            expect(page.get_by_text("51 to 100")).to_be_visible()
            took = time.monotonic() - began
            print(f"open, filter and turn over 10,000 trials: {took:.2f} s")
            picture(page, pictures, "ten-thousand")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("screen", SCREENS, ids=str)
def test_compare_download_keys_colours_and_addresses(
    tmp_path: Path, browser: Browser, pictures: Path, screen: Screen
) -> None:
    from tests.unit.master.test_serve import launched, records

    with place(tmp_path, "unix:///nowhere/redis.sock") as here:
        search = launched(here.root)
        search.folder.stage("coarse").write_records(records(search, 0, 60))
        with visit(browser, serve(here), screen) as page:
            _uses_the_keys(page)
            _compares(page, pictures)
            _downloads(page)
            _follows_addresses(page)
            _opens_a_point(page)
            _lists_all_searches(here, page, pictures)
            _changes_colours(page, screen)


def _uses_the_keys(page: Page) -> None:
    page.keyboard.press("/")  # on the overview: it goes to the trials
    expect(page.get_by_label("Filter")).to_be_focused()
    page.keyboard.type("/")  # in the field it is a character like any other
    expect(page.get_by_label("Filter")).to_have_value("/")
    page.get_by_label("Filter").fill("")
    expect(page.locator("#ranking tbody tr")).to_have_count(50)
    page.get_by_role("heading", level=1).click()
    rows = page.locator("#ranking tbody tr")
    for key, row in (("j", 0), ("j", 1), ("j", 2), ("k", 1)):
        page.keyboard.press(key)
        expect(rows.nth(row).locator("th a")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/trial/coarse-\d{4}$"))
    page.go_back()


def _compares(page: Page, pictures: Path) -> None:
    button = page.get_by_role("button", name="Compare")
    expect(button).to_be_disabled()
    boxes = page.locator("#ranking input[type=checkbox]")
    for place_ in (0, 1, 49):
        boxes.nth(place_).check()
    page.get_by_role("button", name="Next").click()  # the ticks of the other page stay
    expect(page.get_by_text("51 to 60")).to_be_visible()
    boxes.first.check()
    expect(button).to_have_text("Compare 4 trials")
    button.click()
    table = page.locator("#comparison")
    expect(table.locator("thead th")).to_have_count(4)
    differs = table.locator("tr.differs")
    expect(differs.filter(has_text="learning_rate")).to_have_count(1)
    expect(table.locator("tr").filter(has_text="budget")).to_be_visible()
    page.get_by_label("only what differs").check()
    expect(table.locator("tr").filter(has_text="budget")).to_have_count(0)
    lines = page.locator('figure[aria-label="Validation loss"] .scatterlayer .trace')
    expect(lines).to_have_count(4)
    look(page, pictures, "compare")


def _downloads(page: Page) -> None:
    go(page, SEARCH, "trials")
    page.get_by_label("Filter").fill("(val_acc<0.45 OR val_acc>0.8) state=completed")
    expect(page.locator("#summary")).to_contain_text(re.compile(r"^[1-5]?\d of 60 ended"))
    matching = int(page.locator("#summary").inner_text().split()[0])
    assert matching > 0
    frames = []
    for name, read in (("CSV", pd.read_csv), ("Parquet", pd.read_parquet)):
        with page.expect_download() as told:
            page.get_by_role("link", name=name).click()
        frames.append(read(told.value.path()))
    for frame in frames:
        assert list(frame.columns[:4]) == ["rank", "trial", "state", "val_acc"]
        assert len(frame) == matching and not frame["val_acc"].between(0.45, 0.8).any()


def _follows_addresses(page: Page) -> None:
    """An address that is typed or linked to within the page is followed, whatever is shown now."""
    go(page, SEARCH, "trials?state=exploded")
    expect(page.locator("#state")).to_have_value("exploded")
    expect(page.locator("#ranking tbody .exploded").first).to_be_visible()
    page.locator("#state").select_option("completed")
    expect(page).to_have_url(re.compile("state=completed"))
    go(page, SEARCH, "trials?state=exploded")
    expect(page.locator("#state")).to_have_value("exploded")
    go(page, "nosuch", "trials")
    expect(page.locator("#alerts")).to_contain_text('There is no search "nosuch"')
    expect(page.locator("#ranking tbody tr")).to_have_count(0)
    go(page, "nosuch", "overview")
    expect(page.get_by_role("heading", level=1)).to_have_text("nosuch")
    expect(page.locator(".card[data-stage]")).to_have_count(0)
    go(page, SEARCH, "overview")
    expect(page.locator('.card[data-stage="coarse"]')).to_be_visible()
    expect(page.locator("#alerts")).not_to_contain_text("no search")


def _opens_a_point(page: Page) -> None:
    go(page, SEARCH, "overview")
    figure = page.locator('[data-figure="hyperparameters"]')
    figure.scroll_into_view_if_needed()  # it is drawn when it is seen
    point = figure.locator(".scatterlayer .points path").first
    expect(point).to_be_visible()
    point.scroll_into_view_if_needed()

    def opens() -> bool:
        if re.search(r"coarse-\d{4}", hover(page, point)):
            page.mouse.down()
            page.mouse.up()
            page.wait_for_timeout(1000)  # the point may have moved while figures were drawn
        return bool(re.search(r"/trial/coarse-\d{4}$", page.evaluate("location.href")))

    wait_for(opens, "a click on the point to open its trial")


def _lists_all_searches(here: Place, page: Page, pictures: Path) -> None:
    shutil.copytree(here.root / SEARCH, here.root / "other")
    file = here.root / "other" / "search.toml"
    file.write_text(file.read_text().replace(f'name = "{SEARCH}"', 'name = "other"'))
    page.get_by_role("link", name="all", exact=True).click()
    expect(page.locator(".card[data-search]")).to_have_count(2)
    look(page, pictures, "searches")
    page.get_by_role("link", name="other").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("other")


def _changes_colours(page: Page, screen: Screen) -> None:
    theme = "document.documentElement.dataset.theme"
    other: Theme = "light" if screen.theme == "dark" else "dark"
    assert page.evaluate(theme) == screen.theme
    page.emulate_media(color_scheme=other)  # the system's setting
    wait_for(lambda: page.evaluate(theme) == other, "the page to follow the system")
    page.get_by_role("button", name=f"Use {screen.theme} colours").click()
    assert page.evaluate(theme) == screen.theme
    page.get_by_role("button", name=f"Use {other} colours").click()
    assert page.evaluate(theme) == other

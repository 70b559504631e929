"""Selecting trials in a figure, choosing columns, addresses, descent: on three screens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.visit import SCREENS, Screen, go, hover, look, serve, visit
from tests.integration.commands import place, wait_for

SEARCH = "digits"
TITLES_ARE_WHOLE = """figure => {
  const around = figure.getBoundingClientRect();
  const titles = [...figure.querySelectorAll(".xtitle, .ytitle, .legend")];
  const inside = box => box.left >= around.left && box.right <= around.right
    && box.top >= around.top && box.bottom <= around.bottom;
  return titles.length === 3 && titles.every(title => inside(title.getBoundingClientRect()));
}"""
VIEWS = {
    "overview": "overview",
    "trials": "trials?figure=parallel&filter=learning_rate>%3D0.001+hidden%3D64",
    "figures": "figures",
    "workers": "workers",
    "trial": "trial/coarse-0040",
    "compare": "compare?trials=coarse-0000,coarse-0040",
    "searches": "searches",
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard over 60 ended trials; the last 20 were drawn around another."""
    from tests.unit.master.test_serve import launched, records

    with place(tmp_path_factory.mktemp("selecting"), "unix:///nowhere/redis.sock") as here:
        search = launched(here.root)
        bred = {"drawn": "density", "parents": ("coarse-0001",)}
        curves = {
            "epoch": [0.5, 1.0],
            "val_loss": [2.0, 0.5],
            "train_loss": [2.5, 0.4],
            "update_ratio.0": [1e-3, 2e-3],
            "update_ratio.3": [1e-3, 3e-3],
        }
        folder = search.folder.stage("coarse")
        folder.write_records(records(search, 0, 40, curves=curves, seconds=1.5))
        folder.write_records(records(search, 40, 20, curves=curves, seconds=2.5, **bred))
        yield serve(here)


def _asked(page: Page) -> dict[str, str]:
    """Return the query of the address behind the '#'."""
    # `page.url` is as old as the last event that Playwright has read.
    query = urlsplit(urlsplit(page.evaluate("location.href")).fragment).query
    return {name: values[0] for name, values in parse_qs(query).items()}


def _wait_for_rows(page: Page, matching: int) -> None:
    expect(page.locator("#summary")).to_have_text(f"{matching} of 60 ended trials")


def _count(page: Page) -> int:
    return int(page.locator("#summary").inner_text().split()[0])


def _drag(page: Page, axis: str, top: float, bottom: float) -> None:
    """Drag along an axis of the parallel coordinates, between two shares of its length."""
    strip = page.locator(f'.brush [data-axis="{axis}"]')
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()
    assert box is not None
    x, inner = box["x"] + box["width"] / 2, box["height"] - 16
    page.mouse.move(x, box["y"] + 8 + top * inner)
    page.mouse.down()
    page.mouse.move(x, box["y"] + 8 + (top + bottom) / 2 * inner)
    page.mouse.move(x, box["y"] + 8 + bottom * inner)
    page.mouse.up()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("screen", SCREENS, ids=str)
def test_a_part_of_an_axis_filters_table_figure_address_and_download(
    address: str, browser: Browser, pictures: Path, screen: Screen
) -> None:
    with visit(browser, address, screen) as page:
        go(page, SEARCH, "trials?figure=parallel")
        _wait_for_rows(page, 60)
        expect(page.locator('.brush [data-axis="hidden"]')).to_be_visible()
        _drag(page, "learning_rate", 0.1, 0.5)
        wait_for(lambda: "filter" in _asked(page), "the address to have the part")
        words = _asked(page)["filter"]
        found = re.fullmatch(r"learning_rate>=(\S+) learning_rate<=(\S+)", words)
        assert found is not None and float(found[1]) < float(found[2]), words
        expect(page.get_by_label("Filter")).to_have_value(words)
        expect(page.locator("#summary")).not_to_contain_text("60 of 60")
        matching = _count(page)
        caption = page.locator('[data-figure="parallel"] .hint')
        expect(caption).to_have_text(f"{matching} of 60 trials match the filter.")
        expect(page.locator(".brush .part:visible")).to_have_count(1)
        _drag(page, "hidden", -0.02, 0.1)  # an option: the last of them, at the top
        wait_for(lambda: "hidden=256" in _asked(page).get("filter", ""), "the option")
        expect(page.locator(".brush .part:visible")).to_have_count(2)
        look(page, pictures, "selected")
        _carries_on(page)
        _clears(page)


def _carries_on(page: Page) -> None:
    """The other pages, a download and a link that is opened anew have the same trials."""
    csv = page.get_by_role("link", name="CSV")
    expect(csv).to_have_attribute("href", re.compile("hidden%3D256"))
    matching = _count(page)
    with page.expect_download() as told:
        csv.click()
    assert len(told.value.path().read_text().splitlines()) == matching + 1
    link = page.url.replace("#", "?again#")
    page.get_by_role("link", name="Figures", exact=True).click()
    expect(page.get_by_label("Filter")).to_have_value(re.compile("hidden=256"))
    figure = page.locator('[data-figure="hyperparameters"]')
    expect(figure.locator(".hint")).to_have_text(f"{matching} of 60 trials match the filter.")
    page.get_by_role("link", name="Trials", exact=True).click()
    _wait_for_rows(page, matching)
    other = page.context.new_page()
    other.goto(link)
    _wait_for_rows(other, matching)
    expect(other.locator(".brush .part:visible")).to_have_count(2)
    other.close()


def _clears(page: Page) -> None:
    page.get_by_role("button", name="Remove hidden: 256").click()
    expect(page.get_by_label("Filter")).not_to_have_value(re.compile("hidden"))
    page.get_by_role("button", name="Clear the filter").click()
    _wait_for_rows(page, 60)
    assert "filter" not in _asked(page)
    page.go_back()
    expect(page.get_by_label("Filter")).to_have_value(re.compile("learning_rate>="))
    expect(page.locator("#summary")).not_to_contain_text("60 of 60")
    page.go_forward()
    _wait_for_rows(page, 60)
    go(page, SEARCH, "trials?figure=parallel&filter=learning_rate>%3D0.01")
    expect(page.locator(".brush .part:visible")).to_have_count(1)
    strip = page.locator('.brush [data-axis="learning_rate"]')
    strip.click(position={"x": 4, "y": 4})  # a click on an axis that has a part takes it away
    _wait_for_rows(page, 60)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("screen", SCREENS, ids=str)
def test_columns_are_chosen_sorted_linked_and_downloaded(
    address: str, browser: Browser, pictures: Path, screen: Screen
) -> None:
    with visit(browser, address, screen) as page:
        go(page, SEARCH, "trials")
        _wait_for_rows(page, 60)
        heads = page.locator("#ranking thead th")
        expect(heads.filter(has_text="seconds")).to_have_count(0)
        page.locator("#columns summary").click()
        page.locator("#columns").get_by_label("seconds").check()
        expect(heads.filter(has_text="seconds")).to_have_count(1)
        page.locator("#columns").get_by_label("val_loss").uncheck()
        expect(heads.filter(has_text="val_loss")).to_have_count(0)
        look(page, pictures, "columns")
        page.get_by_role("button", name="seconds").click()
        expect(page.locator('th[aria-sort="descending"]')).to_contain_text("seconds")
        assert _asked(page)["sort"] == "seconds" and "seconds" in _asked(page)["columns"]
        expect(page.locator("#ranking tbody tr").first).to_contain_text("2.5")
        page.get_by_label("compare coarse-00").first.check()
        wait_for(lambda: _asked(page).get("ticked"), "the address to have the tick")
        with page.expect_download() as told:
            page.get_by_role("link", name="CSV").click()
        columns = told.value.path().read_text().splitlines()[0].split(",")
        assert "seconds" in columns and "val_loss" not in columns
        assert columns == _asked(page)["columns"].split(",")
        link = page.url
        page.get_by_role("button", name="The usual columns").click()
        expect(heads.filter(has_text="val_loss")).to_have_count(1)
        page.go_back()
        expect(heads.filter(has_text="val_loss")).to_have_count(0)
        other = page.context.new_page()
        other.goto(link.replace("#", "?again#"))
        expect(other.locator('th[aria-sort="descending"]')).to_contain_text("seconds")
        expect(other.locator("#ranking input:checked")).to_have_count(1)
        other.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("screen", SCREENS, ids=str)
def test_every_part_of_an_address_is_obeyed_on_the_page_itself(
    address: str, browser: Browser, screen: Screen
) -> None:
    with visit(browser, address, screen) as page:
        go(page, SEARCH, "trials?filter=hidden%3D64")
        expect(page.get_by_label("Filter")).to_have_value("hidden=64")
        go(page, SEARCH, "trials?filter=hidden%3D128&stage=coarse&order=desc&sort=val_loss")
        expect(page.get_by_label("Filter")).to_have_value("hidden=128")
        expect(page.locator('th[aria-sort="descending"]')).to_contain_text("val_loss")
        go(page, SEARCH, "trials?offset=50")
        expect(page.get_by_text("51 to 60")).to_be_visible()
        go(page, SEARCH, "trials?columns=trial,worker&ticked=coarse-0002,coarse-0003")
        expect(page.locator("#ranking thead th")).to_have_count(3)
        expect(page.get_by_role("button", name="Compare 2 trials")).to_be_enabled()
        go(page, SEARCH, "trials?figure=rungs")
        expect(page.locator('[data-figure="rungs"] .main-svg').first).to_be_visible()
        go(page, SEARCH, "figures?figure=outcomes")
        expect(page.locator("figure[data-figure]")).to_have_count(1)
        go(page, SEARCH, "figures?stage=nosuch&filter=hidden%3D64")
        expect(page.locator("main")).to_contain_text('No trial of a stage "nosuch"')
        expect(page.get_by_label("Filter")).to_have_value("hidden=64")
        go(page, SEARCH, "compare?trials=coarse-0000,coarse-0001&only=1")
        expect(page.locator("#comparison thead th")).to_have_count(2)
        expect(page.get_by_label("only what differs")).to_be_checked()
        go(page, SEARCH, "compare?trials=coarse-0000,coarse-0001,coarse-0002")
        expect(page.locator("#comparison thead th")).to_have_count(3)
        page.go_back()
        expect(page.locator("#comparison thead th")).to_have_count(2)
        go(page, SEARCH, "trials?filter=nothing>1")
        expect(page.get_by_role("alert").filter(has_text="no such column")).to_be_visible()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("screen", SCREENS, ids=str)
def test_a_point_leads_to_the_trial_that_it_was_drawn_around(
    address: str, browser: Browser, screen: Screen
) -> None:
    with visit(browser, address, screen) as page:
        go(page, SEARCH, "figures?figure=hyperparameters&filter=trial%3Dcoarse-0040")
        point = page.locator('[data-figure="hyperparameters"] .scatterlayer .points path').first
        expect(point).to_be_visible()
        wait_for(lambda: "density of coarse-0001" in hover(page, point), "the point's text")
        page.mouse.down()
        page.mouse.up()
        menu = page.locator("#kin")
        expect(menu.get_by_role("button", name="coarse-0040")).to_be_focused()
        page.keyboard.press("Escape")
        expect(menu).to_have_count(0)
        page.mouse.down()
        page.mouse.up()
        menu.get_by_role("button", name="coarse-0001").click()
        expect(page).to_have_url(re.compile("/trial/coarse-0001$"))
        expect(page.locator("main")).to_contain_text("20 trials were drawn from it")


@pytest.mark.timeout(600)
def test_curves_have_their_names_in_words(address: str, browser: Browser) -> None:
    with visit(browser, address) as page:
        go(page, SEARCH, "trial/coarse-0000")
        chart = page.locator('figure[aria-label="Update:weight ratio"]')
        chart.scroll_into_view_if_needed()
        expect(chart.locator(".legendtext")).to_have_text(
            ["update ratio, layer 1", "update ratio, layer 2"]
        )
        loss = page.locator('figure[aria-label="Loss"]')
        loss.scroll_into_view_if_needed()
        expect(loss.locator(".legendtext")).to_have_text(["validation loss", "training loss"])
        wait_for(lambda: loss.evaluate(TITLES_ARE_WHOLE), "titles and legend to lie in the chart")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("screen", SCREENS, ids=str)
def test_every_view_is_accessible_and_fits(
    address: str, browser: Browser, pictures: Path, screen: Screen
) -> None:
    with visit(browser, address, screen) as page:
        for name, view in VIEWS.items():
            go(page, SEARCH, view)
            expect(page.locator("h1")).to_be_visible()
            if page.locator("figure").count():
                page.locator("figure").first.scroll_into_view_if_needed()
                expect(page.locator("figure .main-svg").first).to_be_visible()
            look(page, pictures, name)

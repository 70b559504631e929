"""The dashboard: who is let in, and that it shows what the commands show.

Redis is away unless a test says otherwise.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pytest
from starlette.testclient import TestClient

from common.errors import ConfigError
from common.folder.chosen import Chosen, choose
from common.folder.record import Record
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from common.queue.wire import curves_out
from common.search.search_file import parse_search
from common.search.trial import Progress, Result, TrialState
from master.dashboard.access import Access, find_token, is_loopback
from master.dashboard.app import create_app
from master.dashboard.views.trial_page import OUTPUT_BYTES
from master.dashboard.watch import Watch
from master.report.reading import borders, rank
from master.results.columns import COLUMNS
from master.results.ranking import rows_as_parquet
from master.stages.prepare import Launched, settle
from master.stages.sampling import configurations
from master.stages.source import StageSource
from master.strategy.ranges import write_frozen
from tests.redis_server import RedisServer, start_redis
from tests.search_files import staged_text

STAGED = staged_text()
TOKEN = "a token of more than sixteen"
OURS = {"authorization": f"Bearer {TOKEN}", "x-coarsefine": "1"}
HERE, ELSEWHERE = ("127.0.0.1", 50000), ("192.0.2.7", 50000)


def launched(root: Path) -> Launched:
    """The built-in search, as far as the folder shows that its first stage has begun."""
    search = parse_search(STAGED)
    done = settle(
        Chosen(search, STAGED, Path(), SearchFolder(root, search.name)), None, None, print
    )
    done.folder.stage("coarse").make()
    write_frozen(done.folder.stage("coarse").ranges, done.search.space)
    return done


def records(search: Launched, first: int, n: int, **more: object) -> list[Record]:
    """Return ended trials whose accuracy grows with the learning rate; one in five explodes.

    The best is therefore at the border.
    """
    stage = search.search.stage("coarse")
    found = []
    for trial in configurations(
        search.search, stage, StageSource(search.search.space), range(first, first + n)
    ):
        bad = trial.index % 5 == 4
        value = (
            None
            if bad
            else 0.5
            + 0.04 * float(f"{trial.hyperparameters['learning_rate']:.0e}".partition("e")[2])
        )
        result = Result(
            TrialState.EXPLODED if bad else TrialState.COMPLETED,
            val_acc=value,
            val_loss=None if bad else 1 - (value or 0),
            epochs=1.0,
        )
        curves = {
            "epoch": [0.5, 1.0],
            "val_loss": [2.0, float("inf") if bad else 0.5],
            "<b>": [1.0, None],
        }
        extra = {
            "curves": curves,
            "reason": "<script>alert(1)</script>" if bad else None,
            "worker": "w-1",
            **more,
        }
        found.append(Record.of(search.id, trial, 1, result, **extra))
    return found


@dataclass
class Dashboard:
    """The application over a watch that looks when a test says so."""

    root: Path
    watch: Watch
    app: Any

    def client(self, host: str = "127.0.0.1:8265", address: tuple[str, int] = HERE) -> TestClient:
        return TestClient(
            self.app, base_url=f"http://{host}", client=address, follow_redirects=False
        )

    def get(self, path: str) -> Any:
        answer = self.client().get(path)
        assert answer.status_code == 200, answer.text
        return json.loads(answer.text, parse_constant=_refused)


def _refused(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def dashboard(
    root: Path,
    redis_url: str = "unix:///nowhere/redis.sock",
    loopback: bool = True,
    only: str | None = None,
) -> Dashboard:
    watch = Watch(root, redis_url, only)
    return Dashboard(
        root, watch, create_app(watch, Access(TOKEN, loopback, 8265, frozenset({"gpu-box"})))
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A search of 20 ended trials, for tests that leave it as it is."""
    made = with_records(tmp_path_factory.mktemp("checkpoints"))
    yield made
    made.watch.close()


def with_records(root: Path) -> Dashboard:
    search = launched(root)
    search.folder.stage("coarse").write_records(records(search, 0, 20))
    made = dashboard(root)
    made.watch.tick()
    return made


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="cf-") as folder, start_redis(Path(folder)) as running:
        yield running


# -- how answers are sent --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/api/state", "/api/events", "/api/no"])
def test_head_has_the_headers_of_get_and_no_body(page: Dashboard, path: str) -> None:
    head = page.client().head(path)
    assert head.status_code == (404 if path == "/api/no" else 200) and head.content == b""
    assert head.headers["x-content-type-options"] == "nosniff"
    if path != "/api/events":
        got = page.client().get(path)
        assert head.headers["content-type"] == got.headers["content-type"]


def test_what_is_large_is_compressed_and_what_the_browser_has_is_not_sent_again(
    page: Dashboard,
) -> None:
    client = page.client()
    script = client.get("/static/plotly.min.js")
    assert script.headers["content-encoding"] == "gzip"
    assert b"plotly.js" in script.content[:200]  # httpx has decompressed it
    plain = client.get("/static/plotly.min.js", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.content == script.content
    for path in ("/", "/static/main.js"):
        first = client.get(path)
        again = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert again.status_code == 304 and again.content == b""
        assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


# -- who is let in ---------------------------------------------------------------------------------


def test_whoever_sits_at_the_machine_may_look_and_not_kill(page: Dashboard) -> None:
    client = page.client()
    assert client.get("/").status_code == client.get("/api/state").status_code == 200
    refused = client.post(
        "/api/kill", json={"search": "digits", "stage": "coarse"}, headers={"x-coarsefine": "1"}
    )
    assert refused.status_code == 401 and "token" in refused.json()["error"]
    assert client.get("/api/session").json()["may_change"] is False
    assert client.get("/api/session", headers=OURS).json()["may_change"] is True


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/static/main.js",
        "/api/state",
        "/api/events",
        "/api/openapi.json",
        "/api/docs",
        "/nothing",
    ],
)
def test_without_the_token_nothing_is_shown_to_another_address(page: Dashboard, path: str) -> None:
    assert page.client(address=ELSEWHERE).get(path).status_code == 401
    open_to_all = dashboard(
        page.root, loopback=False
    )  # bound to another address: who comes from this machine is no exception
    assert open_to_all.client().get(path).status_code == 401


def test_the_token_opens_everything_from_anywhere(page: Dashboard) -> None:
    assert page.client(address=ELSEWHERE).get("/api/state", headers=OURS).status_code == 200
    for wrong in ("Bearer " + TOKEN[:-1], "Basic " + TOKEN, TOKEN, "Bearer "):
        assert (
            page.client(address=ELSEWHERE)
            .get("/api/state", headers={"authorization": wrong})
            .status_code
            == 401
        )


def test_the_printed_address_leaves_a_cookie_and_no_token_in_the_address(page: Dashboard) -> None:
    client = page.client(address=ELSEWHERE)
    answer = client.get("/", params={"token": TOKEN, "a": "b"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/?a=b")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and TOKEN not in cookie
    assert client.get("/api/session").json()["may_change"] is True  # the client keeps the cookie
    assert client.get("/", params={"token": "another one of sixteen"}).status_code == 401
    elsewhere = page.client().get(
        f"http://127.0.0.1:8265//evil.example/?token={TOKEN}".replace(" ", "+")
    )
    assert elsewhere.headers["location"] == "/evil.example/"  # two slashes would be another site


def test_a_browser_without_the_token_is_asked_for_it(page: Dashboard) -> None:
    answer = page.client(address=ELSEWHERE).get("/", headers={"accept": "text/html"})
    assert (
        answer.status_code == 401 and 'name="token"' in answer.text and "<script" not in answer.text
    )


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8265",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "",
        "127.0.0.1/evil",
    ],
)
def test_a_forged_host_is_refused(page: Dashboard, host: str) -> None:
    assert page.client().get("/api/state", headers={"host": host, **OURS}).status_code == 400


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8265", "localhost:8265", "[::1]:8265", "gpu-box:8265", "192.168.1.4:8265"]
)
def test_our_own_names_are_known(page: Dashboard, host: str) -> None:
    assert page.client().get("/api/state", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1:9999",
        "http://127.0.0.1:8265.evil.example",
        "file://",
    ],
)
def test_a_forged_origin_is_refused_even_with_the_cookie(page: Dashboard, origin: str) -> None:
    client = page.client()
    client.get("/", params={"token": TOKEN})
    asked = {"search": "digits", "trial": "coarse-0000"}
    assert (
        client.post(
            "/api/kill", json=asked, headers={"origin": origin, "x-coarsefine": "1"}
        ).status_code
        == 403
    )
    assert client.get("/api/state", headers={"origin": origin}).status_code == 403
    assert client.get("/api/state", headers={"origin": "http://127.0.0.1:8265"}).status_code == 200


def test_another_sites_page_may_link_here_and_no_more(page: Dashboard) -> None:
    link = {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    }
    assert page.client().get("/", headers=link).status_code == 200
    for there in (
        {"sec-fetch-dest": "iframe"},
        {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
    ):
        assert page.client().get("/api/state", headers=link | there).status_code == 403
    assert page.client().post("/api/kill", headers={**link, **OURS}, json={}).status_code == 403


def test_a_change_needs_the_header_that_no_form_can_send(page: Dashboard) -> None:
    client = page.client()
    client.get("/", params={"token": TOKEN})
    form = client.post(
        "/api/kill", content=b'{"trial":"coarse-0001"}', headers={"content-type": "text/plain"}
    )
    assert form.status_code == 403 and "x-coarsefine" in form.json()["error"]
    assert (
        client.post("/api/kill", content=b"x" * 20_000, headers={"x-coarsefine": "1"}).status_code
        == 413
    )
    for method in ("PUT", "DELETE", "PATCH"):
        assert (
            client.request(
                method, "/api/kill", headers={"x-coarsefine": "1", "content-length": "0"}
            ).status_code
            == 405
        )


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py", "/static/..%2f..%2frun.py", "/static/%2e%2e/app.py",
        "/static/..%5capp.py",
        "/static/%2e%2e%2f%2e%2e%2f/etc/passwd", "/static/app.py", "/static/__init__.py",
        "/api/searches/digits/stages/..",
        "/api/searches/..%2f..%2fetc", "/api/searches/%252e%252e",
        "/api/searches/digits/trials/..%2f..%2fsearch.toml",
        "/api/searches/digits/trials/coarse-0001%00",
        "/api/searches/digits/trials/coarse-0000/../../../x",
        "/api/searches/digits/trials/trials%2fcoarse-0001-try=1.json",
    ],
)  # fmt: skip
def test_a_path_that_climbs_leads_nowhere(page: Dashboard, path: str) -> None:
    status, text = asyncio.run(asked(page.app, path))
    assert status in (400, 404) and "root:" not in text and "import" not in text


async def asked(app: Any, path: str) -> tuple[int, str]:
    """Return the application's answer to a path exactly as it came over the wire.

    Clients would normalise the path first.
    """
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:8265"), (b"authorization", f"Bearer {TOKEN}".encode())]
    scope = {
        "type": "http",
        "method": "GET",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
    }
    await app(
        scope
        | {"client": HERE, "server": ("127.0.0.1", 8265), "scheme": "http", "http_version": "1.1"},
        receive,
        send,
    )
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode()


def test_no_script_but_our_own(page: Dashboard) -> None:
    for path in ("/", "/api/docs", "/api/state", "/nothing"):
        headers = page.client().get(path).headers
        policy = dict(
            part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
        )
        assert (
            policy["script-src"] == "'self'"
            and policy["default-src"] == "'none'"
            and policy["frame-ancestors"] == "'none'"
        )
        assert (
            headers["x-content-type-options"] == "nosniff"
            and headers["referrer-policy"] == "no-referrer"
        )
    for name in ("index.html", "docs.html"):
        text = page.client().get(f"/static/{name}").text
        assert "https://" not in text and "http://" not in text and "onclick" not in text
        assert all(
            part.startswith(" type=") or part.startswith(" src=")
            for part in text.split("<script")[1:]
        )


def test_where_the_token_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from a file, long enough\n")
    assert find_token(file, {"COARSEFINE_TOKEN": "from the environment"}) == (
        "from a file, long enough",
        False,
    )
    assert find_token(None, {"COARSEFINE_TOKEN": "from the environment"}) == (
        "from the environment",
        False,
    )
    new, is_new = find_token(None, {})
    assert is_new and len(new) >= 32 and new != find_token(None, {})[0]
    for wrong in ("short", "é" * 20):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match="printable ASCII"):
            find_token(file, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        find_token(tmp_path / "none", {})


def test_what_is_a_loopback_address() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"]))
    assert not any(
        map(is_loopback, ["0.0.0.0", "::", "192.0.2.7", "::ffff:192.0.2.7", "testclient", "", None])
    )


# -- what it tells ---------------------------------------------------------------------------------


def test_the_ranking_and_the_borders_are_those_of_the_commands(page: Dashboard) -> None:
    chosen = choose(page.root, None, "digits", print)
    told = page.get("/api/searches/digits/stages/coarse/ranking?limit=1000")
    assert told["rows"] == json.loads(rank(chosen, "coarse", None, "json", print))
    assert (told["total"], told["matching"], told["states"]) == (
        20,
        20,
        {"completed": 16, "exploded": 4},
    )
    warned = json.loads(borders(chosen, "coarse", True, print))
    assert page.get("/api/searches/digits/stages/coarse/borders") == warned and warned
    overview = page.get("/api/searches/digits")["stages"][0]
    assert overview["best"] == told["rows"][0] and overview["borders"] == warned
    assert (overview["ended"], overview["trials"], overview["counts_from"]) == (20, 200, "folder")


def test_where_nothing_was_learned_it_says_so_in_place_of_borders(tmp_path: Path) -> None:
    search = launched(tmp_path)
    stopped = {
        "state": TrialState.EXPLODED,
        "val_acc": None,
        "val_loss": None,
        "curves": {},
        "reason": "loss 9 above 3 x its first loss 2",
    }
    found = [record.model_copy(update=stopped) for record in records(search, 0, 200)]
    search.folder.stage("coarse").write_records(found[:199])
    made = dashboard(tmp_path)
    made.watch.tick()
    assert made.get("/api/searches/digits")["guessing"] is None  # a trial is still to come
    search.folder.stage("coarse").write_records(found[199:])
    for _ in range(100):  # a slow ranking is not made again at once
        made.watch.tick()
        told = made.get("/api/searches/digits")
        if told["guessing"]:
            break
        time.sleep(0.1)
    assert (
        told["guessing"]["direction"] == "lower"
        and "200 of 200 trials exploded" in told["guessing"]["sentence"]
    )
    assert (
        told["guessing"]
        == json.loads(rank(choose(tmp_path, None, "digits", print), None, None, "json", print))[0][
            "guessing"
        ]
    )
    assert [stage["borders"] for stage in told["stages"] if stage["launched"]] == [[]]
    made.watch.close()


def test_rows_are_sorted_filtered_and_come_in_windows(page: Dashboard) -> None:
    base = "/api/searches/digits/stages/coarse/ranking"
    rows = page.get(f"{base}?sort=learning_rate&order=desc&state=completed&limit=1000")["rows"]
    rates = [row["hyperparameters"]["learning_rate"] for row in rows]
    assert rates == sorted(rates, reverse=True) and len(rates) == 16
    found = page.get(f"{base}?filter=learning_rate>1e-2 exploded")
    assert (
        found["matching"]
        == sum(row["hyperparameters"]["learning_rate"] > 1e-2 for row in found["rows"])
        and found["total"] == 20
    )
    everything = [row["trial"] for row in page.get(f"{base}?limit=1000")["rows"]]
    assert [row["trial"] for row in page.get(f"{base}?offset=5&limit=3")["rows"]] == everything[5:8]
    assert (
        page.get(f"{base}?sort=val_acc&order=asc&limit=1000")["rows"][-1]["val_acc"] is None
    )  # what is not known comes last
    typed = page.get(
        f"{base}?filter=learning_rate>large"
    )  # no error: a filter that is being typed is often half a filter
    assert typed["rows"] == [] and "not a number" in typed["problem"]
    for wrong, word in (("sort=nothing", "no such column"), ("limit=0", "limit")):
        answer = page.client().get(f"{base}?{wrong}")
        assert answer.status_code == 422 and word in answer.json()["error"]


def test_the_rows_that_match_are_downloaded_as_the_command_writes_them(page: Dashboard) -> None:
    base = "/api/searches/digits/stages/coarse/download"
    got = page.client().get(f"{base}.csv?filter=val_acc>0.3&sort=val_acc&order=desc&limit=1")
    assert got.headers["content-disposition"] == 'attachment; filename="digits-coarse.csv"'
    told = rank(choose(page.root, None, "digits", print), "coarse", None, "csv", print)
    head, *lines = got.text.splitlines()
    assert head == told.splitlines()[0] and 1 < len(lines) < 20  # the limit is that of a page
    assert set(lines) <= set(told.splitlines())
    table = pd.read_parquet(io.BytesIO(page.client().get(f"{base}.parquet").content))
    assert list(table.columns) == head.split(",") and len(table) == 20
    wrong = page.client().get(f"{base}.csv?filter=(val_acc>0.3")
    assert wrong.status_code == 422 and "( without a )" in wrong.json()["error"]
    assert page.client().get(f"{base}.xlsx").status_code == 422


def test_a_hyperparameter_of_several_types_is_text_in_parquet() -> None:
    row = {**dict.fromkeys(COLUMNS), "parents": [], "rank": 1}
    plain = [{**row, "hyperparameters": {"width": value}} for value in (32, "auto", [1, 2])]
    table = pd.read_parquet(io.BytesIO(rows_as_parquet(plain)))
    assert list(table["width"]) == ["32", "auto", "[1, 2]"]


def test_a_trial_has_its_curves_attempts_and_configuration(page: Dashboard) -> None:
    trial = page.get("/api/searches/digits/trials/coarse-0004")
    assert (trial["state"], trial["curves_from"], trial["reason"]) == (
        "exploded",
        "record",
        "<script>alert(1)</script>",
    )
    assert trial["curves"]["val_loss"] == [
        2.0,
        None,
    ]  # an infinite loss is nothing that JSON can hold
    assert [attempt["attempt"] for attempt in trial["attempts"]] == [1]
    assert trial["output"] is None
    output = SearchFolder(page.root, "digits").stage("coarse").output_path("coarse-0004", 1)
    output.parent.mkdir()
    output.write_bytes(b"x" * OUTPUT_BYTES + b"<the end>")
    end = page.get("/api/searches/digits/trials/coarse-0004")["output"]
    assert end.endswith("x<the end>") and len(end) == OUTPUT_BYTES
    again = parse_search(
        STAGED.replace(
            STAGED[STAGED.index("[space]") : STAGED.index("[stages")], trial["toml"] + "\n"
        )
    )
    assert {
        name: p.value  # type: ignore[union-attr]
        for name, p in again.space.parameters.items()
    } == trial["hyperparameters"]
    assert page.client().get("/api/searches/digits/trials/coarse-9999").status_code == 404


def test_a_trial_has_all_metrics_of_its_best_epoch(tmp_path: Path) -> None:
    search = launched(tmp_path)
    metrics = {"val_acc": 0.9, "val_f1": 0.4, "top5": float("nan")}
    first, second = records(search, 0, 2, metrics=metrics)
    best = first.model_copy(update={"best_epoch": 1.0})
    search.folder.stage("coarse").write_records([best, second])
    page = dashboard(tmp_path)
    page.watch.tick()
    shown = {
        one.trial: page.get(f"/api/searches/digits/trials/{one.trial}")["metrics"]
        for one in (best, second)
    }
    assert shown[best.trial] == {"val_acc": 0.9, "val_f1": 0.4, "top5": None}
    assert shown[second.trial] == {}  # no epoch was the best: its metrics are those of the last


def test_new_records_are_read_once_and_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = with_records(tmp_path)
    read: list[str] = []
    from master.dashboard.views import stage_view

    original = stage_view.read_record
    monkeypatch.setattr(
        stage_view, "read_record", lambda path: read.append(path.name) or original(path)
    )
    before, heard = page.watch.state("digits"), []
    forget = page.watch.listen(lambda: heard.append(page.watch.sequence))
    view = page.watch.views["digits"]
    view.folder.stage("coarse").write_records(records(view.launched, 20, 5))
    page.watch.tick()
    deadline = time.monotonic() + 10
    while page.watch.state("digits").overview.stages[0].ended != 25:  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        page.watch.tick()
    forget()
    assert sorted(read) == [f"coarse-{index:04d}-try=1.json" for index in range(20, 25)]
    assert heard and page.watch.sequence > before.sequence


def test_an_empty_folder_a_search_that_comes_later_and_one_that_goes(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    page = dashboard(root, only="digits")
    page.watch.tick()
    health = page.get("/api/health")
    assert (
        health["folder"]["state"] == "empty"
        and "'digits' has not been launched" in health["folder"]["message"]
    )
    assert (
        page.get("/api/searches") == [] and page.get("/api/state?search=digits")["overview"] is None
    )
    assert not root.exists()  # looking leaves nothing behind
    launched(root)
    page.watch.tick()
    assert [line["search"] for line in page.get("/api/searches")] == ["digits"]
    shutil.rmtree(root / "digits")
    page.watch.tick()
    assert page.get("/api/searches") == []
    (root / "digits").mkdir()
    (root / "digits" / "search.toml").write_text("name = ")  # half a file
    page.watch.tick()
    assert "not valid TOML" in page.get("/api/health")["warnings"][-1]


def test_figures_are_plotlys_json(page: Dashboard) -> None:
    names = [figure["name"] for figure in page.get("/api/figures")]
    assert "hyperparameters" in names
    for name in ("hyperparameters", "losses"):
        drawn = page.get(f"/api/searches/digits/stages/coarse/figures/{name}?columns=1")
        assert drawn["data"] and "title" in drawn["layout"]
    assert (
        page.client().get("/api/searches/digits/stages/coarse/figures/nothing").status_code == 404
    )
    assert page.client().get("/api/searches/digits/stages/fine/figures/losses").status_code == 404


def test_figures_of_single_trials_follow_the_filter(page: Dashboard) -> None:
    base = "/api/searches/digits/stages/coarse/figures"
    rows = page.get("/api/searches/digits/stages/coarse/ranking?filter=val_acc>0.4&limit=1000")
    matching = {row["trial"] for row in rows["rows"]}
    assert 0 < len(matching) < 16
    drawn = page.get(f"{base}/hyperparameters?filter=val_acc>0.4")
    text = " ".join(str(trace.get("text")) for trace in drawn["data"])
    assert set(re.findall(r"coarse-\d{4}", text)) == matching
    assert drawn["layout"]["meta"] == {"matching": len(matching), "of": 20}
    shown = page.get(f"{base}/parallel?filter=val_acc>0.4")
    pale = next(trace for trace in shown["data"] if trace["name"] == "do not match")
    assert len({told for told in pale["text"] if told}) == 16 - len(matching)
    axes = {axis["name"]: axis for axis in shown["layout"]["meta"]["axes"]}
    assert axes["learning_rate"]["log"] and axes["hidden"]["options"] == [64, 128, 256]
    assert list(axes)[-1] == "val_acc"
    nobody = page.get(f"{base}/losses?filter=val_acc>2")
    assert "No trial matches" in nobody["layout"]["annotations"][0]["text"]
    wrong = page.client().get(f"{base}/losses?filter=nothing>2")
    assert wrong.status_code == 422 and "no such column" in wrong.json()["error"]


def test_a_download_has_the_columns_of_the_table(page: Dashboard) -> None:
    base = "/api/searches/digits/stages/coarse/download"
    columns = "trial,val_acc,learning_rate,seconds"
    text = page.client().get(f"{base}.csv?columns={columns}&filter=val_acc>0.4").text
    assert text.splitlines()[0] == columns
    content = page.client().get(f"{base}.parquet?columns={columns}").content
    table = pd.read_parquet(io.BytesIO(content))
    assert ",".join(table.columns) == columns and len(table) == 20
    wrong = page.client().get(f"{base}.csv?columns=trial,nothing")
    assert wrong.status_code == 422 and "no such column" in wrong.json()["error"]


def test_every_question_is_documented(page: Dashboard) -> None:
    document = page.get("/api/openapi.json")
    assert {
        "/api/kill",
        "/api/events",
        "/api/searches/{search}/trials/{trial}",
        "/api/workers",
    } <= document["paths"].keys()
    assert all(
        told["description"] for methods in document["paths"].values() for told in methods.values()
    )


# -- with Redis ------------------------------------------------------------------------------------


def test_a_running_trial_shows_its_curves_and_can_be_killed(
    tmp_path: Path, server: RedisServer
) -> None:
    search = launched(tmp_path)
    page = dashboard(tmp_path, server.url)
    with server.client() as client:
        queue = TrialQueue(client, search.id)
        queue.publish(
            configurations(
                search.search,
                search.search.stage("coarse"),
                StageSource(search.search.space),
                range(3),
            )
        )
        (claim, *_) = queue.claim("w-1", 1, "r1")
        queue.renew(
            "w-1",
            [Progress(claim.fence, 1, epoch=0.5, value=0.7)],
            {claim.trial.id: curves_out({"epoch": [0.5], "val_acc": [0.7]})},
        )
        page.watch.tick()
        trial = page.get(f"/api/searches/digits/trials/{claim.trial.id}")
        assert (
            trial["state"],
            trial["curves_from"],
            trial["curves"]["val_acc"],
            trial["value"],
        ) == ("running", "redis", [0.7], 0.7)
        base = "/api/searches/digits/stages/coarse/unfinished"
        assert [row["worker"] for row in page.get(base)["rows"]] == ["w-1"]
        assert page.get(f"{base}?state=pending&limit=1")["total"] == 2

        killed = page.client().post(
            "/api/kill", json={"search": "digits", "trial": claim.trial.id}, headers=OURS
        )
        assert killed.json() == {"message": f"{claim.trial.id}: killed"}
        assert queue.state(claim.trial.id) is TrialState.KILLED
        assert (
            page.client()
            .post("/api/kill", json={"search": "digits", "stage": "coarse"}, headers=OURS)
            .json()["message"]
            .endswith("killed 2 trials")
        )
        page.watch.tick()
        assert page.get("/api/searches/digits")["stages"][0]["counts"]["killed"] == 3
        assert page.get(f"/api/searches/digits/trials/{claim.trial.id}")["state"] == "killed"
        for wrong in (
            {"worker": "nobody"},
            {"search": "none", "trial": "coarse-0000"},
            {"search": "digits"},
            {"search": "digits", "stage": "x"},
        ):
            assert page.client().post("/api/kill", json=wrong, headers=OURS).status_code == 404
        queue.drop()
    page.watch.close()


def test_redis_away_is_told_and_its_return_noticed(tmp_path: Path) -> None:
    launched(tmp_path)
    with tempfile.TemporaryDirectory(prefix="cf-") as place:
        page = dashboard(tmp_path, f"unix://{place}/redis-any.sock")
        page.watch.tick()
        assert page.get("/api/health")["redis"]["state"] == "away"
        assert (
            page.client().post("/api/kill", json={"worker": "w"}, headers=OURS).status_code == 503
        )
        for _ in range(2):  # it comes, goes, and comes back
            with start_redis(Path(place)):
                _until(page, "ok")
            _until(page, "away")
        page.watch.close()


def _until(page: Dashboard, state: str) -> None:
    deadline = time.monotonic() + 20
    while page.get("/api/health")["redis"]["state"] != state:
        assert time.monotonic() < deadline
        page.watch.tick()
        time.sleep(0.05)

"""Tags and notes in the dashboard, the commands, downloads, exports and data frames."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.folder.chosen import Chosen, choose
from common.folder.notes import Note, change_note, notes_file, read_notes
from master.commands.notes import Change, note
from master.report.reading import rank
from master.scripting.loaded import load
from tests.unit.master.test_serve import OURS, Dashboard, with_records


@pytest.fixture
def page(tmp_path: Path) -> Dashboard:
    return with_records(tmp_path)


def chosen(page: Dashboard) -> Chosen:
    return choose(page.root, None, "digits", print)


def write(page: Dashboard, headers: dict[str, str] = OURS, **change: object) -> tuple[int, dict]:
    answer = page.client().post("/api/notes", json={"search": "digits", **change}, headers=headers)
    return answer.status_code, answer.json()


def test_a_note_is_written_and_shown_everywhere(page: Dashboard) -> None:
    code, told = write(page, trial="coarse-0003", tags=["keep"], note="look\nagain", edit=0)
    assert code == 200 and (told["tags"], told["edit"]) == (["keep"], 1)
    write(page, tags=["demo"], note="of the search")
    page.watch.tick()
    detail = page.get("/api/searches/digits/trials/coarse-0003")
    assert (detail["noted"]["tags"], detail["noted"]["note"]) == (["keep"], "look\nagain")
    overview = page.get("/api/searches/digits")
    assert overview["noted"]["tags"] == ["demo"] and overview["n_noted"] == 1
    assert [row["trial"] for row in overview["noted_trials"]] == ["coarse-0003"]
    (line,) = page.get("/api/searches")
    assert (line["tags"], line["note"]) == (["demo"], "of the search")
    version, base = overview["notes_version"], "/api/searches/digits/stages/coarse"
    for words in ("tag:keep", "tag:KEEP", "keep", "again", "look tag:keep"):
        (row,) = page.get(f"{base}/ranking?filter={words}")["rows"]
        assert (row["trial"], row["tags"], row["note"]) == ("coarse-0003", ["keep"], "look\nagain")
    assert page.get(f"{base}/ranking?filter=tag:kee")["matching"] == 0
    lines = list(csv.DictReader(io.StringIO(page.client().get(f"{base}/download.csv").text)))
    assert {row["tags"] for row in lines} == {"keep", ""} and lines[0].keys() >= {"tags", "note"}
    assert page.client().get(f"{base}/download.parquet").status_code == 200
    write(page, trial="coarse-0003")
    page.watch.tick()
    overview = page.get("/api/searches/digits")
    assert overview["n_noted"] == 0 and overview["notes_version"] > version
    assert "tags" not in page.client().get(f"{base}/download.csv").text.splitlines()[0]


def test_without_the_token_or_the_header_nothing_is_written(page: Dashboard) -> None:
    token = {"authorization": OURS["authorization"]}
    assert write(page, {"x-coarsefine": "1"}, tags=["x"])[0] == 401
    assert write(page, token, tags=["x"])[0] == 403
    assert write(page, {**OURS, "origin": "http://evil.example"}, tags=["x"])[0] == 403
    assert not notes_file(chosen(page).folder).exists()


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"search": "none"}, 404, "search 'none': no such search"),
        ({"trial": "coarse-9999"}, 404, "coarse-9999: no such trial; stage 'coarse' has"),
        ({"trial": "../x"}, 404, "../x: not a trial"),
        ({"trial": "fine-0000"}, 404, "has not been launched"),
        ({"tags": ["a b"]}, 422, "tag 'a b': use 1 to 32"),
        ({"note": "x" * 2001}, 422, "too long; use at most 2,000"),
        ({"note": "x" * 20_000}, 413, "Content-Length"),
        ({"tags": "keep"}, 422, "tags: "),
    ],
)
def test_bad_input_is_told_in_one_message(
    page: Dashboard, change: dict[str, object], code: int, message: str
) -> None:
    found, told = write(page, **change)
    assert found == code and message in told["error"]
    assert read_notes(chosen(page).folder).trials == {}


def test_who_was_slower_is_told_and_overwrites_nothing(page: Dashboard) -> None:
    write(page, trial="coarse-0001", tags=["first"], edit=0)
    code, told = write(page, trial="coarse-0001", tags=["second"], edit=0)
    assert code == 409 and "somebody else has changed this meanwhile" in told["error"]
    assert (told["noted"]["tags"], told["noted"]["edit"]) == (["first"], 1)
    assert read_notes(chosen(page).folder).of("coarse-0001").tags == ("first",)
    assert write(page, trial="coarse-0001", tags=["second"], edit=1)[0] == 200


def test_a_damaged_file_is_named_on_the_overview(page: Dashboard) -> None:
    notes_file(chosen(page).folder).write_text("{")
    page.watch.tick()
    assert any("notes.json: damaged" in told for told in page.get("/api/health")["warnings"])
    assert write(page, tags=["x"])[0] == 503
    told = list[str]()
    assert json.loads(rank(chosen(page), None, None, "json", told.append))
    assert any("notes.json: damaged" in line for line in told)


def test_the_command_adds_removes_and_lists(page: Dashboard) -> None:
    own = chosen(page)
    assert note(own, "coarse-0002", Change()) == "coarse-0002: no tags and no note"
    assert note(own, "coarse-0002", Change(("a", "b"), text="so")) == "coarse-0002: [a, b] so"
    assert note(own, "coarse-0002", Change(("c",), ("a",))) == "coarse-0002: [b, c] so"
    assert note(own, None, Change(("demo",))) == "search 'digits': [demo]"
    assert note(own, None, Change()) == "search 'digits': [demo]\ncoarse-0002: [b, c] so"
    with pytest.raises(ConfigError, match=r"--untag x: there is no such tag \(there: b, c\)"):
        note(own, "coarse-0002", Change(untags=("x",)))
    with pytest.raises(ConfigError, match="coarse-9999: no such trial"):
        note(own, "coarse-9999", Change(("x",)))
    assert note(own, "coarse-0002", Change(text="", untags=("b", "c"))).endswith("no note")


def test_the_ranking_and_the_frames_have_columns_if_there_is_a_note(
    page: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = chosen(page)
    monkeypatch.setitem(os.environ, "CHECKPOINT_DIR", str(page.root))
    assert "tags" not in load("digits").trials().columns
    assert "tags" not in rank(own, None, None, "csv", print).splitlines()[0]
    change_note(own.folder, "coarse-0003", lambda before: Note(tags=("keep", "x"), note="=1+1"))
    frame = load("digits").trials().set_index("trial")
    assert frame.loc["coarse-0003", "tags"] == "keep x" and frame.loc["coarse-0003", "note"]
    rows = {row["trial"]: row for row in json.loads(rank(own, None, None, "json", print))}
    assert rows["coarse-0003"]["tags"] == ["keep", "x"] and rows["coarse-0001"]["tags"] == []
    table = list(csv.DictReader(io.StringIO(rank(own, None, None, "csv", print))))
    (row,) = [row for row in table if row["tags"]]
    assert row["note"].lstrip("'\t ") == "=1+1" and not row["note"].startswith("="), "no formula"
    assert "| keep x | =1+1 |" in rank(own, None, None, "markdown", print)
    assert "keep x" in rank(own, None, None, "table", print)

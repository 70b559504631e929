"""How a launch uses the checks before the first stage. A function stands in for `worker check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.code.choose import collect
from common.code.tree import Code, File
from common.folder.chosen import Chosen
from common.folder.records import SearchFolder
from common.search.search_file import default_text, parse_search
from master.run import checking
from master.run.checking import Checker, CheckFailedError, fingerprint, note
from master.stages.prepare import Examined, Launched, examine, settle
from master.strategy.ranges import write_frozen
from tests.shipped import ship

PASSED: dict[str, Any] = {"passed": True, "no_data": None, "checks": []}
FAILED: dict[str, Any] = {
    "passed": False, "no_data": None,
    "checks": [
        {"check": "first loss", "status": "failed", "found": "230 nats"},
        {"check": "learns", "status": "passed", "found": "yes"},
    ],
}  # fmt: skip


class Played(Checker):
    """A checker whose process has this to report."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.said: list[str] = []
        super().__init__(["--config", "search.toml"], self.said.append)
        object.__setattr__(self, "report", report)
        object.__setattr__(self, "runs", 0)

    def _report(self) -> dict[str, Any]:
        object.__setattr__(self, "runs", self.runs + 1)  # type: ignore[attr-defined]
        return self.report  # type: ignore[attr-defined, no-any-return]


def examined(root: Path, text: str = default_text(), base: Path = Path()) -> Examined:
    search = parse_search(text)
    return examine(Chosen(search, text, base, SearchFolder(root, search.name)), None)


def launched(root: Path) -> Launched:
    search = parse_search(default_text())
    return settle(
        Chosen(search, default_text(), Path(), SearchFolder(root, search.name)), None, None, print
    )


def test_a_failed_check_stops_the_launch_and_names_the_way_around(tmp_path: Path) -> None:
    with pytest.raises(CheckFailedError) as refusal:
        Played(FAILED).first(examined(tmp_path), replace=False)
    assert refusal.value.exit_code == 1
    for word in ("'digits'", "first loss: 230 nats", "--skip-check", "Nothing was queued"):
        assert word in str(refusal.value)
    assert "learns" not in str(refusal.value)
    assert not list(tmp_path.iterdir())  # nothing is frozen


def test_a_passed_check_is_noted_and_not_repeated(tmp_path: Path) -> None:
    checker = Played(PASSED)
    content = checker.first(examined(tmp_path), replace=False)
    assert (
        content is not None
        and json.loads(content)["report"] == PASSED
        and "--skip-check" in checker.said[0]
    )
    note(launched(tmp_path).folder, content)
    assert checker.first(examined(tmp_path), replace=False) == content
    assert (
        checker.first(examined(tmp_path), replace=True) == content
    )  # for the folder that comes in its place
    assert checker.runs == 1  # type: ignore[attr-defined]
    changed = default_text().replace("[0.0, 0.8]", "[0.0, 0.7]")
    assert checker.first(examined(tmp_path, changed), replace=False) != content
    assert checker.runs == 2  # type: ignore[attr-defined]
    SearchFolder(tmp_path, "digits").check_file.write_text("{half")
    assert (  # type: ignore[attr-defined]
        checker.first(examined(tmp_path), replace=False) is not None and checker.runs == 3
    )


def test_a_search_whose_first_stage_has_begun_is_not_checked(tmp_path: Path) -> None:
    begun = launched(tmp_path)
    begun.folder.stage("coarse").make()
    write_frozen(begun.folder.stage("coarse").ranges, begun.search.space)
    assert Played(FAILED).first(examined(tmp_path), replace=False) is None
    with pytest.raises(CheckFailedError):
        Played(FAILED).first(examined(tmp_path), replace=True)  # begins anew


def test_without_torch_or_without_the_data_it_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Played({**FAILED, "no_data": "mnist: put train-images-idx3-ubyte.gz into data"})
    assert missing.first(examined(tmp_path), replace=False) is None
    assert "train-images" in missing.said[-1] and "worker check --search digits" in missing.said[-1]
    monkeypatch.setattr(checking, "find_spec", lambda name: None if name == "torch" else object())
    without = Played(FAILED)
    assert without.first(examined(tmp_path), replace=False) is None
    assert (
        without.runs == 0 and "torch is not installed" in without.said[0] and len(without.said) == 1
    )  # type: ignore[attr-defined]


def test_a_check_that_ends_without_a_report_stops_the_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking.sys, "executable", "/bin/false")
    monkeypatch.setattr(checking, "ENDED_WITH_REPORT", (0,))  # false says 1
    with pytest.raises(CheckFailedError, match=r"without a report.*--skip-check"):
        Checker([], print).first(examined(tmp_path), replace=False)


ANSWERS = {
    "a crash": ("kill -SEGV $$", "was ended by SIGSEGV and without a report"),
    "no memory": ("kill -KILL $$", r"was ended by SIGKILL \(as where memory runs out\) and"),
    "an exit": ("exit 3", "ended with exit status 3 and without a report"),
    "an exit as if all were well": (
        "exit 0",
        "ended with exit status 0, as where the task calls os._exit, and without",
    ),
    "no JSON": ("echo hello; exit 0", "ended with exit status 0"),
    "half of it": ("echo '{\"passed\": true'; exit 1", "ended with exit status 1"),
    "other JSON": ("echo '{\"passed\": true}'; exit 0", "ended with exit status 0"),
    "a list": ("echo '[1]'; exit 0", "ended with exit status 0"),
    "no text": ("printf '\\377'; exit 0", "ended with exit status 0"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_how_the_process_of_the_checks_ended_is_told_in_words(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, told = ANSWERS[answer]
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(checking.sys, "executable", str(program))
    with pytest.raises(CheckFailedError, match=told) as refusal:
        Checker([], print).first(examined(tmp_path / "root"), replace=False)
    assert "--skip-check" in str(refusal.value) and "nothing was queued" in str(refusal.value)


def test_the_fingerprint_is_of_what_was_looked_at(tmp_path: Path) -> None:
    text = default_text().replace('task = "digits"', 'task = "my.py:Task"')
    (tmp_path / "my.py").write_text("class Task: ...\n")
    search, folder = parse_search(text), SearchFolder(tmp_path / "checkpoints", "digits")
    code = collect(search.task, tmp_path)
    one = fingerprint(search, code, folder)
    assert one != fingerprint(search, Code("my", {"my.py": File(b"class Task: pass\n")}), folder)
    assert one != fingerprint(parse_search(text.replace("seed = 231", "seed = 5")), code, folder)
    assert one == fingerprint(
        parse_search(text.replace("trials = 200", "trials = 300")), code, folder
    )
    folder.path.mkdir(parents=True)
    ship(folder, search.task, tmp_path)
    assert one == fingerprint(search, None, folder)  # only the folder has it

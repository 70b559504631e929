"""`benchmarks/gpu.py`: sections in processes with deadlines, a file that grows, one table."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import SECTIONS, Section, accept, read

KEY = {"device": "a GPU", "torch": "2", "smoke": False}
GOOD = {"what": "a number", "found": "1", "wanted": "at most 2", "good": True}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sections that do what they are called; the file has a line for each that began."""
    began = tmp_path / "began"

    def measure(name: str, device: str, smoke: bool, out: Path) -> None:
        with began.open("a") as file:
            file.write(f"{name}\n")
        if name == "stuck":
            print("waiting for ever", flush=True)
            time.sleep(60)
        if name == "raises":
            raise ValueError("no such kernel")
        good = name != "bad" or (tmp_path / "mended").exists()
        out.write_text(json.dumps([{**GOOD, "good": good}]))

    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(
        gpu,
        "SECTIONS",
        {
            name: Section("pace", 0.5 if name == "stuck" else 20, f"about {name}")
            for name in ("good", "bad", "raises", "stuck")
        },
    )
    return began


def test_what_passed_is_kept_and_the_rest_is_repeated(
    ran: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    assert not accept(["good", "bad"], KEY, "cuda:0", out, fresh=False)
    assert "!" in capfd.readouterr().out
    (tmp_path / "mended").touch()
    assert accept(["good", "bad"], KEY, "cuda:0", out, fresh=False)
    assert ran.read_text().split() == ["good", "bad", "bad"]
    assert accept(["good"], KEY, "cuda:0", out, fresh=True)
    assert ran.read_text().split()[3:] == ["good"]
    assert accept(["good", "bad"], {**KEY, "device": "another"}, "cuda:0", out, fresh=False)
    assert ran.read_text().split()[4:] == ["good", "bad"], "numbers are of one device"
    told = capfd.readouterr().out
    assert "passed" in told and "a number: 1 (at most 2)" in told and "not measured" in told


def test_a_section_that_raises_or_does_not_end_is_told_with_its_last_words(
    ran: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    assert not accept(["raises", "stuck", "good"], KEY, "cuda:0", out, fresh=False)
    told = capfd.readouterr().out
    assert "ended with 1: " in told and "ValueError: no such kernel" in told
    assert "did not end in 0.5 s: waiting for ever" in told
    found = read(out, KEY)
    assert {name: one["passed"] for name, one in found.items()} == {
        "raises": False,
        "stuck": False,
        "good": True,
    }
    assert found["stuck"]["seconds"] < 20


def test_an_unknown_section_and_a_device_that_is_not_there_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--only", "speed,sped"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--only sped: no such section; use device, parity" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["gpu.py", "--device", f"cuda:{os.getpid()}"])
    gpu.main()
    assert "there is no such device, so nothing is measured" in capsys.readouterr().out


def test_the_sections_are_nine_and_end_in_time() -> None:
    assert len(SECTIONS) == 9
    assert all(section.deadline_s <= 240 for section in SECTIONS.values())

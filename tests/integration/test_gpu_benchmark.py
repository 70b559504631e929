"""The whole of `benchmarks/gpu.py`, small, on a CPU: the program itself is known to work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
DEADLINE_S = 300.0  # twenty seconds on a machine that does nothing else


def smoke(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-P", str(ROOT / "benchmarks" / "gpu.py"), "--smoke", "--device", "cpu"],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        text=True,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_sections_pass_small_on_a_cpu_and_are_not_repeated(tmp_path: Path) -> None:
    told = smoke(tmp_path)
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert len(sections) == 9 and all(one["passed"] and one["rows"] for one in sections.values())
    assert told.count(" ...") == 9 and told.count("passed, ") == 9
    again = smoke(tmp_path)
    assert " ..." not in again and again.count("passed, ") == 9

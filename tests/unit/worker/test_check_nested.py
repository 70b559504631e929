"""The checks before learning, on a task with tensors in dicts and a loss in parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.folder.chosen import Chosen
from common.folder.records import SearchFolder
from common.search.search_file import parse_search
from worker.checks import model
from worker.checks.report import Status
from worker.checks.run import Run

EXAMPLE = Path(__file__).parents[3] / "examples" / "autoencoder"


def test_a_model_of_several_outputs_is_checked_and_so_is_the_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("OVERFIT_S", "LEARN_S", "OPTIONS_S"):  # these checks train, as all tasks do
        monkeypatch.setattr(model, limit, 0.0)
    text = (EXAMPLE / "search.toml").read_text().replace('"val_image"', '"val_nothing"')
    chosen = Chosen(parse_search(text), text, EXAMPLE, SearchFolder(tmp_path, "autoencoder"))
    report = Run(chosen, tmp_path).report()
    found = {finding.check: finding for finding in report.findings}
    passed = ("gradient at the start", "symmetry", "metrics", "regularisation", "saving")
    for name in (*passed, "data: parts"):
        assert found[name].status is Status.PASSED, found[name]
    told = "it measures val_loss, val_right, val_image, val_digit, val_prior"
    assert told in found["metric"].found

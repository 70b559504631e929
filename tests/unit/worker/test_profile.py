"""`worker profile`: every part of a step has its row.

A loop of the user's own gets a clear message.
"""

from pathlib import Path

import pytest
from click.testing import CliRunner

from worker.cli import cli

PARTS = (
    "batch gathering",
    "noise",
    "augmentation",
    "forward",
    "loss",
    "backward",
    "regularisation",
    "update",
    "watching",
    "evaluation",
)
SPACE = "[space]\nlearning_rate = {{ log_uniform = [1e-3, 1e-1] }}\n{more}\n"
SEARCH = 'name = "mine"\ntask = "{task}"\n' + SPACE + "[stages.coarse]\ntrials = 2\nepochs = 1\n"


@pytest.mark.parametrize(
    "more",
    [
        "hidden = 4\nweight_decay = 1e-3",
        'model = "convnet"\nfilters = 2\nhidden = 4\naugment_shift = 1.0',
    ],
)
def test_each_part_of_a_step_is_told_for_each_width(tmp_path: Path, more: str) -> None:
    config = tmp_path / "search.toml"
    config.write_text(SEARCH.format(task="digits", more=more))
    arguments = [
        "profile",
        "--config",
        str(config),
        "--array-width",
        "1",
        "--array-width",
        "2",
        "--backend",
        "eager",
    ]
    found = CliRunner().invoke(
        cli, ["--checkpoints", str(tmp_path), *arguments], catch_exceptions=False
    )
    assert found.exit_code == 0, found.output
    assert "alone" in found.output and "2 at a time" in found.output
    assert all(part in found.output for part in PARTS)


def test_a_loop_of_its_own_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def train(trial):\n    pass\n")
    config = tmp_path / "search.toml"
    config.write_text(SEARCH.format(task="mine.py:train", more=""))
    found = CliRunner().invoke(
        cli, ["--checkpoints", str(tmp_path), "profile", "--config", str(config)]
    )
    assert found.exit_code == 1
    assert "is a loop of its own" in found.output and "torch.profiler" in found.output

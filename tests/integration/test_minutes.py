"""A search with a budget in minutes, by its commands.

It is planned before it begins and again before each stage.
"""

from __future__ import annotations

import re

import pytest

from common.folder.records import SearchFolder
from tests.integration.commands import Place

SEARCH = """name = "digits"
task = "digits"
[space]
learning_rate = { log_uniform = [1e-4, 1.0] }
depth = 2
hidden = 256
momentum = 0.9
batch_size = 16
[budget]
minutes = 0.2
max_epochs = 6
"""


@pytest.mark.slow
def test_what_a_stage_may_train_follows_from_the_time_that_is_left(here: Place) -> None:
    (here.path / "search.toml").write_text(SEARCH)
    done = here.run("master", "launch", "--stage", "coarse", "--workers", "1", "--skip-check")
    assert done.returncode == 0, done.stderr
    told = re.search(
        r"minutes = 0.2: about (\d+) epochs on this machine", done.stdout + done.stderr
    )
    folder = SearchFolder(here.root, "digits")
    first = folder.search()
    assert told is not None and first is not None

    slow = here.run("master", "launch", "--stage", "all", "--workers", "1")
    assert slow.returncode == 0, slow.stderr
    search = folder.search()
    assert search is not None and search.stages[0] == first.stages[0], (
        "what has begun keeps its trials"
    )
    again = re.findall(
        r"about ([\d.]+) epochs in all; ([\d.]+) were planned", slow.stdout + slow.stderr
    )
    trained = {
        stage.name: len({own.trial for own in folder.stage(stage.name).records(print)})
        for stage in search.stages
    }
    assert trained == {stage.name: stage.trials for stage in search.stages}, (
        "each trial of the plan, and no other"
    )
    assert bool(again) == (search.plan != first.plan)

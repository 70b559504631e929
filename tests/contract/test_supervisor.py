"""A master that watches a stage while Redis is rebuilt under it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import redis

from common.errors import ConfigError
from common.queue import TrialQueue
from common.records import SearchFolder
from common.search import default_text, parse_search
from master import supervisor as module
from master.supervisor import Supervisor
from tests.contract.trials import DONE, made


@pytest.fixture
def watching(queue: TrialQueue, client: redis.Redis, tmp_path: Path) -> Supervisor:
    """A master that queued three trials, after which Redis was emptied and knows one again, which has ended."""
    search, trials = parse_search(default_text()), made(3)
    launched = SimpleNamespace(search=search, folder=SearchFolder(tmp_path, "digits"))
    queue.restore(trials[0], 1, DONE)
    published = SimpleNamespace(stage=search.stage("coarse"), trials=trials)
    return Supervisor(SimpleNamespace(client=client), launched, published, queue, Mock(), None)  # type: ignore[arg-type]


def test_a_stage_has_not_ended_while_its_trials_are_being_recovered(watching: Supervisor, queue: TrialQueue) -> None:
    assert watching._look() is None  # the ended one is back, the others are not yet
    queue.publish(made(3))
    assert watching._look() is None
    queue.finish([(claim.fence, DONE) for claim in queue.claim("w", 3, "r")])
    assert watching._look() == {**dict.fromkeys(queue.counts()["coarse"], 0), "completed": 3}


def test_trials_that_nobody_brings_back_are_told_with_the_remedy(watching: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LACKING_S", 0.0)
    assert watching._look() is None
    with pytest.raises(ConfigError, match="has lost 2 of its trials; launch again"):
        watching._look()

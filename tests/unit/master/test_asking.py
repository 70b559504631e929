"""Stages that ask for their configurations one by one.

Nothing is lost or counted twice, whoever continues them.
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.folder.records import SearchFolder
from common.search.search_file import parse_search
from common.search.trial import Trial
from master.stages.asking import AskingLadder
from master.stages.ladder import Ladder
from master.stages.population import Population, leave_state
from master.stages.prepare import Launched
from master.stages.publishing import make_ladder
from master.stages.sampling import configurations
from tests.unit.master.played import TEXT, Played


def text(more: str, budget: str = "") -> str:
    return TEXT.replace("[space]", f"{more}\n[space]").replace(
        "epochs = 120", f"epochs = 120{budget}"
    )


class Pool:
    """Workers that train whatever is queued, in an order of their own."""

    def __init__(self, root: Path, more: str, seed: int = 0, budget: str = "") -> None:
        self.played = Played(root, text(more, budget))
        self.random = random.Random(seed)
        self.queued: dict[str, Trial] = {}
        self.spent = 0.0
        self.most = 0
        self.stage = self.played.search.stages[0]
        self.played.begin(self.stage.name)
        self.ladder = self.made()

    def made(self) -> Ladder | AskingLadder | Population:
        """As a master makes it that begins, or goes on where another was killed."""
        search, folder = self.played.search, self.played.folder
        source, before = self.played.source(self.stage.name), self.played.before()
        for trial in configurations(search, self.stage, source, range(len(source.asked or ()))):
            before.standings.add(trial)
        for decision in before.decisions:
            before.standings.promote(decision)
        ladder = make_ladder(Launched(search, folder), self.stage, source, before, False)
        self.queued = {trial.id: trial for trial in before.standings.find_unfinished()}
        return ladder

    def run(self, restart_every: int = 0) -> None:
        """Until the stage is over; a new master takes over after every so many ends."""
        for number in range(1, 10_000):
            for trial in self.ladder.advance(2):
                assert trial.id not in self.queued
                self.queued[trial.id] = trial
            self.most = max(self.most, len(self.queued))
            if not self.queued:
                break
            trial = self.queued.pop(self.random.choice(sorted(self.queued)))
            self.spent += trial.epochs - (trial.passed[-1] if trial.passed else 0.0)
            self.ladder.note(trial.id, self.played.end(trial))
            if restart_every and number % restart_every == 0:
                self.ladder = self.made()
        assert self.ladder.is_over


@pytest.mark.parametrize("has_links", [True, False])
def test_a_state_is_left_to_the_heir_with_or_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    folder = SearchFolder(tmp_path, "made")
    stage = folder.stage("coarse")
    stage.make()
    stage.resume_path("coarse-0001", 2).write_bytes(b"weights")
    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    heir = Trial("coarse-0007", "coarse", 7, 1, 2.0, {}, "g")
    leave_state(folder, heir, "coarse-0001")
    assert stage.resume_path("coarse-0007", 0).read_bytes() == b"weights"
    leave_state(folder, heir, "coarse-0099")  # which has left none
    assert len(list(stage.resume.iterdir())) == 2


@pytest.mark.parametrize("restart_every", [0, 1, 5])
@pytest.mark.parametrize("sampler", ['sampler = "tpe"', 'schedule = "async"'])
def test_all_that_the_budget_pays_is_trained_once_whoever_goes_on(
    tmp_path: Path, sampler: str, restart_every: int
) -> None:
    pool = Pool(tmp_path, sampler)
    pool.run(restart_every)
    records = pool.played.folder.stage("coarse").records(print)
    assert len(records) == pool.stage.trials
    assert pool.spent <= 120
    by_rung = [
        sum(record.budget_epochs >= rung for record in records) for rung in pool.stage.plan.rungs
    ]
    assert by_rung[0] == pool.stage.plan.keep[0] and all(
        n <= k for n, k in zip(by_rung, pool.stage.plan.keep, strict=True)
    )
    assert by_rung[-1] >= 1


def test_no_more_trials_wait_than_there_are_slots(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 'schedule = "async"', budget="\nslots = 3")
    pool.run()
    assert pool.most == 3


def test_a_library_that_is_asked_gets_one_trial_a_worker(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 'sampler = "tpe"')
    pool.run()
    assert pool.most == 2
    drawn = {record.drawn for record in pool.played.folder.stage("coarse").records(print)}
    assert drawn == {"suggested"}


def test_later_configurations_are_bred_where_no_rung_is_waited_for(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 'schedule = "async"')
    pool.run()
    records = pool.played.folder.stage("coarse").records(print)
    assert [record.drawn for record in records[:8]] == ["sobol"] * 8
    assert {"density", "child"} & {record.drawn for record in records[8:]}


def test_a_promotion_comes_before_a_third_of_a_rung_is_known(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 'schedule = "async"', budget="\nslots = 6")
    for trial in pool.ladder.advance(1):
        pool.queued[trial.id] = trial
    promoted: list[Trial] = []
    for n_ended, trial in enumerate(list(pool.queued.values()), start=1):
        pool.ladder.note(trial.id, pool.played.end(trial))
        promoted += [own for own in pool.ladder.advance(1) if own.passed]
        n_measured = sum(
            own.state == "completed" for own in pool.played.folder.stage("coarse").records(print)
        )
        assert len(promoted) <= n_measured // 3
        assert n_ended < 6 or promoted


@pytest.mark.parametrize("restart_every", [0, 1, 7])
def test_a_population_keeps_its_size_and_its_heirs_start_from_the_best(
    tmp_path: Path, restart_every: int
) -> None:
    pool = Pool(tmp_path, 'sampler = "pbt"')
    pool.run(restart_every)
    records = pool.played.folder.stage("coarse").records(print)
    n = pool.stage.trials
    last = pool.stage.plan.rungs[-1]
    assert sum(record.budget_epochs == last for record in records) == n
    heirs = [record for record in records if record.drawn == "heir"]
    values = {record.trial: record for record in records}
    assert heirs
    for heir in heirs:
        parent = values[heir.parents[0]]
        assert (
            heir.hyperparameters["hidden"] == parent.hyperparameters["hidden"]
        )  # its weights would not fit another width
        assert heir.hyperparameters["learning_rate"] != parent.hyperparameters["learning_rate"]


def test_heirs_have_what_exists_under_their_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (
        'batch_norm = true\nmomentum = { uniform = [0.5, 0.9], when = "dropout > 0.3" }\n'
        'nesterov = { choice = [true, false], when = "dropout > 0.3" }'
    )
    monkeypatch.setattr(
        "tests.unit.master.test_asking.TEXT", TEXT.replace("batch_norm = true", more)
    )
    pool = Pool(tmp_path, 'sampler = "pbt"')
    pool.run(restart_every=3)
    records = pool.played.folder.stage("coarse").records(print)
    values = {record.trial: record.hyperparameters for record in records}
    for record in records:
        dropout = record.hyperparameters["dropout"]
        assert isinstance(dropout, float)
        assert ("momentum" in record.hyperparameters) == (dropout > 0.3)
        if record.drawn == "heir":  # the structure stays that of its weights
            assert record.hyperparameters.get("nesterov") == values[record.parents[0]].get(
                "nesterov"
            )
    assert any(record.drawn == "heir" for record in records)


def test_a_population_does_not_depend_on_the_order_of_its_ends(tmp_path: Path) -> None:
    found = []
    for seed in (1, 2, 3):
        pool = Pool(tmp_path / str(seed), 'sampler = "pbt"', seed)
        pool.run(restart_every=seed)
        found.append(
            [
                (r.trial, r.budget_epochs, r.hyperparameters, r.parents)
                for r in pool.played.folder.stage("coarse").records(print)
            ]
        )
    assert found[0] == found[1] == found[2]


def test_a_population_needs_a_budget() -> None:
    own = TEXT.replace("[space]", 'sampler = "pbt"\n[space]').partition("[budget]")[0]
    with pytest.raises(ConfigError, match=r'sampler = "pbt": plans its population from a budget'):
        parse_search(own + "[stages.coarse]\ntrials = 4\nepochs = 1\n")


def test_a_library_that_is_not_installed_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(
        ConfigError, match=r"sampler = .tpe.: needs Optuna, which is not installed; pip install"
    ):
        Pool(tmp_path, 'sampler = "tpe"')

"""A small search by budget, with stages, rungs and promotions.

It also lists what must be the same, whoever trains it and whatever is killed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.integration.commands import Place

TASKS = Path(__file__).parent / "tasks"
STAGES = (
    "coarse",
    "middle",
    "fine",
    "finer",
)  # of 90 epochs at 9 a trial: 13 to 1, 4 to 3; 9, 3, 1; 4, 1; 6, 2
MOST_LAUNCHES = 12
KILLED, LAUNCH_AGAIN = -9, 2
SAME = (  # of a trial's last record
    "hyperparameters", "seed", "drawn", "parents", "passed", "max_epochs", "budget_epochs",
    "epochs", "state", "value", "curves",
)  # fmt: skip
SEARCH = """
name = "climb"
task = "climb.py:train"
seed = 5
{top}
[budget]
{budget}
max_epochs = 9
[space]
learning_rate = {{ log_uniform = [1e-3, 1.0] }}
speed = {{ uniform = [0.0, 1.0] }}
[strategy]
{strategy}
[stages.sure]
kind = "confirm"
best = 2
seeds = 2
epochs = 9
[stragglers]
lease_s = 1.5
"""


@dataclass(frozen=True)
class Climb:
    """The search in a place of its own."""

    here: Place

    def write(self, top: str = "", budget: str = "epochs = 90", strategy: str = "") -> None:
        shutil.copy(TASKS / "climb.py", self.here.path)
        (self.here.path / "search.toml").write_text(
            SEARCH.format(top=top, budget=budget, strategy=strategy)
        )

    def launch(self, *options: str, **environment: str) -> str:
        """A launch that ends well; what it said."""
        done = self.here.run(
            "master", "launch", *(options or ("--stage", "all", "--workers", "2")), **environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def insist(self, *options: str, **environment: str) -> Counter[int]:
        """Launch until a launch ends well, as an operator would; return how the others ended.

        An emptied Redis is recovered first.
        """
        ends: Counter[int] = Counter()
        while ends.total() < MOST_LAUNCHES:
            done = self.here.run("master", "launch", *options, **environment)
            if done.returncode == 0:
                return ends
            ends[done.returncode] += 1
            assert done.returncode in (KILLED, LAUNCH_AGAIN), done.stdout + done.stderr
            if done.returncode == LAUNCH_AGAIN:
                assert "launch again" in done.stderr, done.stderr
                recovered = self.here.run("master", "recover")
                assert recovered.returncode == 0, recovered.stderr
        raise AssertionError(f"no launch came to its end: {ends}")

    def harmed(self, harm: str, times: int) -> dict[str, str]:
        """Return an environment in which launches fail at promotions; see tasks/at_promotion.py."""
        hooks = self.here.path / "hooks"
        hooks.mkdir(exist_ok=True)
        shutil.copy(TASKS / "at_promotion.py", hooks / "sitecustomize.py")
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(hooks), os.environ.get("PYTHONPATH")])),
            "AT_PROMOTION": harm,
            "TIMES": str(times),
            "MARKS": str(self.marks),
        }

    def deaths(self, *places: str) -> dict[str, str]:
        """The environment in which workers kill themselves; see tasks/climb.py."""
        return {"DEATHS": ",".join(places), "MARKS": str(self.marks)}

    @property
    def marks(self) -> Path:
        """Where those who came to a harm have noted it."""
        folder = self.here.path / "marks"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def stages(self) -> list[str]:
        return [
            stage
            for stage in (*STAGES, "finer2", "finer3", "sure")
            if (self.here.root / "climb" / stage).exists()
        ]

    def records(self) -> dict[str, list[dict[str, Any]]]:
        """All records of each trial, by attempt."""
        found: dict[str, list[dict[str, Any]]] = {}
        for stage in self.stages:
            for record in self.here.records("climb", stage):
                found.setdefault(record["trial"], []).append(record)
        return {
            trial: sorted(records, key=lambda record: record["attempt"])
            for trial, records in found.items()
        }

    def promotions(self) -> dict[str, dict[float, list[str]]]:
        """Return who was promoted, by stage and epochs.

        The number of parts of a decision depends on the order in which trials end.
        """
        found: dict[str, dict[float, list[str]]] = {}
        for stage in self.stages:
            for file in sorted((self.here.root / "climb" / stage).glob("promotions/*.json")):
                part = json.loads(file.read_text())
                found.setdefault(stage, {}).setdefault(part["epochs"], []).extend(part["trials"])
        return {
            stage: {epochs: sorted(trials) for epochs, trials in own.items()}
            for stage, own in found.items()
        }

    def outcome(self) -> dict[str, Any]:
        """Return the configurations, what was frozen, the promotions, and the ranking."""
        trials = {
            trial: {name: records[-1][name] for name in SAME}
            for trial, records in self.records().items()
        }
        for known in trials.values():
            known["curves"] = {
                name: values for name, values in known["curves"].items() if name != "seconds"
            }
        done = self.here.run("master", "rank", "--format", "json")
        assert done.returncode == 0, done.stderr
        ranking = [(row["trial"], row["state"], row["value"]) for row in json.loads(done.stdout)]
        frozen = {
            stage: json.loads((self.here.root / "climb" / stage / "strategy.json").read_text())
            for stage in self.stages
        }
        return {
            "trials": trials,
            "frozen": {stage: {**known, "search_id": ""} for stage, known in frozen.items()},
            "promotions": self.promotions(),
            "ranking": ranking,
        }

    def assert_each_rung_is_recorded_once(self) -> None:
        """Check that each rung has one record, with growing budgets and attempts.

        The reported epochs go on where the rung before ended.
        """
        for trial, records in self.records().items():
            budgets = [record["budget_epochs"] for record in records]
            assert budgets == [*records[-1]["passed"], records[-1]["budget_epochs"]], (
                f"{trial}: {budgets}"
            )
            assert budgets == sorted(set(budgets)), f"{trial}: {budgets}"
            for earlier, later in pairwise(records):
                n = len(earlier["curves"]["val_acc"])
                assert later["curves"]["val_acc"][:n] == earlier["curves"]["val_acc"], trial

    def assert_all_has_ended(self) -> None:
        """Redis: nothing waits or runs, and it knows as many trials as the folder."""
        counts = self.here.status()["stages"]
        known = Counter(trial.rpartition("-")[0] for trial in self.records())
        assert {stage: sum(own.values()) for stage, own in counts.items()} == known
        assert not any(own["pending"] + own["running"] for own in counts.values()), counts

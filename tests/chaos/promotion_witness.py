"""What must hold of promotions after a run.

No promotion is lost or made twice, budgets only grow, and all match a run without faults.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from common.search.trial import Trial
from tests.chaos.calm import Calm, frozen_in
from tests.chaos.witnesses import TRAINED, Account

PART = re.compile(r"epochs=([0-9.]+)-part=(\d+)\.json")


def look_at_decisions(
    stages: Sequence[Path], search_id: str, calm: Calm, account: Account, lost: Collection[str] = ()
) -> None:
    """Check that the files name, for every rung, the trials that a run without faults promotes.

    A decision may have several parts, the last of which is complete.

    Args:
        stages: their folders.
        search_id: of the search.
        calm: the run without faults.
        account: gets what is wrong.
        lost: names of decisions, "<stage> <epochs>", of which a file was removed. Who decides again
            may then name a trial twice.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for stage in stages:
        parts = {
            name: _part(path, search_id, account)
            for path in stage.glob("promotions/*.json")
            if (name := PART.fullmatch(path.name))
        }
        for epochs in {name[1] for name in parts}:
            own = {int(name[2]): part for name, part in parts.items() if name[1] == epochs}
            decision = f"{stage.name} {epochs}"
            found[decision] = [trial for number in sorted(own) for trial in own[number]["trials"]]
            if decision not in lost and (
                sorted(own) != list(range(1, len(own) + 1)) or not own[len(own)]["complete"]
            ):
                account.lost.append(
                    f"the decision {decision} is not whole: parts {sorted(own)}, or its "
                    "last is not complete"
                )
    expected = calm.promotions()
    for decision in sorted(expected.keys() | found.keys()):
        named, right = found.get(decision, []), expected.get(decision, [])
        if decision not in lost and len(named) != len(set(named)):
            account.double.append(
                f"{decision}: promoted twice: "
                f"{sorted({trial for trial in named if named.count(trial) > 1})}"
            )
        account.lost += [
            f"{trial}: was not promoted in {decision}" for trial in right if trial not in named
        ]
        account.double += [
            f"{trial}: was promoted in {decision}, without faults it is not"
            for trial in set(named) - set(right)
        ]


def _part(path: Path, search_id: str, account: Account) -> dict[str, Any]:
    try:
        part: dict[str, Any] = json.loads(path.read_text())
        if (
            part["search_id"] == search_id
            and part["trials"] is not None
            and part["complete"] in (True, False)
        ):
            return part
    except (OSError, ValueError, KeyError, TypeError) as error:
        account.other.append(f"{path.name}: not a whole decision: {error!r}")
    return {"trials": [], "complete": False}


def look_at_rungs(trials: Sequence[Trial], account: Account) -> None:
    """Check that each trial has records of every rung that it reached and of no other.

    Attempts follow the order of their budgets. One rung may have two records, since a late worker
    writes its record as well; the two then say the same.

    Args:
        trials: as they are in the end without faults.
        account: has the records; gets what is wrong.
    """
    for trial in trials:
        records = sorted(
            account.records.get(trial.id, {}).values(), key=lambda record: record["attempt"]
        )
        budgets = [record["budget_epochs"] for record in records]
        if budgets != sorted(budgets):
            account.other.append(
                f"{trial.id}: its budget shrank from one attempt to the next: {budgets}"
            )
        if missing := {*trial.passed, trial.epochs} - set(budgets):
            account.lost.append(f"{trial.id}: has no record of the rungs {sorted(missing)}")
        if extra := set(budgets) - {*trial.passed, trial.epochs}:
            account.double.append(
                f"{trial.id}: trained to {sorted(extra)} epochs, without faults to "
                f"{[*trial.passed, trial.epochs]}"
            )
        for epochs in set(budgets):
            told = {
                record["value"]
                for record in records
                if record["budget_epochs"] == epochs and record["state"] in TRAINED
            }
            if len(told) > 1:
                account.double.append(
                    f"{trial.id}: has records of {epochs:g} epochs that differ: {told}"
                )
        for record in records:
            if record["passed"] != [
                epochs for epochs in trial.passed if epochs < record["budget_epochs"]
            ]:
                account.other.append(
                    f"{trial.id} attempt {record['attempt']}: was promoted by way of "
                    f"{record['passed']}"
                )
        _look_at_curves(trial.id, records, account)


def _look_at_curves(trial: str, records: Sequence[Mapping[str, Any]], account: Account) -> None:
    """A promoted trial brings what it reported before along: all of it, once."""
    told = [record for record in records if record.get("curves")]
    for record in told:
        epochs = record["curves"]["epoch"]
        if epochs != sorted(set(epochs)):
            account.other.append(
                f"{trial} attempt {record['attempt']}: its curves tell of an epoch twice, "
                f"or go back: {epochs}"
            )
    for earlier, later in pairwise(told):
        before = {name: values for name, values in earlier["curves"].items() if name != "seconds"}
        if before != {
            name: later["curves"].get(name, [])[: len(values)] for name, values in before.items()
        }:
            account.other.append(
                f"{trial} attempt {later['attempt']}: its curves do not go on where "
                f"attempt {earlier['attempt']} ended"
            )


def look_at_frozen(stages: Sequence[Path], calm: Calm, account: Account) -> None:
    """Each stage has frozen what it would have without faults: ranges, parents, densities."""
    for stage in stages:
        try:
            found = frozen_in(stage)
        except (OSError, ValueError, KeyError, TypeError) as error:
            account.other.append(
                f"{stage.name}: ranges.toml or strategy.json is damaged: {error!r}"
            )
            continue
        if found != calm.frozen(stage.name):
            different = [
                name for name, known in calm.frozen(stage.name).items() if found[name] != known
            ]
            account.other.append(
                f"{stage.name}: has frozen other {' and '.join(different)} than a run "
                "without faults"
            )

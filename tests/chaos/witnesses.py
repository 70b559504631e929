"""What must hold after a run, by independent witnesses.

The witnesses are Redis, the folder, and the notes of the children. Redis is read here directly, and
the folder in folder_witness.py. The product reads neither, since it might be wrong in the same way
twice.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.search.trial import Trial
from tests.chaos.onlooker import Note

ENDED = {"completed", "exploded", "stopped", "killed", "failed"}
KEYS = {"trials", "states", "groups", "counts", "results", "endings", "frozen"}
PASSING_KEYS = {"workers", "requests", "machines", "doubts", "meta"}  # they go by themselves
SHARED_KEYS = {
    "{cf}:searches",
    "{cf}:workers",
    "{cf}:seen",
    "{cf}:orders",
    "{cf}:slow",
    "{cf}:work",
    "{cf}:ended",
}
TRAINED = {"completed", "exploded", "stopped"}
LEAVING_S = 10.0  # a worker that was told to leave gives its trials back, and ends within this
BUSY = (
    2.0  # leases after a moment in which this machine was too busy, in which a taking is not judged
)


@dataclass
class Account:
    """What was found wrong.

    ``lost`` and ``double`` break the promise; ``other`` is all the rest.
    """

    lost: list[str] = field(default_factory=list)
    double: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    trials: int = 0
    accepted: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    records: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)

    def add(self, other: Account) -> None:
        """Takes over what another look has found and this one has not."""
        for mine, theirs in (
            (self.lost, other.lost),
            (self.double, other.double),
            (self.other, other.other),
        ):
            mine += [finding for finding in theirs if finding not in mine]

    @property
    def findings(self) -> list[str]:
        return [
            *(f"lost: {x}" for x in self.lost),
            *(f"double: {x}" for x in self.double),
            *self.other,
        ]


def plain(value: Any) -> Any:
    """A float as Redis's and the records' JSON have it, non-finite ones included."""
    if isinstance(value, dict) and value.keys() == {"$float"}:
        return float(value["$float"])
    return value


def look_at_redis(
    client: Any,
    search_id: str,
    trials: Sequence[Trial],
    account: Account,
    forgotten: Collection[str] = (),
) -> None:
    """Check that every trial has its configuration and has ended once, and that nothing is left
    over.

    Nothing may wait or run.

    Args:
        client: of Redis.
        search_id: of the search.
        trials: as they are without faults, with the budgets that they have in the end.
        account: gets what is wrong.
        forgotten: trials that may wait, run or stand at an earlier rung here, since Redis has lost
            data and they have records. A launch restores them.
    """
    key = f"cf:{{{search_id}}}:"
    states = {k: json.loads(v) for k, v in client.hgetall(key + "states").items()}
    results = client.hgetall(key + "results")
    configurations = {k: json.loads(v) for k, v in client.hgetall(key + "trials").items()}
    account.trials = len(trials)
    for trial in trials:
        state = states.get(trial.id, {}).get("s")
        if trial.id in forgotten:
            continue
        if state not in ENDED or trial.id not in results:
            account.lost.append(
                f"{trial.id}: Redis has it as {state}, result {results.get(trial.id)}"
            )
            continue
        attempt, _, result = results[trial.id].partition(" ")
        account.accepted[trial.id] = (int(attempt), json.loads(result))
        if int(attempt) != states[trial.id]["a"] or json.loads(result)["state"] != state:
            account.other.append(
                f"{trial.id}: Redis contradicts itself: {states[trial.id]} and {results[trial.id]}"
            )
        configuration = configurations.get(trial.id, [None] * 6)
        if configuration[4] != trial.hyperparameters or configuration[2] != trial.seed:
            account.other.append(
                f"{trial.id}: Redis has the configuration {configuration}, without faults {trial}"
            )
        budgets = [*(configuration[7] if len(configuration) > 7 else ()), configuration[3]]
        if budgets != [*trial.passed, trial.epochs]:
            account.other.append(
                f"{trial.id}: Redis has promoted it to {budgets} epochs, without faults "
                f"to {[*trial.passed, trial.epochs]}"
            )
    if extra := states.keys() - {trial.id for trial in trials}:
        account.other.append(f"Redis has trials that nobody published: {sorted(extra)}")
    endings = Counter(line.split(" ", 2)[2] for line in client.lrange(key + "endings", 0, -1))
    most = {trial.id: trial.rung + 1 for trial in trials}  # once at each rung
    account.double += [
        f"{trial} ended {n} times in Redis"
        for trial, n in endings.items()
        if n > most.get(trial, 1)
    ]
    _look_at_counts(client, key, states, account)
    if not forgotten:
        _look_at_keys(client, key, account)


def _look_at_counts(client: Any, key: str, states: Mapping[str, Any], account: Account) -> None:
    counted = Counter(state["s"] for state in states.values())
    told = Counter[str]()  # of all stages
    for place, n in client.hgetall(key + "counts").items():
        told[place.partition(":")[2]] += int(n)
    told = +told
    if told != counted:
        account.other.append(f"Redis counts {dict(told)}, but has {dict(counted)}")


def _look_at_keys(client: Any, key: str, account: Account) -> None:
    for name in client.scan_iter():
        own = name.removeprefix(key) if name.startswith(key) else None
        if own in PASSING_KEYS or (own or "").startswith("lock:"):
            if client.pttl(name) == -1:
                account.other.append(f"key in Redis that nothing ever removes: {name}")
        elif name not in SHARED_KEYS and own not in KEYS:
            account.other.append(f"key left over in Redis: {name}")


def look_at_ledger(ledger: Path, account: Account) -> None:
    """Check that only a trial's last holder was told, once, that its result counts.

    No attempt number may be handed out twice. Both hold within one memory of Redis.

    Args:
        ledger: as the children noted it; a line {"event": "forgotten"} where Redis lost data.
        account: gets what is wrong.
    """
    accepted: dict[tuple[str, int], set[tuple[int, str]]] = {}  # by trial and rung
    claimed: dict[tuple[str, int], set[str]] = {}
    highest: dict[tuple[str, int], int] = {}
    for line in ledger.read_text().splitlines():
        note = json.loads(line)
        trial, attempt = note.get("trial", ""), note.get("attempt", 0)
        place = (
            trial,
            note.get("rung", 0),
        )  # who ended a rung is told that it counts for ever, whoever trains on
        if note["event"] == "forgotten":
            accepted, claimed, highest = {}, {}, {}
        elif note["event"] == "finish" and note["ok"]:
            accepted.setdefault(place, set()).add((attempt, note["token"]))
            if attempt < highest.get(place, 0):
                account.double.append(
                    f"{trial}: attempt {attempt} was told that it counts after attempt "
                    f"{highest[place]} was handed out"
                )
            if len(accepted[place]) == 2:
                account.double.append(
                    f"{trial}: two holders were told that their result counts: {accepted[place]}"
                )
        elif note["event"] == "claim":
            highest[place] = max(attempt, highest.get(place, 0))
            tokens = claimed.setdefault((trial, attempt), set())
            tokens.add(note["token"])
            if len(tokens) == 2:
                account.double.append(f"{trial}: attempt {attempt} was handed out twice")


def look_at_verdicts(ledger: Path, failing: Collection[str], account: Account) -> None:
    """Check that the master took and killed only trials that hang.

    There is no excuse. Lost trials are reaped when the lease runs out, and no search here has a
    time limit of the user's own.

    Args:
        ledger: as the children noted it.
        failing: trials whose task hangs, or fails otherwise.
        account: gets what is wrong.
    """
    told = {"take": "was taken from its worker", "kill": "was killed"}
    for line in ledger.read_text().splitlines():
        note = json.loads(line)
        if note["event"] in told and note["trial"] not in failing:
            account.other.append(
                f"{note['trial']}: attempt {note['attempt']} {told[note['event']]} by the "
                "master, which nothing called for"
            )


def look_at_takings(
    notes: Sequence[Note], lease_s: float, account: Account, failing: Collection[str] = ()
) -> None:
    """No trial was taken from a worker that lived and was never silent for long while Redis served.

    Args:
        notes: what was seen, in its order.
        lease_s: of the search.
        account: gets what is wrong.
        failing: trials whose task hangs, or fails otherwise: they are taken, and their worker
            lives on.
    """
    holders: dict[tuple[str, int], Note] = {}  # by trial and rung
    for note in notes:
        if note.event == "forgotten":
            holders.clear()
        if note.event != "claim" or note.said is None:
            continue
        place = (note.said["trial"], note.said["rung"])
        before = holders.get(place)
        if before is not None and before.said is not None:
            if note.said["attempt"] < before.said["attempt"]:
                # Noted late, by a process that stood still after it had the answer.
                continue
            taken = note.said["token"] != before.said["token"]
            hangs = note.said["trial"] in failing
            if taken and not hangs and not _excused(notes, before, note, lease_s):
                what = f"{note.said['trial']}: attempt {before.said['attempt']}"
                account.other.append(
                    f"{what} was taken from process {before.pid}, which lived and was not silent"
                )
        holders[place] = note


def _excused(notes: Sequence[Note], before: Note, after: Note, lease_s: float) -> bool:
    """Whether there was a reason to take a trial from one holder and give it to another."""
    for note in notes:
        if note.event == "over" and note.pid == before.pid and note.at_s < after.at_s + LEAVING_S:
            return True
        if (
            note.event == "still"
            and note.pid == before.pid
            and before.at_s <= note.at_s <= after.at_s
        ):
            return True
        if note.event == "late" and after.at_s - BUSY * lease_s < note.at_s <= after.at_s + lease_s:
            return True
    return False


def look_at_last_launch(said: str, account: Account, forgotten: Collection[str] = ()) -> None:
    """Check that a launch after the end queues and writes nothing.

    It takes over only the trials that Redis was robbed of.
    """
    if not (queued := re.findall(r", (\d+) new", said)) or {*queued} != {"0"}:
        account.other.append(f"the last launch queued trials again:\n{said}")
    if "had ended according to the folder" in said and not forgotten:
        account.lost.append(
            f"the last launch had to tell Redis of ends that it had never heard of:\n{said}"
        )
    if "records were missing in the folder" in said:
        account.lost.append(f"the last launch had to write records that were missing:\n{said}")


def ranking_in(said: str, account: Account) -> list[dict[str, Any]]:
    """The rows that `master rank --format json` printed."""
    try:
        rows: list[dict[str, Any]] = json.loads(said[said.index("[\n") :])
    except ValueError:
        account.other.append(f"master rank printed no ranking: {said[-500:]!r}")
        return []
    return rows


def look_at_ranking(
    rows: Sequence[Mapping[str, Any]], undisturbed: Sequence[str], account: Account
) -> None:
    """The trials that trained stand in the order of a run without faults."""
    found = [row["trial"] for row in rows if row["state"] in TRAINED]
    if found != list(undisturbed):
        at = next(
            (n for n, (a, b) in enumerate(zip(found, undisturbed, strict=False)) if a != b),
            min(len(found), len(undisturbed)),
        )
        account.other.append(
            f"the ranking is not that of a run without faults: from rank {at + 1} on "
            f"{found[at : at + 3]} instead of "
            f"{list(undisturbed[at : at + 3])} ({len(found)} trials instead of {len(undisturbed)})"
        )

"""What is true after a run, by witnesses that know nothing of each other: Redis, the folder, and what the children themselves noted.

Redis and the folder are read here as they lie there, not through the product, which might be wrong in the same way twice.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.trial import Trial

ENDED = {"completed", "exploded", "stopped", "killed", "failed"}
KEYS = {"trials", "states", "groups", "counts", "results", "endings", "workers", "requests", "meta", "frozen", "machines", "doubts"}
SHARED_KEYS = {"{cf}:searches", "{cf}:workers", "{cf}:seen", "{cf}:orders", "{cf}:slow"}
RECORD = re.compile(r"coarse-(\d{4})-try=(\d+)\.json")
WEIGHTS = re.compile(r"val_acc=-?\d+\.\d{4,}-trial=(coarse-\d{4})-epoch=\d{3,}-try=(\d+)\.(pt|npz)")
PLAIN_FILES = {"ranges.toml", "leaderboard.csv", "report.html"}
TRAINED = {"completed", "exploded", "stopped"}


@dataclass
class Account:
    """What was found wrong. ``lost`` and ``double`` are what the promise is about; ``other`` is all the rest."""

    lost: list[str] = field(default_factory=list)
    double: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    trials: int = 0
    accepted: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    records: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)

    @property
    def findings(self) -> list[str]:
        return [*(f"lost: {x}" for x in self.lost), *(f"double: {x}" for x in self.double), *self.other]


def plain(value: Any) -> Any:
    """A float as Redis's and the records' JSON have it, non-finite ones included."""
    if isinstance(value, dict) and value.keys() == {"$float"}:
        return float(value["$float"])
    return value


def look_at_redis(client: Any, search_id: str, trials: Sequence[Trial], account: Account) -> None:
    """Every trial is there with its configuration and has ended once; nothing waits, runs, or lies about."""
    key = f"cf:{{{search_id}}}:"
    states = {k: json.loads(v) for k, v in client.hgetall(key + "states").items()}
    results = client.hgetall(key + "results")
    configurations = {k: json.loads(v) for k, v in client.hgetall(key + "trials").items()}
    account.trials += len(trials)
    for trial in trials:
        state = states.get(trial.id, {}).get("s")
        if state not in ENDED or trial.id not in results:
            account.lost.append(f"{trial.id}: Redis has it as {state}, result {results.get(trial.id)}")
            continue
        attempt, _, result = results[trial.id].partition(" ")
        account.accepted[trial.id] = (int(attempt), json.loads(result))
        if int(attempt) != states[trial.id]["a"] or json.loads(result)["state"] != state:
            account.other.append(f"{trial.id}: Redis contradicts itself: {states[trial.id]} and {results[trial.id]}")
        if configurations[trial.id][4] != trial.hyperparameters or configurations[trial.id][2] != trial.seed:
            account.other.append(f"{trial.id}: configuration {configurations[trial.id]}, without faults {trial}")
    if extra := states.keys() - {trial.id for trial in trials}:
        account.other.append(f"Redis has trials that nobody published: {sorted(extra)}")
    endings = Counter(line.split(" ", 2)[2] for line in client.lrange(key + "endings", 0, -1))
    account.double += [f"{trial} ended {n} times in Redis" for trial, n in endings.items() if n > 1]
    _look_at_counts(client, key, states, account)
    _look_at_keys(client, key, account)


def _look_at_counts(client: Any, key: str, states: Mapping[str, Any], account: Account) -> None:
    counted = Counter(state["s"] for state in states.values())
    told = {field.partition(":")[2]: int(n) for field, n in client.hgetall(key + "counts").items() if int(n)}
    if told != counted:
        account.other.append(f"Redis counts {told}, but has {dict(counted)}")


def _look_at_keys(client: Any, key: str, account: Account) -> None:
    for name in client.scan_iter():
        if name in SHARED_KEYS or (name.startswith(key) and name.removeprefix(key) in KEYS):
            continue
        account.other.append(f"key left over in Redis: {name}")


def look_at_folder(stage: Path, search_id: str, trials: Sequence[Trial], account: Account) -> None:
    """Every trial has a whole record of the attempt that Redis accepted, and every file under a final name is whole."""
    for path in sorted(stage.rglob("*")):
        if path.is_file() and (problem := _damage(path, stage)):
            account.other.append(f"{path.relative_to(stage)}: {problem}")
    for path in (stage / "trials").glob("*.json"):
        record = _read(path)
        if record is not None:
            account.records.setdefault(record["trial"], {})[record["attempt"]] = record
    for trial in trials:
        _compare(trial, search_id, account)
    for path in stage.glob("*.pt"):
        match = WEIGHTS.fullmatch(path.name)
        if match and account.accepted.get(match[1], (0, {}))[0] != int(match[2]):
            account.other.append(f"{path.name}: weights of an attempt that does not count ({account.accepted.get(match[1])})")


def _compare(trial: Trial, search_id: str, account: Account) -> None:
    attempts = account.records.get(trial.id, {})
    if trial.id not in account.accepted:
        return
    accepted, result = account.accepted[trial.id]
    if not attempts or accepted not in attempts:
        account.lost.append(f"{trial.id}: Redis accepted attempt {accepted}, the folder has records of {sorted(attempts) or 'none'}")
        return
    if max(attempts) > accepted:
        account.double.append(f"{trial.id}: Redis accepted attempt {accepted}, but the folder counts attempt {max(attempts)}")
    record = attempts[accepted]
    different = {k: (plain(v), record.get(k)) for k, v in result.items() if not _same(plain(v), record.get(k))}
    if different:
        account.double.append(f"{trial.id} attempt {accepted}: two results count, (Redis, folder) are {different}")
    if record["hyperparameters"] != trial.hyperparameters or record["seed"] != trial.seed or record["search_id"] != search_id:
        account.other.append(f"{trial.id}: the record's configuration is not that of a run without faults: {record['hyperparameters']}")
    if record["state"] in TRAINED and not (record.get("curves") and record.get("host")):
        account.lost.append(f"{trial.id} attempt {accepted}: ended as {record['state']}, but what its worker measured is gone")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, str):
        other = float(other)
    return one == other or (isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        return None
    return record


def _damage(path: Path, stage: Path) -> str | None:
    """What is wrong with a file of the stage's folder; None where nothing is."""
    if path.name.startswith(".tmp-"):
        return "a temporary file left over"
    if path.parent.name == "resume":
        return "the resume state of a trial that has ended"
    if path.parent.name == "trials":
        return None if RECORD.fullmatch(path.name) and _read(path) is not None else "not a whole record"
    if path.parent == stage and path.name in PLAIN_FILES:
        return None
    if not WEIGHTS.fullmatch(path.name):
        return "a file that nobody should have written"
    try:
        if path.suffix == ".npz":
            return "damaged" if zipfile.ZipFile(path).testzip() else None
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a half-written file makes its readers raise
        return f"cannot be read: {type(error).__name__}: {error}"
    return None


def look_at_ledger(ledger: Path, account: Account, fresh_attempts: bool = True) -> None:
    """No two fences of a trial were told that they count, and no attempt number was handed out twice, within one memory of Redis.

    Args:
        ledger: as the children noted it; a line {"event": "forgotten"} where Redis lost data.
        account: gets what is wrong.
        fresh_attempts: whether attempt numbers are compared.
    """
    accepted: dict[str, set[tuple[int, str]]] = {}
    claimed: dict[tuple[str, int], set[str]] = {}
    for line in ledger.read_text().splitlines():
        note = json.loads(line)
        if note["event"] == "forgotten":
            accepted, claimed = {}, {}
        elif note["event"] == "finish" and note["ok"]:
            accepted.setdefault(note["trial"], set()).add((note["attempt"], note["token"]))
            if len(accepted[note["trial"]]) == 2:
                account.double.append(f"{note['trial']}: two holders were told that their result counts: {accepted[note['trial']]}")
        elif note["event"] == "claim" and fresh_attempts:
            tokens = claimed.setdefault((note["trial"], note["attempt"]), set())
            tokens.add(note["token"])
            if len(tokens) == 2:
                account.double.append(f"{note['trial']}: attempt {note['attempt']} was handed out twice")


def look_at_ranking(rows: Sequence[Mapping[str, Any]], undisturbed: Sequence[str], account: Account) -> None:
    """The trials that trained stand in the order of a run without faults."""
    found = [row["trial"] for row in rows if row["state"] in TRAINED]
    if found != list(undisturbed):
        at = next((n for n, (a, b) in enumerate(zip(found, undisturbed, strict=False)) if a != b), min(len(found), len(undisturbed)))
        account.other.append(
            f"the ranking is not that of a run without faults: from rank {at + 1} on {found[at : at + 3]} instead of "
            f"{list(undisturbed[at : at + 3])} ({len(found)} trials instead of {len(undisturbed)})"
        )

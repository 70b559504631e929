"""What is true of the checkpoint folder after a run: the records, whether every other file is whole, and the weights of the best trials."""

from __future__ import annotations

import csv
import math
import re
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import CheckpointError
from common.records import read_record
from common.trial import Trial
from tests.chaos.witnesses import TRAINED, Account, plain

RECORD = re.compile(r"coarse-(\d{4})-try=(\d+)\.json")
WEIGHTS = re.compile(r"val_acc=-?\d+\.\d{4,}-trial=(coarse-\d{4})-epoch=\d{3,}-try=(\d+)\.(pt|npz)")
REDIS = ".redis"  # the embedded server's own folder
DECIMALS = 4  # of a value in a file's name, by which the janitor ranks
GOOD = {"completed", "stopped"}


def look_at_records(stage: Path, search_id: str, trials: Sequence[Trial], account: Account) -> None:
    """Every trial has a whole record of the attempt that Redis accepted, with the same result and the configuration of its number."""
    for path in sorted((stage / "trials").glob("*.json")):
        try:
            record = read_record(path).model_dump(mode="json")
        except CheckpointError as error:
            account.other.append(f"trials/{path.name}: not a whole record: {error}")
            continue
        account.records.setdefault(record["trial"], {})[record["attempt"]] = record
    for trial in trials:
        _compare(trial, search_id, account)


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
        account.lost.append(f"{trial.id} attempt {accepted}: ended as {record['state']}, but its worker wrote no record of it")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, str):
        other = float(other)
    return one == other or (isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other))


def look_at_files(root: Path, task_file: str | None, account: Account) -> None:
    """Below the checkpoint root lies nothing but what belongs there, and every file is whole. To be asked after the janitor has swept."""
    search, stage = root / "chaos", root / "chaos" / "coarse"
    for path in sorted(root.rglob("*")):
        if path.is_dir() or REDIS in path.relative_to(root).parts:
            continue
        if path.name.startswith(".tmp-"):
            problem: str | None = "a temporary file left over"
        elif path.parent == stage / "resume":
            problem = "the resume state of a trial that has ended"
        elif path.parent == stage / "trials":
            problem = None if RECORD.fullmatch(path.name) else "a file that nobody should have written"  # read in look_at_records
        elif path.parent == stage and (match := WEIGHTS.fullmatch(path.name)):
            accepted = account.accepted.get(match[1], (0, {}))[0]
            problem = _unreadable(path) or (None if accepted == int(match[2]) else f"of an attempt that does not count, {accepted} does")
        elif path in (stage / "ranges.toml", stage / "leaderboard.csv", search / "search.toml", stage / "report.html"):
            problem = None
        else:
            problem = None if task_file and path == search / task_file else "a file that nobody should have written"
        if problem:
            account.other.append(f"{path.relative_to(root)}: {problem}")
    _look_at_texts(search, stage, account)


def _unreadable(path: Path) -> str | None:
    try:
        if path.suffix == ".npz":
            if zipfile.ZipFile(path).testzip():
                return "damaged"
            with np.load(path, allow_pickle=False) as arrays:
                return None if len(arrays["val"]) == len(arrays["val_targets"]) > 0 else "holds no predictions"
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a half-written file makes its readers raise
        return f"cannot be read: {type(error).__name__}: {error}"
    return None


def _look_at_texts(search: Path, stage: Path, account: Account) -> None:
    """The files that people read: what is frozen is what was launched, and the leaderboard has every trial as its record has it."""
    try:
        launched, frozen = (tomllib.loads(path.read_text()) for path in (search / "search.toml", stage / "ranges.toml"))
        if frozen["ranges"] != launched["space"]:
            account.other.append(f"ranges.toml: {frozen['ranges']} was frozen, {launched['space']} launched")
    except (OSError, ValueError, KeyError) as error:
        account.other.append(f"search.toml or ranges.toml: damaged: {error!r}")
    try:
        rows = list(csv.DictReader((stage / "leaderboard.csv").read_text().splitlines()))
        told = {row["trial"]: (row["state"], int(row["attempt"])) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        account.other.append(f"leaderboard.csv: damaged: {error!r}")
        return
    known = {trial: (attempts[max(attempts)]["state"], max(attempts)) for trial, attempts in account.records.items()}
    if told != known or len(rows) != len(known):
        different = sorted(told.items() ^ known.items())[:4]
        account.other.append(f"leaderboard.csv: does not have the trials as their records have them: {different}, {len(rows)} rows")


def look_at_kept(stage: Path, keep: int, predicts: bool, account: Account) -> None:
    """The best ``keep`` trials still have their weights, and what these predict where the task ``predicts``."""
    ended = (account.records.get(trial, {}).get(attempt) for trial, (attempt, _) in account.accepted.items())
    good = sorted(
        (record for record in ended if record and record["state"] in GOOD and _value(record) is not None), key=_value, reverse=True
    )
    bound = round(_value(good[keep]), DECIMALS) if len(good) > keep else -math.inf  # the first that falls out; its equals may as well
    for rank, record in enumerate(good[:keep], 1):
        if round(_value(record), DECIMALS) <= bound:
            break
        place = f"{record['trial']} attempt {record['attempt']}, rank {rank} of {keep} that are kept"
        if record.get("checkpoint") is None:
            if rank <= keep // 2:  # nearer to the bound, weights of an attempt that was lost later may have had the place
                account.lost.append(f"{place}: its record names no weights")
            continue
        weights = stage / record["checkpoint"]
        if not weights.exists():
            account.lost.append(f"{place}: its weights are gone: {weights.name}")
        elif predicts and not weights.with_suffix(".npz").exists():
            account.lost.append(f"{place}: its predictions are gone: {weights.with_suffix('.npz').name}")
    if (n_files := len(list(stage.glob("*.pt")))) > keep:
        account.other.append(f"{n_files} files of weights in the folder, {keep} are to be kept")


def _value(record: dict[str, Any]) -> Any:
    return record["value"] if record["value"] is not None else record["val_acc"]

"""What must hold in the checkpoint folder after a run.

It checks the records, every other file, and the weights of the best trials.
"""

from __future__ import annotations

import csv
import math
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import CheckpointError
from common.folder.promotable import most_promotable
from common.folder.records import read_record
from common.search.plan import StagePlan
from common.search.search_file import Search
from common.search.trial import Trial
from tests.chaos.witnesses import TRAINED, Account, plain

RECORD = re.compile(r"([a-z]+)-(\d{4})-try=(\d+)\.json")
STATE = re.compile(r"([a-z]+-\d{4})-try=(\d+)\.pt")
PART = re.compile(r"epochs=[0-9.]+-part=\d+\.json")
WEIGHTS = re.compile(r"val_acc=-?\d+\.\d{4,}-trial=([a-z]+-\d{4})-epoch=\d{3,}-try=(\d+)\.(pt|npz)")
REDIS = ".redis"  # the embedded server's own folder
DECIMALS = 4  # of a value in a file's name, by which the janitor ranks
GOOD = {"completed", "stopped"}
OF_A_STAGE = ("ranges.toml", "strategy.json", "leaderboard.csv")


def look_at_records(
    stages: Sequence[Path], search_id: str, trials: Sequence[Trial], account: Account
) -> None:
    """Check that every trial has a whole record of the attempt that Redis accepted.

    The record has the same result and the configuration of its number.
    """
    for path in sorted(path for stage in stages for path in stage.glob("trials/*.json")):
        try:
            record = read_record(path).model_dump(mode="json")
        except CheckpointError as error:
            account.other.append(f"trials/{path.name}: not a whole record: {error}")
            continue
        account.records.setdefault(record["trial"], {})[record["attempt"]] = {
            **record,
            "rung": len(record["passed"]),
        }
    for trial in trials:
        _compare(trial, search_id, account)


def _compare(trial: Trial, search_id: str, account: Account) -> None:
    attempts = account.records.get(trial.id, {})
    if trial.id not in account.accepted:
        return
    accepted, result = account.accepted[trial.id]
    if not attempts or accepted not in attempts:
        account.lost.append(
            f"{trial.id}: Redis accepted attempt {accepted}, the folder has records of "
            f"{sorted(attempts) or 'none'}"
        )
        return
    if max(attempts) > accepted:
        account.double.append(
            f"{trial.id}: Redis accepted attempt {accepted}, but the folder counts "
            f"attempt {max(attempts)}"
        )
    record = attempts[accepted]
    different = {
        k: (plain(v), record.get(k))
        for k, v in result.items()
        if not _same(plain(v), record.get(k))
    }
    if different:
        account.double.append(
            f"{trial.id} attempt {accepted}: two results count, (Redis, folder) are {different}"
        )
    if (
        record["hyperparameters"] != trial.hyperparameters
        or record["seed"] != trial.seed
        or record["search_id"] != search_id
    ):
        account.other.append(
            f"{trial.id}: the record's configuration is not that of a run without faults: "
            f"{record['hyperparameters']}"
        )
    if record["state"] in TRAINED and not (record.get("curves") and record.get("host")):
        account.lost.append(
            f"{trial.id} attempt {accepted}: ended as {record['state']}, but its worker "
            "wrote no record of it"
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, str):
        other = float(other)
    return one == other or (
        isinstance(one, float)
        and isinstance(other, float)
        and math.isnan(one)
        and math.isnan(other)
    )


def look_at_files(root: Path, launched: Search, account: Account) -> None:
    """Check that the checkpoint root has only files that belong there, and that all are whole.

    Call this after the janitor has swept.
    """
    search = root / "chaos"
    stages = [search / stage.name for stage in launched.stages]
    for path in sorted(root.rglob("*")):
        if path.is_dir() or REDIS in path.relative_to(root).parts:
            continue
        if path.name.startswith(".tmp-"):
            problem: str | None = "a temporary file left over"
        elif path.parent.name == "resume" and path.parent.parent in stages:
            problem = _no_state_to_go_on_from(path, account)
        elif path.parent.name in ("trials", "promotions") and path.parent.parent in stages:
            known = (RECORD if path.parent.name == "trials" else PART).fullmatch(path.name)
            problem = (
                None if known else "a file that nobody should have written"
            )  # read in look_at_records, look_at_decisions
        elif path.parent in stages and (match := WEIGHTS.fullmatch(path.name)):
            accepted = account.accepted.get(match[1], (0, {}))[0]
            problem = _unreadable(path) or (
                None
                if accepted == int(match[2])
                else f"of an attempt that does not count, {accepted} does"
            )
        elif path == search / "search.toml" or (path.parent in stages and path.name in OF_A_STAGE):
            problem = None
        else:
            problem = (
                None
                if path == search / "task.json" or search / "task-code" in path.parents
                else "a file that nobody should have written"
            )
        if problem:
            account.other.append(f"{path.relative_to(root)}: {problem}")
    _look_at_number_of_states(stages, [stage.plan for stage in launched.stages], account)
    for stage in stages:
        _look_at_texts(stage, account)


def _no_state_to_go_on_from(path: Path, account: Account) -> str | None:
    """Return what is wrong with a resume state.

    Only a trial that waits at a rung may have one, and it is from the attempt that counts.
    """
    match = STATE.fullmatch(path.name)
    accepted = account.accepted.get(match[1], (0, {}))[0] if match else 0
    record = account.records.get(match[1], {}).get(accepted) if match else None
    if record is None or match is None:
        return "the resume state of no trial that has ended"
    if record["state"] != "completed" or record["budget_epochs"] >= record["max_epochs"]:
        return "the resume state of a trial that has ended for good"
    return _unreadable(path) or (
        None if accepted == int(match[2]) else f"of an attempt that does not count, {accepted} does"
    )


def _look_at_number_of_states(
    stages: Sequence[Path], plans: Sequence[StagePlan], account: Account
) -> None:
    """Check how many resume states each stage keeps at a rung.

    It keeps as many as it may promote from there, and some to spare.
    """
    for stage in stages:
        at = Counter(
            max(record["budget_epochs"] for record in account.records.get(trial, {}).values())
            for trial in _with_state(stage, account)
        )
        for epochs, n in at.items():
            if n > (most := most_promotable(plans, epochs)):
                account.other.append(
                    f"{stage.name}/resume: states of {n} trials that stand at {epochs:g} "
                    f"epochs, {most} may go on"
                )


def _with_state(stage: Path, account: Account) -> set[str]:
    matches = (STATE.fullmatch(path.name) for path in stage.glob("resume/*.pt"))
    return {match[1] for match in matches if match and match[1] in account.records}


def _unreadable(path: Path) -> str | None:
    try:
        if path.suffix == ".npz":
            if zipfile.ZipFile(path).testzip():
                return "damaged"
            with np.load(path, allow_pickle=False) as arrays:
                return (
                    None
                    if len(arrays["val"]) == len(arrays["val_targets"]) > 0
                    else "holds no predictions"
                )
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a half-written file makes its readers raise
        return f"cannot be read: {type(error).__name__}: {error}"
    return None


def _look_at_texts(stage: Path, account: Account) -> None:
    """The leaderboard, which people read, has every trial of its stage as its record has it."""
    try:
        rows = list(csv.DictReader((stage / "leaderboard.csv").read_text().splitlines()))
        told = {row["trial"]: (row["state"], int(row["attempt"])) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        account.other.append(f"{stage.name}/leaderboard.csv: damaged: {error!r}")
        return
    own = {
        trial: attempts
        for trial, attempts in account.records.items()
        if trial.startswith(f"{stage.name}-")
    }
    known = {
        trial: (attempts[max(attempts)]["state"], max(attempts)) for trial, attempts in own.items()
    }
    if told != known or len(rows) != len(known):
        different = sorted(told.items() ^ known.items())[:4]
        account.other.append(
            f"{stage.name}/leaderboard.csv: does not have the trials as their records "
            f"have them: {different}, {len(rows)} rows"
        )


def look_at_kept(stage: Path, keep: int, predicts: bool, account: Account) -> None:
    """Check that the best ``keep`` trials have their weights.

    Where the task ``predicts``, check their predictions too.
    """
    own = {
        trial: attempt
        for trial, (attempt, _) in account.accepted.items()
        if trial.startswith(f"{stage.name}-")
    }
    ended = (account.records.get(trial, {}).get(attempt) for trial, attempt in own.items())
    good = sorted(
        (
            record
            for record in ended
            if record and record["state"] in GOOD and _value(record) is not None
        ),
        key=_value,
        reverse=True,
    )
    bound = (
        round(_value(good[keep]), DECIMALS) if len(good) > keep else -math.inf
    )  # the first that falls out; its equals may as well
    for rank, record in enumerate(good[:keep], 1):
        if round(_value(record), DECIMALS) <= bound:
            break
        place = (
            f"{record['trial']} attempt {record['attempt']}, rank {rank} of {keep} that are kept"
        )
        if record.get("checkpoint") is None:
            # Nearer to the bound, weights of an attempt that was lost later may have had the place.
            if rank <= keep // 2:
                account.lost.append(f"{place}: its record names no weights")
            continue
        weights = stage / record["checkpoint"]
        if not weights.exists():
            account.lost.append(f"{place}: its weights are gone: {weights.name}")
        elif predicts and not weights.with_suffix(".npz").exists():
            account.lost.append(
                f"{place}: its predictions are gone: {weights.with_suffix('.npz').name}"
            )
    if (n_files := len(list(stage.glob("*.pt")))) > keep:
        account.other.append(f"{n_files} files of weights in the folder, {keep} are to be kept")


def _value(record: dict[str, Any]) -> Any:
    return record["value"] if record["value"] is not None else record["val_acc"]

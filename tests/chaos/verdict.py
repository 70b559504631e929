"""What the witnesses say of an ended search, before and after one more launch.

That launch may tidy up. It would also mend what it finds, by one witness or the other. So the
witnesses look before it, and the launch must have found nothing to mend.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import redis

from common.broker.connection import open_broker
from tests.chaos import folder_witness, promotion_witness, witnesses
from tests.chaos.witnesses import Account

if TYPE_CHECKING:
    from tests.chaos.arena import Arena

AGED_S = 7200.0  # twice what the janitor waits before it takes a temporary file for abandoned


def judge(arena: Arena, undisturbed: Sequence[str] | None, account: Account) -> None:
    """End the crew and ask the witnesses.

    Args:
        arena: whose search has ended.
        undisturbed: the ranking of a run without faults, where training is the same to the last
            digit.
        account: gets what is wrong.
    """
    arena.onlooker.stop()
    witnesses.look_at_ledger(arena.ledger, account)
    failing = {trial.id for trial in arena.trials if arena.work.failing(trial)}
    witnesses.look_at_verdicts(arena.ledger, failing, account)
    witnesses.look_at_takings(arena.onlooker.notes, arena.lease_s, account, failing)
    account.lost += [
        f"{one}: was told that it counts while it had no record"
        for one in arena.onlooker.unrecorded
    ]
    if not arena.lost_decisions:  # else the file may just have been lost
        account.other += [
            f"{one}: was handed out before a file said that it is promoted"
            for one in arena.onlooker.undecided
        ]
    with contextlib.ExitStack() as stack:
        if arena.server is None:
            stack.enter_context(
                open_broker(None, arena.root)
            )  # as a user of the embedded server, so that it stays
        client = stack.enter_context(arena.client())
        arena.crew.stop()
        search_id = (arena.root / "chaos" / "search.toml").read_text().split('"')[1]
        forgotten = _robbed(arena, client, search_id)
        account.add(_seen(arena, client, search_id, forgotten))
        _let_time_pass(arena, client)
        witnesses.look_at_last_launch(
            _said(arena, account, *arena.crew.master.command[1:]), account, forgotten
        )
        final = _seen(arena, client, search_id)
    promotion_witness.look_at_rungs(arena.trials, final)
    promotion_witness.look_at_decisions(
        arena.stages, search_id, arena.calm, final, arena.lost_decisions
    )
    promotion_witness.look_at_frozen(arena.stages, arena.calm, final)
    folder_witness.look_at_files(arena.root, arena.calm.search, final)
    for stage in arena.stages:
        folder_witness.look_at_kept(stage, arena.work.keep, arena.task_file is None, final)
    account.add(final)
    account.trials, account.accepted, account.records = final.trials, final.accepted, final.records
    rows = witnesses.ranking_in(_said(arena, account, "rank", "--format", "json"), account)
    if undisturbed is not None and rows:
        witnesses.look_at_ranking(rows, undisturbed, account)


def _seen(
    arena: Arena, client: redis.Redis, search_id: str, forgotten: Collection[str] = ()
) -> Account:
    """What Redis and the records say now."""
    seen = Account()
    witnesses.look_at_redis(client, search_id, arena.trials, seen, forgotten)
    folder_witness.look_at_records(arena.stages, search_id, arena.trials, seen)
    return seen


def _robbed(arena: Arena, client: redis.Redis, search_id: str) -> set[str]:
    """Return the trials with a record of whose last end Redis knows nothing.

    This is the one exception: Redis lost data after the search had ended. Nobody is left to tell it
    then, except the next launch.
    """
    if not any(note.event == "forgotten" for note in arena.onlooker.notes):
        return set()
    known = {
        trial: int(told.partition(" ")[0])
        for trial, told in client.hgetall(f"cf:{{{search_id}}}:results").items()
    }
    recorded: dict[str, int] = {}
    for path in [path for stage in arena.stages for path in stage.glob("trials/*-try=*.json")]:
        trial, _, attempt = path.stem.partition("-try=")
        recorded[trial] = max(int(attempt), recorded.get(trial, 0))
    return {trial for trial, attempt in recorded.items() if known.get(trial, 0) < attempt}


def corrected(arena: Arena, account: Account) -> set[str]:
    """Return the trials with two records that ended twice.

    This is the other exception: Redis lost data, and the higher record was brought to it.
    """
    if not any(note.event == "forgotten" for note in arena.onlooker.notes):
        return set()
    return {
        f"{trial} ended {n} times in Redis"
        for trial, attempts in account.records.items()
        for n in range(
            2, len(attempts) + 1
        )  # a promoted trial ends once at each rung, and may have ended once more
    }


def _let_time_pass(arena: Arena, client: redis.Redis) -> None:
    """Remove what disappears by itself with time.

    This is the lock of a killed janitor (a minute) and the temporary files of killed writers (an
    hour).
    """
    for lock in client.scan_iter("*:lock:janitor"):
        client.delete(lock)
    for path in arena.root.rglob(".tmp-*"):
        os.utime(path, (time.time() - AGED_S,) * 2)


def _said(arena: Arena, account: Account, *words: str) -> str:
    command = arena.complete(*words)
    if command.code not in (0, 3):
        account.other.append(
            f"master {' '.join(words)}: ended with {command.code}: {command.said[-500:]}"
        )
    return command.said

"""What the witnesses say of a search that has ended: first as things lie there, then after one more launch.

That launch may tidy up. It would also mend what it finds, by one witness or the other, so the witnesses look before it does, and it has
to have found nothing to mend.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import redis

from common.broker import open_broker
from tests.chaos import folder_witness, witnesses
from tests.chaos.witnesses import Account

if TYPE_CHECKING:
    from tests.chaos.arena import Arena

AGED_S = 7200.0  # twice what the janitor waits before it takes a temporary file for abandoned


def judge(arena: Arena, undisturbed: Sequence[str] | None, account: Account) -> None:
    """Ends the crew and asks the witnesses.

    Args:
        arena: whose search has ended.
        undisturbed: the ranking of a run without faults, where training is the same to the last digit.
        account: gets what is wrong.
    """
    arena.onlooker.stop()
    witnesses.look_at_ledger(arena.ledger, account)
    witnesses.look_at_takings(arena.onlooker.notes, arena.lease_s, account)
    account.lost += [f"{one}: was told that it counts while it had no record" for one in arena.onlooker.unrecorded]
    with contextlib.ExitStack() as stack:
        if arena.server is None:
            stack.enter_context(open_broker(None, arena.root))  # as a user of the embedded server, so that it stays
        client = stack.enter_context(arena.client())
        arena.crew.stop()
        search_id = (arena.root / "chaos" / "search.toml").read_text().split('"')[1]
        forgotten = _robbed(arena, client, search_id)
        account.add(_seen(arena, client, search_id, forgotten))
        _let_time_pass(arena, client)
        witnesses.look_at_last_launch(_said(arena, account, *arena.crew.master.command[1:]), account, forgotten)
        final = _seen(arena, client, search_id)
    folder_witness.look_at_files(arena.root, arena.task_file, final)
    folder_witness.look_at_kept(arena.stage, arena.work.keep, arena.task_file is None, final)
    account.add(final)
    account.trials, account.accepted, account.records = final.trials, final.accepted, final.records
    rows = witnesses.ranking_in(_said(arena, account, "rank", "--stage", "coarse", "--format", "json"), account)
    if undisturbed is not None and rows:
        witnesses.look_at_ranking(rows, undisturbed, account)


def _seen(arena: Arena, client: redis.Redis, search_id: str, forgotten: Collection[str] = ()) -> Account:
    """What Redis and the records say now."""
    seen = Account()
    witnesses.look_at_redis(client, search_id, arena.trials, seen, forgotten)
    folder_witness.look_at_records(arena.stage, search_id, arena.trials, seen)
    return seen


def _robbed(arena: Arena, client: redis.Redis, search_id: str) -> set[str]:
    """The one exception: trials with a record of whose end Redis knows nothing, where it has lost data after the search had ended.

    Nobody is left to tell it then, but the next launch.
    """
    if not any(note.event == "forgotten" for note in arena.onlooker.notes):
        return set()
    known = set(client.hkeys(f"cf:{{{search_id}}}:results"))
    return {trial.id for trial in arena.trials if trial.id not in known and any(arena.stage.glob(f"trials/{trial.id}-try=*.json"))}


def corrected(arena: Arena, account: Account) -> set[str]:
    """The other exception: trials that have two records, and ended twice where Redis has lost data: the higher record was brought to it."""
    if not any(note.event == "forgotten" for note in arena.onlooker.notes):
        return set()
    return {f"{trial} ended 2 times in Redis" for trial, attempts in account.records.items() if len(attempts) > 1}


def _let_time_pass(arena: Arena, client: redis.Redis) -> None:
    """What is gone by itself in time: the lock of a janitor that was killed (a minute), killed writers' temporary files (an hour)."""
    for lock in client.scan_iter("*:lock:janitor"):
        client.delete(lock)
    for path in arena.root.rglob(".tmp-*"):
        os.utime(path, (time.time() - AGED_S,) * 2)


def _said(arena: Arena, account: Account, *words: str) -> str:
    command = arena.complete(*words)
    if command.code not in (0, 3):
        account.other.append(f"master {' '.join(words)}: ended with {command.code}: {command.said[-500:]}")
    return command.said

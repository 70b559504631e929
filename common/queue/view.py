"""Reading a search's trials in Redis, without changing anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import redis

from common.broker.errors import translate_errors
from common.broker.urls import where_of
from common.errors import DamagedReplyError
from common.queue import scripts, wire
from common.search.trial import ENDED, Fence, Result, Running, Trial, TrialState

PAGE = 1000  # entries per read: some hundred kilobytes
SORTED = frozenset({"pending", "open", "leases", "workers"})  # keys that are sorted sets
# As in shared.lua: a queue is its stage's number times this, plus the numbers of its level and its
# group.
STAGE_QUEUES = 1 << 23


class QueueView:
    """The reading part of ``TrialQueue``.

    Every method raises QueueError if Redis is unavailable.
    """

    def __init__(self, client: redis.Redis, search_id: str) -> None:
        self.client: Any = client  # redis-py types each reply as "sync or async"
        self.search_id = search_id
        self.keys = scripts.search_keys(search_id)
        self.where = where_of(client)
        # Encoded once, since each call sends all sixteen.
        self._encoded = [key.encode() for key in self.keys.values()]

    def run(self, script: str, *arguments: str | int | float) -> Any:
        """Run one of the search's scripts once.

        Raises:
            QueueError: Redis is unavailable. After a lost connection the script may or may not have
                run.
        """
        with translate_errors(self.where):
            return scripts.run(self.client, script, self._encoded, arguments)

    def trial(self, trial_id: str) -> Trial | None:
        """Return the trial's configuration; None if it was never published."""
        stored = self._field("trials", trial_id)
        return None if stored is None else wire.trial_in(trial_id, stored)

    def trials_of(self, trial_ids: Sequence[str]) -> list[Trial | None]:
        """Read the configurations of these trials in one call.

        An element is None if the trial was never published or is damaged.
        """
        if not trial_ids:
            return []
        with translate_errors(self.where):
            stored = self.client.hmget(self.keys["trials"], list(trial_ids))
        return [_trial(trial_id, own) for trial_id, own in zip(trial_ids, stored, strict=True)]

    def state(self, trial_id: str) -> TrialState | None:
        """Return the trial's state; None if it was never published."""
        stored = self._field("states", trial_id)
        return None if stored is None else TrialState(wire.state_in(stored)["s"])

    def attempt(self, trial_id: str) -> int:
        """Return the highest attempt number used; 0 before the first attempt."""
        stored = self._field("states", trial_id)
        return 0 if stored is None else int(wire.state_in(stored)["a"])

    def result(self, trial_id: str) -> tuple[int, Result] | None:
        """Return (attempt, result) of a trial that has ended, else None."""
        stored = self._field("results", trial_id)
        return None if stored is None else _attempt_and_result(stored)

    def endings_of(self, trial_ids: Sequence[str]) -> list[tuple[Trial, int, Result]]:
        """Return (trial, attempt, result) of those trials that have ended, with their budgets then.

        A trial and its result are read at one moment, so that no promotion comes between. Damaged
        ones are left out.
        """
        found = []
        for first in range(0, len(trial_ids), PAGE):
            batch = list(trial_ids[first : first + PAGE])
            with translate_errors(self.where):
                pipeline = self.client.pipeline().hmget(self.keys["trials"], batch)
                configurations, results = pipeline.hmget(self.keys["results"], batch).execute()
            for trial_id, configuration, own in zip(batch, configurations, results, strict=True):
                trial, ended = _trial(trial_id, configuration), _readable(own)
                if trial is not None and ended is not None:
                    found.append((trial, *ended))
        return found

    def curves(self, trial_id: str) -> dict[str, list[float | None]]:
        """Return the thinned curves of a trial under lease.

        They are empty if none have come yet or the lease has ended.
        """
        stored = self._field("curves", trial_id)
        return {} if stored is None else wire.curves_in(stored)

    def trials(self, stage: str | None = None) -> Iterator[Trial]:
        """Yield all trials, or a stage's, in no particular order. They are read page by page."""
        for trial_id, stored in self._scan("trials"):
            trial = wire.trial_in(trial_id, stored)
            if stage is None or trial.stage == stage:
                yield trial

    def by_state(self, *states: TrialState, stage: str | None = None) -> list[str]:
        """Return the ids of the trials that are in one of ``states``. Damaged ones are left out.

        The stage that was published first comes first; within a stage they are ordered by index.
        """
        numbers = self._stage_numbers()
        found = []
        for trial_id, stored in self._scan("states"):
            try:
                state = wire.state_in(stored)
            except DamagedReplyError:
                continue
            number = state["g"] // STAGE_QUEUES
            if state["s"] in states and (stage is None or numbers.get(stage) == number):
                found.append((number, state["i"], trial_id))
        return [trial_id for _, _, trial_id in sorted(found)]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the numbers of trials as stage -> state -> n.

        Stages are in the order in which they were published, and all states are present.
        """
        with translate_errors(self.where):
            groups, counts = (
                self.client.pipeline()
                .hgetall(self.keys["groups"])
                .hgetall(self.keys["counts"])
                .execute()
            )
        stored = {wire.text(field): n for field, n in counts.items()}
        return {
            stage: {
                s.value: wire.whole_in(stored.get(f"{number}:{s}", 0), "count of trials")
                for s in TrialState
            }
            for stage, number in _numbers(groups).items()
        }

    def pending_total(self) -> int:
        """Return how many trials wait, in all stages."""
        with translate_errors(self.where):
            return int(self.client.zcard(self.keys["pending"]))

    def count_unfinished(self) -> int:
        """Return how many trials wait or run, in all stages."""
        with translate_errors(self.where):
            pending, leased = (
                self.client.pipeline(transaction=False)
                .zcard(self.keys["pending"])
                .zcard(self.keys["leases"])
                .execute()
            )
        return int(pending) + int(leased)

    def live_workers(self, within_s: float = 30.0) -> set[str]:
        """Return the workers that claimed or renewed in the last ``within_s`` seconds.

        The time is the server's.
        """
        since_ms = self._now_ms() - within_s * 1000
        with translate_errors(self.where):
            return {
                wire.text(name)
                for name in self.client.zrangebyscore(self.keys["workers"], since_ms, "+inf")
            }

    def running(self) -> list[Running]:
        """Return the trials under lease at one moment, with durations by the server's clock.

        A trial with damaged values is left out.
        """
        now, *found = wire.reply_in(self.run("running"), "list of running trials")
        readable = (_running(now, *found[first : first + 4]) for first in range(0, len(found), 4))
        return [running for running in readable if running is not None]

    def read_endings(self, sequence: int, limit: int = PAGE) -> list[tuple[int, str, int, Result]]:
        """Return (sequence, trial id, attempt, result) of the endings after ``sequence``.

        The oldest is first. Start with 0 and go on with the last sequence returned. If nothing is
        new, this is one cheap call. Endings that a retry undid, and those with a damaged result,
        are left out.

        Args:
            sequence: the last one seen.
            limit: the most endings to return.
        """
        while True:
            with translate_errors(self.where):
                entries = [
                    _ending(e)
                    for e in self.client.lrange(
                        self.keys["endings"], sequence, sequence + limit - 1
                    )
                ]
                stored = (
                    self.client.hmget(self.keys["results"], [trial_id for _, trial_id in entries])
                    if entries
                    else []
                )
            endings = []
            for position, ((attempt, trial_id), own) in enumerate(
                zip(entries, stored, strict=True), sequence + 1
            ):
                latest = _readable(own)
                if latest and latest[0] == attempt:
                    endings.append((position, trial_id, *latest))
            if endings or len(entries) < limit:
                return endings
            sequence += limit

    def read_ended(self, stage: str | None = None) -> Iterator[tuple[str, int, Result]]:
        """Yield (trial id, attempt, result) of all ended trials, or a stage's.

        They are in the order of their endings.
        """
        members = None if stage is None else set(self.by_state(*ENDED, stage=stage))
        sequence = 0
        while page := self.read_endings(sequence):
            sequence = page[-1][0]
            yield from (
                (trial_id, attempt, result)
                for _, trial_id, attempt, result in page
                if members is None or trial_id in members
            )

    def master_alive(self, within_s: float = 10.0) -> bool:
        """Return whether a master has ticked in the last ``within_s`` seconds.

        The time is the server's.
        """
        last = self._field("meta", "master")
        # Ignore a damaged tick; the next master overwrites it.
        ticked_ms = _whole(last or "")
        return ticked_ms >= 0 and self._now_ms() - ticked_ms <= within_s * 1000

    def _now_ms(self) -> int:
        """Return the time of the server that has the search.

        In a cluster the command TIME might reach another server.
        """
        return int(self.run("clock"))

    def check(self) -> None:
        """Read what every message needs: the types of keys, the counts, the state of each trial.

        Raises:
            DamagedReplyError: another program has written to them.
        """
        with translate_errors(self.where):
            pipeline = self.client.pipeline(transaction=False).lrange(self.keys["endings"], 0, 0)
            for name in self.keys.keys() - {"endings"}:
                key = self.keys[name]
                pipeline = pipeline.zcard(key) if name in SORTED else pipeline.hlen(key)
            pipeline.execute()
        self.counts()
        for _, stored in self._scan("states"):
            wire.state_in(stored)

    def _field(self, key: str, field: str) -> Any:
        with translate_errors(self.where):
            return self.client.hget(self.keys[key], field)

    def _scan(self, key: str) -> Iterator[tuple[str, Any]]:
        """Yield all fields of a hash, each once."""
        seen: set[str] = set()
        cursor: int | None = None
        while cursor != 0:
            with translate_errors(self.where):
                cursor, page = self.client.hscan(self.keys[key], cursor or 0, count=PAGE)
            for field, value in page.items():
                name = wire.text(field)
                if name not in seen:
                    seen.add(name)
                    yield name, value

    def _stage_numbers(self) -> dict[str, int]:
        with translate_errors(self.where):
            return _numbers(self.client.hgetall(self.keys["groups"]))


def _numbers(groups: dict[Any, Any]) -> dict[str, int]:
    """Return stage -> number, ordered by number.

    A stage's name has neither ':' nor '#', unlike the fields of groups and counters.
    """
    plain = {wire.text(field): number for field, number in groups.items()}
    stages = {
        name: wire.whole_in(number, "number of a stage")
        for name, number in plain.items()
        if ":" not in name and "#" not in name
    }
    return dict(sorted(stages.items(), key=lambda item: item[1]))


def _attempt_and_result(stored: str | bytes) -> tuple[int, Result]:
    attempt, _, result = wire.text(stored).partition(" ")
    return _whole(attempt), wire.result_in(result)


def _readable(stored: str | bytes | None) -> tuple[int, Result] | None:
    try:
        return None if stored is None else _attempt_and_result(stored)
    except DamagedReplyError:
        return None


def _ending(entry: str | bytes) -> tuple[int, str]:
    """Return (attempt, trial id) of an entry. A damaged one has an attempt that no trial has."""
    attempt, _, rest = wire.text(entry).partition(" ")
    return _whole(attempt), rest.partition(" ")[2]


def _whole(number: str) -> int:
    """Return the number of an attempt or a beat; -1, which neither has, if it is not a number."""
    try:
        return wire.whole_in(number, "number")
    except DamagedReplyError:
        return -1


def _trial(trial_id: str, stored: str | bytes | None) -> Trial | None:
    try:
        return None if stored is None else wire.trial_in(trial_id, stored)
    except DamagedReplyError:
        return None


def _running(
    now_ms: int, trial_id: str, stored: str, configuration: str, heartbeat: str
) -> Running | None:
    try:
        state, trial = wire.state_in(stored), wire.trial_in(trial_id, configuration)
    except DamagedReplyError:
        return None
    if state["s"] != TrialState.RUNNING:
        return None
    fence, worker, claimed_s = (
        Fence(trial_id, state["a"], state["t"]),
        state["w"],
        (now_ms - state["c"]) / 1000,
    )
    progress, still_s = None, claimed_s
    if heartbeat:
        beat, moved, told = [*heartbeat.split(" ", 2), "", ""][:3]
        with suppress(DamagedReplyError):
            progress, still_s = (
                wire.progress_in(fence, _whole(beat), told),
                (now_ms - _whole(moved)) / 1000,
            )
    return Running(trial, fence, worker, claimed_s, still_s, progress)

"""TrialQueue: the only module that talks to Redis about trials. One Lua script a transition; ``lua/shared.lua`` explains the keys.

publish   nothing -> PENDING              expire, take   RUNNING -> PENDING, or FAILED when lost too often
claim     PENDING -> RUNNING              kill           PENDING, RUNNING -> KILLED
finish    RUNNING -> any ended state      retry          FAILED, KILLED -> PENDING
release   RUNNING -> PENDING              restore        anything -> the highest ended attempt in the folder
fail      RUNNING -> PENDING, for another machine to try what raised on this one
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal

import redis
from redis.exceptions import LockNotOwnedError

from common import scripts, wire
from common.doubts import MAX_RAISED, MOST_REASON, Answer, answer_in, put_aside
from common.errors import DamagedReplyError
from common.queue_view import QueueView
from common.redis_errors import translated
from common.trial import ENDED, TRIAL_PATTERN, Claim, Fence, Progress, Result, Trial, TrialState
from common.verdict import Taken, Tick, Verdict, taken_in

SEARCHES = "{cf}:searches"  # the list of all searches, in the slot of no single one
LEASE_S = 30.0  # ten missed heartbeats
LIVE_S = 30.0  # a worker that neither claimed nor renewed for so long takes no share
MAX_LOST = 3  # losses while alone that end a trial: once may be the machine, three times is the trial
PUBLISH_BATCH = 500  # trials a script call: about 5 ms in which Redis serves nobody else
WORD_BATCH = 1000  # fences a script call
MAX_CLAIM = 4096  # trials a claim: more than any array is wide
MAX_INDEX = 1 << 20  # trials a stage, as in shared.lua
MAX_EXPIRED = 1000  # expired leases that one tick reports; the next tick reports the rest


class TrialQueue(QueueView):
    """The trials of one search in Redis. Safe to share between threads; every method raises QueueError when Redis does not serve.

    Nothing is sent twice by itself. After a QueueError the caller may repeat any call: publish, restore, renew, finish, release and a
    claim with the same request id give the same answer again, as does fail until somebody takes what was passed on; expire, take, kill and
    retry find their work done (None, False).

    Args:
        client: a connection that does not send again by itself.
        search_id: the identity from the folder's ``search.toml``.
        lease_s: how long a trial is its holder's after a heartbeat.
        live_s: how long after its last word a worker counts as live, when shares are worked out.
    """

    def __init__(self, client: redis.Redis, search_id: str, lease_s: float = LEASE_S, live_s: float = LIVE_S) -> None:
        super().__init__(client, search_id)
        self.lease_s = lease_s
        self.lease_ms = max(1, round(lease_s * 1000))
        self.live_ms = round(live_s * 1000)

    # --- publishing -------------------------------------------------------------------------------------------------------

    def register(self, name: str) -> None:
        """Puts the search into the list of all; the first launch time stays."""
        with translated(self.where):
            scripts.run(self.client, "register", [SEARCHES], [self.search_id, name])

    def freeze(self, stage: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Stores a stage's ranges, seed and options unless it has some; returns what is stored, for the caller to compare."""
        with translated(self.where):
            self.client.hsetnx(self._frozen, stage, wire.dumps(dict(options)))
            return wire.options_in(self.client.hget(self._frozen, stage))

    def refreeze(self, stage: str, key: str, value: str) -> None:
        """Replaces one frozen option: a retry notes the digest of a mended task."""
        options = self.frozen(stage)
        if options is not None:
            with translated(self.where):
                self.client.hset(self._frozen, stage, wire.dumps({**options, key: value}))

    def frozen(self, stage: str) -> dict[str, Any] | None:
        """What was frozen for the stage, None before its first launch."""
        with translated(self.where):
            stored = self.client.hget(self._frozen, stage)
        return None if stored is None else wire.options_in(stored)

    def publish(self, trials: Iterable[Trial], attempts: Mapping[str, int] | None = None) -> int:
        """Adds the trials that are not there yet; the others stay as they are. The first published stage is worked on first.

        Args:
            trials: any number; 500 go in a call.
            attempts: trial id -> highest attempt number that the folder knows; the next claim is above it.

        Returns:
            How many were new.

        Raises:
            ValueError: an index beyond a million.
        """
        floors, added, remaining = attempts or {}, 0, iter(trials)
        while batch := list(islice(remaining, PUBLISH_BATCH)):
            rows = [[t.id, t.stage, t.group, _index(t), floors.get(t.id, 0), wire.trial_out(t)] for t in batch]
            added += wire.whole_in(self.run("publish", wire.dumps(rows)), "number of new trials")
        return added

    def restore(self, trial: Trial, attempt: int, result: Result, floor: int = 0) -> bool:
        """Ends a trial as an ended record in the folder says, unless Redis knows of a later attempt.

        Args:
            trial: which; it need not be published.
            attempt: the record's.
            result: the record's; it counts even where Redis has another one of the same attempt.
            floor: highest attempt number that the folder knows; of a trial that does not run, a record below it does not count.

        Returns:
            False: nothing has changed, since this or a later attempt has ended here, a later one is running or was lost, or a retry has
            set this one aside.
        """
        words = (trial.id, trial.stage, trial.group, _index(trial), wire.trial_out(trial), attempt, _ended(result), wire.result_out(result))
        return bool(self.run("restore", *words, floor))

    # --- the worker's side ------------------------------------------------------------------------------------------------

    def claim(self, worker: str, n: int, request_id: str, group: str | None = None, alone: bool = True, machine: str = "") -> list[Claim]:
        """Takes up to ``n`` trials of one group, at most this worker's share of all that wait (pending / live workers, rounded up).

        The group with most pending trials of the earliest stage comes first: arrays get wide, and workers spread over the groups
        instead of sharing one. A suspect (its last attempt was lost) comes as a list of one, after its stage's other trials. A trial
        that was taken from this worker for being slow is passed over while another worker lives that could take it; one that raised on this
        machine, while another machine lives that could try it.

        Args:
            worker: the claimer's name, unique among the living.
            n: at most so many, 4,096 at most.
            request_id: repeats the answer when the last request of this worker had the same.
            group: only trials of this group and no suspect (a refill).
            alone: False: no suspect, since the worker trains others.
            machine: what the worker shares with others that would fail for the same cause; empty: nothing is known of it.

        Raises:
            PutAside: this machine gets no more trials of the search, or none for now: several raised on it, one after the other.
        """
        refill, suspects = ("0" if group is None else "1"), ("1" if alone and group is None else "0")
        token = secrets.token_hex(6)
        words = (worker, min(n, MAX_CLAIM), request_id, refill, group or "", suspects, token, self.lease_ms, self.live_ms, machine)
        reply = self.run("claim", *words)
        if reply is None:
            return []
        held, *found = wire.reply_in(reply, "claim")
        if not held:
            raise put_aside(found)
        suspect, *found = found
        claims, damaged = [], []
        for trial, attempt, stored in (found[first : first + 3] for first in range(0, len(found), 3)):
            fence = Fence(trial, wire.whole_in(attempt, "attempt"), held)
            try:
                claims.append(Claim(wire.trial_in(trial, stored), fence, bool(suspect)))
            except DamagedReplyError as error:
                damaged.append((fence, Result(TrialState.FAILED, str(error), worker=worker)))
        if damaged:  # nobody can train them, and given back they would be handed out for ever
            self.finish(damaged)
        return claims

    def renew(self, worker: str, progress: Sequence[Progress], curves: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
        """Extends the leases that still hold and stores what the heartbeat says. Call it even when nothing runs: it shows life.

        Args:
            worker: its name.
            progress: what it holds, and how far each is.
            curves: by trial id, of those that have grown (``wire.curves_out``); kept until the lease ends.

        Returns:
            trial id -> why, for each fence that is stale: "expired", "stuck", "slow", "killed", "retried", "released", "recovered",
            "ended" (its own finish was accepted), "damaged" (somebody else has written where the trial stands) or "gone" (the search was
            removed).
        """
        stale: dict[str, str] = {}
        for first in range(0, max(len(progress), 1), WORD_BATCH):
            batch = progress[first : first + WORD_BATCH]
            rows = [[*_fence(p.fence), p.beat, wire.progress_out(p), curves.get(p.fence.trial_id, "")] for p in batch]
            reply = [wire.text(value) for value in self.run("renew", worker, self.lease_ms, wire.dumps(rows))]
            stale |= dict(zip(reply[::2], reply[1::2], strict=True))
        return stale

    def finish(self, ended: Sequence[tuple[Fence, Result]]) -> list[Verdict]:
        """Ends trials with their results, in any ended state. The accepted fence gets OK however often it says so.

        Raises:
            ValueError: a result whose state is not an ended one.
        """
        return self._words("finish", [[*_fence(fence), _ended(result), wire.result_out(result)] for fence, result in ended])

    def fail(self, raised: Sequence[tuple[Fence, str]]) -> list[Answer]:
        """Says that trials raised. Where another machine lives that could try it, a trial goes back to the queue for that one.

        Args:
            raised: fences, each with the reason.

        Returns:
            For each what its holder is to do; a trial that is not passed on is still its holder's.
        """
        answers: list[Answer] = []
        for first in range(0, len(raised), WORD_BATCH):
            rows = [[*_fence(fence), reason[:MOST_REASON]] for fence, reason in raised[first : first + WORD_BATCH]]
            reply = self.run("fail", wire.dumps(rows), MAX_RAISED, self.live_ms)
            answers += [answer_in(word) for word in wire.reply_in(reply, "answer to what raised")]
        return answers

    def release(self, fences: Sequence[Fence]) -> list[Verdict]:
        """Gives trials back to be claimed again; never counts as a loss."""
        return self._words("release", [_fence(fence) for fence in fences])

    def leave(self, worker: str) -> None:
        """Says that the worker goes: it takes no share from now on. Its leases stay until released or expired."""
        with translated(self.where):
            self.client.pipeline().zrem(self.keys["workers"], worker).hdel(self.keys["requests"], worker).hdel(
                self.keys["machines"], worker
            ).execute()

    # --- the master's side, or an idle worker's ---------------------------------------------------------------------------

    @property
    def tick_every_s(self) -> float:
        """How often somebody must tick: a gap of half a lease counts as an outage, in which nothing expires."""
        return self.lease_s / 5

    def tick(self, master: bool) -> Tick:
        """Looks for expired leases, at most 1,000 a call; ``master``: also notes that a master lives.

        A trial under such a lease whose state somebody else has written has FAILED: nobody could end it, and all would wait for it.
        """
        extended, *found = self.run("tick", self.lease_ms, int(master), MAX_EXPIRED)
        rows = (found[first : first + 4] for first in range(0, len(found), 4))
        named = ((wire.text(trial), wire.whole_in(a, "attempt"), wire.text(token), wire.text(worker)) for trial, a, token, worker in rows)
        expired = tuple((Fence(trial, a, token), worker) for trial, a, token, worker in named if TRIAL_PATTERN.fullmatch(trial))
        return Tick(wire.text(extended) == "1", expired)

    def expire(self, fence: Fence, max_lost: int = MAX_LOST) -> Taken | None:
        """Takes a trial whose lease has run out: it waits again as a suspect, or has FAILED once lost ``max_lost`` times while alone.

        Returns:
            None: the fence is stale, the lease was renewed meanwhile, or the last tick is too long ago to be sure.
        """
        return taken_in(fence.trial_id, self.run("expire", *_fence(fence), max_lost, self.lease_ms), fence)

    def take(self, fence: Fence, why: Literal["stuck", "slow"], max_lost: int = MAX_LOST) -> Taken | None:
        """Takes a straggling trial, whose lease may well hold.

        Args:
            fence: the attempt that was judged.
            why: "stuck" counts like a loss; "slow" does not, and keeps the trial from the same worker.
            max_lost: as for ``expire``.

        Returns:
            None: the fence is stale.
        """
        return taken_in(fence.trial_id, self.run("take", *_fence(fence), why, max_lost), fence)

    def kill(self, trial_id: str, reason: str, fence: Fence | None = None) -> Taken | None:
        """Ends a trial that waits or runs as KILLED; its holder hears it at the next heartbeat.

        Args:
            trial_id: which.
            reason: for its record.
            fence: only while this very attempt runs (for a judgement on what was seen a moment ago).

        Returns:
            None: it has ended, is unknown, or ``fence`` is stale.
        """
        return taken_in(trial_id, self.run("kill", trial_id, reason, *(_fence(fence)[1:] if fence else ())), fence)

    def retry(self, trial_id: str) -> bool:
        """Sends a FAILED or KILLED trial back, its losses forgotten; False in any other state."""
        return bool(self.run("retry", trial_id))

    @contextmanager
    def lock(self, name: str, ttl_s: float) -> Iterator[bool]:
        """Holds a named lock of the search inside the block if nobody else does; yields whether it is held.

        Args:
            name: such as "janitor".
            ttl_s: after so long it is free again, whatever became of its holder.
        """
        lock = self.client.lock(self.keys["meta"].removesuffix("meta") + f"lock:{name}", timeout=ttl_s)
        with translated(self.where):
            held = bool(lock.acquire(blocking=False))
        try:
            yield held
        finally:
            if held:
                with translated(self.where), suppress(LockNotOwnedError):  # it ran out: another's now, or nobody's
                    lock.release()

    def drop(self) -> None:
        """Deletes all that Redis has of the search. Workers that still train for it hear "gone"."""
        with translated(self.where):
            self.client.hdel(SEARCHES, self.search_id)
            self.client.unlink(*self.keys.values(), self._frozen)

    @property
    def _frozen(self) -> str:
        """HASH stage -> JSON of its options; no script needs it."""
        return self.keys["meta"].removesuffix("meta") + "frozen"

    def _words(self, script: str, words: Sequence[Sequence[str | int]]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for first in range(0, len(words), WORD_BATCH):
            reply = wire.text(self.run(script, wire.dumps(words[first : first + WORD_BATCH])))
            verdicts += [Verdict.OK if accepted == "1" else Verdict.LOST for accepted in reply]
        return verdicts


def searches(client: redis.Redis) -> list[tuple[str, str]]:
    """(search id, name) of all searches in Redis, oldest launched first.

    Raises:
        QueueError: Redis does not serve.
    """
    with translated(scripts.where_of(client)):
        stored: dict[Any, Any] = client.hgetall(SEARCHES)
    launched = [(wire.text(search_id), *wire.text(value).partition(" ")[::2]) for search_id, value in stored.items()]
    ours = [row for row in launched if row[1].isascii() and row[1].isdecimal() and len(row[1]) < wire.MOST_DIGITS]
    return [(search_id, name) for search_id, _, name in sorted(ours, key=lambda row: (int(row[1]), row[0]))]


def _fence(fence: Fence) -> list[str | int]:
    return [fence.trial_id, fence.attempt, fence.token]


def _index(trial: Trial) -> int:
    if not 0 <= trial.index < MAX_INDEX:
        raise ValueError(f"{trial.id}: index {trial.index} is outside [0, {MAX_INDEX}); spread the trials over several stages")
    return trial.index


def _ended(result: Result) -> str:
    if result.state not in ENDED:
        raise ValueError(f"{result.state} is not an ended state; use one of {', '.join(sorted(ENDED))}")
    return result.state.value

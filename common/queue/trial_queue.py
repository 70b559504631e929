"""TrialQueue, the only class that changes trials in Redis. Each transition is one Lua script.

publish   nothing -> PENDING              expire, take   RUNNING -> PENDING, or FAILED if lost often
claim     PENDING -> RUNNING              kill           PENDING, RUNNING -> KILLED
finish    RUNNING -> any ended state      retry          FAILED, KILLED -> PENDING
release   RUNNING -> PENDING              restore        anything -> highest ended attempt in folder
promote   COMPLETED -> PENDING, with a longer budget
fail      RUNNING -> PENDING, for another machine to try what raised on this one

``lua/shared.lua`` explains the keys. Each message that leaves trials waiting rings the bell for
work. Each that ends trials or gives them back rings the other bell (``common/queue/bells.py``).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any

import redis
from redis.exceptions import LockNotOwnedError

from common.broker.errors import translate_errors
from common.broker.urls import where_of
from common.errors import DamagedReplyError
from common.queue import wire
from common.queue.answers import Taken, Tick, Verdict, read_taken
from common.queue.bells import Bell
from common.queue.publishing import SEARCHES, PublishingQueue, state_of_result
from common.queue.second_tries import (
    MAX_RAISED,
    MOST_REASON,
    Answer,
    Ruling,
    answer_in,
    put_aside,
)
from common.search.trial import TRIAL_PATTERN, Claim, Fence, Progress, Result, TrialState

LEASE_S = 30.0  # ten missed heartbeats
# A worker that has neither claimed nor renewed for this long gets no share.
LIVE_S = 30.0
# Losses while alone that end a trial: one may be the machine's fault, three are the trial's.
MAX_LOST = 3
WORD_BATCH = 1000  # fences per script call
MAX_CLAIM = 4096  # trials per claim: more than any array is wide
MAX_EXPIRED = 1000  # expired leases that one tick reports; the next tick reports the rest


class TrialQueue(PublishingQueue):
    """The trials of one search in Redis. Threads may share it.

    Every method raises QueueError when Redis is unavailable. No command is resent automatically.
    After a QueueError the caller may repeat any call: publish, promote, restore, renew, finish,
    release, and a claim with the same request id, give the same answer again. So does fail, until
    another worker takes the trial. Expire, take, kill and retry find their work done (None, False).

    Args:
        client: a connection that does not resend commands by itself.
        search_id: the id from the folder's ``search.toml``.
        lease_s: seconds for which a holder keeps a trial after a heartbeat.
        live_s: seconds after its last message for which a worker counts as live, and gets a share.
    """

    def __init__(
        self, client: redis.Redis, search_id: str, lease_s: float = LEASE_S, live_s: float = LIVE_S
    ) -> None:
        super().__init__(client, search_id)
        self.lease_s = lease_s
        self.lease_ms = max(1, round(lease_s * 1000))
        self.live_ms = round(live_s * 1000)

    # --- the worker's side ---

    def claim(
        self,
        worker: str,
        n: int,
        request_id: str,
        group: str | None = None,
        alone: bool = True,
        machine: str = "",
    ) -> list[Claim]:
        """Claim up to ``n`` trials of one group, at most this worker's share of all that wait.

        The share is pending trials / live workers, rounded up.

        Trials of the earliest stage with the longest budget come first, so that what trains longest
        begins first. Among these, the group with the most trials comes first, so that arrays get
        wide and workers spread over the groups. The trials of a claim share their budget. Those of
        a refill need not; the longest come first. A suspect (its last attempt was lost) comes as a
        list of one, after its stage's other trials. A trial that raised on this machine is skipped
        as long as another machine lives that could try it.

        Args:
            worker: the claimer's name, unique among live workers.
            n: the most trials to claim; never more than 4,096 are.
            request_id: if it equals that of this worker's last request, the answer is repeated.
            group: claim only trials of this group and no suspect (a refill).
            alone: False if the worker trains other trials, so it gets no suspect.
            machine: what the worker shares with others that would fail for the same cause; empty if
                unknown.

        Raises:
            PutAside: this machine gets no more trials of the search, or none for now, since several
                raised on it in a row.
        """
        refill, suspects = (
            ("0" if group is None else "1"),
            ("1" if alone and group is None else "0"),
        )
        token = secrets.token_hex(6)
        words = (
            worker,
            min(n, MAX_CLAIM),
            request_id,
            refill,
            group or "",
            suspects,
            token,
            self.lease_ms,
            self.live_ms,
            machine,
        )
        reply = self.run("claim", *words)
        if reply is None:
            return []
        held, *found = wire.reply_in(reply, "claim")
        if not held:
            raise put_aside(found)
        suspect, *found = found
        claims, damaged = [], []
        for trial, attempt, stored in (
            found[first : first + 3] for first in range(0, len(found), 3)
        ):
            fence = Fence(trial, wire.whole_in(attempt, "attempt"), held)
            try:
                claims.append(Claim(wire.trial_in(trial, stored), fence, bool(suspect)))
            except DamagedReplyError as error:
                damaged.append((fence, Result(TrialState.FAILED, str(error), worker=worker)))
        # Nobody can train these. If they were released, they would be claimed again for ever.
        if damaged:
            self.finish(damaged)
        return claims

    def renew(
        self,
        worker: str,
        progress: Sequence[Progress],
        curves: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, str]:
        """Extend the leases that still hold, and store what the heartbeat says.

        Call it even if nothing runs, since it also shows that the worker lives.

        Args:
            worker: the worker's name.
            progress: the trials that it holds, and how far each is.
            curves: trial id -> curves, of trials whose curves have grown (``wire.curves_out``).
                They are kept until the lease ends.

        Returns:
            trial id -> why, for each fence that is stale: "expired", "stuck", "killed", "retried",
            "released", "recovered", "ended" (its own finish was accepted), "damaged" (another
            program has written to the trial's state) or "gone" (the search was removed).
        """
        stale: dict[str, str] = {}
        for first in range(0, max(len(progress), 1), WORD_BATCH):
            batch = progress[first : first + WORD_BATCH]
            rows = [
                [*_fence(p.fence), p.beat, wire.progress_out(p), curves.get(p.fence.trial_id, "")]
                for p in batch
            ]
            reply = [
                wire.text(value)
                for value in self.run("renew", worker, self.lease_ms, wire.dumps(rows))
            ]
            stale |= dict(zip(reply[::2], reply[1::2], strict=True))
        return stale

    def finish(self, ended: Sequence[tuple[Fence, Result]]) -> list[Verdict]:
        """End trials with their results, in any ended state.

        The fence that was accepted gets OK again, however often it reports the same.

        Raises:
            ValueError: a result's state is not an ended one.
        """
        rows = [
            [*_fence(fence), state_of_result(result), wire.result_out(result)]
            for fence, result in ended
        ]
        return self._heard(self._words("finish", rows), self.bells.ended)

    def fail(self, raised: Sequence[tuple[Fence, str]]) -> list[Answer]:
        """Report that trials raised.

        If another machine lives that could try it, a trial goes back to the queue for that machine.

        Args:
            raised: fences, each with the reason.

        Returns:
            What the holder has to do with each trial. It keeps those that are not passed on.
        """
        answers: list[Answer] = []
        for first in range(0, len(raised), WORD_BATCH):
            rows = [
                [*_fence(fence), reason[:MOST_REASON]]
                for fence, reason in raised[first : first + WORD_BATCH]
            ]
            reply = self.run("fail", wire.dumps(rows), MAX_RAISED, self.live_ms)
            answers += [answer_in(word) for word in wire.reply_in(reply, "answer to what raised")]
        if any(answer.ruling is Ruling.PASSED for answer in answers):
            self.bells.work.ring()
        return answers

    def release(self, fences: Sequence[Fence]) -> list[Verdict]:
        """Give trials back to be claimed again. This never counts as a loss."""
        verdicts = self._words("release", [_fence(fence) for fence in fences])
        return self._heard(verdicts, self.bells.work, self.bells.ended)

    def leave(self, worker: str) -> None:
        """Report that the worker leaves, so that it gets no share.

        Its leases stay until they are released or expire.
        """
        with translate_errors(self.where):
            self.client.pipeline().zrem(self.keys["workers"], worker).hdel(
                self.keys["requests"], worker
            ).hdel(self.keys["machines"], worker).execute()

    # --- the master's side, or an idle worker's ---

    @property
    def tick_every_s(self) -> float:
        """Seconds between ticks.

        A gap of half a lease counts as an outage, in which nothing expires.
        """
        return self.lease_s / 5

    def tick(self, master: bool) -> Tick:
        """Find expired leases, at most 1,000 a call.

        If another program has written to the state of a trial under such a lease, the trial has
        FAILED: nothing else could end it, and every process would wait for it.

        Args:
            master: whether to note that a master lives.
        """
        extended, *found = self.run("tick", self.lease_ms, int(master), MAX_EXPIRED)
        rows = (found[first : first + 4] for first in range(0, len(found), 4))
        named = (
            (wire.text(trial), wire.whole_in(a, "attempt"), wire.text(token), wire.text(worker))
            for trial, a, token, worker in rows
        )
        expired = tuple(
            (Fence(trial, a, token), worker)
            for trial, a, token, worker in named
            if TRIAL_PATTERN.fullmatch(trial)
        )
        return Tick(wire.text(extended) == "1", expired)

    def expire(self, fence: Fence, max_lost: int = MAX_LOST, how: str = "") -> Taken | None:
        """Take a trial whose lease has run out.

        It waits again as a suspect. After ``max_lost`` losses while alone it has FAILED.

        Args:
            fence: the attempt.
            max_lost: losses while alone that end the trial.
            how: how its worker ended, in words, for the reason of a trial that FAILED by this loss.

        Returns:
            None if the fence is stale, the lease was renewed meanwhile, or the last tick is too
            long ago to be sure.
        """
        return self._note_taken(
            fence.trial_id, self.run("expire", *_fence(fence), max_lost, self.lease_ms, how), fence
        )

    def take(self, fence: Fence, max_lost: int = MAX_LOST) -> Taken | None:
        """Take a stuck trial, even if its lease still holds. This counts as a loss.

        Args:
            fence: the attempt that was found to be stuck.
            max_lost: as for ``expire``.

        Returns:
            None if the fence is stale.
        """
        return self._note_taken(fence.trial_id, self.run("take", *_fence(fence), max_lost), fence)

    def kill(self, trial_id: str, reason: str, fence: Fence | None = None) -> Taken | None:
        """End a trial that waits or runs as KILLED. Its holder learns of it at the next heartbeat.

        Args:
            trial_id: the trial.
            reason: the reason for its record.
            fence: kill it only while exactly this attempt runs, for a decision about what was seen
                a moment ago.

        Returns:
            None if it has ended or is unknown, or if ``fence`` is stale.
        """
        return self._note_taken(
            trial_id,
            self.run("kill", trial_id, reason, *(_fence(fence)[1:] if fence else ())),
            fence,
        )

    def retry(self, trial_id: str) -> bool:
        """Send a FAILED or KILLED trial back to the queue and forget its losses.

        Returns:
            False if it is in any other state.
        """
        back = bool(self.run("retry", trial_id))
        if back:
            self.bells.work.ring()
        return back

    @contextmanager
    def lock(self, name: str, ttl_s: float) -> Iterator[bool]:
        """Hold a named lock of the search inside the block, if it is free.

        Args:
            name: such as "janitor".
            ttl_s: seconds after which it is free again, even if its holder died.

        Yields:
            Whether the lock is held.
        """
        lock = self.client.lock(
            self.keys["meta"].removesuffix("meta") + f"lock:{name}", timeout=ttl_s
        )
        with translate_errors(self.where):
            held = bool(lock.acquire(blocking=False))
        try:
            yield held
        finally:
            if held:
                # A lock that has expired may be another process's now.
                with (
                    translate_errors(self.where),
                    suppress(LockNotOwnedError),
                ):
                    lock.release()

    def drop(self) -> None:
        """Delete everything in Redis about the search.

        Workers that still train for it hear "gone".
        """
        with translate_errors(self.where):
            self.client.hdel(SEARCHES, self.search_id)
            self.client.unlink(*self.keys.values(), self._frozen)

    def _note_taken(self, trial_id: str, reply: Any, fence: Fence | None) -> Taken | None:
        taken = read_taken(trial_id, reply, fence)
        if taken is not None:
            (self.bells.ended if taken.result else self.bells.work).ring()
        return taken

    def _heard(self, verdicts: list[Verdict], *bells: Bell) -> list[Verdict]:
        """Ring each bell once for a whole batch, if any message of it was accepted."""
        for bell in bells if Verdict.OK in verdicts else ():
            bell.ring()
        return verdicts

    def _words(self, script: str, words: Sequence[Sequence[str | int]]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for first in range(0, len(words), WORD_BATCH):
            reply = wire.text(self.run(script, wire.dumps(words[first : first + WORD_BATCH])))
            verdicts += [Verdict.OK if accepted == "1" else Verdict.LOST for accepted in reply]
        return verdicts


def searches(client: redis.Redis) -> list[tuple[str, str]]:
    """Return (search id, name) of all searches in Redis, in the order of their first launch.

    Raises:
        QueueError: Redis is unavailable.
    """
    with translate_errors(where_of(client)):
        stored: dict[Any, Any] = client.hgetall(SEARCHES)
    launched = [
        (wire.text(search_id), *wire.text(value).partition(" ")[::2])
        for search_id, value in stored.items()
    ]
    ours = [
        row
        for row in launched
        if row[1].isascii() and row[1].isdecimal() and len(row[1]) < wire.MOST_DIGITS
    ]
    return [
        (search_id, name)
        for search_id, _, name in sorted(ours, key=lambda row: (int(row[1]), row[0]))
    ]


def _fence(fence: Fence) -> list[str | int]:
    return [fence.trial_id, fence.attempt, fence.token]

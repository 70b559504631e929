"""The master's messages about whole stages: freeze options, publish trials, promote them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import redis

from common.broker.errors import translate_errors
from common.queue import scripts, wire
from common.queue.bells import Bells
from common.queue.view import QueueView
from common.search.trial import ENDED, Result, Trial

SEARCHES = "{cf}:searches"  # all searches; the key is in no single search's slot
PUBLISH_BATCH = 500  # trials per script call: blocks Redis for about 5 ms
MAX_INDEX = 1 << 20  # trials per stage, as in shared.lua
CHANGED, AGAIN = "2", "0"  # answers of promote.lua for a trial


class PublishingQueue(QueueView):
    """The part of ``TrialQueue`` that publishes trials, promotes them and restores their ends."""

    def __init__(self, client: redis.Redis, search_id: str) -> None:
        super().__init__(client, search_id)
        self.bells = Bells(client)

    def register(self, name: str) -> None:
        """Add the search to the list of all searches. An earlier launch time stays."""
        with translate_errors(self.where):
            scripts.run(self.client, "register", [SEARCHES], [self.search_id, name])

    def freeze(self, stage: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Store a stage's ranges, seed and options unless some are stored.

        Returns:
            What is stored, for the caller to compare.
        """
        with translate_errors(self.where):
            self.client.hsetnx(self._frozen, stage, wire.dumps(dict(options)))
            return wire.options_in(self.client.hget(self._frozen, stage))

    def refreeze(self, stage: str, key: str, value: str) -> None:
        """Replace one frozen option. A retry does so for the digest of a repaired task."""
        options = self.frozen(stage)
        if options is not None:
            with translate_errors(self.where):
                self.client.hset(self._frozen, stage, wire.dumps({**options, key: value}))

    def frozen(self, stage: str) -> dict[str, Any] | None:
        """Return what was frozen for the stage; None before its first launch."""
        with translate_errors(self.where):
            stored = self.client.hget(self._frozen, stage)
        return None if stored is None else wire.options_in(stored)

    def publish(self, trials: Iterable[Trial], attempts: Mapping[str, int] | None = None) -> int:
        """Add the trials that are not in the queue yet, each with its budget.

        The others do not change.

        The stage that was published first is worked on first. A trial that is there with a shorter
        budget keeps it until it is promoted.

        Args:
            trials: any number; 500 go in a call.
            attempts: trial id -> highest attempt number that the folder knows. The next claim is
                above it.

        Returns:
            The number of new trials.

        Raises:
            ValueError: an index is beyond a million.
        """
        floors, added, remaining = attempts or {}, 0, iter(trials)
        while batch := list(islice(remaining, PUBLISH_BATCH)):
            rows = [
                [t.id, t.stage, t.group, _index(t), floors.get(t.id, 0), wire.trial_out(t), t.rung]
                for t in batch
            ]
            new = wire.whole_in(self.run("publish", wire.dumps(rows)), "number of new trials")
            added += new
            if new:
                self.bells.work.ring()
        return added

    def promote(
        self, trials: Sequence[Trial], attempts: Mapping[str, int] | None = None
    ) -> list[Trial]:
        """Send trials back to the queue with longer budgets: ``COMPLETED -> PENDING``.

        The next attempt of each resumes from the state that the last one saved. A trial that waits
        with a shorter budget, since Redis has lost its end, goes on waiting with the longer one. A
        trial at that rung or above, or one that ended in another way than by completing, does not
        change. Losses, doubts and the machines that the trial avoids are forgotten. A holder that
        finished it before still gets OK, however often it reports that.

        Args:
            trials: the trials with their new budgets (``Trial.promote``); 500 go in a call.
            attempts: trial id -> highest attempt number that the folder knows. The next claim is
                above it.

        Returns:
            The trials to ask for again a little later: they still run with a shorter budget, or
            Redis does not know them (publish them) or has them damaged. If it is empty, a
            repetition would change nothing.
        """
        floors, again = attempts or {}, []
        for first in range(0, len(trials), PUBLISH_BATCH):
            batch = trials[first : first + PUBLISH_BATCH]
            rows = [
                [t.id, t.stage, t.group, floors.get(t.id, 0), wire.trial_out(t), t.rung]
                for t in batch
            ]
            verdicts = wire.text(self.run("promote", wire.dumps(rows)))
            again += [
                trial for trial, verdict in zip(batch, verdicts, strict=True) if verdict == AGAIN
            ]
            if CHANGED in verdicts:
                self.bells.work.ring()
        return again

    def restore(self, trial: Trial, attempt: int, result: Result, floor: int = 0) -> bool:
        """End a trial as a record in the folder says, unless Redis knows a later attempt or rung.

        It rings no bell: after many calls, the caller rings once.

        Args:
            trial: the trial, with the budget of the record. It need not be published. If Redis has
                it with a shorter budget, it gets this one.
            attempt: the record's attempt.
            result: the record's result. It counts even if Redis has another one of the same
                attempt.
            floor: highest attempt number that the folder knows. For a trial that does not run, a
                record below it does not count. A completed one counts if Redis does not know the
                trial.

        Returns:
            False if nothing has changed: this or a later attempt has ended here, a later one is
            running or was lost, a retry or a promotion has replaced this one, or the trial has a
            longer budget.
        """
        place = (trial.id, trial.stage, trial.group, _index(trial), wire.trial_out(trial))
        words = (
            *place,
            attempt,
            state_of_result(result),
            wire.result_out(result),
            floor,
            trial.rung,
        )
        return bool(self.run("restore", *words))

    @property
    def _frozen(self) -> str:
        """HASH stage -> JSON of its options. No script needs it."""
        return self.keys["meta"].removesuffix("meta") + "frozen"


def state_of_result(result: Result) -> str:
    """Return the state of a result as scripts write it.

    Raises:
        ValueError: it is not an ended state.
    """
    if result.state not in ENDED:
        raise ValueError(
            f"{result.state} is not an ended state; use one of {', '.join(sorted(ENDED))}"
        )
    return result.state.value


def _index(trial: Trial) -> int:
    if not 0 <= trial.index < MAX_INDEX:
        raise ValueError(
            f"{trial.id}: index {trial.index} is outside [0, {MAX_INDEX}); spread the trials "
            "over several stages"
        )
    return trial.index

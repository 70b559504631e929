"""The worker's whole life: claim, train, record, finish."""

from __future__ import annotations

import random
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import redis

from common.errors import HOPELESS, CheckpointError, PutAside, QueueError, SearchError, TaskError
from common.queue import searches
from common.trial import Claim
from common.witness import reap
from worker.heartbeat import Heartbeat, Position
from worker.legible import legible
from worker.own import OwnLoop
from worker.recording import Recorder
from worker.session import Session, Sessions, Trainer
from worker.training.engine import Boundary, Job

CPU_CLAIM, GPU_CLAIM = 64, 512  # trials asked for before an array width is known; the queue hands out a fair share at most
MIN_PAUSE_S, MAX_PAUSE_S = 0.02, 1.0  # an idle worker backs off between these
MASTER_GRACE_S = 15.0  # a local worker leaves when for so long no master was heard and no trial was left
MOST_BACKEND = 300  # characters of how steps are computed, and why: a line or two of `master workers`
LOADING_S = 600.0  # a task may have to download its data


@dataclass(frozen=True)
class Options:
    """What `worker start` was asked for."""

    search: str | None = None  # only this search
    burst: bool = False  # leave when nothing is left to claim
    first_claim: int = CPU_CLAIM  # trials to ask for before an array width is known
    local: bool = False  # started by `master launch`: leave when idle and no master lives


class Loop:
    """Works until told to stop."""

    def __init__(self, client: redis.Redis, sessions: Sessions, heartbeat: Heartbeat, options: Options, say: Callable[[str], None]) -> None:
        self._client = client
        self._sessions = sessions
        self._heartbeat = heartbeat
        self._options = options
        self._say = say
        self._requests: dict[str, str] = {}  # search id to the claim that has not been answered yet
        self._width: dict[str, int] = {}  # search id to the array width that its engine has found
        self._needed_at = time.monotonic()
        self._told_unknown = False
        self._max_pause_s = MAX_PAUSE_S

    def run(self) -> None:
        """Claims, trains, records, until stopped, idle in a burst, or left by the master.

        Raises:
            CheckpointError: the folder cannot be written; all leases have been given back.
            TaskError: a loop of the user's own does not let go of a trial that is over; all leases have been given back.
            QueueError: Redis does not let this user work, or holds what nobody of us wrote.
        """
        pause_s = MIN_PAUSE_S
        while not self._heartbeat.stopping():
            try:
                work = self._claim()
                if work is None and self._should_leave():
                    return
            except HOPELESS:
                raise
            except QueueError:  # the heartbeat tells it, once, and tells when Redis is back
                work = None
            if work is not None:
                self._work(*work)
                pause_s = MIN_PAUSE_S
            else:
                threading.Event().wait(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 1.5, self._max_pause_s)

    def _claim(self) -> tuple[Session, list[Claim]] | None:
        """The next trials, of the search launched first."""
        for session in self._open_sessions():
            first = 1 if session.one_at_a_time else self._options.first_claim
            n = self._width.get(session.queue.search_id, first)
            try:
                claims = session.queue.claim(self._heartbeat.info.worker, n, self._request(session), machine=self._heartbeat.info.place)
            except PutAside as told:
                self._tell_aside(session, told)
                continue
            self._heartbeat.put_aside(session.queue.search_id, None)
            del self._requests[session.queue.search_id]  # answered: the next claim is a new one
            if claims:
                return session, claims
        return None

    def _tell_aside(self, session: Session, told: PutAside) -> None:
        if self._heartbeat.put_aside(session.queue.search_id, str(told)):
            self._say(f"search {session.search.name!r}: {told}")

    def _request(self, session: Session) -> str:
        """Names the next claim, or the last one as long as its answer is missing: Redis then repeats the answer."""
        return self._requests.setdefault(session.queue.search_id, secrets.token_hex(8))

    def _open_sessions(self) -> list[Session]:
        """The searches to work for, oldest launched first."""
        only = self._options.search
        found = [self._sessions.find(search_id, name) for search_id, name in searches(self._client) if only in (None, name)]
        if only is not None and not found and not self._told_unknown:
            self._told_unknown = True
            self._say(f"--search {only}: no such search has been launched in this Redis yet; nothing to do until it is")
        return [session for session in found if session is not None]

    def _work(self, session: Session, claims: list[Claim]) -> None:
        """Trains what was claimed, and what refills the array, until nothing is left of it."""
        self._heartbeat.serve(session.queue, session.search.stragglers.lease_s)
        self._heartbeat.hold(claims)
        recorder = Recorder(session, self._heartbeat, self._say)
        try:
            self._train(session, claims, recorder)
            self._settle(recorder)
        except (CheckpointError, TaskError, *HOPELESS) as error:
            self._release(session, recorder, error)
            raise

    def _train(self, session: Session, claims: list[Claim], recorder: Recorder) -> None:
        try:
            engine = self._engine(session, claims[0].trial.stage)
        except TaskError as error:
            recorder.record_failure(claims, str(error), traceback.format_exc())
            return
        if engine is None:
            self._release(session, recorder)
            return

        claims = self._only(session, claims, engine)

        def refill(n: int) -> Sequence[Job]:
            return self._refill(session, claims[0], n, recorder)

        last = Boundary([], [], [])
        for last in engine.train(session.jobs(claims, self._say), refill, self._heartbeat):
            self._heartbeat.backend = legible(engine.backend, MOST_BACKEND)
            self._at_boundary(last, recorder)
        self._width[session.queue.search_id] = engine.width(claims[0].trial.hyperparameters)
        if self._heartbeat.stopping():
            recorder.save_states(last.running, now=True)
            self._release(session, recorder)

    def _only(self, session: Session, claims: list[Claim], engine: Trainer) -> list[Claim]:
        """What can be trained at once of the first claim, which asks for an array's worth: a loop of the user's own takes one at a time."""
        if not isinstance(engine, OwnLoop) or len(claims) == 1:
            return claims
        surplus = [claim.fence for claim in claims[1:]]
        try:
            session.queue.release(surplus)
        except QueueError:
            return claims  # the leases are kept alive: they are trained here, one after the other
        self._heartbeat.drop([fence.trial_id for fence in surplus])
        self._width[session.queue.search_id] = 1
        return claims[:1]

    def _engine(self, session: Session, stage: str) -> Trainer | None:
        """The engine with its task; waits while Redis is away, None if told to stop meanwhile.

        Raises:
            TaskError: the task cannot be loaded.
            QueueError: no waiting helps.
        """
        pause_s = MIN_PAUSE_S
        while not self._heartbeat.stopping():
            self._heartbeat.beat("loading", LOADING_S)
            try:
                return session.engine(stage, self._say)
            except HOPELESS:
                raise
            except QueueError:  # the heartbeat tells it
                threading.Event().wait(pause_s)
                pause_s = min(pause_s * 1.5, MAX_PAUSE_S)
        return None

    def _at_boundary(self, boundary: Boundary, recorder: Recorder) -> None:
        recorder.record(boundary.ended)
        recorder.save_states(boundary.running)
        self._heartbeat.at_boundary(
            {
                view.job.claim.trial.id: Position(
                    view.epoch, view.last_epoch_s, view.array_width, view.val_acc, view.value, view.curves, waiting=False
                )
                for view in boundary.running
            }
        )

    def _refill(self, session: Session, first: Claim, n: int, recorder: Recorder) -> Sequence[Job]:
        """Up to ``n`` more trials of the same group; none while Redis is away, or beside a trial that must be alone."""
        if first.alone or recorder.unheard or session.replaced or self._heartbeat.stopping():
            return []
        try:
            request, group = self._request(session), first.trial.group
            claims = session.queue.claim(self._heartbeat.info.worker, n, request, group, alone=False, machine=self._heartbeat.info.place)
        except HOPELESS:
            raise
        except QueueError:
            return []
        del self._requests[session.queue.search_id]
        self._heartbeat.hold(claims)
        return session.jobs(claims, self._say)

    def _settle(self, recorder: Recorder) -> None:
        """Waits until all that ended here is written down and Redis has heard of it."""
        pause_s = MIN_PAUSE_S
        while not recorder.flush() and not self._heartbeat.stopping():
            self._heartbeat.beat("waiting")  # nothing trains, and yet it is neither stuck nor slow
            threading.Event().wait(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 1.5, MAX_PAUSE_S)

    def _release(self, session: Session, recorder: Recorder, because: SearchError | None = None) -> None:
        """Gives back every lease that is still held, but for trials whose record is written: those count as they are.

        ``because``: the error that ends the worker, which the command says.
        """
        try:
            recorder.flush()
        except (CheckpointError, *HOPELESS) as error:  # what is not written down is given back, and tried again
            if str(error) != str(because):
                self._say(str(error))
        fences = self._heartbeat.unfinished()
        try:
            session.queue.release(fences)
            self._say(f"gave back {len(fences)} unfinished trials" if fences else "nothing was left unfinished")
        except QueueError as error:
            self._say(f"{len(fences)} leases not given back, they run out by themselves: {error}")
        self._heartbeat.drop([fence.trial_id for fence in fences])

    def _should_leave(self) -> bool:
        """Whether an idle worker has no more to do here; sees to expired leases where no master does."""
        needed = reaped = False
        for session in self._open_sessions():
            if session.queue.master_alive():
                needed = True
                continue
            self._max_pause_s = min(self._max_pause_s, session.queue.tick_every_s)
            reaped = bool(reap(session.queue, session.folder, master=False)) or reaped
            needed = needed or (self._options.local and session.queue.unfinished() > 0)
        if self._options.burst:
            return not reaped
        if needed:
            self._needed_at = time.monotonic()
        return self._options.local and time.monotonic() - self._needed_at > MASTER_GRACE_S

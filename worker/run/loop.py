"""The main loop of a worker: claim trials, train them, record them, report them to Redis."""

from __future__ import annotations

import random
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis

from common.ending import EXIT_POISONED
from common.error_text import legible
from common.errors import HOPELESS, CheckpointError, PutAside, QueueError, SearchError, TaskError
from common.queue.bells import WORK, Bell
from common.queue.reconcile import reap
from common.queue.trial_queue import searches
from common.queue.workers import WorkerRegistry
from common.search.trial import Claim
from worker.own.loop import hears_stop
from worker.run.heartbeat import Heartbeat
from worker.run.recorder import Recorder
from worker.run.session import Session, Sessions, Trainer
from worker.run.sharing import Sharing
from worker.run.staying import Staying
from worker.training.device_errors import Poisoned
from worker.training.engine.engine import Boundary

# Number of trials to claim before the array width is known. The queue grants a fair share at most.
CPU_CLAIM, GPU_CLAIM = 64, 512
MIN_PAUSE_S, MAX_PAUSE_S = 0.02, 1.0  # bounds of the backoff while Redis is away
# An idle worker checks this often whether to stop, to leave, or to take back expired leases.
IDLE_S = 1.0
CROWD = 8  # with so many live workers or more, those that wake together spread their claims
JITTER_S = 0.001  # spread per live worker: about the time that Redis needs for a claim
REAP_S = 10.0  # between looks, while training, for leases that have run out
COUNT_S = 10.0  # between counts of the live workers
# A local worker waits so long for the next command. To start one takes seconds, and an idle one
# costs next to nothing.
MASTER_GRACE_S = 60.0
MOST_BACKEND = 300  # characters in `master workers` about how steps are computed, and why
LOADING_S = 600.0  # a task may have to download its data


@dataclass(frozen=True)
class LoopOptions:
    """The options of ``worker start`` that concern the loop."""

    search: str | None = None  # only this search
    burst: bool = False  # leave when nothing is left to claim
    first_claim: int = CPU_CLAIM  # number of trials to claim before the array width is known
    local: bool = False  # started by `master launch`: leave when idle and no master lives
    # Folder of that search. If it goes, a local worker that waits for the next command leaves.
    folder: Path | None = None
    idle_exit_s: float | None = None  # leave after so many seconds without a trial


class Loop:
    """The main loop of a worker. It runs until the worker is told to stop."""

    def __init__(
        self,
        client: redis.Redis,
        sessions: Sessions,
        heartbeat: Heartbeat,
        options: LoopOptions,
        say: Callable[[str], None],
    ) -> None:
        self._client = client
        self._sessions = sessions
        self._heartbeat = heartbeat
        self._options = options
        self._say = say
        self._requests: dict[str, str] = {}  # by search id: the unanswered claim
        self._width: dict[str, int] = {}  # by search id: the array width that its engine chose
        self._needed_at = self._worked_at = self._reaped_at = time.monotonic()
        self._told_unknown = False
        self._idle_s = IDLE_S
        self._bell = Bell(client, WORK)
        self._sharing = Sharing(WorkerRegistry(client), heartbeat.info)
        self._staying = Staying(options.folder)
        self._crowd, self._counted_at = 1, -COUNT_S

    def run(self) -> None:
        """Claim, train and record trials.

        Return when the worker is told to stop, when it has nothing to do with ``--burst`` or for
        the time of ``--idle-exit``, or when a local worker's master is gone.

        Raises:
            CheckpointError: the folder cannot be written. All leases have been given back.
            TaskError: a user's own loop does not return although its trial is over. All leases have
                been given back.
            QueueError: Redis refuses this user, or holds data that coarsefine did not write.
        """
        while not self._heartbeat.stopping():
            # The folder is looked at before Redis is asked. The next launch may have started a
            # Redis of its own in the same place, and would count on this worker.
            if self._options.local and (gone := self._staying.is_gone()) is not None:
                self._say(f"{gone}: leaving")
                return
            # Just after giving trials away, a claim would get the same trials back.
            asks = self._sharing.refills
            try:
                work = self._claim() if asks else None
                if asks and work is None and self._should_leave():
                    return
            except HOPELESS:
                raise
            except QueueError:  # the heartbeat logs this, and when Redis is back
                work = None
            if work is not None:
                self._work(*work)
                self._worked_at = time.monotonic()
            elif self._has_idled_enough():
                return
            else:
                self._idle()

    def _has_idled_enough(self) -> bool:
        limit_s = self._options.idle_exit_s
        if limit_s is None or time.monotonic() - self._worked_at < limit_s:
            return False
        self._say(f"no trial for {limit_s:g} s (--idle-exit): leaving")
        return True

    def _idle(self) -> None:
        """Wait until trials may be pending, for a second at most.

        If many workers wake at once, each waits a short random time more.
        """
        if self._bell.wait(self._idle_s):
            if self._crowd >= CROWD:
                threading.Event().wait(random.uniform(0.0, self._crowd * JITTER_S))
        elif time.monotonic() - self._counted_at > COUNT_S:
            self._count()

    def _count(self) -> None:
        """Count the live workers, while there is nothing else to do."""
        self._counted_at = time.monotonic()
        try:
            self._crowd = max(
                (len(session.queue.live_workers()) for session in self._open_sessions()), default=1
            )
        except HOPELESS:
            raise
        except QueueError:
            return

    def _claim(self) -> tuple[Session, list[Claim]] | None:
        """Claim the next trials, of the search that was launched first.

        Return None if no search has any for this worker.
        """
        for session in self._open_sessions():
            first = 1 if session.one_at_a_time else self._options.first_claim
            n = self._width.get(session.queue.search_id, first)
            try:
                claims = session.queue.claim(
                    self._heartbeat.info.worker,
                    n,
                    self._request(session),
                    machine=self._heartbeat.info.place,
                )
            except PutAside as told:
                self._tell_aside(session, told)
                continue
            self._heartbeat.put_aside(session.queue.search_id, None)
            del self._requests[session.queue.search_id]  # answered, so the next claim gets a new id
            if claims:
                return session, claims
        return None

    def _tell_aside(self, session: Session, told: PutAside) -> None:
        if self._heartbeat.put_aside(session.queue.search_id, str(told)):
            self._say(f"search {session.search.name!r}: {told}")

    def _request(self, session: Session) -> str:
        """Return the id of the next claim.

        If the answer to the last claim is missing, return its id again. Redis then repeats the
        answer.
        """
        return self._requests.setdefault(session.queue.search_id, secrets.token_hex(8))

    def _open_sessions(self) -> list[Session]:
        """Return the sessions of the searches to work for, oldest launch first."""
        only = self._options.search
        found = [
            self._sessions.find(search_id, name)
            for search_id, name in searches(self._client)
            if only in (None, name)
        ]
        if only is not None and not found and not self._told_unknown:
            self._told_unknown = True
            self._say(
                f"--search {only}: no such search has been launched in this Redis yet; nothing to "
                "do until it is"
            )
        return [session for session in found if session is not None]

    def _work(self, session: Session, claims: list[Claim]) -> None:
        """Train the claimed trials, and those that refill the array, until none is left."""
        self._heartbeat.serve(session.queue, session.search.stragglers.lease_s)
        self._heartbeat.hold(claims)
        recorder = Recorder(session, self._heartbeat, self._say, session.repeats(self._say))
        try:
            try:
                self._train(session, claims, recorder)
                self._settle(recorder)
            except Poisoned as poisoned:
                self._leave_poisoned(session, recorder, poisoned)
        except (CheckpointError, TaskError, *HOPELESS) as error:
            self._release(session, recorder, error)
            raise

    def _train(self, session: Session, claims: list[Claim], recorder: Recorder) -> None:
        try:
            engine = self._engine(session, claims[0].trial.stage)
        except TaskError as error:
            if hears_stop(self._heartbeat.stopping):
                self._release(session, recorder)
            else:
                recorder.record_failure(claims, str(error), traceback.format_exc())
            return
        if engine is None:
            self._release(session, recorder)
            return

        claims = self._only(session, claims, engine)

        def refill(n: int) -> Sequence[Claim]:
            return self._refill(session, claims[0], n, recorder)

        last = Boundary([], [], [])
        for last in engine.train(session.load_states(claims, self._say), refill, self._heartbeat):
            self._heartbeat.backend = legible(engine.backend, MOST_BACKEND)
            self._at_boundary(last, recorder)
            self._reap(session)
            self._share(session, last, recorder)
        self._width[session.queue.search_id] = engine.width(claims[0].trial.hyperparameters)
        if self._heartbeat.stopping():
            recorder.save_states(last.running, now=True)
            self._release(session, recorder)

    def _leave_poisoned(self, session: Session, recorder: Recorder, poisoned: Poisoned) -> None:
        """End the process, since its device serves it no more.

        What ended here and is not written is lost with the device. The trials that were computed
        become suspects, each to be trained alone in another process. One that was alone already is
        to blame. All others are given back.
        """
        recorder.forget_ended()
        claims, told = poisoned.claims, "its leases run out by themselves"
        try:
            if len(claims) == 1 and claims[0].alone:
                told = f"{claims[0].id} fails: it was alone"
                recorder.record_failure(claims, poisoned.reason, poisoned.traceback)
                self._settle(recorder)
            else:
                fences = self._heartbeat.find_unfinished()
                computed = {claim.trial.id for claim in claims} or {
                    fence.trial_id for fence in fences
                }
                suspects = [fence for fence in fences if fence.trial_id in computed]
                told = f"{len(suspects)} trials will be tried again, each alone"
                self._heartbeat.drop(fence.trial_id for fence in suspects)
                for fence in suspects:
                    session.queue.take(fence)
        except (QueueError, CheckpointError) as error:
            told = f"leases that are not given back run out by themselves: {error}"
        finally:
            self._heartbeat.leave_hard(
                f"the device serves this process no more: {poisoned.reason}\n{told}; start the "
                "worker again, unless a supervisor does",
                EXIT_POISONED,
            )

    def _only(self, session: Session, claims: list[Claim], engine: Trainer) -> list[Claim]:
        """Keep the trials that fit into one array, and give the other claims back.

        The number to claim was that of the last models, which may have been smaller.
        """
        width = engine.width(claims[0].trial.hyperparameters)
        surplus = claims[width:]
        if not surplus:
            return claims
        self._heartbeat.drop([claim.trial.id for claim in surplus])
        try:
            session.queue.release([claim.fence for claim in surplus])
        except QueueError:
            self._heartbeat.hold(surplus)  # they are trained here later, in another array
            return claims
        self._width[session.queue.search_id] = width
        return claims[:width]

    def _engine(self, session: Session, stage: str) -> Trainer | None:
        """Return the trainer with its task loaded. Wait while Redis is away.

        Return None if the worker is told to stop meanwhile.

        Raises:
            TaskError: the task cannot be loaded.
            QueueError: waiting does not help.
        """
        pause_s = MIN_PAUSE_S
        while not self._heartbeat.stopping():
            self._heartbeat.beat("loading", LOADING_S)
            try:
                return session.engine(stage, self._say)
            except HOPELESS:
                raise
            except QueueError:  # the heartbeat logs this
                threading.Event().wait(pause_s)
                pause_s = min(pause_s * 1.5, MAX_PAUSE_S)
        return None

    def _at_boundary(self, boundary: Boundary, recorder: Recorder) -> None:
        self._heartbeat.beat("recording")
        recorder.record(boundary.ended)
        recorder.save_states(boundary.running)
        if boundary.within:
            self._heartbeat.beat()
            return
        self._heartbeat.at_boundary(boundary.running)

    def _reap(self, session: Session) -> None:
        """Take back expired leases from time to time, where no master does."""
        now = time.monotonic()
        if now - self._reaped_at < REAP_S:
            return
        self._reaped_at = now
        try:
            if not session.queue.master_alive():
                reap(session.queue, session.folder, master=False)
        except HOPELESS:
            raise
        except (QueueError, CheckpointError):  # the next one tries again
            return

    def _share(self, session: Session, boundary: Boundary, recorder: Recorder) -> None:
        """Give trials to idle workers, which continue from states saved here."""
        try:
            given = (
                []
                if self._heartbeat.stopping()
                else self._sharing.surplus(session.queue, boundary.running)
            )
        except HOPELESS:
            raise
        except QueueError:  # the heartbeat logs this
            return
        if not given:
            return
        if not recorder.save_states(given, now=True):
            return
        claims = [view.claim for view in given if self._heartbeat.holds(view.fence)]
        self._heartbeat.give(claim.trial.id for claim in claims)
        try:
            session.queue.release([claim.fence for claim in claims])
        except QueueError:  # the heartbeat logs this, and the next renewal shows what Redis holds
            self._heartbeat.hold(claims)
            return
        self._sharing.note(claim.trial.id for claim in claims)
        self._say(
            f"gave {len(claims)} of {len(boundary.running)} trials to workers with nothing to do"
        )

    def _refill(
        self, session: Session, first: Claim, n: int, recorder: Recorder
    ) -> Sequence[Claim]:
        """Claim up to ``n`` more trials of the same group.

        Return none while Redis is away, or if the running trial must train alone.
        """
        if (
            first.alone
            or recorder.unheard
            or session.replaced
            or self._heartbeat.stopping()
            or not self._sharing.refills
        ):
            return []
        try:
            request, group = self._request(session), first.trial.group
            claims = session.queue.claim(
                self._heartbeat.info.worker,
                n,
                request,
                group,
                alone=False,
                machine=self._heartbeat.info.place,
            )
        except HOPELESS:
            raise
        except QueueError:
            return []
        del self._requests[session.queue.search_id]
        self._heartbeat.hold(claims)
        return session.load_states(claims, self._say)

    def _settle(self, recorder: Recorder) -> None:
        """Wait until all trials that ended here are recorded and reported to Redis."""
        pause_s = MIN_PAUSE_S
        while not recorder.flush() and not self._heartbeat.stopping():
            # Otherwise the worker would count as stuck or slow.
            self._heartbeat.beat("waiting")
            threading.Event().wait(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 1.5, MAX_PAUSE_S)

    def _release(
        self, session: Session, recorder: Recorder, because: SearchError | None = None
    ) -> None:
        """Give back all leases that are still held.

        Trials whose record is written are not given back, since they have ended.

        Args:
            because: the error that ends the worker, if any. The command prints it, so it is not
                printed here.
        """
        try:
            recorder.flush()
        # Trials that could not be recorded are given back, and trained again.
        except (CheckpointError, *HOPELESS) as error:
            if str(error) != str(because):
                self._say(str(error))
        fences = self._heartbeat.find_unfinished()
        try:
            session.queue.release(fences)
            self._say(
                f"gave back {len(fences)} unfinished trials"
                if fences
                else "nothing was left unfinished"
            )
        except QueueError as error:
            self._say(f"{len(fences)} leases not given back, they run out by themselves: {error}")
        self._heartbeat.drop([fence.trial_id for fence in fences])

    def _should_leave(self) -> bool:
        """Return whether an idle worker has nothing left to do.

        Where no master is alive, also take back expired leases.
        """
        needed = reaped = False
        for session in self._open_sessions():
            if session.queue.master_alive():
                needed = True
                continue
            self._idle_s = min(self._idle_s, session.queue.tick_every_s)
            reaped = bool(reap(session.queue, session.folder, master=False)) or reaped
            needed = needed or (self._options.local and session.queue.count_unfinished() > 0)
        if self._options.burst:
            return not reaped
        if needed:
            self._needed_at = time.monotonic()
        elif self._options.local and (why := self._staying.over()) is not None:
            self._say(f"{why}: leaving, so that the next command starts a worker anew")
            return True
        # The minute begins with the last word of a master or the last trial, whichever came later.
        idle_s = time.monotonic() - max(self._needed_at, self._worked_at)
        return self._options.local and idle_s > MASTER_GRACE_S

"""The thread that keeps the dashboard up to date.

It reads the folder and asks Redis about twice a second, and goes on when either cannot be reached.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from common.broker.connection import Broker, open_broker
from common.errors import CheckpointError, QueueError, SearchError
from common.folder.records import SearchFolder, searches
from common.queue.workers import WorkerRegistry
from common.redact import redact
from common.search.trial import Running, WorkerInfo
from master.dashboard.views import models
from master.dashboard.views.search_view import SearchView

TICK_S = 0.4  # a change is on the page well within two seconds of the worker's report
MAX_SHARE = 4  # a tick takes at most 1 / MAX_SHARE of the time
RETRY_S = 1.0  # between tries to reach Redis
PACE_S = 60.0  # a worker's pace is measured over the last minute
MOST_WARNINGS = 20
LOG = logging.getLogger(__name__)


class Watch:
    """What the dashboard knows. One thread writes it, and any thread may read it.

    Args:
        root: The checkpoint root.
        redis_url: URL of Redis. None means the embedded server, which is used once there is a
            search.
        only: The only search to show. None shows all in the root.
    """

    def __init__(self, root: Path, redis_url: str | None, only: str | None = None) -> None:
        self.root = root
        self.only = only
        self.views: dict[str, SearchView] = {}
        self.workers: tuple[models.WorkerRow, ...] = ()
        self.sequence = 0
        self.moving = 0
        where = redact(redis_url) if redis_url else f"the embedded Redis server in {root}"
        now = time.time()
        self._redis = models.Part(state="starting", where=where, message="connecting", since=now)
        self._folder = models.Part(state="starting", where=str(root), message="reading", since=now)
        self._redis_url = redis_url
        self._broker: Broker | None = None
        self._retry_at = 0.0
        self._warnings: deque[str] = deque(maxlen=MOST_WARNINGS)
        self._paces: dict[str, deque[tuple[float, int]]] = {}
        self._only: dict[str, str] = {}  # the only search of each worker; empty for any
        self._positions: dict[str, tuple[tuple[object, ...], ...]] = {}
        self._published = ""
        self._listeners: set[Callable[[], None]] = set()
        self._mutex = threading.Lock()  # guards _listeners
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    # -- for the server ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the watching thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching and close the connection.

        Raises:
            QueueError: This was the last user of the embedded server, and the server does not stop.
        """
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._broker:
            self._broker.close()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` in the watching thread after each change.

        Returns:
            A function that removes the listener.
        """
        with self._mutex:
            self._listeners.add(listener)

        def forget() -> None:
            with self._mutex:
                self._listeners.discard(listener)

        return forget

    @property
    def n_listeners(self) -> int:
        """Number of listeners."""
        return len(self._listeners)

    # -- for the API ---------------------------------------------------------------------------

    def client(self) -> Broker:
        """Return the connection to Redis.

        Raises:
            QueueError: There is no connection at the moment.
        """
        broker = self._broker
        if broker is None or self._redis.state != "ok":
            raise QueueError(self._redis.message)
        return broker

    def health(self) -> models.Health:
        """Return whether what is shown is up to date."""
        return models.Health(redis=self._redis, folder=self._folder, warnings=list(self._warnings))

    def lines(self) -> list[models.SearchLine]:
        """Return a line for each search, in the order of their names."""
        return [_line(view) for view in self.views.values()]

    def state(self, search: str | None) -> models.State:
        """Return all that an event carries, for a page that shows ``search``."""
        view = self.views.get(search or "")
        return models.State(
            sequence=self.sequence,
            moving=self.moving,
            health=self.health(),
            searches=self.lines(),
            workers=list(self.workers),
            overview=view.overview if view else None,
        )

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed.is_set():
            # CPU time of this thread, without its waits for the threads that draw figures.
            began = time.thread_time()
            self.tick()
            self._closed.wait(max(TICK_S, (MAX_SHARE - 1) * (time.thread_time() - began)))

    def tick(self) -> None:
        """Look once at everything, and call the listeners if something has changed."""
        self._find_searches()
        self._ask_redis()
        for view in self.views.values():
            view.refresh()
        self._assign_workers()
        self._tell()

    def _find_searches(self) -> None:
        try:
            found = [SearchFolder(self.root, self.only)] if self.only else searches(self.root)
            for folder in found:
                self._find(folder)
            for name in self.views.keys() - {folder.name for folder in found if folder.launched}:
                self._drop(name)
        except CheckpointError as error:
            self._note_folder("away", str(error))
            return
        if self.views:
            self._note_folder(
                "ok", f"{len(self.views)} {'search' if len(self.views) == 1 else 'searches'}"
            )
        else:
            self._note_folder("empty", self._nothing_yet())

    def _nothing_yet(self) -> str:
        if self.only:
            return (
                f"search {self.only!r} has not been launched in {self.root} yet; "
                "`master launch` begins it, and it appears here by itself"
            )
        missing = "" if self.root.is_dir() else ", which does not exist"
        return (
            f"no search has been launched in {self.root}{missing}; "
            "`master launch --stage coarse` begins one, and it appears here by itself"
        )

    def _find(self, folder: SearchFolder) -> None:
        """Add a search that is new or was launched again.

        A damaged search is left out, with a warning.
        """
        known = self.views.get(folder.name)
        if known is not None and (not known.stale or self._reread(known)):
            return
        try:
            search = folder.search()
        except CheckpointError as error:
            self._warn(str(error))
            return
        if search is not None:
            if search.name != folder.name:
                self._warn(
                    f"{folder.search_file}: name = {search.name!r} is not its folder's name; "
                    "rename one of the two"
                )
            self._put(folder.name, SearchView(folder, search, self._warn))

    def _reread(self, view: SearchView) -> bool:
        try:
            return view.reread()
        except CheckpointError as error:
            self._warn(str(error))
            return True  # keep what was read until the file is readable again

    def _put(self, name: str, view: SearchView) -> None:
        """Add a view, in a new dictionary, since other threads may be reading the old one."""
        self.views = dict(sorted({**self.views, name: view}.items()))

    def _drop(self, name: str) -> None:
        self.views = {other: view for other, view in self.views.items() if other != name}

    def _ask_redis(self) -> None:
        if not self._connect():
            return
        assert self._broker is not None
        try:
            for view in self.views.values():
                view.ask(self._broker.client)
            self._note_workers(WorkerRegistry(self._broker.client).list())
            self._note_redis("ok", f"connected to {self._broker.where}")
        except QueueError as error:
            self._lose(error)

    def _connect(self) -> bool:
        """Return whether there is a connection.

        Without one, try to connect. An embedded server that has died is restarted.
        """
        if self._redis_url is None and not self.views and self._broker is None:
            self._note_redis("empty", "an embedded server starts with the first search")
            return False  # no server is started in an empty folder
        if time.monotonic() < self._retry_at:
            return False
        try:
            if self._broker is None:
                self._broker = open_broker(self._redis_url, self.root)
            elif self._redis.state == "away":
                self._broker.ensure()
        except SearchError as error:
            self._lose(error)
            return False
        return True

    def _lose(self, error: SearchError) -> None:
        self._retry_at = time.monotonic() + RETRY_S
        self._note_redis("away", str(error))
        self.workers = ()
        for view in self.views.values():
            view.forget()

    def _note_workers(self, connected: list[WorkerInfo]) -> None:
        now = time.monotonic()
        self._paces = {info.worker: self._paces.get(info.worker, deque()) for info in connected}
        self._only = {info.worker: info.search for info in connected}
        self.workers = tuple(
            _worker(info, _pace(self._paces[info.worker], now, info.trials_done))
            for info in connected
        )

    def _assign_workers(self) -> None:
        """Tell each search what the workers do for it."""
        served = {one.worker for view in self.views.values() for one in view.running}
        only = self._only
        for name, view in self.views.items():
            able = [row for row in self.workers if only.get(row.worker, "") in ("", name)]
            view.add_workers([row for row in able if row.state != "lost"], served)

    def _note_redis(self, state: str, message: str) -> None:
        self._redis = _note_change(self._redis, state, message)

    def _note_folder(self, state: str, message: str) -> None:
        self._folder = _note_change(self._folder, state, message)

    def _warn(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.append(message)
            LOG.warning("%s", message)

    def _tell(self) -> None:
        positions = {
            name: tuple(_position(running) for running in view.running)
            for name, view in self.views.items()
        }
        if positions != self._positions:
            self._positions = positions
            self.moving += 1
        parts = [self.health(), *self.workers, *(view.overview for view in self.views.values())]
        published = f"{self.moving}{self.lines()}{[part.model_dump_json() for part in parts]}"
        if published == self._published:
            return
        self._published = published
        self.sequence += 1
        with self._mutex:
            listeners = list(self._listeners)
        for listener in listeners:
            listener()


def _line(view: SearchView) -> models.SearchLine:
    overview = view.overview
    stages = overview.stages
    return models.SearchLine(
        search=view.folder.name,
        ended=sum(stage.ended for stage in stages),
        running=sum(stage.counts["running"] for stage in stages),
        trials=sum(stage.trials for stage in stages),
        trained=sum(stage.trained for stage in stages),
        trainings=sum(stage.trainings for stage in stages),
        best=overview.best,
        estimate=overview.estimate,
        cost=overview.cost,
        tags=overview.noted.tags,
        note=overview.noted.note,
    )


def _note_change(part: models.Part, state: str, message: str) -> models.Part:
    """Return the part in its new state, with the time of its last change of state."""
    since = part.since if part.state == state else time.time()
    return models.Part.model_validate(
        {"state": state, "where": part.where, "message": message, "since": since}
    )


def _worker(info: WorkerInfo, pace: float | None) -> models.WorkerRow:
    said = {name: getattr(info, name) for name in models.WorkerRow.model_fields if name != "pace"}
    return models.WorkerRow(**said | {"last_seen_s": float(int(info.last_seen_s))}, pace=pace)


def _pace(seen: deque[tuple[float, int]], now_s: float, done: int) -> float | None:
    """Return the trials per second over the last minute of readings.

    The result is None until two readings differ.
    """
    if not seen or seen[-1][1] != done:
        seen.append((now_s, done))
    while len(seen) > 1 and now_s - seen[0][0] > PACE_S:
        seen.popleft()
    began_s, began = seen[0]
    return (done - began) / (now_s - began_s) if done > began and now_s > began_s else None


def _position(running: Running) -> tuple[object, ...]:
    """Return the fields of a running trial whose change makes a page look different."""
    told = running.progress
    return (
        running.fence.trial_id,
        running.fence.attempt,
        told and (told.epoch, told.value, told.phase, told.beat),
    )

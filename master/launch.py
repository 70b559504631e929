"""`master launch`: from a search file to a ranking."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from common.broker import Broker, open_broker
from common.durable import make_folder
from common.errors import ConfigError
from common.eviction import eviction_warning
from common.options import DATA_FOLDER, INTERRUPTED, TERMINATED, Shared
from common.queue import TrialQueue
from common.records import SearchFolder
from common.search import RESERVED_STAGE, Stage
from common.select import Chosen
from common.trial import TrialState
from common.witness import reconcile
from common.workers import WorkerRegistry
from master import ranking
from master.checking import Checker, note
from master.finish import conclude
from master.launchers.local import LocalWorkers, auto_count, local_workers
from master.prepare import Launched, Published, examine, publish, settle
from master.progress import LiveProgress
from master.sampling import crowding
from master.supervisor import Supervisor

NOTHING_COMPLETED = 3
HEARD_S = 3.0  # within it every worker that lives has had a heartbeat
TRIALS_GO_ON = (
    "interrupted; the trials go on. `master status` shows them, the same launch command attaches again, "
    "`master kill --stage NAME` ends them"
)
NOTHING_BEGAN = "interrupted; nothing was queued"


class TerminatedError(BaseException):
    """SIGTERM, as an exception that unwinds like Ctrl-C."""


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    stage: str
    redis: str | None
    checkpoints: Path
    config: Path | None = None
    search: str | None = None
    workers: str = "auto"
    ranges: Path | None = None
    new_name: str | None = None
    replace: bool = False
    detach: bool = False
    data: Path = DATA_FOLDER  # of built-in data sets, for the local workers
    skip_check: bool = False

    @property
    def repeated(self) -> dict[str, str | None]:
        """The options that the command for the next stage needs as well; the URL of Redis may hold a password and stays out."""
        config = str(self.config) if self.config and not self.new_name else None
        folder = str(self.checkpoints) if self.checkpoints != Shared().checkpoints else None
        data = str(self.data) if self.data != DATA_FOLDER else None
        return {"--config": config, "--search": self.new_name or self.search, "--checkpoints": folder, "--data-dir": data}

    @property
    def named(self) -> list[str]:
        """The options that name the same search and folders to `worker check`."""
        options = {"--config": self.config, "--search": self.search, "--checkpoints": self.checkpoints, "--data-dir": self.data}
        return [str(part) for name, value in options.items() if value is not None for part in (name, value)]

    @property
    def n_workers(self) -> int | None:
        """How many local workers, None for auto.

        Raises:
            ConfigError: neither auto nor a number.
        """
        if self.workers == "auto":
            return None
        if not self.workers.isdigit():
            raise ConfigError(f"--workers {self.workers}: not a number of workers; use auto, 0 or a number")
        return int(self.workers)


def launch(request: Request, chosen: Chosen, console: Console) -> int:
    """Runs one stage or all; returns the exit code.

    Raises:
        SearchError: it cannot begin, or cannot go on.
    """
    stages = _stages(request, chosen)
    n_workers = request.n_workers
    root = make_folder(request.checkpoints).resolve()
    signal.signal(signal.SIGTERM, _on_sigterm)
    say = _printer(console)
    interrupted = NOTHING_BEGAN
    try:
        with open_broker(request.redis, root) as broker:
            if warning := eviction_warning(broker):
                say(warning)
            forget = (lambda folder: _forget(folder, broker)) if request.replace else None
            passed = _checked(request, chosen, stages, say)
            interrupted = TRIALS_GO_ON
            launched = settle(chosen, request.new_name, forget, say)
            if passed is not None:
                note(launched.folder, passed)
            return Run(request, launched, broker, console, n_workers).stages(stages)
    except KeyboardInterrupt:
        say(interrupted)
        return INTERRUPTED
    except TerminatedError:
        say(interrupted)
        return TERMINATED


def _checked(request: Request, chosen: Chosen, stages: list[Stage], say: Callable[[str], None]) -> bytes | None:
    """The checks before the first stage, while nothing has been written or queued; what is to be noted of them."""
    if request.skip_check or stages[0] != chosen.search.stages[0]:
        return None
    return Checker(request.named, say).first(examine(chosen, request.new_name), request.replace)


def _stages(request: Request, chosen: Chosen) -> list[Stage]:
    first = chosen.search.stages[0].name
    if request.replace and request.stage not in (first, RESERVED_STAGE):
        raise ConfigError(f"--replace with --stage {request.stage}: it begins the search anew, so launch its first stage, {first}, or all")
    if request.stage != RESERVED_STAGE:
        return [chosen.search.stage(request.stage)]
    if request.ranges is not None:
        raise ConfigError(f"--ranges {request.ranges}: belongs to one stage; name it with --stage instead of all")
    if request.detach:
        raise ConfigError(
            "--detach with --stage all: the next stage's ranges come from the ranking of the one before, which a master must make"
        )
    return list(chosen.search.stages)


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    raise TerminatedError


def _printer(console: Console) -> Callable[[str], None]:
    return lambda message: console.print(message, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _forget(folder: SearchFolder, broker: Broker) -> None:
    """Takes the search that is being replaced out of Redis, and waits until its workers have heard it."""
    old = folder.search()
    if old is None or old.id is None:
        return
    queue = TrialQueue(broker.client, old.id)
    busy = queue.running()
    queue.drop()
    if busy:
        time.sleep(HEARD_S)


class Run:
    """One launch: its stages one after the other, with the same local workers."""

    def __init__(self, request: Request, launched: Launched, broker: Broker, console: Console, n_workers: int | None) -> None:
        self._request = request
        self._launched = launched
        self._broker = broker
        self._console = console
        self._say = _printer(console)
        self._n_workers = n_workers
        self._queue = TrialQueue(broker.client, launched.id, launched.search.stragglers.lease_s)
        self._local: LocalWorkers | None = None

    def stages(self, stages: list[Stage]) -> int:
        """Runs them; returns the exit code of the first that fails, else 0."""
        code = 0
        for stage in stages:
            published = publish(self._launched, stage, self._queue, self._request.ranges, self._say)
            self._tell_published(published)
            if self._local is None or self._local.gone:
                self._start_wanted()
            if self._request.detach:
                self._say("detached: follow with `master status`; the same launch command attaches again and ends with the ranking")
                return 0
            code = self._watch(published)
            if code:
                break
        if self._local is not None:
            self._local.stop()
        return code

    def _tell_published(self, published: Published) -> None:
        name, stage = self._launched.search.name, published.stage
        unit = "epoch" if stage.epochs == 1 else "epochs"
        self._say(f"search {name!r}, stage {stage.name!r}: {stage.trials} trials of {stage.epochs:g} {unit}, {published.added} new")
        if published.reconciled.to_redis:
            self._say(f"{published.reconciled.to_redis} trials had ended according to the folder; they count")
        if published.reconciled.to_folder:
            self._say(f"{published.reconciled.to_folder} records were missing in the folder; written again")
        if published.added and (warning := crowding(published.space, stage.trials)):
            self._say(f"warning: {warning}")
        self._say(f"folder {self._launched.folder.stage(stage.name).path}")

    def _start_wanted(self) -> None:
        """Starts local workers where trials wait: as many as asked for; for auto, only where none is connected."""
        if not self._queue.unfinished():
            return
        name = self._launched.search.name
        connected = any(w.state != "lost" and w.search in ("", name) for w in WorkerRegistry(self._broker.client).list())
        n = self._n_workers if self._n_workers is not None else 0 if connected else auto_count()
        self._local = self._started(n) if n else None

    def _started(self, n: int) -> LocalWorkers:
        workers = local_workers(n, self._launched.folder, self._broker, self._say, self._request.data)
        workers.start()
        return workers

    def _watch(self, published: Published) -> int:
        start_local = (lambda: self._started(auto_count())) if self._n_workers is None else None
        with LiveProgress(self._console) as display:
            supervisor = Supervisor(self._broker, self._launched, published, self._queue, display, self._local, start_local)
            try:
                counts = supervisor.watch()
            finally:
                self._local = supervisor.local
        records = self._launched.folder.stage(published.stage.name).records(self._say)
        reconcile(self._queue, self._launched.folder, published.trials, records)  # a verdict's record that was not written in an outage
        conclude(
            self._launched, published, Console(file=sys.stdout), self._say, self._request.repeated, self._request.stage != RESERVED_STAGE
        )
        return 0 if ranking.best(records, 1) or counts[TrialState.COMPLETED] else NOTHING_COMPLETED

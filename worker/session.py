"""One search as a worker sees it: its queue, its folder, and, once there is work, its task and its engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import redis
import torch

from common import durable
from common.bounded import is_odd
from common.errors import CheckpointError, TaskError
from common.options import DATA_FOLDER
from common.queue import TrialQueue
from common.records import SearchFolder, searches
from common.search import Search
from common.trial import Claim
from worker import place
from worker.own import OwnLoop
from worker.tasks import Loop, Task, load_task, task_digest
from worker.tasks.loader import looks_like_loop
from worker.training import archive
from worker.training.engine import Engine, Job

Trainer = Engine | OwnLoop
RETRY_S = 3.0  # `master retry` writes a mended task and then its digest: a moment, but for a master that is killed between the two


@dataclass(frozen=True)
class Means:
    """What a worker trains with."""

    device: torch.device
    width: int | None  # trials an array holds, None to measure
    threads: int  # its share of the cores
    data: Path = DATA_FOLDER  # where the files of built-in data sets are


class Session:
    """A search that this worker may work for: its id was found in the worker's own checkpoint root."""

    def __init__(self, client: redis.Redis, folder: SearchFolder, search: Search, means: Means) -> None:
        assert search.id is not None  # SearchFolder.search() refuses a file without one
        self.folder = folder
        self.search = search
        self.queue = TrialQueue(client, search.id, search.stragglers.lease_s)
        self.digest: str | None = None
        self.replaced = False  # another search was found in its folder
        self._means = means
        self._engine: Trainer | None = None

    def in_place(self) -> bool:
        """Whether the folder still holds this search; another one may have replaced it.

        Raises:
            SearchFileError: nobody can tell; another look may.
            CheckpointError: the whole folder is gone.
        """
        self.replaced = not place.is_of(self.folder, str(self.search.id))
        return not self.replaced

    def engine(self, stage: str, log: Callable[[str], None]) -> Trainer:
        """What trains, made at first use and again where a retry brought other code or a stage was added: only then is the task loaded.

        Raises:
            TaskError: the task cannot be loaded, or is not the code that was launched.
            QueueError: Redis is away.
        """
        launched = self._launched_digest(stage)
        grown = self._read_again(stage)
        if self._engine is None or grown or self.digest != launched:
            launched = self._agreed_digest(stage)
            self._check_digest(launched)
            self._engine = self._made(self._task(launched, log), log)
        return self._engine

    def _launched_digest(self, stage: str) -> str | None:
        return (self.queue.frozen(stage) or {}).get("task_digest")

    def _agreed_digest(self, stage: str) -> str | None:
        """The launched digest; where the code here has another, after a moment: a retry may be about to write the other one of the two."""
        until = time.monotonic() + RETRY_S
        while True:
            launched, self.digest = self._launched_digest(stage), task_digest(self.search.task_in_folder, self.folder.path)
            if not launched or launched == self.digest or time.monotonic() > until:
                return launched
            time.sleep(RETRY_S / 10)

    def _task(self, launched: str | None, log: Callable[[str], None]) -> Task | Loop:
        """The task, whose code is exactly what the digest names; said, since it runs with this user's rights."""
        spec, folder = self.search.task_in_folder, self.folder.path
        if self.search.task_file is None:
            return load_task(spec, folder, self._means.data)
        log(f"search {self.search.name!r} runs the code in {folder}: {spec}, sha256 {self.digest}{', as launched' if launched else ''}")
        return load_task(spec, folder, self._means.data, self.digest)

    def _made(self, task: Task | Loop, log: Callable[[str], None]) -> Trainer:
        search, means = self.search, self._means
        if isinstance(task, Loop):
            return OwnLoop(task, means.device, search=search, threads=means.threads, log=log)
        return Engine(
            task,
            means.device,
            search_seed=search.seed,
            task_name=search.task,
            explosion_factor=search.explosion_factor,
            width=means.width,
            threads=means.threads,
            log=log,
            metric=search.metric,
            mode=search.mode,
            stages={stage.name: stage for stage in search.stages},
        )

    def _read_again(self, stage: str) -> bool:
        """Whether the search has grown since it was read: a stage that nobody knew has been launched."""
        if any(known.name == stage for known in self.search.stages):
            return False
        search = self.folder.search()
        if search is None or search.id != self.search.id:
            return False
        self.search = search
        return True

    def _check_digest(self, launched: str | None) -> None:
        if launched and launched != self.digest:
            raise TaskError(
                f"task {self.search.task!r}: the code here has digest {self.digest}, the launched one {launched}; "
                "restore the file in the search's folder, or launch under a new name with --new-name"
            )

    @cached_property
    def one_at_a_time(self) -> bool:
        """Whether its trials are not to be claimed by the dozen: as far as can be seen, a loop of the user's own trains them."""
        return looks_like_loop(self.search.task_in_folder, self.folder.path)

    def jobs(self, claims: Iterable[Claim], say: Callable[[str], None]) -> list[Job]:
        """The claims, each with the state that an earlier attempt left, if any."""
        return [Job(claim, self._saved_state(claim, say)) for claim in claims]

    def _saved_state(self, claim: Claim, say: Callable[[str], None]) -> dict[str, object] | None:
        """The latest saved state that can be read; one that is damaged is set aside.

        Raises:
            CheckpointError: one cannot be read for now.
        """
        paths = self.folder.stage(claim.trial.stage).saved_states(claim.trial.id) if claim.fence.attempt > 1 else []
        for path in paths:
            try:
                state: object = archive.load(path)
            except FileNotFoundError:
                continue
            except PermissionError:
                say(f"{path}: this user may not read it; left as it is, {claim.trial.id} starts from an earlier state or its beginning")
                continue
            except OSError as error:
                if not is_odd(error):
                    raise durable.explained(error, path) from error  # no fault of the file: another look may find it whole
                state = error
            except MemoryError:
                raise
            except Exception as error:  # whatever a damaged file makes its readers raise
                state = error
            if isinstance(state, dict):
                return state
            problem = f"damaged ({type(state).__name__})" if isinstance(state, Exception) else "holds no state"
            say(f"{path}: {problem}; set aside, {claim.trial.id} starts from an earlier state or its beginning")
            durable.set_aside(path)
        return None


class Sessions:
    """The searches of one checkpoint root, by id; read again when Redis names one that is not known yet."""

    def __init__(self, client: redis.Redis, root: Path, means: Means, say: Callable[[str], None]) -> None:
        self._client, self._root, self._say = client, root, say
        self._means = means
        self._known: dict[str, Session] = {}
        self._damaged: set[str] = set()
        self._elsewhere: set[str] = set()

    def find(self, search_id: str, name: str) -> Session | None:
        """The session of a search in Redis, None if its id is not in this worker's checkpoint root (said once), or no longer."""
        if search_id in self._known and self._known[search_id].replaced:
            del self._known[search_id]
            self._elsewhere.add(search_id)  # who found the other search has said so
        if search_id not in self._known:
            self._read_root()
        if search_id not in self._known and search_id not in self._elsewhere:
            self._elsewhere.add(search_id)
            self._say(
                f"search {name!r} (id {search_id}) is not in {self._root}: this worker is on another volume than its master, "
                "and leaves the search alone; pass the same folder with --checkpoints"
            )
        return self._known.get(search_id)

    def _read_root(self) -> None:
        for folder in searches(self._root):
            try:
                search = folder.search()
            except CheckpointError as error:
                if str(error) not in self._damaged:
                    self._damaged.add(str(error))
                    self._say(str(error))
                continue
            if search is not None and search.id is not None and search.id not in self._known:
                self._known[search.id] = Session(self._client, folder, search, self._means)
                self._elsewhere.discard(search.id)

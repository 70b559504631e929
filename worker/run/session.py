"""A search as a worker sees it: its queue and its folder, and later its task and trainer.

The task and the trainer are loaded once there is work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import redis
import torch

from common.code.store import task_digest
from common.code.tree import Code
from common.errors import CheckpointError, ProtocolError, TaskError
from common.folder import durable
from common.folder.records import SearchFolder, searches
from common.offspring import Offspring
from common.options import DATA_FOLDER
from common.queue.trial_queue import TrialQueue
from common.repeats import Repeats
from common.safe_read import is_odd
from common.search.protocol import tell_apart
from common.search.search_file import Search
from common.search.trial import Claim
from common.shell_command import shell_command
from worker.own import LoopHost, OwnLoop, Source
from worker.own.loop import PROGRAM
from worker.own.program import Place, ProgramHost, visible
from worker.run import folder_identity
from worker.run.rungs import Waiting
from worker.run.teaching import Teachers
from worker.tasks import Loop, Task, load_class
from worker.tasks.importing import activate
from worker.tasks.loader import load_place, looks_like_loop, place_of, read_launched
from worker.training.compute.device import name_devices
from worker.training.engine.engine import Engine, TrainingOptions
from worker.training.outcome import archive

Trainer = Engine | OwnLoop
HEIR = "heir"  # `Trial.drawn` of a trial that starts from the weights of another


@dataclass(frozen=True)
class Means:
    """A worker's resources for training."""

    device: torch.device
    width: int | None  # number of trials in an array; None to measure it
    threads: int  # this worker's share of the cores
    data: Path = DATA_FOLDER  # where the files of built-in data sets are
    offspring: Offspring | None = None  # of this process; begun when a user's task is loaded
    host: LoopHost | None = None  # has the process of the user's own loops
    gpus: tuple[int, ...] = ()  # numbers in torch of the GPUs that the worker owns


class Session:
    """A search that this worker may work for.

    Its id was found in the worker's own checkpoint root.
    """

    def __init__(
        self, client: redis.Redis, folder: SearchFolder, search: Search, means: Means
    ) -> None:
        assert search.id is not None  # SearchFolder.search() refuses a file without one
        self.folder = folder
        self.search = search
        self.queue = TrialQueue(client, search.id, search.stragglers.lease_s)
        self.digest: str | None = None
        self.code: Code | None = None  # of a user's task, once it is loaded
        self._imported: Path | None = None  # folder of the copy that this process imports from
        self.replaced = False  # another search was found in its folder
        self.waiting = Waiting()
        self._means = means
        self._engine: Trainer | None = None
        self._repeats: Repeats | None = None

    def repeats(self, say: Callable[[str], None]) -> Repeats:
        """Return what counts the messages about this search's trials that may come often."""
        self._repeats = self._repeats or Repeats(say)
        return self._repeats

    def in_place(self) -> bool:
        """Return whether the folder still holds this search. Another one may have replaced it.

        Raises:
            SearchFileError: the file does not tell. A later call may succeed.
            CheckpointError: the whole folder is gone.
        """
        self.replaced = not folder_identity.is_of(self.folder, str(self.search.id))
        return not self.replaced

    def engine(self, stage: str, log: Callable[[str], None]) -> Trainer:
        """Return the trainer.

        The task is loaded and the trainer built at the first call. Both are repeated if a retry
        changed the task's code or a stage was added.

        Raises:
            TaskError: the task cannot be loaded, or its code is not the code that was launched.
            QueueError: Redis is away.
        """
        launched = self._read_launched_digest(stage)
        grown = self._read_again(stage)
        if self._engine is None or grown or self.digest != launched:
            self.digest = launched or task_digest(self.search, self.folder)
            self._engine = None  # what is loaded may fail, and the old code must not go on
            self._engine = self._make_trainer(launched is not None, log)
        activate(self._imported)  # it may have worked for another search meanwhile
        return self._engine

    def _read_launched_digest(self, stage: str) -> str | None:
        return (self.queue.frozen(stage) or {}).get("task_digest")

    def _make_trainer(self, is_launched: bool, log: Callable[[str], None]) -> Trainer:
        """Load the task, and check that its code has the expected digest.

        The user's own code is logged, since it runs with the rights of the worker's user. A loop is
        imported only by the process that runs it.
        """
        search, means = self.search, self._means
        self._imported = None
        if (idle := len(means.gpus) - search.resources.gpus) > 0:
            log(
                f"search {search.name!r} uses {search.resources.gpus} of this worker's GPUs for "
                f"each trial; {idle} stay idle meanwhile"
            )
        if search.task_file is None:
            self._check_own_digest()
            if search.is_command:
                return self._make_program(log)
            return self._make_engine(load_class(search, self.folder, means.data), log)
        self.code = read_launched(self.folder, self.digest)
        log(
            f"search {search.name!r} runs the code in {self.folder.code}: "
            f"{search.task}, {self.code.told}, sha256 {self.digest}"
            f"{', as launched' if is_launched else ''}"
        )
        if means.offspring is not None:
            means.offspring.begin()
        found = place_of(search.task, self.code)
        if not looks_like_loop(search.task, self.code):
            task = load_place(search.task, found)
            if not isinstance(task, Loop):
                if (why := search.resources.refuse_class(search.task)) is not None:
                    raise TaskError(why)
                self._imported = found.folder
                return self._make_engine(task, log)
        activate(None)  # the process begins with our own modules, whatever the task's are called
        source = Source(
            search.task,
            str(found.folder),
            found.module,
            found.attribute,
            means.threads,
            "cuda:0" if means.gpus else "cpu",  # it sees the GPUs of the trial and no other
            search.resources.gpus,
            visible(self._devices, os.environ),
        )
        host = means.host or LoopHost(means.offspring or Offspring())
        open_ = partial(host.open, source, search=self.folder)
        own = OwnLoop(search.task, open_, search=search, log=log)
        own.load()
        return own

    def _check_own_digest(self) -> None:
        """Check that a built-in task or a command is what was launched.

        Raises:
            TaskError: it is not.
        """
        own = task_digest(self.search, self.folder)
        if own != self.digest:
            raise TaskError(
                f"task {self.search.task!r}: is {own} here, and {self.digest} was launched; "
                "launch under a new name with --new-name"
            )

    def _make_program(self, log: Callable[[str], None]) -> OwnLoop:
        """Return what runs the program of a task."""
        search, means = self.search, self._means
        cwd = Path(search.folder or self.folder.path)
        log(f"search {search.name!r} runs a program in {cwd}: {search.task}")
        offspring = means.offspring or Offspring()
        offspring.begin()
        place = Place(
            search.task, cwd, self.folder, self._devices, means.threads, search.resources.gpus
        )
        host = ProgramHost(place, offspring, log)
        return OwnLoop(PROGRAM.whose, host.open, search=search, log=log, manner=PROGRAM)

    @property
    def _devices(self) -> str:
        """The devices of a trial, as torch names them here."""
        return name_devices(self._means.gpus[: self.search.resources.gpus])

    def _make_engine(self, task: Task, log: Callable[[str], None]) -> Engine:
        search, means = self.search, self._means
        options = TrainingOptions(
            means.device,
            search.seed,
            search.task,
            log,
            explosion_factor=search.explosion_factor,
            explosion=search.explosion,
            width=means.width,
            threads=means.threads,
            metric=search.metric,
            mode=search.mode,
            stages={stage.name: stage for stage in search.stages},
        )
        return Engine(task, options, Teachers(self.folder, search, task, means.device, log).of)

    def _read_again(self, stage: str) -> bool:
        """Read the search file again if it lacks the stage, which was then launched later.

        Return whether the search has changed.
        """
        if any(known.name == stage for known in self.search.stages):
            return False
        search = self.folder.search()
        if search is None or search.id != self.search.id:
            return False
        self.search = search
        return True

    @cached_property
    def one_at_a_time(self) -> bool:
        """Whether trials should be claimed one at a time.

        That is so if the task is a program, or looks like a loop of the user's own.
        """
        if self.search.task_file is None:
            return self.search.is_command
        try:
            return looks_like_loop(self.search.task, self.code or read_launched(self.folder))
        except TaskError:
            return False  # the error is reported when the task is loaded

    def load_states(self, claims: Iterable[Claim], say: Callable[[str], None]) -> list[Claim]:
        """Return the claims, each with the state that an earlier attempt left, if any."""
        told = self.repeats(say)
        return [replace(claim, resume=self._state_before(claim, told)) for claim in claims]

    def _state_before(self, claim: Claim, told: Repeats) -> dict[str, Any] | None:
        """Return the state that an earlier attempt left, from memory or from a file."""
        if claim.trial.drawn == HEIR:
            return self._read_inherited_state(claim, told)
        if claim.fence.attempt == 1:
            return None
        state = self.waiting.take(claim.trial.id, claim.fence.attempt) or self._read_saved_state(
            claim, told
        )
        if state is None and claim.trial.passed and self.search.strategy.resumes:
            way = f"from {claim.trial.passed[-1]:g} to {claim.trial.epochs:g} epochs"
            told.tell(
                "anew",
                f"{claim.trial.id} goes on {way}, but has no saved state. It starts anew from its "
                "seed: this repeats its first epochs and changes nothing else",
            )
        return state

    def _read_inherited_state(self, claim: Claim, told: Repeats) -> dict[str, Any] | None:
        """Return the trial's own state, or else the state that its parent left for it.

        The trial continues from its parent's state with its own configuration.
        """
        trial = claim.trial
        state = self.waiting.take(trial.id, claim.fence.attempt) or self._read_saved_state(
            claim, told
        )
        if state is None:
            told.tell(
                "inherited",
                f"{trial.id} is to go on from the weights of {', '.join(trial.parents)}, but these "
                "are gone: it starts anew",
            )
        elif state.get("trial") in trial.parents:
            state = {**state, "trial": trial.id}
        return state

    def _read_saved_state(self, claim: Claim, told: Repeats) -> dict[str, Any] | None:
        """Return the latest saved state that can be read. Set damaged ones aside.

        Raises:
            CheckpointError: a state cannot be read for now.
        """
        paths = self.folder.stage(claim.trial.stage).find_states(claim.trial.id)
        for path in paths:
            try:
                state: object = archive.load(path)
            except FileNotFoundError:
                continue
            except PermissionError:
                told.tell(
                    "permission",
                    f"{path}: this user may not read it; left as it is, {claim.trial.id} starts "
                    "from an earlier state or its beginning",
                )
                continue
            except OSError as error:
                if not is_odd(error):
                    # The file is not to blame. A later attempt may read it.
                    raise durable.explain_os_error(error, path) from error
                state = error
            except MemoryError:
                raise
            except Exception as error:  # a damaged file can make its reader raise anything
                state = error
            if isinstance(state, dict):
                return state
            problem = (
                f"damaged ({type(state).__name__})"
                if isinstance(state, Exception)
                else "holds no state"
            )
            told.tell(
                "damaged",
                f"{path}: {problem}; set aside, {claim.trial.id} starts from an earlier state or "
                "its beginning",
            )
            durable.set_aside(path)
        return None


class Sessions:
    """The searches in one checkpoint root, by id.

    The root is read again when Redis names a search that is not known yet.
    """

    def __init__(
        self, client: redis.Redis, root: Path, means: Means, say: Callable[[str], None]
    ) -> None:
        self._client, self._root, self._say = client, root, say
        self._means = means
        self._known: dict[str, Session] = {}
        self._unreadable: dict[str, str] = {}  # by name of the search: why it cannot be read
        self._elsewhere: set[str] = set()
        self._unfit: set[str] = set()  # ids of searches that ask for more GPUs than there are here

    def find(self, search_id: str, name: str) -> Session | None:
        """Return the session of a search in Redis.

        Return None if this worker's checkpoint root does not hold it, or no longer, or if the
        worker owns too few GPUs for it. The reason is printed once.
        """
        if search_id in self._known and self._known[search_id].replaced:
            del self._known[search_id]
            self._elsewhere.add(search_id)  # the code that found the other search has said so
        if search_id not in self._known:
            self._read_root()
        if search_id not in self._known and search_id not in self._elsewhere:
            self._elsewhere.add(search_id)
            if name not in self._unreadable:  # else the cause has been printed
                self._say(f"search {name!r} (id {search_id}) {self._why_not_here(name)}")
        found = self._known.get(search_id)
        if found is None or found.search.resources.fits(len(self._means.gpus)):
            return found
        del self._known[search_id]  # its file is read again: it may come to allow the CPU
        if search_id not in self._unfit:
            self._unfit.add(search_id)
            self._say(f"search {name!r} {self._why_unfit(found.search)}")
        return None

    def _why_unfit(self, search: Search) -> str:
        """Return why this worker's devices do not fit a search."""
        wanted, owned = search.resources, name_devices(self._means.gpus)
        gpus = "GPU" if wanted.gpus == 1 else "GPUs"
        return (
            f"wants {wanted.gpus} {gpus} for each trial ([resources] in its file), and this worker "
            f"has {owned}: it leaves the search alone; start `{wanted.start_command}`"
            + ("" if self._means.gpus else ", or let the CPU stand in with on_cpu = true")
        )

    def _why_not_here(self, name: str) -> str:
        folder = SearchFolder(self._root, name)
        if folder.launched:
            return (
                f"is left alone: {folder.path} holds another search of that name; pass its "
                "master's folder with --checkpoints"
            )
        if folder.path.is_dir():
            return (
                f"is left alone: {folder.search_file} is missing; "
                f"`{shell_command('master recover --config FILE')}` puts your own copy in its place"
            )
        return (
            f"is not in {self._root}: this worker is on another volume than its master, "
            "and leaves the search alone; pass the same folder with --checkpoints"
        )

    def _read_root(self) -> None:
        for folder in searches(self._root):
            try:
                search = folder.search()
            except ProtocolError as error:
                if error.search_id not in self._elsewhere:
                    self._elsewhere.add(error.search_id)
                    self._say(
                        f"{tell_apart('this worker', folder.name, error.found)}; until then it "
                        "leaves the search alone"
                    )
                continue
            except CheckpointError as error:
                if self._unreadable.get(folder.name) != str(error):
                    self._unreadable[folder.name] = str(error)
                    self._say(str(error))
                continue
            self._unreadable.pop(folder.name, None)
            if search is not None and search.id is not None and search.id not in self._known:
                self._known[search.id] = Session(self._client, folder, search, self._means)
                self._elsewhere.discard(search.id)

"""`master launch`: it runs a search from its search file to its ranking."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from rich.console import Console

from common.broker.connection import Broker, open_broker
from common.broker.eviction import eviction_warning
from common.broker.sandbox import sandbox_warning
from common.console import open_console
from common.ending import BY_SIGNAL, Handler, hear_end, unhear_end
from common.errors import ConfigError, SearchError
from common.folder.chosen import Chosen
from common.folder.durable import make_folder
from common.folder.records import SearchFolder
from common.options import INTERRUPTED
from common.queue.reconcile import reconcile
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.repeats import say_once
from common.search.search_file import RESERVED_STAGE
from common.search.stage import Stage
from common.search.trial import TrialState
from common.shell_command import shell_command
from master.launchers.gpus import auto_count, check_gpus
from master.launchers.local import (
    count_wanted_workers,
    dismiss_stayed,
    dismiss_unlike,
    local_workers,
)
from master.launchers.workers import Workers
from master.run.checking import Checker, note
from master.run.finish import Reports, conclude
from master.run.interruption import NOTHING_BEGAN, HowFar
from master.run.janitor import sweep_left_over
from master.run.jobs import (
    JobOptions,
    cluster_workers,
    dry_run,
    prepare_jobs,
)
from master.run.minutes import epochs_within, replan
from master.run.planning import count_epochs, describe_stage, measure_paces
from master.run.progress import LiveProgress
from master.run.request import Request
from master.run.supervisor import Supervisor
from master.stages.prepare import Launched, examine, plan_anew, settle
from master.stages.publishing import Published, publish, queue_again
from master.stages.sampling import crowding
from master.stages.source import read_before
from master.strategy.ranges import load_ranges

NOTHING_COMPLETED = 3
HEARD_S = 3.0  # seconds within which every live worker has had a heartbeat


class TerminatedError(BaseException):
    """A signal that asks the process to end, as an exception that unwinds like Ctrl-C.

    ``code`` is the exit code of the process.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = BY_SIGNAL + number


def launch(request: Request, chosen: Chosen, console: Console) -> int:
    """Run one stage or all, and return the exit code.

    Raises:
        SearchError: the search cannot begin or cannot go on.
    """
    stages = _stages(request, chosen)
    if request.ranges is not None:
        load_ranges(request.ranges, chosen.search.space)  # before the checks, which take longer
    n_workers, jobs = request.n_workers, request.jobs
    if jobs is not None and request.dry_run:
        folder = SearchFolder(chosen.folder.root, request.new_name or chosen.search.name)
        resources = chosen.search.resources
        return dry_run(folder, request.data, jobs, request.redis, _printer(console), resources)
    root = make_folder(request.checkpoints).resolve()
    say = _printer(console)
    run: Run | None = None
    before: dict[int, Handler] = {}
    try:
        before = hear_end(_on_end, signal.SIGINT)
        with open_broker(request.redis, root) as broker:
            for warning in filter(None, (eviction_warning(broker), sandbox_warning(broker))):
                say(warning)
            if chosen.search.resources.gpus > 1:
                examine(chosen, request.new_name)  # a class cannot have them on any machine
            if jobs is None:
                check_gpus(n_workers, chosen.search, WorkerRegistry(broker.client).list)
            else:
                prepare_jobs(broker, jobs, chosen.search.resources)
            forget = (lambda folder: _forget(folder, broker)) if request.replace else None
            passed = _run_checks(request, chosen, stages, say)
            epochs = _epochs_of_minutes(request, chosen, say)
            launched = settle(chosen, request.new_name, forget, say, epochs, request.more)
            sweep_left_over(launched.folder)
            if passed is not None:
                note(launched.folder, passed)
            run = Run(request, launched, broker, console, n_workers, jobs)
            return run.stages()
    except (KeyboardInterrupt, TerminatedError) as end:
        unhear_end(before)
        say(run.interrupted if run is not None else NOTHING_BEGAN)
        return end.code if isinstance(end, TerminatedError) else INTERRUPTED
    finally:
        unhear_end(before)  # nothing is left to unwind


def _run_checks(
    request: Request, chosen: Chosen, stages: list[Stage], say: Callable[[str], None]
) -> bytes | None:
    """Run the checks if the first stage is launched, before anything is written or queued.

    Returns:
        The note about them for the search's folder, or None if there is nothing to note.
    """
    if request.skip_check or stages[0] != chosen.search.stages[0]:
        return None
    return Checker(request.named, say, request.spawner).first(
        examine(chosen, request.new_name), request.replace
    )


def _epochs_of_minutes(
    request: Request, chosen: Chosen, say: Callable[[str], None]
) -> float | None:
    """Return the epochs that a budget in minutes pays for, measured before the first stage.

    Return None for any other budget, and for a search that was launched before.
    """
    search = chosen.search
    if search.budget is None or search.budget.minutes is None or search.plan:
        return None
    if (
        not request.replace
        and SearchFolder(chosen.folder.root, request.new_name or search.name).launched
    ):
        return None
    epochs = epochs_within(search, measure_paces(request.named, say))
    say(f"[budget] minutes = {search.budget.minutes:g}: about {epochs:g} epochs on this machine")
    return epochs


def _stages(request: Request, chosen: Chosen) -> list[Stage]:
    first = chosen.search.stages[0].name
    if request.replace and request.stage not in (first, RESERVED_STAGE):
        raise ConfigError(
            f"--replace with --stage {request.stage}: it begins the search anew, so launch its "
            f"first stage, {first}, or all"
        )
    if request.stage != RESERVED_STAGE:
        return [chosen.search.stage(request.stage)]
    if request.ranges is not None:
        raise ConfigError(
            f"--ranges {request.ranges}: belongs to one stage; name it with --stage instead of all"
        )
    if request.detach:
        raise ConfigError(
            "--detach with --stage all: the next stage's ranges come from the ranking of the one "
            "before, which a master must make"
        )
    return list(chosen.search.stages)


def _on_end(number: int, _frame: FrameType | None) -> None:
    raise TerminatedError(number)


def _printer(console: Console) -> Callable[[str], None]:
    return lambda message: console.print(
        message, markup=False, highlight=False, soft_wrap=not console.is_terminal
    )


def _forget(folder: SearchFolder, broker: Broker) -> None:
    """Remove the search that is being replaced from Redis.

    Wait until its workers have heard it.
    """
    old = folder.search()
    if old is None or old.id is None:
        return
    queue = TrialQueue(broker.client, old.id)
    busy = queue.running()
    queue.drop()
    dismiss_stayed(folder, broker)
    if busy:
        time.sleep(HEARD_S)


def _import_ahead() -> None:
    """Import what the ranking needs at a stage's end, while its trials train."""
    import pandas  # noqa: F401


class Run:
    """One launch, whose stages run one after another with the same local workers."""

    def __init__(
        self,
        request: Request,
        launched: Launched,
        broker: Broker,
        console: Console,
        n_workers: int | None,
        jobs: JobOptions | None = None,
    ) -> None:
        self._request = request
        self._launched = launched
        self._broker = broker
        self._console = console
        self._say = _printer(console)
        self._warn = say_once(self._say)  # the folder is read several times
        self._told_borders: set[object] = set()
        self._n_workers = n_workers
        self._jobs = jobs
        self._queue = TrialQueue(broker.client, launched.id, launched.search.stragglers.lease_s)
        self._local: Workers | None = None
        self._reports = Reports(launched.folder, self._say)
        self._how_far = HowFar(self._queue.count_unfinished)
        self._last_word: str | None = None

    def stages(self) -> int:
        """Run one stage or all. Return the exit code of the first stage that fails, else 0.

        Local workers stay for the next command.
        """
        try:
            return self._stages()
        except (KeyboardInterrupt, TerminatedError):
            self._last_word = self._how_far.describe()  # while Redis can still be asked
            raise
        finally:
            if self._local is not None:
                self._local.leave()

    @property
    def interrupted(self) -> str:
        """The message for a launch that a signal has ended."""
        return self._last_word or self._how_far.describe()

    def _stages(self) -> int:
        # Dismiss them before they can claim the trials that are queued now.
        dismiss_unlike(
            self._n_workers,
            self._launched.folder,
            self._broker,
            self._request.data,
            self._launched.search.resources,
        )
        runs_all = self._request.stage == RESERVED_STAGE
        code, ended = 0, None
        name: str | None = self._launched.search.stages[0].name if runs_all else self._request.stage
        while name is not None:
            self._fit_to_minutes(name)
            stage = self._launched.search.stage(name)
            following = self._launched.search.after(name) if runs_all else None
            name = following.name if following is not None else None
            self._how_far.training(stage.name)
            published = self._publish(stage, following, ended)
            if self._local is None or self._local.gone:
                self._start_wanted()
            if ended is None:
                threading.Thread(target=_import_ahead, daemon=True).start()
            if self._request.detach:
                rungs = "promotions need a running master: " if len(stage.plan.rungs) > 1 else ""
                self._say(
                    f"detached: follow with `{shell_command('master status')}`; {rungs}the same "
                    "launch command attaches again and ends with the ranking"
                )
                return 0
            self._conclude(ended)
            code = self._watch(published)
            ended = published
            self._how_far.note_ended(stage.name, None if code else name)
            if code:
                break
        self._conclude(ended)
        self._reports.draw()
        self._how_far.note_drawn()
        return code

    def _fit_to_minutes(self, name: str) -> None:
        """Plan this stage and the later ones again, for what is left of a budget in minutes."""
        folder, search = self._launched.folder, self._launched.search
        minutes = search.budget.minutes if search.budget is not None else None
        if minutes is None or search.asks:
            return
        search = folder.search() or search  # another master may have planned anew
        self._launched = Launched(search, folder)
        begun, stage = (
            [own for own in search.stages if folder.stage(own.name).has_begun],
            search.stage(name),
        )
        if not begun or stage in begun or not stage.rungs or stage.more:
            return
        left = replan(search, begun, read_before(search, folder, begun, self._warn).records)
        if left == [own.plan for own in search.to_plan_anew([own.name for own in begun])]:
            return
        self._launched = plan_anew(self._launched, left)
        now, before = count_epochs(self._launched.search), count_epochs(search)
        self._say(
            f"[budget] minutes = {minutes:g}: about {now:g} epochs in all; {before:g} were planned"
        )

    def _publish(self, stage: Stage, following: Stage | None, ended: Published | None) -> Published:
        """Queue a stage.

        The stage before is concluded afterwards, or at once if publishing fails.
        """
        overlaps = (
            self._launched.search.overlaps
            and stage.searches
            and following is not None
            and following.searches
        )

        def release() -> None:
            if ended is not None and (promoted := ended.ladder.release()):
                queue_again(self._queue, self._launched.folder, promoted)

        try:
            published = publish(
                self._launched,
                stage,
                self._queue,
                self._request.ranges,
                self._warn,
                overlaps,
                release,
            )
        except SearchError:
            self._conclude(ended)
            raise
        self._tell_published(published)
        return published

    def _tell_published(self, published: Published) -> None:
        name, stage = self._launched.search.name, published.stage
        self._say(
            f"search {name!r}, stage {stage.name!r}: {describe_stage(stage)}, {published.added} new"
        )
        if published.reconciled.to_redis:
            self._say(
                f"{published.reconciled.to_redis} trials had ended according to the folder; "
                "they count"
            )
        if published.reconciled.to_folder:
            self._say(
                f"{published.reconciled.to_folder} records were missing in the folder; "
                "written again"
            )
        stacks = not self._launched.search.is_command
        if published.added and stacks and (warning := crowding(published.space, stage.trials)):
            self._say(f"warning: {warning}")
        self._say(f"folder {self._launched.folder.stage(stage.name).path}")

    def _start_wanted(self) -> None:
        """Start workers if trials wait: jobs of a cluster, or local ones.

        Start as many as were asked for. For ``auto``, start some only if no worker is connected.
        """
        if not self._has_published_work():
            return
        if self._jobs is not None:
            dismiss_stayed(self._launched.folder, self._broker)
            self._local = self._start_jobs(self._jobs)
            return
        n = count_wanted_workers(
            self._n_workers,
            self._launched.folder,
            self._broker,
            self._request.data,
            self._launched.search.resources,
        )
        if n:
            self._local = self._start_workers(n)
        else:
            self._local = None
            dismiss_stayed(self._launched.folder, self._broker)

    def _has_published_work(self) -> bool:
        return bool(self._queue.count_unfinished()) or self._launched.search.asks

    def _start_jobs(self, jobs: JobOptions) -> Workers:
        folder, data = self._launched.folder, self._request.data
        resources = self._launched.search.resources
        return cluster_workers(
            folder, self._queue, self._broker, data, jobs, self._say, resources
        ).start()

    def _start_workers(self, n: int) -> Workers:
        workers = local_workers(
            n,
            self._launched.folder,
            self._broker,
            self._say,
            self._request.data,
            self._request.spawner,
            self._launched.search.resources,
        )
        workers.start()
        return workers

    def _watch(self, published: Published) -> int:
        resources = self._launched.search.resources
        may_start = self._n_workers is None and (resources.fits(0) or auto_count(resources) > 0)
        start_local = (lambda: self._start_workers(auto_count(resources))) if may_start else None
        with LiveProgress(self._console) as display:
            supervisor = Supervisor(
                self._broker,
                self._launched,
                published,
                self._queue,
                display,
                self._local,
                start_local,
            )
            try:
                counts = supervisor.watch()
            finally:
                self._local = supervisor.local
        return (
            0
            if counts[TrialState.COMPLETED] or published.ladder.standings.has_value
            else NOTHING_COMPLETED
        )

    def _conclude(self, published: Published | None) -> None:
        """Rank a stage that has ended and print the outcome, while the next stage trains."""
        if published is None:
            return
        search, folder, stage = self._launched.search, self._launched.folder, published.stage
        before = read_before(search, folder, search.up_to(stage.name), self._warn)
        own = published.ladder.standings.of_stage(stage.name)
        done = reconcile(
            self._queue, folder, own, [r for r in before.records if r.stage == stage.name]
        )
        if done.to_folder:  # verdicts whose records could not be written in an outage
            before = read_before(search, folder, search.up_to(stage.name), self._warn)
        out, names_next = open_console(sys.stdout), self._request.stage != RESERVED_STAGE
        conclude(
            self._launched,
            published,
            before,
            out,
            self._warn,
            self._request.repeated,
            names_next,
            self._told_borders,
        )
        sys.stdout.flush()  # a reader has the outcome now, even if a signal ends this process
        self._how_far.note_ranked(stage.name)
        if self._reports.add(stage.name):
            self._how_far.note_drawn()

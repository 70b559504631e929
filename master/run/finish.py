"""The end of a stage: its leaderboard, the proposal for the next stage, and the printed outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from common.folder import durable
from common.folder.records import REPORT, SearchFolder
from common.search.stage import Stage
from common.shell_command import shell_command
from master.launchers.background import draw_reports_in_background
from master.report.kinds import REPORTS
from master.report.lines import Ended
from master.report.summary import next_command, stage_between, stage_end
from master.results import ranking
from master.stages.distilling import outcome
from master.stages.prepare import Launched
from master.stages.publishing import Published
from master.stages.source import Before, make_proposal
from master.strategy.borders import borders
from master.strategy.box import Proposal
from master.strategy.guessing import guessing
from master.strategy.ranges import write_proposal

DRAW_EVERY_S = 60.0  # in a launch of so many seconds, some seconds of drawing do not matter


def conclude(
    launched: Launched,
    published: Published,
    before: Before,
    out: Console,
    say: Callable[[str], None],
    options: Mapping[str, str | Sequence[str] | None],
    name_next: bool = True,
    told: set[object] | None = None,
) -> None:
    """Conclude a stage that has ended.

    Write the leaderboard and the proposal, and print the ranking, the warnings and what comes next.

    Args:
        launched: the search.
        published: the stage that has ended.
        before: what the folder knows of all stages up to and including that one.
        out: where the outcome is printed, stdout.
        say: prints warnings, on stderr.
        options: options of the command that runs the next stage, as ``next_command`` takes them.
        name_next: whether to print that command; False if the next stage follows by itself.
        told: keys of the borders that this launch has told; the new ones are added.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    search, stage, folder = (
        launched.search,
        published.stage,
        launched.folder.stage(published.stage.name),
    )
    records = [record for record in before.records if record.stage == stage.name]
    present = {str(name) for name in folder.checkpoints()}
    durable.replace(folder.leaderboard, ranking.csv(ranking.frame(records), present).encode())
    whole = [record for record in before.records if search.stage(record.stage).searches]
    top = ranking.best(whole, 1)
    following = search.after(stage.name) if top else None
    breeds = following is not None and stage.searches and following.searches
    proposal = _propose(launched, stage, following, before, say) if following and breeds else None
    command = next_command(following.name, options) if following and name_next else None
    nothing = guessing(before.records)
    found = borders(whole, published.space) if stage.searches and nothing is None else []
    note = (
        REPORTS[following.kind].describe_plan(following, top[0].trial)
        if following is not None
        else None
    )
    gain = (
        outcome(launched.folder, stage, records, top[0], say)
        if stage.traits.distills and top
        else None
    )
    ended = Ended(
        search, stage, records, whole, found, published.space, frozenset(present), gain, nothing
    )
    follows = following is not None and not name_next and stage.searches
    own_file = options.get("--search") is None  # the user's file, whose ranges can be changed
    anew = (
        next_command(search.stages[0].name, options, "--replace")
        if nothing is not None and name_next and own_file
        else None
    )
    out.print(
        stage_between(ended, proposal, told or ())
        if follows
        else stage_end(ended, proposal, command, out.width, note, anew)
    )
    if follows and note is not None:
        out.print(note)
    if told is not None:
        told.update(border.key for border in found)


class Reports:
    """Reports of ended stages, drawn by a separate process.

    Drawing takes a core for some seconds. Beside a stage that trains for only as long, it would be
    in the way. So it waits until a minute has passed since the last time, or until the launch ends.
    """

    def __init__(
        self,
        folder: SearchFolder,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._say = say
        self._clock = clock
        self._drawn_at = clock()
        self._waiting: list[str] = []

    def add(self, stage: str) -> bool:
        """Note that a stage has ended; return whether its report is being drawn now."""
        self._waiting.append(stage)
        if self._clock() - self._drawn_at > DRAW_EVERY_S:
            self.draw()
        return not self._waiting

    def draw(self) -> None:
        """Start to draw all reports that wait, and say where they will be."""
        if not self._waiting:
            return
        if draw_reports_in_background(self._folder, self._waiting) is None:
            self._say(f"no report is drawn; `{shell_command('master report')}` draws it")
        else:
            stages = ", ".join(self._waiting)
            self._say(f"being drawn: {self._folder.path / REPORT} ({stages})")
        self._drawn_at, self._waiting = self._clock(), []


def _propose(
    launched: Launched, stage: Stage, following: Stage, before: Before, say: Callable[[str], None]
) -> Proposal:
    proposal = make_proposal(launched.search, launched.folder, stage, following, before)
    written = write_proposal(launched.folder.stage(stage.name).ranges, following.name, proposal)
    if written.edited:
        say(f"the proposal in ranges.toml was edited and stays; the new one is in {written.path}")
    return proposal

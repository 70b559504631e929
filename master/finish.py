"""When a stage has ended: the leaderboard, the proposal for the next stage, and what is printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from common import durable
from common.record import Record
from common.search import Stage
from master import ranking
from master.borders import borders
from master.prepare import Launched, Published
from master.ranges import write_proposal
from master.stage_ranges import make_proposal
from master.stages import Proposal
from master.summary import again_line, next_command, stage_end


def conclude(
    launched: Launched,
    published: Published,
    out: Console,
    say: Callable[[str], None],
    options: dict[str, str | None],
    name_next: bool = True,
) -> None:
    """Writes the leaderboard, the proposal and the report, and prints the ranking, the warnings, the next ranges and the command for them.

    Args:
        out: where the outcome goes, stdout.
        say: where warnings go, stderr.
        options: of the command that runs the next stage, as ``next_command`` takes them.
        name_next: whether to print that command; False where the next stage follows by itself.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    stage, folder = published.stage, launched.folder.stage(published.stage.name)
    records = folder.records(say)
    present = {str(name) for name in folder.checkpoints()}
    durable.replace(folder.leaderboard, ranking.csv(ranking.frame(records), present).encode())
    top = ranking.best(records, 1)
    following = launched.search.after(stage.name) if top else None
    narrows = following is not None and stage.kind == following.kind == "search"
    proposal = _propose(launched, stage, following, records, say) if following and narrows else None
    command = next_command(following.name, options) if following and name_next else None
    found = borders(records, published.space)
    note = again_line(following, top[0]) if following is not None and following.kind == "seeds" else None
    out.print(stage_end(records, found, published.space, proposal, command, out.width, stage.kind == "seeds", note))
    say(_reported(launched, stage, records, say))


def _reported(launched: Launched, stage: Stage, records: Sequence[Record], say: Callable[[str], None]) -> str:
    """Writes the report; says in a line where it is, or why there is none: the stage has ended well without it, so it fails no launch."""
    try:
        from master.report import write_report

        return f"report: {write_report(launched.search, launched.folder, stage, records, say)}"
    except Exception as error:  # what drawing may raise is the libraries' to know; `master report` shows it whole
        return f"no report was written ({type(error).__name__}: {ranking.one_line(str(error))}); `master report` tries again"


def _propose(launched: Launched, stage: Stage, following: Stage, records: Sequence[Record], say: Callable[[str], None]) -> Proposal:
    proposal = make_proposal(launched.search, launched.folder, stage, following, records)
    written = write_proposal(launched.folder.stage(stage.name).ranges, following.name, proposal)
    if written.edited:
        say(f"the proposal in ranges.toml was edited and stays; the new one is in {written.path}")
    return proposal

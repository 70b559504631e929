"""What is printed about each kind of stage: what it will do, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from common.folder.record import Record
from common.search.kinds import KindName
from common.search.stage import Stage
from master.report.lines import TOP, Ended, best_line, border_lines, spread_line
from master.results import confirming, ranking


class KindReport:
    """A stage that searches; the other kinds differ from it where they say more."""

    def describe_plan(self, stage: Stage, best: str) -> Text | None:
        """Return what the stage will do; None for a search, whose ranges say it.

        Args:
            stage: a stage that has not begun.
            best: the id of the best trial so far.
        """
        return None

    def describe_end(self, ended: Ended, width: int) -> list[RenderableType]:
        """Return the ranking and what it shows, for the terminal.

        Args:
            ended: the stage and its records.
            width: characters of the terminal.
        """
        searches = ended.stage.traits.searches
        whole = ended.whole if searches else [*ended.whole, *ended.records]
        if not ranking.best(ended.whole, 1):
            return []
        parts: list[RenderableType] = [
            "",
            ranking.table(ranking.frame(whole), TOP, width),
            "",
            best_line(whole),
        ]
        if searches and ended.guessing is None:
            parts.append(border_lines(ended.borders))
        return parts

    def describe_findings(self, records: Sequence[Record], searched: Sequence[Record]) -> list[str]:
        """Return the paragraphs of the report that only this kind has.

        Args:
            records: of the stage.
            searched: of all stages that search.
        """
        return []


class SeedsReport(KindReport):
    """The best configuration under other seeds."""

    def describe_plan(self, stage: Stage, best: str) -> Text:
        """Return what the stage will do."""
        return Text(
            f"Stage {stage.name} trains {best} again, {_count(stage)} from other initial weights."
        )

    def describe_end(self, ended: Ended, width: int) -> list[RenderableType]:
        """Return the trials of the stage, their spread, and what it confirms."""
        if not ranking.best(ended.records, 1):
            return super().describe_end(ended, width)
        found = confirming.confirm(ended.records, ended.whole, len(ranking.best(ended.whole)))
        return [
            "",
            ranking.table(ranking.frame(ended.records), TOP, width),
            "",
            best_line(ended.records),
            spread_line(ended.records),
            confirming.text(found, ended.checkpoints),
        ]

    def describe_findings(self, records: Sequence[Record], searched: Sequence[Record]) -> list[str]:
        """Return the spread, and what it confirms."""
        return [spread_line(records).plain, *_confirmed(records, searched)]


class ConfirmReport(KindReport):
    """Several configurations under several seeds each."""

    def describe_plan(self, stage: Stage, best: str) -> Text:
        """Return what the stage will do."""
        return Text(
            f"Stage {stage.name} trains the best {stage.best} again, under {stage.seeds} new seeds "
            "each."
        )

    def describe_end(self, ended: Ended, width: int) -> list[RenderableType]:
        """Return the configurations, compared, and the one that is picked."""
        if not ranking.best(ended.records, 1):
            return super().describe_end(ended, width)
        found = confirming.confirm(ended.records, ended.whole, len(ranking.best(ended.whole)))
        return ["", confirming.table(found, width), "", confirming.text(found, ended.checkpoints)]

    def describe_findings(self, records: Sequence[Record], searched: Sequence[Record]) -> list[str]:
        """Return the configuration that is picked."""
        return _confirmed(records, searched)


class DistillReport(KindReport):
    """The best configuration, trained on the predictions of kept models."""

    def describe_plan(self, stage: Stage, best: str) -> Text:
        """Return what the stage will do."""
        return Text(
            f"Stage {stage.name} trains {best} again, {_count(stage)}, on what the best models "
            "predict together."
        )


def _count(stage: Stage) -> str:
    return f"{stage.trials} {'time' if stage.trials == 1 else 'times'}"


def _confirmed(records: Sequence[Record], searched: Sequence[Record]) -> list[str]:
    if not ranking.best(records, 1):
        return []
    n = len(ranking.best(searched))
    return [confirming.text(confirming.confirm(records, searched, n)).plain]


REPORTS: dict[KindName, KindReport] = {
    "search": KindReport(),
    "seeds": SeedsReport(),
    "confirm": ConfirmReport(),
    "distill": DistillReport(),
}

"""Progress of a stage's rungs, from the decisions in its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.search.stage import Stage
from master.stages.promotions import Decision


@dataclass(frozen=True)
class Rung:
    """One rung of a stage.

    Attributes:
        epochs: its budget.
        planned: number of trials that the plan sends there.
        names: ids of the trials known so far; None stands for all new trials of the stage.
        promoted: number of trials promoted from here, as far as decided.
        is_decided: whether no other trial will be promoted.
    """

    epochs: float
    planned: int
    names: tuple[str, ...] | None
    promoted: int
    is_decided: bool

    @property
    def awaited(self) -> int:
        """Number of trials that are known to train to this budget."""
        return self.planned if self.names is None else len(self.names)


def rungs_so_far(stage: Stage, decisions: Sequence[Decision]) -> list[Rung]:
    """Return the rungs of a stage, shortest first.

    Args:
        stage: the stage as planned.
        decisions: the decisions of this stage; those of others are ignored.
    """
    made = {decision.epochs: decision for decision in decisions if decision.stage == stage.name}
    plan, found = stage.plan, list[Rung]()
    for number, (epochs, planned) in enumerate(zip(plan.rungs, plan.keep, strict=True)):
        here = made.get(epochs)
        after = made.get(plan.rungs[number + 1]) if number + 1 < len(plan.rungs) else None
        names = None if number == 0 else (here.trials if here else ())
        is_last = number + 1 == len(plan.rungs)
        found.append(
            Rung(
                epochs,
                planned,
                names,
                len(after.trials) if after else 0,
                is_last or bool(after and after.complete),
            )
        )
    return found


def rung_words(rungs: Sequence[Rung]) -> str:
    """Return how many trials of a stage were sent to each budget so far.

    The text reads ``39 to 1 epoch, 13 to 2, 3 of 4 to 7``.
    """
    return ", ".join(_words(rungs))


def _words(rungs: Sequence[Rung]) -> Iterator[str]:
    for number, rung in enumerate(rungs):
        n = (
            f"{rung.planned}"
            if rung.awaited == rung.planned
            else f"{rung.awaited} of {rung.planned}"
        )
        unit = "" if number else f" {'epoch' if rung.epochs == 1 else 'epochs'}"
        yield f"{n} to {rung.epochs:g}{unit}"

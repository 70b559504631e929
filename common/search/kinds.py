"""The kinds of stages, one object each.

The rest of the program asks a kind what it does, and compares no names. A new kind is added here;
what is printed about it is added in ``master/report/kinds.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KindName = Literal["search", "seeds", "confirm", "distill"]


@dataclass(frozen=True)
class StageKind:
    """What the trials of a stage are.

    Args:
        name: the value of ``kind`` in the search file.
        budget_words: what the dashboard adds to "20 epochs a trial".
        searches: whether the stage samples new configurations. Other stages train the best
            configurations of earlier stages again.
        is_spread: whether its trials differ in nothing but their seeds, so that it shows how much
            the initial weights alone change the metric.
        several: whether it trains the best ``best`` configurations, rather than one.
        picks: whether it trains each of several configurations under ``seeds`` seeds and picks one.
        distills: whether its trials learn from the predictions of kept models.
    """

    name: KindName
    budget_words: str = ""
    searches: bool = False
    is_spread: bool = False
    several: bool = False
    picks: bool = False
    distills: bool = False

    @property
    def joins_ensembles(self) -> bool:
        """Whether its models differ in their configurations, so that they may be mixed."""
        return self.searches or self.several


KINDS: dict[KindName, StageKind] = {
    kind.name: kind
    for kind in (
        StageKind("search", searches=True),
        StageKind("seeds", "from other seeds", is_spread=True),
        StageKind("confirm", "the best again, under new seeds", several=True, picks=True),
        StageKind("distill", "on what the ensemble predicts", distills=True),
    )
}
# The names of those that come after a search and sample nothing.
FOLLOWING = frozenset(name for name, kind in KINDS.items() if not kind.searches)

"""The schedule of faults: which, when, and on which target.

It is drawn from a seed before anything runs, so the seed repeats it.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Made = Generator[
    float, None, Any
]  # yields how long to wait before it goes on; False: it could not be made
Fault = Callable[[random.Random], Made]

EACH_S = 1.5  # what a fault takes that is late already, since those before it took long
LAST_S = 4.0  # what the last ones take
TRIES = 4  # of a fault that hit nothing


@dataclass(frozen=True)
class Kind:
    """A kind of fault. Two that need the same thing (Redis, the master) wait for each other."""

    name: str
    fault: Fault
    needs: str = ""


@dataclass(frozen=True)
class Planned:
    """One fault to come."""

    at_s: float  # since the begin, at the earliest
    kind: Kind
    seed: int
    tries_left: int = TRIES

    def again(self, at_s: float) -> Planned:
        """The same kind once more; it draws anew."""
        return replace(
            self,
            at_s=at_s,
            seed=random.Random(self.seed).getrandbits(32),
            tries_left=self.tries_left - 1,
        )


def planned(seed: str, kinds: Sequence[Kind], n: int, every_s: float) -> list[Planned]:
    """Draw ``n`` faults in random order, one every ``every_s`` seconds on average.

    The kinds differ in number by at most one.
    """
    draw = random.Random(seed)
    mixed: list[Kind] = []
    while len(mixed) < n:
        mixed += draw.sample(kinds, len(kinds))
    at_s, plans = 0.5, []
    for kind in mixed[:n]:
        plans.append(Planned(at_s, kind, draw.getrandbits(32)))
        at_s += draw.uniform(0.5, 1.5) * every_s
    return plans


@dataclass
class Running:
    """Several faults at once, run in one thread.

    A fault that hit nothing is repeated, up to TRIES times in all.
    """

    plans: list[Planned]
    made: Counter[str] = field(
        default_factory=Counter
    )  # those that hit; a kind that never did is not in it
    _began: float = field(default_factory=time.monotonic)
    _going: list[tuple[float, int, Planned, Made]] = field(default_factory=list)
    _busy: set[str] = field(default_factory=set)
    _number: int = 0

    @property
    def over(self) -> bool:
        return not self.plans and not self._going

    @property
    def left_s(self) -> float:
        """How long the schedule still takes, if all goes well."""
        last_s = max((plan.at_s for plan in self.plans), default=0.0) - (
            time.monotonic() - self._began
        )
        return max(last_s, EACH_S * len(self.plans)) + (LAST_S if self._going else 0.0)

    def step(self) -> None:
        """Goes on with what is due."""
        now = time.monotonic()
        due = [
            plan
            for plan in self.plans
            if plan.at_s <= now - self._began
            and (not plan.kind.needs or plan.kind.needs not in self._busy)
        ]
        for plan in due:
            if plan.kind.needs and plan.kind.needs in self._busy:
                continue
            self.plans.remove(plan)
            self._busy |= {plan.kind.needs} - {""}
            self._number += 1
            heapq.heappush(
                self._going, (now, self._number, plan, plan.kind.fault(random.Random(plan.seed)))
            )
        while self._going and self._going[0][0] <= now:
            _, number, plan, fault = heapq.heappop(self._going)
            try:
                heapq.heappush(self._going, (now + next(fault), number, plan, fault))
            except StopIteration as over:
                self._busy.discard(plan.kind.needs)
                if over.value is not False:
                    self.made[plan.kind.name] += 1
                elif plan.tries_left > 1:
                    self.plans.append(plan.again(now - self._began))

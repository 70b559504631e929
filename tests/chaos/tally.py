"""What all episodes of a run came to: the table that `make chaos` prints."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.witnesses import Account


@dataclass(frozen=True)
class Episode:
    """One search under faults."""

    name: str
    seed: int
    made: Counter[str]
    account: Account
    seconds: float


@dataclass
class Tally:
    """The episodes so far."""

    episodes: list[Episode] = field(default_factory=list)
    seen: dict[str, str] = field(
        default_factory=dict
    )  # a wrong build, and the first that was found of it

    def add(self, episode: Episode) -> None:
        self.episodes.append(episode)

    @property
    def made(self) -> Counter[str]:
        return sum((episode.made for episode in self.episodes), Counter[str]())

    def lines(self, seed: int) -> list[str]:
        """The table, a line each; none where nothing ran."""
        if not self.episodes:
            return []
        made, accounts = self.made, [episode.account for episode in self.episodes]
        lost, double = (
            sum(len(getattr(account, name)) for account in accounts) for name in ("lost", "double")
        )
        other = sum(len(account.other) for account in accounts)
        rows = [
            f"  {n:5d}  {name}"
            for name, n in sorted(made.items(), key=lambda row: (-row[1], row[0]))
        ]
        return [
            "",
            "faults made, by kind",
            *rows,
            f"  {made.total():5d}  in all",
            "",
            f"seed {seed}; {len(self.episodes)} searches, "
            f"{sum(account.trials for account in accounts)} trials in "
            f"{sum(episode.seconds for episode in self.episodes):.0f} s",
            f"lost: {lost}   counted double: {double}   anything else that should not be: {other}",
            *(f"wrong build seen: {build}: {finding}" for build, finding in self.seen.items()),
            "the seed repeats the plan of the faults, not whom they find at work",
            "longer: CHAOS_FAULTS=2000 make chaos; others: CHAOS_SEED=7 make chaos",
        ]


TALLY = Tally()

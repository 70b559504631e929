"""The tables of a search file about training: a stage, the budget, and the strategy's options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.errors import ConfigError
from common.search.kinds import KINDS, KindName, StageKind
from common.search.plan import (
    StagePlan,
    plan,
    plan_full,
    plan_halving,
    plan_population,
    stage_names,
)

LEAST_TRAININGS = 3  # with fewer full trainings there is nothing to choose from
DEFAULT_TRAININGS = 15.0
MAX_TRIALS = 1_000_000  # of one stage
CONFIRM_BEST, CONFIRM_SEEDS = 5, 3
Shape = Literal["staged", "full", "async", "population"]
# True: the factor and numbers that are not finite. "nan": the latter alone. False: neither.
Explosion = Literal["nan", True, False]
TINY_LOSS = 1e-6  # a first loss that is smaller, or negative, is no measure of later ones


class Table(BaseModel):
    """A table of the search file: no unknown keys, strict types, immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )


class Stage(Table):
    """One round of a search.

    ``trials`` new configurations train to ``epochs``, which may be a fraction. A stage that was
    planned from a budget has more rungs: ``keep[i]`` trials train to ``rungs[i]`` epochs.

    The ``kind`` "seeds" trains the best configuration so far again, ``trials`` times from other
    initial weights. "confirm" does so with the best ``best`` configurations, under ``seeds`` seeds
    each. "distill" trains the best configuration on the predictions of the kept ensemble.
    """

    name: str
    trials: int = Field(gt=0, le=MAX_TRIALS)
    epochs: float = Field(gt=0, le=1_000_000)
    kind: KindName = "search"
    # Of kind "confirm": the number of configurations.
    best: int = Field(default=CONFIRM_BEST, ge=1, le=1000)
    seeds: int = Field(default=CONFIRM_SEEDS, ge=1, le=1000)  # of kind "confirm": trials of each
    # Trials of each new configuration, under one seed each; ``trials`` counts all of them.
    repeats: int = Field(default=1, ge=1, le=1000)
    rungs: tuple[float, ...] = ()  # set by the plan
    keep: tuple[int, ...] = ()  # set by the plan
    # Set by the plan: added by --more, so a budget in minutes does not count it.
    more: bool = False
    # Epochs without a better metric after which a trial is STOPPED.
    patience: float | None = Field(default=None, gt=0)
    # Epochs after which a trial that is no better than guessing is STOPPED.
    chance_epochs: float | None = Field(default=None, gt=0)
    # Weights kept over time, evenly spread, of trials that keep a checkpoint.
    snapshots: int = Field(default=0, ge=0, le=1000)
    # What ends its trials as EXPLODED. None: as the search says.
    explosion: Explosion | None = None

    @model_validator(mode="before")
    @classmethod
    def _count_repeats(cls, raw: Any) -> Any:
        """Set the trials of a stage: configurations times their repeats or seeds.

        A planned stage counts its trials already.
        """
        if not isinstance(raw, dict) or "rungs" in raw:
            return raw
        if "trials" in raw:
            trials, repeats = raw["trials"], raw.get("repeats", 1)
            counts = [isinstance(n, int) and not isinstance(n, bool) for n in (trials, repeats)]
            if not all(counts) or repeats <= 1:
                return raw
            if trials * repeats > MAX_TRIALS:
                raise ConfigError(
                    f"[stages.{raw.get('name')}]: {trials:,} trials with repeats = {repeats:,} "
                    f"come to more than {MAX_TRIALS:,} trainings; lower one of the two"
                )
            return {**raw, "trials": trials * repeats}
        kind = next((one for one in KINDS.values() if one.name == raw.get("kind")), None)
        if kind is not None and kind.several:
            best = raw.get("best", CONFIRM_BEST)
            seeds = raw.get("seeds", CONFIRM_SEEDS) if kind.picks else 1
            if isinstance(best, int) and isinstance(seeds, int):
                return {**raw, "trials": best * seeds}
        return raw

    @property
    def searches(self) -> bool:
        """Whether it samples new configurations."""
        return self.traits.searches

    @property
    def traits(self) -> StageKind:
        """What its kind does."""
        return KINDS[self.kind]

    @property
    def plan(self) -> StagePlan:
        """Its rungs. A stage that the user lists has one."""
        return (
            StagePlan(self.rungs, self.keep, self.repeats)
            if self.rungs
            else StagePlan((self.epochs,), (self.trials,), self.repeats)
        )

    @property
    def final_epochs(self) -> float:
        """The longest budget of a trial in this stage."""
        return self.plan.rungs[-1]


def explosion_factor(stage: Stage | None, explosion: Explosion, factor: float) -> float | None:
    """Return the multiple of its first loss above which a trial of a stage has exploded.

    Args:
        stage: its own rule counts before the search's.
        explosion: the search's rule.
        factor: the search's factor.

    Returns:
        The factor; infinity if only numbers that are not finite end a trial; None if nothing does.
    """
    own = stage.explosion if stage is not None else None
    rule = explosion if own is None else own
    if rule == "nan":
        return math.inf
    return factor if rule else None


class Budget(Table):
    """What a search may cost: one of ``epochs``, ``full_trainings`` and ``minutes``."""

    epochs: float | None = Field(default=None, gt=0, le=1e9)
    full_trainings: float | None = Field(default=None, gt=0, le=1e9)
    minutes: float | None = Field(default=None, gt=0, le=1e6)
    max_epochs: int = Field(default=20, ge=1, le=1_000_000)  # of one trial
    # Trials that train at the same time; where they are many, there are fewer stages.
    slots: int | None = Field(default=None, ge=1, le=1_000_000)
    # Trials of each configuration, under one seed each, at every rung. The budget pays for all.
    repeats: int = Field(default=1, ge=1, le=1000)
    patience: float | None = Field(default=None, gt=0)
    chance_epochs: float | None = Field(default=None, gt=0)
    snapshots: int = Field(default=0, ge=0, le=1000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [
            name
            for name in ("epochs", "full_trainings", "minutes")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise ConfigError(
                f"[budget]: {' and '.join(given)} say the same thing twice; keep one of them"
            )
        total = self.total_epochs
        least = LEAST_TRAININGS * self.least_epochs
        if total is not None and total < least:
            again, also = self.repeats_in_words
            raise ConfigError(
                f"[budget]: {total:g} epochs are fewer than {LEAST_TRAININGS} trainings of "
                f"max_epochs = {self.max_epochs}{again}; allow at least {least}, or lower "
                f"max_epochs{also}"
            )
        return self

    @property
    def repeats_in_words(self) -> tuple[str, str]:
        """What messages about a small budget say of ``repeats``: what it is, and to lower it."""
        return (f" with repeats = {self.repeats}", " or repeats") if self.repeats > 1 else ("", "")

    @property
    def least_epochs(self) -> int:
        """The epochs of one configuration that is trained to the end, under all its seeds."""
        return self.max_epochs * self.repeats

    @property
    def total_epochs(self) -> float | None:
        """All epochs; None if only minutes are given, whose epochs have to be measured first."""
        if self.epochs is not None or self.minutes is not None:
            return self.epochs
        return (self.full_trainings or DEFAULT_TRAININGS) * self.max_epochs

    def stages(
        self, epochs: float | None = None, resumes: bool = True, shape: Shape = "staged"
    ) -> list[dict[str, Any]]:
        """Return the stages as tables.

        Args:
            epochs: the epochs, if known from a measurement. None means the budget's, or for minutes
                a usual number.
            resumes: whether promoted trials go on from their saved state.
            shape: "staged" gives several stages, "full" one stage of full trainings, "async" one
                stage with all rungs, and "population" one stage whose trials train side by side.
        """
        total = epochs or self.total_epochs or DEFAULT_TRAININGS * self.max_epochs
        if shape == "full":
            return self.name_stages([plan_full(total, self.max_epochs, self.repeats)], ())
        if shape == "population":
            return self.name_stages([plan_population(total, self.max_epochs)], ())
        if shape == "async":
            return self.name_stages([plan_halving(total, self.max_epochs, resumes)], ())
        plans = plan(total, self.max_epochs, self.slots, resumes, self.repeats)
        return self.name_stages(plans, ())

    def name_stages(self, plans: Sequence[StagePlan], taken: Sequence[str]) -> list[dict[str, Any]]:
        """Return planned stages as tables, with names that are not ``taken``."""
        policies = {
            "patience": self.patience,
            "chance_epochs": self.chance_epochs,
            "snapshots": self.snapshots,
        }
        given = {name: value for name, value in policies.items() if value}
        repeats = {"repeats": self.repeats} if self.repeats > 1 else {}
        return [
            {
                "name": name,
                "trials": own.keep[0],
                "epochs": own.rungs[0],
                "rungs": own.rungs,
                "keep": own.keep,
                **repeats,
                **given,
            }
            for name, own in zip(stage_names(len(plans), taken), plans, strict=True)
        ]


class Strategy(Table):
    """How the default sampler draws new configurations in later stages.

    docs/strategy.md has the figures behind the defaults.
    """

    # Share of draws whose values outside the range are clipped to its end, not mirrored.
    clip: float = Field(default=1.0, ge=0.0, le=1.0)
    plain: float = Field(default=0.2, ge=0.0, le=1.0)  # share of draws from the whole range
    # Share of the other draws that follow the densities; the rest are children.
    density: float = Field(default=0.5, ge=0.0, le=1.0)
    # Whether a stage's last rung runs beside the next stage, which does not know its results. None:
    # only where slots are given.
    overlap: bool | None = None
    # Whether the task resumes from its state. If not, a promoted trial trains its epochs again.
    resumes: bool = True


class Resources(Table):
    """What a trial needs of its worker. Only programs and loops of the user's own use many GPUs."""

    gpus: int = Field(default=1, ge=1, le=1024)
    # Whether workers on the CPU train the trials, too. None: only if one GPU is enough.
    on_cpu: bool | None = None

    def fits(self, n_gpus: int) -> bool:
        """Return whether a worker can train a trial.

        Args:
            n_gpus: the number of GPUs that the worker owns; 0 on the CPU.
        """
        if n_gpus:
            return n_gpus >= self.gpus
        return self.gpus == 1 if self.on_cpu is None else self.on_cpu

    @property
    def start_command(self) -> str:
        """The command that starts workers which fit."""
        return f"worker start --device all --gpus-per-trial {self.gpus}"

    def refuse_class(self, task: str) -> str | None:
        """Return why a task that is a class cannot have the GPUs, or None if it can."""
        if self.gpus == 1:
            return None
        return (
            f"[resources] gpus = {self.gpus}: is for loops and programs; {task!r} is a class, and "
            "these train as arrays of trials, each on one device; remove it"
        )


NO_NEEDS = Resources()  # of a search that asks for nothing special


class Stragglers(Table):
    """When a trial is taken from its worker, reported as slow, or killed. Times are in seconds."""

    lease_s: float = Field(default=30.0, ge=1.0, le=3600.0)
    stuck_s: float = Field(default=300.0, ge=1.0)
    # Multiple of the median epoch time of the trials of its kind on other machines.
    slow_factor: float = Field(default=4.0, gt=1.0)
    limit_s: float | None = Field(default=None, gt=0.0)  # of an attempt; then the trial is killed

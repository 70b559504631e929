"""What the API answers, as its OpenAPI page describes it. What is not finite or not known is null."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field

from common.search import Search
from common.space import Scalar

Curves = dict[str, list[float | None]]


class DiagnosisRow(BaseModel):
    """What a trial's curves say."""

    word: str
    sentence: str


class RankedTrial(BaseModel):
    """A row of the ranking, as `master rank --format json` prints it."""

    rank: int
    trial: str
    stage: str
    state: str
    val_acc: float | None
    val_loss: float | None
    epochs: float | None
    hyperparameters: dict[str, Scalar | None]
    checkpoint: str | None
    worker: str | None
    attempt: int
    reason: str | None
    metric: str
    value: float | None
    diagnosis: DiagnosisRow | None


class BorderWarning(BaseModel):
    """A best value on the border of its range, as `master borders --json` prints it."""

    hyperparameter: str
    side: Literal["low", "high"]
    best: float
    range: tuple[float, float]
    support: int
    advice: str


class StageProgress(BaseModel):
    """Where a stage stands."""

    stage: str
    kind: str
    epochs: float = Field(description="Budget of a trial.")
    launched: bool
    trials: int = Field(description="Planned or published, whichever is more.")
    ended: int
    counts: dict[str, int] = Field(description="By state, in lower case.")
    counts_from: Literal["redis", "folder"] = Field(description="The folder knows of ended trials alone.")
    pace: float | None = Field(description="Trials ended a second in the last minute; null when none did, or none is left.")
    left_s: float | None = Field(description="Seconds to go at this pace.")
    best: RankedTrial | None
    borders: list[BorderWarning]
    version: int = Field(description="Grows with each change of the ranking.")


class Overview(BaseModel):
    """A search."""

    search: str
    id: str | None
    task: str
    metric: str
    mode: str
    seed: int
    master_alive: bool | None = Field(default=None, description="Whether a `master launch` watches it; null while Redis is away.")
    stages: list[StageProgress] = []

    @classmethod
    def of(cls, search: Search) -> Self:
        """Without its stages."""
        return cls(search=search.name, id=search.id, task=search.task, metric=search.metric, mode=search.mode, seed=search.seed)


class RankingPage(BaseModel):
    """Some rows of a stage's ranking."""

    stage: str
    version: int
    total: int = Field(description="Ended trials in the stage.")
    matching: int = Field(description="Those that pass the filter.")
    offset: int
    varied: list[str] = Field(description="The hyperparameters whose values differ between trials.")
    states: dict[str, int] = Field(description="Ended trials by state.")
    problem: str | None = Field(default=None, description="What is wrong with the filter, as it is while one is typed; no row passes then.")
    rows: list[RankedTrial]


class UnfinishedTrial(BaseModel):
    """A trial that waits or runs."""

    trial: str
    state: Literal["pending", "running"]
    hyperparameters: dict[str, Scalar | None]
    budget_epochs: float
    attempt: int | None = None
    worker: str | None = None
    phase: str | None = None
    epoch: float | None = None
    value: float | None = Field(default=None, description="Of the search's metric, the best so far.")
    claimed_s: float | None = Field(default=None, description="Seconds since its worker claimed it.")
    still_s: float | None = Field(default=None, description="Seconds since its work last moved.")
    array_width: int | None = None


class UnfinishedPage(BaseModel):
    """Some of a stage's trials that wait or run."""

    stage: str
    state: Literal["pending", "running"]
    total: int
    offset: int
    varied: list[str]
    rows: list[UnfinishedTrial]


class AttemptRow(BaseModel):
    """One try at a trial that left a record, or that runs now."""

    attempt: int
    state: str
    reason: str | None = None
    worker: str | None = None
    device: str | None = None
    epochs: float | None = None
    value: float | None = None
    seconds: float | None = None
    ended_at: float | None = Field(default=None, description="Unix time, s.")


class TrialDetail(BaseModel):
    """All that is known of a trial."""

    search: str
    trial: str
    stage: str
    state: str
    attempt: int
    rank: int | None
    of: int = Field(description="Ended trials in the stage.")
    metric: str
    value: float | None
    val_acc: float | None
    val_loss: float | None
    epochs: float | None
    best_epoch: float | None
    budget_epochs: float
    seed: str = Field(description="63 bits: more than a number of JavaScript holds.")
    hyperparameters: dict[str, Scalar | None]
    toml: str = Field(description="The configuration as the [space] of a search file.")
    curves: Curves
    curves_from: Literal["record", "redis", "nowhere"]
    first_loss: float | None
    diagnosis: DiagnosisRow | None
    reason: str | None
    traceback: str | None
    checkpoint: str | None = Field(description="Path of the weights, if they are kept.")
    picture: str | None = Field(description="Address of the picture of its first layer's weights.")
    running: UnfinishedTrial | None
    attempts: list[AttemptRow]


class WorkerRow(BaseModel):
    """A worker, as `master workers --json` prints it, and how many trials it ends."""

    worker: str
    host: str
    device: str
    device_model: str
    state: str
    array_width: int
    trials: int
    trials_done: int
    last_seen_s: float
    backend: str
    reason: str = Field(description="Why it is put aside; else empty.")
    pace: float | None = Field(description="Trials done a second in the last minute.")


class Part(BaseModel):
    """How one of the two things the dashboard reads is doing."""

    state: Literal["ok", "away", "empty", "starting"]
    where: str
    message: str
    since: float = Field(description="Unix time of the last change, s.")


class Health(BaseModel):
    """Whether what the dashboard shows is up to date."""

    redis: Part
    folder: Part
    warnings: list[str] = Field(description="Damaged records and the like, the latest last.")


class SearchLine(BaseModel):
    """A search in the list."""

    search: str
    ended: int
    running: int
    trials: int


class State(BaseModel):
    """What an event carries: everything but rows and curves."""

    sequence: int = Field(description="Grows with each change.")
    moving: int = Field(description="Grows whenever a running trial has moved.")
    health: Health
    searches: list[SearchLine]
    workers: list[WorkerRow]
    overview: Overview | None = Field(description="Of the search that was asked for.")


class Session(BaseModel):
    """What this visitor may do, and what was asked for on the command line."""

    may_change: bool
    search: str | None
    version: str


class Target(BaseModel):
    """What to end: exactly one of trial, worker and stage; the search belongs to a trial and a stage."""

    search: str | None = None
    trial: str | None = None
    worker: str | None = None
    stage: str | None = None


class Done(BaseModel):
    """What was done, in words."""

    message: str


class Problem(BaseModel):
    """Why there is no other answer."""

    error: str


class FigureName(BaseModel):
    """A figure that can be asked for."""

    name: str
    title: str

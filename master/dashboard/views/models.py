"""The answers of the API, as its OpenAPI page describes them.

A value that is not finite or not known is null.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field

from common.search.search_file import Search
from common.search.values import Value
from master.results.columns import DiagnosisRow, RankedTrial

Curves = dict[str, list[float | None]]


class BorderWarning(BaseModel):
    """A best value on the border of its range, as `master borders --json` prints it."""

    hyperparameter: str
    side: Literal["low", "high"]
    best: float
    range: tuple[float, float]
    support: int
    advice: str


class Guessing(BaseModel):
    """Finding that the best trial cannot be told from guessing.

    The best row of `master rank --format json` has it as well.
    """

    sentence: str
    direction: Literal["raise", "lower", "between", "unknown"] = Field(
        description="How to change the learning rate."
    )
    ranges: dict[str, dict[str, list[float]]] = Field(
        description="Ranges to try, by hyperparameter, in the form of a search file."
    )


class RungProgress(BaseModel):
    """One rung of a stage.

    It counts the trials that train to its budget, and those that go on from it.
    """

    epochs: float
    planned: int = Field(
        description="Trials that train to it; the planned number until all are known."
    )
    awaited: int = Field(description="Trials known to train to it.")
    trained: int = Field(description="Trials that have ended at this rung, on the way, or above.")
    running: int
    promoted: int = Field(description="Trials promoted from here so far.")
    decided: bool = Field(description="Whether all promotions from here are decided.")


class Cost(BaseModel):
    """Device time. The time of an array is shared by its slots."""

    device_s: float = 0.0
    words: str = Field(default="", description="Such as 1.4 device-hours; empty for none.")


class Estimate(BaseModel):
    """Pace and time left, smoothed over the last minute or more; null while nothing trains."""

    pace: float | None = Field(
        default=None,
        description="Trainings a second; null when none trained lately, or none is left.",
    )
    left_s: float | None = Field(default=None, description="Seconds to go at this pace.")
    left_range_s: tuple[float, float] | None = Field(
        default=None, description="Range of about 95 %; null while too little is known."
    )
    pace_words: str = ""
    left_words: str = ""


class AtWork(BaseModel):
    """What a worker does for a search."""

    worker: str
    device: str
    does: str = Field(
        description="trains; elsewhere for trials of another search; else the worker's state."
    )
    trials: int
    stages: dict[str, int] = Field(description="Its trials by stage.")
    widths: list[int] = Field(description="Widths of its arrays.")
    backend: str


class NoteRow(BaseModel):
    """Tags and note of a trial or of a search."""

    tags: list[str] = []
    note: str = ""
    edit: int = Field(default=0, description="Grows with each change.")
    at: float | None = Field(default=None, description="Unix time of the last change, s.")


class NotedTrial(NoteRow):
    """Tags and note of a trial."""

    trial: str


class StageProgress(Estimate):
    """How far a stage is."""

    stage: str
    kind: str
    kind_words: str = Field(
        description="What its trials train on, after their budget; may be empty."
    )
    epochs: float = Field(description="Budget of a trial.")
    launched: bool
    trials: int = Field(description="Number planned or published, whichever is larger.")
    ended: int
    counts: dict[str, int] = Field(description="By state, in lower case.")
    counts_from: Literal["redis", "folder"] = Field(
        description="Source of the counts; the folder knows only ended trials."
    )
    trainings: int = Field(description="Trainings at all rungs; a promoted trial counts at each.")
    trained: int = Field(
        description="Trainings that have ended; never less when a trial waits for a longer budget."
    )
    rungs: list[RungProgress]
    cost: Cost = Field(description="Of its own trials, whichever stage promoted them.")
    best: RankedTrial | None
    borders: list[BorderWarning]
    version: int = Field(
        description="Grows with each change of the ranking of this stage or one before it."
    )


class Overview(BaseModel):
    """A search and its stages."""

    search: str
    id: str | None
    task: str
    metric: str
    mode: str
    seed: int
    master_alive: bool | None = Field(
        default=None, description="Whether a `master launch` watches it; null while Redis is away."
    )
    best: RankedTrial | None = Field(
        default=None,
        description="The best of all stages, by budget first, as `master rank` has it.",
    )
    best_drawn: str = Field(default="", description="How its configuration was drawn, in words.")
    guessing: Guessing | None = Field(
        default=None,
        description="Set if the best is no better than guessing; then there are no borders.",
    )
    measured: int = Field(default=0, description="Trials that it was selected over.")
    version: int = Field(
        default=0, description="Grows with each change of the ranking of all stages."
    )
    stages: list[StageProgress] = []
    estimate: Estimate = Field(default=Estimate(), description="Of all launched stages together.")
    to_come: Estimate = Field(
        default=Estimate(), description="The time that the stages not launched yet will take."
    )
    cost: Cost = Cost()
    at_work: list[AtWork] = Field(
        default=[], description="What each worker does for the search; the idle ones, too."
    )
    noted: NoteRow = NoteRow()
    noted_trials: list[NotedTrial] = Field(
        default=[], description="Trials with tags or notes, the latest first; at most 50."
    )
    n_noted: int = Field(default=0, description="Number of trials with tags or notes.")
    notes_version: int = Field(default=0, description="Grows with each change of notes or tags.")

    @classmethod
    def of(cls, search: Search, name: str) -> Self:
        """Return the overview of a search without its stages. The name is that of its folder."""
        return cls(
            search=name,
            id=search.id,
            task=search.task,
            metric=search.metric,
            mode=search.mode,
            seed=search.seed,
        )


class RankingPage(BaseModel):
    """Some rows of the ranking of a stage, or of all stages."""

    stage: str = Field(description="Empty for all stages.")
    version: int
    total: int = Field(description="Ended trials in it.")
    matching: int = Field(description="Those that pass the filter.")
    offset: int
    varied: list[str] = Field(description="The hyperparameters whose values differ between trials.")
    states: dict[str, int] = Field(description="Ended trials by state.")
    problem: str | None = Field(
        default=None,
        description="What is wrong with the filter; then no row passes. "
        "Expected while a filter is being typed.",
    )
    rows: list[RankedTrial]


class UnfinishedTrial(BaseModel):
    """A pending or running trial."""

    trial: str
    state: Literal["pending", "running"]
    hyperparameters: dict[str, Value | None]
    budget_epochs: float
    max_epochs: float = Field(description="The longest budget that it may get.")
    rung: int = Field(description="How often it has been promoted.")
    drawn: str = ""
    parents: list[str] = []
    attempt: int | None = None
    worker: str | None = None
    phase: str | None = None
    epoch: float | None = None
    value: float | None = Field(
        default=None, description="Best value of the search's metric so far."
    )
    claimed_s: float | None = Field(
        default=None, description="Seconds since its worker claimed it."
    )
    still_s: float | None = Field(default=None, description="Seconds since its work last moved.")
    array_width: int | None = None
    tags: list[str] = []
    note: str = ""


class UnfinishedPage(BaseModel):
    """Some of the pending or running trials of a stage, or of all stages."""

    stage: str = Field(description="Empty for all stages.")
    state: Literal["pending", "running"]
    total: int
    offset: int
    varied: list[str]
    rows: list[UnfinishedTrial]


class AttemptRow(BaseModel):
    """One attempt at a trial that left a record, or that runs now."""

    attempt: int
    state: str
    budget_epochs: float
    rung: int = Field(
        description="How often the trial had been promoted when it began; "
        "a longer budget is no second try."
    )
    reason: str | None = None
    worker: str | None = None
    device: str | None = None
    epochs: float | None = None
    value: float | None = None
    seconds: float | None = None
    ended_at: float | None = Field(default=None, description="Unix time, s.")


class Relative(BaseModel):
    """A parent or a child of a trial."""

    trial: str
    state: str | None = Field(description="Null if it has no record.")
    value: float | None
    budget_epochs: float | None
    drawn: str


class RungValue(BaseModel):
    """The best value of the metric within one budget of a trial."""

    epochs: float
    value: float | None
    stage: str | None = Field(description="Stage that promoted it there; null if unknown.")


class NoteChange(BaseModel):
    """What to write about a trial, or about the search without one, in place of what is there."""

    search: str
    trial: str | None = None
    tags: list[str] = []
    note: str = ""
    edit: int | None = Field(
        default=None,
        description="The edit that this one follows; refused (409) if there is a later one.",
    )


class LogPart(BaseModel):
    """A part of what a trial or a worker wrote."""

    where: str = Field(description="The file.")
    text: str
    begin: int = Field(description="Byte at which the text begins.")
    end: int = Field(description="Byte at which the next part begins.")
    size: int = Field(description="Bytes of the file.")
    file: str = Field(description="Names the file; another one means that it was replaced.")
    over: bool = Field(description="Whether nothing more will be written.")
    attempt: int | None = None
    attempts: list[int] = Field(default=[], description="Attempts that have an output.")


class LogFile(BaseModel):
    """A log of a worker or a job in a search's folder."""

    name: str = Field(description="Below the folder logs/.")
    size: int
    at: float = Field(description="Unix time of the last line, s.")


class TrialDetail(BaseModel):
    """All that is known of a trial."""

    search: str
    trial: str
    stage: str
    state: str
    attempt: int
    rank: int | None
    of: int = Field(description="Ended trials in the stage.")
    repeats: dict[str, float | None] | None = Field(
        description="As in the ranking: of the runs of its configuration, if repeated."
    )
    metric: str
    value: float | None
    val_acc: float | None
    val_loss: float | None
    metrics: dict[str, float | None] = Field(description="All metrics, at the best epoch.")
    epochs: float | None
    best_epoch: float | None
    budget_epochs: float
    max_epochs: float = Field(description="The longest budget that it may get.")
    rung: int = Field(description="How often it has been promoted.")
    budget: str = Field(description="In words: 7 of 20 epochs, promoted twice.")
    drawn: str = Field(description="How its configuration was drawn, as a word.")
    drawn_words: str
    rungs: list[RungValue] = Field(description="Each budget that it reached.")
    parents: list[Relative] = Field(
        description="Trials that its configuration came from, also of other stages."
    )
    children: list[Relative] = Field(description="Trials whose configurations came from it.")
    seed: str = Field(description="63 bits, as text: a JavaScript number has fewer.")
    hyperparameters: dict[str, Value | None]
    toml: str = Field(description="The configuration as the [space] of a search file.")
    curves: Curves
    curves_from: Literal["record", "redis", "nowhere"]
    first_loss: float | None
    diagnosis: DiagnosisRow | None
    reason: str | None
    traceback: str | None
    output: str | None = Field(
        description="The end of what its loop or program wrote to stdout and stderr: 16 KiB."
    )
    outputs: list[int] = Field(description="Attempts that have an output.")
    noted: NoteRow
    cost: Cost
    checkpoint: str | None = Field(description="Path of the weights, if they are kept.")
    picture: str | None = Field(description="Address of the picture of its first layer's weights.")
    running: UnfinishedTrial | None
    attempts: list[AttemptRow]


class WorkerRow(BaseModel):
    """A worker, as `master workers --json` prints it, and its pace."""

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
    protocol: int = Field(description="Its protocol; it trains only searches of the same protocol.")
    job: str = Field(description="Id of the scheduler's job that it runs in; else empty.")
    log: str = Field(
        description="The file of its messages, relative to the checkpoint root if it is in there; "
        "empty for none."
    )
    pace: float | None = Field(description="Trials done a second in the last minute.")


class Part(BaseModel):
    """State of one of the two sources that the dashboard reads: Redis or the folder."""

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
    """A search in the list of searches."""

    search: str
    ended: int
    running: int
    trials: int
    trained: int = Field(description="Trainings that have ended, over all rungs and stages.")
    trainings: int
    best: RankedTrial | None
    estimate: Estimate
    cost: Cost
    tags: list[str]
    note: str


class State(BaseModel):
    """The content of an event: everything but rows and curves."""

    sequence: int = Field(description="Grows with each change.")
    moving: int = Field(description="Grows whenever a running trial has moved.")
    health: Health
    searches: list[SearchLine]
    workers: list[WorkerRow]
    overview: Overview | None = Field(description="Overview of the requested search.")


class Session(BaseModel):
    """What this visitor may do, and what was asked for on the command line."""

    may_change: bool
    search: str | None
    version: str
    drawn: dict[str, str] = Field(
        description="Meaning of each word for how a configuration was drawn."
    )


class Target(BaseModel):
    """What to end: exactly one of trial, worker and stage.

    A trial or a stage needs its search.
    """

    search: str | None = None
    trial: str | None = None
    worker: str | None = None
    stage: str | None = None


class Done(BaseModel):
    """Message that says what was done."""

    message: str


class Problem(BaseModel):
    """Message of an error."""

    error: str


class Conflict(Problem):
    """Message about a note that somebody else has changed, and what it says now."""

    noted: NoteRow


class FigureName(BaseModel):
    """A figure that can be requested."""

    name: str
    title: str
    about: str

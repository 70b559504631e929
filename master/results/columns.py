"""The columns of a ranking, each declared once.

The rows of ``master/results/ranking.py`` have these columns, in this order. So do `master rank
--format json`, the API of the dashboard with its page, and the words of a filter. A column has the
name of a field of ``Record``, or of a metric: then it has the value of the best epoch.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from common.search.values import Value


class DiagnosisRow(BaseModel):
    """What a trial's curves show, as a word and a sentence."""

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
    hyperparameters: dict[str, Value | None]
    checkpoint: str | None
    worker: str | None
    attempt: int
    reason: str | None
    metric: str
    value: float | None
    diagnosis: DiagnosisRow | None
    budget_epochs: float = Field(description="Budget of its last attempt.")
    max_epochs: float = Field(description="The longest budget that it may get.")
    rung: int = Field(description="How often it has been promoted.")
    drawn: str = Field(
        description="How its configuration was drawn, as a word; /api/session says what each means."
    )
    parents: list[str] = Field(description="Trials that its configuration came from.")
    repeats: dict[str, float | None] | None = Field(
        description="Mean, deviation and number of the runs of its configuration, if repeated."
    )
    seconds: float | None = Field(description="Seconds that its training took, at all budgets.")
    metrics: dict[str, float | None] = Field(description="All metrics of its best epoch.")
    tags: list[str] = Field(default=[], description="Tags that people gave it.")
    note: str = Field(default="", description="What people wrote about it.")


COLUMNS = tuple(RankedTrial.model_fields)
# Of `leaderboard.csv` and `master rank --format csv`: before the hyperparameters, and after.
CSV_HEAD = ("rank", "trial", "stage", "state", "metric", "value", "val_acc", "val_loss", "epochs")
CSV_TAIL = ("checkpoint", "worker", "attempt", "diagnosis", "rung", "drawn", "parents", "reason")
# What people write about a trial. Tables have these columns if any trial has a value in them.
NOTED = ("tags", "note")
# A filter compares, and a table sorts by, all columns but these, and what is in them.
UNSORTED = frozenset(("hyperparameters", "metrics", "metric", "repeats"))
SPREAD = ("mean", "deviation")  # columns of the runs of a repeated configuration
SORTED = tuple(name for name in COLUMNS if name not in UNSORTED)

"""JSON API of the dashboard: routes that read searches, stages, trials, workers and figures.

No route here changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import PlainTextResponse, Response

from common.broker.connection import Broker
from common.errors import QueueError
from common.folder import pictures
from common.search.trial import DRAWN, TrialState
from master.dashboard.filtering import FilterError, check_names, select
from master.dashboard.views import models
from master.dashboard.views.search_view import SearchView
from master.dashboard.views.stage_view import Ranked, StageView
from master.dashboard.views.trial_page import (
    make_unfinished_row,
    pending_row,
    stage_of_trial,
    trial_detail,
)
from master.dashboard.watch import Watch
from master.figures.names import FIGURE_TITLES, FIGURES
from master.results import ranking
from master.results.columns import RankedTrial

MOST_ROWS = 1000  # in one answer; a browser shows a few dozen
LIVE_STATES = Literal["running", "pending"]
ENDED_STATES = Literal["completed", "exploded", "stopped", "killed", "failed"]
PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": models.Problem, "description": "No such search, stage or trial."},
    422: {"model": models.Problem, "description": "The request is invalid."},
}

FIGURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"schema": {"type": "object"}}}}
}
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
Form = Literal["csv", "parquet"]
FORMS: dict[Form, str] = {
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}
TABLE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}} for kind in FORMS.values()
        }
    }
}
MOST_TEXT = 500  # characters of a filter

router = APIRouter(prefix="/api", responses=PROBLEMS)


def the_watch(request: Request) -> Watch:
    """Return the application's watch."""
    watch: Watch = request.app.state.watch
    return watch


def the_search(search: str, watch: Annotated[Watch, Depends(the_watch)]) -> SearchView:
    """Return the search of that name.

    The name is only looked up among the known searches, so it cannot lead to another folder.

    Raises:
        HTTPException: No such search (404).
    """
    view = watch.views.get(search)
    if view is None:
        known = ", ".join(watch.views) or "none"
        raise HTTPException(404, f"{search!r}: no such search in {watch.root} (there: {known})")
    return view


def the_stage(stage: str, view: Annotated[SearchView, Depends(the_search)]) -> StageView:
    """Return the stage of that name.

    Raises:
        HTTPException: No such stage (404).
    """
    found = view.stage(stage)
    if found is None:
        raise HTTPException(
            404, f"{stage!r}: no such stage (there: {', '.join(s.stage.name for s in view.stages)})"
        )
    return found


def the_broker(watch: Annotated[Watch, Depends(the_watch)]) -> Broker | None:
    """Return the connection to Redis, or None while Redis is away."""
    try:
        return watch.client()
    except QueueError:
        return None


TheWatch = Annotated[Watch, Depends(the_watch)]
TheSearch = Annotated[SearchView, Depends(the_search)]
TheStage = Annotated[StageView, Depends(the_stage)]
TheBroker = Annotated[Broker | None, Depends(the_broker)]
Offset = Annotated[int, Query(ge=0)]
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS)]


@router.get("/session")
def session(request: Request) -> models.Session:
    """Return what this visitor may do, and what was asked for on the command line."""
    may_change = request.app.state.access.has_token(request.headers)
    return models.Session(
        may_change=may_change,
        search=request.app.state.first_search,
        version=own_version(),
        drawn=DRAWN,
    )


def own_version() -> str:
    """Return the version of the installed package, or "unknown"."""
    try:
        return version("coarsefine")
    except PackageNotFoundError:
        return "unknown"


@router.get("/state")
def state(watch: TheWatch, search: str | None = None) -> models.State:
    """Return what an event carries: health, searches, workers, and the overview of one search."""
    return watch.state(search)


@router.get("/health")
def health(watch: TheWatch) -> models.Health:
    """Return whether Redis and the folder can be read."""
    return watch.health()


@router.get("/workers")
def workers(watch: TheWatch) -> list[models.WorkerRow]:
    """Return the workers of this Redis."""
    return list(watch.workers)


@router.get("/searches")
def searches(watch: TheWatch) -> list[models.SearchLine]:
    """Return the searches in the checkpoint root."""
    return watch.lines()


@router.get("/searches/{search}")
def overview(view: TheSearch) -> models.Overview:
    """Return each stage's progress, pace, time left, best trial and border warnings."""
    return view.overview


@dataclass(frozen=True)
class Question:
    """The rows of a ranking that are wanted: filter, order and page.

    FastAPI fills it from the query of the URL.
    """

    offset: Offset = 0
    limit: Limit = 50
    sort: Annotated[
        str, Query(max_length=MOST_TEXT, description="A column, or a hyperparameter's name.")
    ] = "rank"
    order: Literal["asc", "desc"] = "asc"
    state: ENDED_STATES | None = None
    filter: Annotated[
        str,
        Query(
            max_length=MOST_TEXT,
            description="Words that must all match: `learning_rate>0.01 noisy`. "
            "`OR` and parentheses give alternatives: `(hidden=64 OR hidden=128) noisy`.",
        ),
    ] = ""


TheQuestion = Annotated[Question, Depends()]
Columns = Annotated[
    str,
    Query(
        max_length=4 * MOST_TEXT,
        description="Columns, hyperparameters and metrics, separated by commas; empty for those of "
        "`leaderboard.csv`.",
    ),
]


@router.get("/searches/{search}/ranking")
def read_ranking_of_all(view: TheSearch, question: TheQuestion) -> models.RankingPage:
    """Return the ended trials of all stages.

    They are ranked as by `master rank`: by budget first.
    """
    return _rows(view, view.whole.ranked, "", question)


@router.get("/searches/{search}/stages/{stage}/ranking")
def read_ranking(view: TheSearch, stage: TheStage, question: TheQuestion) -> models.RankingPage:
    """Return the ended trials of a stage, ranked as by `master rank --stage`.

    They can be sorted and filtered, and come a page at a time.
    """
    return _rows(view, stage.ranked, stage.stage.name, question)


@router.get("/searches/{search}/download.{form}", response_class=Response, responses=TABLE)
def download_of_all(
    view: TheSearch, form: Form, question: TheQuestion, columns: Columns = ""
) -> Response:
    """Return all rows of all stages that pass the filter, as CSV or Parquet."""
    return _download(view, view.whole.ranked, view.search.name, form, question, columns)


@router.get(
    "/searches/{search}/stages/{stage}/download.{form}", response_class=Response, responses=TABLE
)
def download(
    view: TheSearch, stage: TheStage, form: Form, question: TheQuestion, columns: Columns = ""
) -> Response:
    """Return all rows of a stage that pass the filter, as CSV or Parquet."""
    name = f"{view.search.name}-{stage.stage.name}"
    return _download(view, stage.ranked, name, form, question, columns)


def _download(
    view: SearchView, now: Ranked, name: str, form: Form, asked: Question, columns: str
) -> Response:
    found = _select(view, now, asked)
    names = list(dict.fromkeys(filter(None, columns.split(","))))
    check_names(names, now.rows)
    content: str | bytes = (
        ranking.rows_as_csv(found, names)
        if form == "csv"
        else ranking.rows_as_parquet(found, names)
    )
    return Response(
        content,
        media_type=FORMS[form],
        headers={"content-disposition": f'attachment; filename="{name}.{form}"'},
    )


def _select(view: SearchView, now: Ranked, asked: Question) -> Sequence[Mapping[str, Any]]:
    rows = ranking.add_notes(now.rows, view.notes.trials)
    return select(rows, asked.filter, asked.state, asked.sort, asked.order == "desc")


def _rows(view: SearchView, now: Ranked, stage: str, asked: Question) -> models.RankingPage:
    problem, found = None, list[Mapping[str, Any]]()
    try:
        found = list(_select(view, now, asked))
    except FilterError as error:
        problem = str(error)
    rows = [
        RankedTrial.model_validate(row) for row in found[asked.offset : asked.offset + asked.limit]
    ]
    return models.RankingPage(
        stage=stage,
        version=now.version,
        total=len(now.rows),
        matching=len(found),
        offset=asked.offset,
        varied=now.varied,
        states=now.counts,
        problem=problem,
        rows=rows,
    )


@router.get("/searches/{search}/unfinished")
def read_unfinished_of_all(
    view: TheSearch,
    broker: TheBroker,
    state: LIVE_STATES = "running",
    offset: Offset = 0,
    limit: Limit = 50,
) -> models.UnfinishedPage:
    """Return the running or the pending trials of all stages."""
    return _page_unfinished(view, None, broker, state, offset, limit)


@router.get("/searches/{search}/stages/{stage}/unfinished")
def read_unfinished(
    view: TheSearch,
    stage: TheStage,
    broker: TheBroker,
    state: LIVE_STATES = "running",
    offset: Offset = 0,
    limit: Limit = 50,
) -> models.UnfinishedPage:
    """Return the running or the pending trials of a stage.

    Running trials come furthest first, pending ones in the order of their numbers. While Redis is
    away there are none.
    """
    return _page_unfinished(view, stage.stage.name, broker, state, offset, limit)


def _page_unfinished(
    view: SearchView,
    stage: str | None,
    broker: Broker | None,
    state: LIVE_STATES,
    offset: int,
    limit: int,
) -> models.UnfinishedPage:
    rows, total = (
        _running(view, stage)
        if state == "running"
        else _pending(view, stage, broker, offset, limit)
    )
    window = rows[offset : offset + limit] if state == "running" else rows
    window = [_add_note(row, view) for row in window]
    varied = ranking.find_varied(
        [{n: v for n, v in row.hyperparameters.items() if v is not None} for row in window]
    )
    return models.UnfinishedPage(
        stage=stage or "", state=state, total=total, offset=offset, varied=varied, rows=window
    )


def _add_note(row: models.UnfinishedTrial, view: SearchView) -> models.UnfinishedTrial:
    own = view.notes.of(row.trial)
    return row.model_copy(update={"tags": list(own.tags), "note": own.note})


def _running(view: SearchView, stage: str | None) -> tuple[list[models.UnfinishedTrial], int]:
    rows = [
        make_unfinished_row(running)
        for running in view.running
        if stage in (None, running.trial.stage)
    ]
    return sorted(rows, key=lambda row: (-(row.epoch or 0.0), row.trial)), len(rows)


def _pending(
    view: SearchView, stage: str | None, broker: Broker | None, offset: int, limit: int
) -> tuple[list[models.UnfinishedTrial], int]:
    if broker is None:
        return [], 0
    queue = view.queue(broker.client)
    waiting = queue.by_state(TrialState.PENDING, stage=stage)
    trials = queue.trials_of(waiting[offset : offset + limit])
    return [pending_row(trial) for trial in trials if trial is not None], len(waiting)


@router.get("/searches/{search}/stages/{stage}/borders")
def borders(view: TheSearch, stage: TheStage) -> list[models.BorderWarning]:
    """Return the best values that lie on the border of their range.

    They are the same as those of `master borders --json`.
    """
    return [
        models.BorderWarning.model_validate(border.as_json)
        for border in view.whole.borders_of(stage.stage.name)
    ]


@router.get("/searches/{search}/trials/{trial}")
def trial(view: TheSearch, trial: str, broker: TheBroker) -> models.TrialDetail:
    """Return a trial's configuration, curves, diagnosis, attempts and the path of its weights.

    The curves are those of the record. While the trial runs they are those that Redis has so far.
    """
    return _detail(view, trial, broker)


def _detail(view: SearchView, trial: str, broker: Broker | None) -> models.TrialDetail:
    stage = stage_of_trial(view, trial)
    detail = trial_detail(view, stage, trial, broker) if stage else None
    if detail is None:
        away = "" if broker else "; Redis, which knows of waiting and running ones, is away"
        raise HTTPException(404, f"{trial!r}: no such trial in search {view.search.name!r}{away}")
    return detail


@router.get("/searches/{search}/trials/{trial}/toml", response_class=PlainTextResponse)
def toml(view: TheSearch, trial: str, broker: TheBroker) -> str:
    """Return the configuration as the [space] of a search file."""
    return _detail(view, trial, broker).toml


@router.get("/searches/{search}/trials/{trial}/picture", response_class=Response, responses=PICTURE)
def picture(view: TheSearch, trial: str, broker: TheBroker) -> Response:
    """Return the picture of the first layer's weights as PNG.

    Only image models whose checkpoint is kept have one.
    """
    detail = _detail(view, trial, broker)
    stage = stage_of_trial(view, trial)
    if stage is None or detail.picture is None:
        raise HTTPException(404, f"{trial}: has no picture of its weights")
    try:
        content = pictures.read(stage.folder.picture_path(trial, detail.attempt))
    except OSError as error:
        raise HTTPException(404, f"{trial}: its picture {error.strerror}") from None
    return Response(content, media_type="image/png")


@router.get("/figures")
def figures() -> list[models.FigureName]:
    """Return the names, titles and descriptions of the figures that a stage has."""
    return [
        models.FigureName(name=name, title=FIGURE_TITLES[name], about=about)
        for name, about in FIGURES.items()
    ]


@router.get(
    "/searches/{search}/stages/{stage}/figures/{figure}", response_class=Response, responses=FIGURE
)
def figure(
    request: Request,
    view: TheSearch,
    stage: TheStage,
    figure: str,
    columns: Annotated[int, Query(ge=1, le=2)] = 2,
    filter: Annotated[str, Query(max_length=MOST_TEXT)] = "",
) -> Response:
    """Return a figure as plotly's JSON (``data`` and ``layout``).

    With a filter, figures that show single trials show those that pass it.
    """
    if figure not in FIGURES:
        raise HTTPException(404, f"{figure!r}: no such figure; there are {', '.join(FIGURES)}")
    if not stage.ranked.rows:
        raise HTTPException(404, f"stage {stage.stage.name!r}: no trial has ended yet")
    words, matching = filter.strip(), None
    if words:
        matching = frozenset(row["trial"] for row in select(view.rows_until(stage), words))
    drawn = request.app.state.drawings.figure(view, stage, figure, columns, words, matching)
    return Response(drawn, media_type="application/json")

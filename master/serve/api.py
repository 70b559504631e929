"""What the dashboard knows, as readable JSON. Nothing here changes anything."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import PlainTextResponse, Response

from common import pictures
from common.broker import Broker
from common.errors import QueueError
from common.trial import TrialState
from master import ranking
from master.figures.names import FIGURES
from master.serve import models
from master.serve.filtering import FilterError, select
from master.serve.search_view import SearchView
from master.serve.stage_view import StageView
from master.serve.trial_page import pending_row, stage_of_trial, trial_detail, unfinished_row
from master.serve.watch import Watch

MOST_ROWS = 1000  # a page of a table; a browser shows a few dozen
ENDED_STATES = Literal["completed", "exploded", "stopped", "killed", "failed"]
PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": models.Problem, "description": "No such search, stage or trial."},
    422: {"model": models.Problem, "description": "The question is not one that can be answered."},
}

FIGURE: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"schema": {"type": "object"}}}}}
PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}}
MOST_TEXT = 500  # characters of a filter

router = APIRouter(prefix="/api", responses=PROBLEMS)


def the_watch(request: Request) -> Watch:
    """What the application watches with."""
    watch: Watch = request.app.state.watch
    return watch


def the_search(search: str, watch: Annotated[Watch, Depends(the_watch)]) -> SearchView:
    """A search by name; names are only looked up, so that none can climb."""
    view = watch.views.get(search)
    if view is None:
        known = ", ".join(watch.views) or "none"
        raise HTTPException(404, f"{search!r}: no such search in {watch.root} (there: {known})")
    return view


def the_stage(stage: str, view: Annotated[SearchView, Depends(the_search)]) -> StageView:
    """A stage by name."""
    found = view.stage(stage)
    if found is None:
        raise HTTPException(404, f"{stage!r}: no such stage (there: {', '.join(s.stage.name for s in view.stages)})")
    return found


def the_broker(watch: Annotated[Watch, Depends(the_watch)]) -> Broker | None:
    """The connection to Redis, None while it is away."""
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
    """What this visitor may do."""
    may_change = request.app.state.access.has_token(request.headers)
    return models.Session(may_change=may_change, search=request.app.state.first_search, version=own_version())


def own_version() -> str:
    """The program's."""
    try:
        return version("coarsefine")
    except PackageNotFoundError:
        return "unknown"


@router.get("/state")
def state(watch: TheWatch, search: str | None = None) -> models.State:
    """What an event carries: health, searches, workers, and the overview of one search."""
    return watch.state(search)


@router.get("/health")
def health(watch: TheWatch) -> models.Health:
    """Whether Redis and the folder can be read."""
    return watch.health()


@router.get("/workers")
def workers(watch: TheWatch) -> list[models.WorkerRow]:
    """The workers of this Redis."""
    return list(watch.workers)


@router.get("/searches")
def searches(watch: TheWatch) -> list[models.SearchLine]:
    """The searches in the checkpoint root."""
    return watch.lines()


@router.get("/searches/{search}")
def overview(view: TheSearch) -> models.Overview:
    """Each stage's progress, pace, time left, best trial and border warnings."""
    return view.overview


@router.get("/searches/{search}/stages/{stage}/ranking")
def ranked(
    stage: TheStage,
    offset: Offset = 0,
    limit: Limit = 50,
    sort: Annotated[str, Query(max_length=MOST_TEXT, description="A column, or a hyperparameter's name.")] = "rank",
    order: Literal["asc", "desc"] = "asc",
    state: ENDED_STATES | None = None,
    filter: Annotated[str, Query(max_length=MOST_TEXT, description="Words that must all hold: `learning_rate>0.01 noisy`.")] = "",
) -> models.RankingPage:
    """The ended trials, as `master rank` ranks them; sorted, filtered, some at a time."""
    now, problem = stage.ranked, None
    try:
        found = select(now.rows, filter, state, sort, order == "desc")
    except FilterError as error:
        found, problem = [], str(error)
    rows = [models.RankedTrial.model_validate(row) for row in found[offset : offset + limit]]
    return models.RankingPage(
        stage=stage.stage.name, version=now.version, total=len(now.rows), matching=len(found), offset=offset,
        varied=now.varied, states=now.counts, problem=problem, rows=rows,
    )  # fmt: skip


@router.get("/searches/{search}/stages/{stage}/unfinished")
def unfinished(
    view: TheSearch,
    stage: TheStage,
    broker: TheBroker,
    state: Literal["running", "pending"] = "running",
    offset: Offset = 0,
    limit: Limit = 50,
) -> models.UnfinishedPage:
    """The trials that run, furthest first, or that wait, in the order of their numbers; none while Redis is away."""
    name = stage.stage.name
    rows, total = _running(view, name) if state == "running" else _pending(view, name, broker, offset, limit)
    window = rows[offset : offset + limit] if state == "running" else rows
    varied = ranking.varied([{n: v for n, v in row.hyperparameters.items() if v is not None} for row in window])
    return models.UnfinishedPage(stage=name, state=state, total=total, offset=offset, varied=varied, rows=window)


def _running(view: SearchView, stage: str) -> tuple[list[models.UnfinishedTrial], int]:
    rows = [unfinished_row(running) for running in view.running if running.trial.stage == stage]
    return sorted(rows, key=lambda row: (-(row.epoch or 0.0), row.trial)), len(rows)


def _pending(view: SearchView, stage: str, broker: Broker | None, offset: int, limit: int) -> tuple[list[models.UnfinishedTrial], int]:
    if broker is None:
        return [], 0
    queue = view.queue(broker.client)
    waiting = queue.by_state(TrialState.PENDING, stage=stage)
    trials = queue.trials_of(waiting[offset : offset + limit])
    return [pending_row(trial) for trial in trials if trial is not None], len(waiting)


@router.get("/searches/{search}/stages/{stage}/borders")
def borders(stage: TheStage) -> list[models.BorderWarning]:
    """Best values on the border of their range, as `master borders --json` prints them."""
    return [models.BorderWarning.model_validate(border.as_json) for border in stage.ranked.borders]


@router.get("/searches/{search}/trials/{trial}")
def trial(view: TheSearch, trial: str, broker: TheBroker) -> models.TrialDetail:
    """Configuration, curves (from the record, or as they come), diagnosis, attempts and the path of the weights."""
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
    """The configuration as the [space] of a search file."""
    return _detail(view, trial, broker).toml


@router.get("/searches/{search}/trials/{trial}/picture", response_class=Response, responses=PICTURE)
def picture(view: TheSearch, trial: str, broker: TheBroker) -> Response:
    """The picture of a kept image model's first layer, as PNG."""
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
    """The figures that a stage has."""
    return [models.FigureName(name=name, title=title) for name, title in FIGURES.items()]


@router.get("/searches/{search}/stages/{stage}/figures/{figure}", response_class=Response, responses=FIGURE)
def figure(request: Request, view: TheSearch, stage: TheStage, figure: str, columns: Annotated[int, Query(ge=1, le=2)] = 2) -> Response:
    """A figure as plotly's JSON (``data`` and ``layout``)."""
    if figure not in FIGURES:
        raise HTTPException(404, f"{figure!r}: no such figure; there are {', '.join(FIGURES)}")
    if not stage.ranked.rows:
        raise HTTPException(404, f"stage {stage.stage.name!r}: no trial has ended yet")
    return Response(request.app.state.drawings.figure(view, stage, figure, columns), media_type="application/json")

"""The FastAPI application: guard, pages, JSON API, events and the kill route, on one ``Watch``."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware

from common.errors import ConfigError, QueueError
from master.dashboard import actions, api, events, logs, pages
from master.dashboard.access import Access
from master.dashboard.guard import Guard
from master.dashboard.heads import HeadAsGet
from master.dashboard.views.figures import Drawings
from master.dashboard.watch import Watch

DESCRIPTION = (
    "What the dashboard shows, as JSON. Reading needs no token from the machine itself when the "
    "dashboard is bound to a loopback address; otherwise send `Authorization: Bearer TOKEN`. "
    "Changes always need it, with the header `X-Coarsefine: 1`."
)


def create_app(watch: Watch, access: Access, first_search: str | None = None) -> FastAPI:
    """Create the application with its routes, error handlers and guard.

    Args:
        watch: What the dashboard knows. The caller starts and closes it.
        access: The access rules.
        first_search: The search that the page opens with.
    """
    app = FastAPI(
        title="coarsefine",
        version=api.own_version(),
        description=DESCRIPTION,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.watch, app.state.access, app.state.first_search = watch, access, first_search
    app.state.drawings = Drawings()
    app.state.closed = asyncio.Event()
    for router in (api.router, logs.router, actions.router, events.router, pages.router):
        app.include_router(router)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_exception_handler(ConfigError, _wrong)
    app.add_exception_handler(QueueError, _away)
    app.add_exception_handler(RequestValidationError, _invalid)
    # The last one is the outermost. plotly.js shrinks to a third.
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=6)
    app.add_middleware(HeadAsGet)
    app.add_middleware(Guard, access=access)
    return app


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code)


async def _wrong(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=422)


async def _away(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=503)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"error": f"{where}: {first['msg']}"}, status_code=422)

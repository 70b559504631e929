"""Server-sent events: the state of the dashboard, sent as soon as it changes.

A browser reopens the stream by itself when it breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import StreamingResponse

from master.dashboard.api import PROBLEMS, TheWatch
from master.dashboard.views import models
from master.dashboard.watch import Watch

# Seconds without an event after which a comment is sent. It shows a proxy that the stream is alive,
# and shows the server whether the client is still there.
QUIET_S = 10.0
MOST_LISTENERS = 200  # open pages; each holds a connection
RETRY_MS = 1000  # after which a browser tries again

router = APIRouter(prefix="/api", responses=PROBLEMS)


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"model": models.State, "content": {"text/event-stream": {}}}},
)
async def events(request: Request, watch: TheWatch, search: str | None = None) -> StreamingResponse:
    """Stream the state as ``event: state``, once at the start and again after each change.

    The state is that of ``/api/state``.
    """
    if watch.n_listeners >= MOST_LISTENERS:
        raise HTTPException(503, f"{MOST_LISTENERS} pages are open already; close one")
    headers = {"x-accel-buffering": "no"}  # a proxy must not buffer events
    return StreamingResponse(
        _stream(request, watch, search), media_type="text/event-stream", headers=headers
    )


async def _stream(request: Request, watch: Watch, search: str | None) -> AsyncIterator[str]:
    changed, loop = asyncio.Event(), asyncio.get_running_loop()
    closed: asyncio.Event = request.app.state.closed
    forget = watch.listen(lambda: _wake(loop, changed))
    closing = asyncio.create_task(closed.wait())
    try:
        yield f"retry: {RETRY_MS}\n\n"
        while not closed.is_set():
            changed.clear()
            state = watch.state(search)
            yield f"id: {state.sequence}\nevent: state\ndata: {state.model_dump_json()}\n\n"
            while not await _next(changed, closing):
                yield ": quiet\n\n"
    finally:
        forget()
        closing.cancel()


def _wake(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended since the change
        loop.call_soon_threadsafe(changed.set)


async def _next(changed: asyncio.Event, closing: asyncio.Task[Literal[True]]) -> bool:
    """Wait for a change or the end of the server.

    Returns:
        False if there was neither within ``QUIET_S`` seconds.
    """
    waiting = asyncio.create_task(changed.wait())
    try:
        done, _ = await asyncio.wait(
            {waiting, closing}, timeout=QUIET_S, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        waiting.cancel()
    return bool(done)

"""ASGI middleware that answers HEAD as GET, with the headers only.

Link checkers, proxies and ``curl -I`` ask so.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """ASGI middleware that passes on HEAD as GET, and leaves out the body of the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a HEAD request, and pass on any other."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        begun = asyncio.Event()

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.start" and not begun.is_set():
                begun.set()
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def disconnect_after_headers() -> Message:
            """Tell the application that the client has gone. This ends a stream of events."""
            await begun.wait()
            return {"type": "http.disconnect"}

        return await self._app({**scope, "method": "GET"}, disconnect_after_headers, without_body)

"""ASGI middleware in front of the application.

It asks ``Access`` about every request, and adds the security headers to every answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from master.dashboard.access import SAFE_METHODS, Access, Refusal, without_token

# No inline scripts, and nothing from other hosts. Inline styles are allowed because plotly.js
# writes its own style element.
CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
SIGN_IN = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width">\n'
    "<title>Sign in</title></head><body><h1>This dashboard needs its token</h1><p>{message}.</p>\n"
    # Without an action, the form keeps what its address names after the '#'.
    '<form method="get"><label>Token '
    '<input name="token" type="password" autocomplete="off" required></label>\n'
    "<button>Open</button></form></body></html>"
)


class Guard:
    """ASGI middleware that refuses requests without access."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refused request, and pass on any other."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return None  # the dashboard has no websockets; the server closes them

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        answer = self._answer(scope, Headers(scope=scope))
        await (answer or self._app)(scope, receive, with_headers)
        return None

    def _answer(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        method, path = scope["method"], scope["path"]
        token, query = without_token(scope["query_string"].decode("latin-1"))
        client = scope["client"][0] if scope.get("client") else None
        if token is not None and method in SAFE_METHODS:
            refused = self._access.refusal(
                method, path, {**headers, "authorization": f"Bearer {token}"}, client
            )
            if refused is None and self._access.fits(token):
                return self._sign_in(path, query)
            return _refuse(
                refused
                or Refusal(
                    401, "the token is not that of this dashboard; `master serve` printed it"
                ),
                headers,
            )
        refused = self._access.refusal(method, path, headers, client)
        return _refuse(refused, headers) if refused else None

    def _sign_in(self, path: str, query: str) -> Response:
        """Set the cookie, and redirect to the same page without the token in its address.

        A token in the address would stay in the browser's history.
        """
        # One slash only: "//host" would lead to another site.
        target = "/" + path.lstrip("/\\") + (f"?{query}" if query else "")
        answer = RedirectResponse(target, status_code=303)
        answer.set_cookie(
            self._access.cookie_name,
            self._access.cookie_value,
            httponly=True,
            samesite="strict",
            path="/",
        )
        return answer


def _refuse(refusal: Refusal, headers: Mapping[str, str]) -> Response:
    if refusal.status == 401 and "text/html" in headers.get("accept", ""):
        return HTMLResponse(SIGN_IN.format(message=escape(refusal.message)), status_code=401)
    return JSONResponse({"error": refusal.message}, status_code=refusal.status)

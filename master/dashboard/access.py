"""Access rules of the dashboard: who may read it, and who may change something.

Every request is checked here first. When the dashboard listens on a loopback address, anyone on
this machine may read it. On any other address, and for every change, the token is needed.

A change must also come from the dashboard's own page. Another site's page that is open in the same
browser can send requests, but their Origin header names that site, and they lack the header that
the dashboard's script adds.

Source: OWASP cheat sheets, "Cross-Site Request Forgery Prevention" (custom header, Origin,
SameSite) and "DNS rebinding".
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from common.errors import ConfigError

TOKEN_VARIABLE = "COARSEFINE_TOKEN"
MIN_TOKEN = 16  # characters; a shorter token can be guessed
CHANGE_HEADER = "x-coarsefine"  # a form or an image of another site cannot set a header
MAX_BODY_BYTES = 16 << 10  # a request to kill is one line
SAFE_METHODS = frozenset({"GET", "HEAD"})


def find_token(file: Path | None, environ: Mapping[str, str]) -> tuple[str, bool]:
    """Return the token of the dashboard, and whether it was newly made.

    The token is read from the file, else from the environment. Without both, a new one is made.

    Args:
        file: The ``--token-file``, or None if there is none.
        environ: The environment variables.

    Raises:
        ConfigError: The file cannot be read, or the token is too short or not printable ASCII.
    """
    if file is not None:
        try:
            return _check_token(
                file.read_text(encoding="utf-8").strip(), f"--token-file {file}"
            ), False
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigError(
                f"--token-file {file}: cannot be read ({reason}); "
                "correct the path, or leave it out for a new token"
            ) from error
    given = environ.get(TOKEN_VARIABLE)
    return (
        (_check_token(given, TOKEN_VARIABLE), False) if given else (secrets.token_urlsafe(24), True)
    )


def _check_token(token: str, where: str) -> str:
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"{where}: holds a token of {len(token)} characters; "
            f"use {MIN_TOKEN} or more printable ASCII ones"
        )
    return token


@dataclass(frozen=True)
class Refusal:
    """HTTP status and message of a refused request."""

    status: int
    message: str


@dataclass(frozen=True)
class Access:
    """The access rules of one running dashboard.

    Args:
        token: The secret that allows everything.
        open_to_loopback: Whether a loopback client may read without the token. This is so when the
            dashboard is bound to a loopback address.
        port: The port of the dashboard. It is part of the cookie's name, since browsers send a
            cookie to every port of a host.
        names: Names of this machine, besides its addresses and localhost.
    """

    token: str = field(repr=False)
    open_to_loopback: bool
    port: int
    names: frozenset[str] = frozenset()

    @property
    def cookie_name(self) -> str:
        """Name of the cookie, different for each port."""
        return f"coarsefine_{self.port}"

    @property
    def cookie_value(self) -> str:
        """Value of the cookie. It grants what the token grants, but does not reveal the token."""
        return hmac.new(self.token.encode(), b"cookie", hashlib.sha256).hexdigest()

    def fits(self, token: str) -> bool:
        """Return whether this is the token.

        The comparison takes as long for a nearly right token as for a wrong one.
        """
        return hmac.compare_digest(token.encode(), self.token.encode())

    def has_token(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request carries the token.

        It may be sent as a cookie or as ``Authorization: Bearer``.
        """
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.fits(given.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self.cookie_name)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(
            cookie.value.encode(), self.cookie_value.encode()
        )

    def refusal(
        self, method: str, path: str, headers: Mapping[str, str], client: str | None
    ) -> Refusal | None:
        """Return why a request is refused, or None if it is allowed.

        Args:
            method: The HTTP method: GET, POST, ...
            path: The decoded path.
            headers: The headers by lower-case name.
            client: The client's address.
        """
        found = (
            self._wrong_host(headers) or _climbing(path) or self._from_elsewhere(method, headers)
        )
        if found:
            return found
        known = self.has_token(headers)
        if not known and not (self.open_to_loopback and is_loopback(client)):
            return Refusal(401, "a token is needed: open the address that `master serve` printed")
        return None if method in SAFE_METHODS else _change(headers, known)

    def _wrong_host(self, headers: Mapping[str, str]) -> Refusal | None:
        """Refuse a Host header that does not name this dashboard.

        The name of another site may have been made to point here (DNS rebinding).
        """
        given = headers.get("host", "")
        name = _host_name(given)
        if name and (name == "localhost" or name in self.names or _is_address(name)):
            return None
        return Refusal(
            400,
            f"Host: {given!r} is not a name of this dashboard; "
            f"use its address, or start it with --name {name or 'HOST'}",
        )

    def _from_elsewhere(self, method: str, headers: Mapping[str, str]) -> Refusal | None:
        """Refuse a request that another site's page sent.

        A plain link to the dashboard is allowed.
        """
        origin = headers.get("origin")
        if (
            origin is not None
            and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
        ):
            return Refusal(
                403, f"Origin: {origin!r} is another site; only the dashboard's own pages may ask"
            )
        site = headers.get("sec-fetch-site", "none")
        link = (
            method in SAFE_METHODS
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )
        if site not in ("same-origin", "none") and not link:
            return Refusal(
                403, "sent by another site's page; only the dashboard's own pages may ask"
            )
        return None


def _change(headers: Mapping[str, str], known: bool) -> Refusal | None:
    if not known:
        return Refusal(
            401,
            "changes need the token: open the address that `master serve` printed",
        )
    if headers.get(CHANGE_HEADER) != "1":
        return Refusal(
            403,
            f"the header {CHANGE_HEADER}: 1 is missing; "
            "send it to show that no other site's form made the request",
        )
    length = headers.get("content-length", "")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        return Refusal(413, f"the request needs a Content-Length of at most {MAX_BODY_BYTES} bytes")
    return None


def _climbing(path: str) -> Refusal | None:
    parts = path.replace("\\", "/").split("/")
    if ".." in parts or "\\" in path or not path.isprintable():
        return Refusal(400, "the path contains '..' or a forbidden character")
    return None


def without_token(query: str) -> tuple[str | None, str]:
    """Return the ``token`` of a query, and the query without it."""
    pairs = parse_qsl(query, keep_blank_values=True)
    token = next((value for name, value in pairs if name == "token"), None)
    return token, urlencode([(name, value) for name, value in pairs if name != "token"])


def is_loopback(address: str | None) -> bool:
    """Return whether the address of a client or a server is a loopback address."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def own_names(given: Iterable[str]) -> frozenset[str]:
    """Return the lower-case names of this machine: its host name and those that the user gave."""
    return frozenset(name.lower() for name in (socket.gethostname(), *given) if name)


def _host_name(host: str) -> str:
    """Return the name or address in a Host header, without port and brackets.

    The result is empty if the header holds neither.
    """
    try:
        return (
            (urlsplit(f"//{host}").hostname or "")
            if host.isprintable() and not set(host) & set("/?#@ ")
            else ""
        )
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

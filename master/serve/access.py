"""Who may see the dashboard and who may change something through it; every request passes here first.

On a loopback address anyone of this machine may look. Anywhere else, and for every change, the token is needed, and a change
must come from the dashboard's own page: another site's page that is open in the same browser can send requests, but neither
its origin nor the header that a script adds would be right.

Source: OWASP cheat sheets, "Cross-Site Request Forgery Prevention" (custom header, Origin, SameSite) and "DNS rebinding".
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
MIN_TOKEN = 16  # characters: shorter ones can be guessed
CHANGE_HEADER = "x-coarsefine"  # a form or an image of another site cannot send one of its own
MAX_BODY_BYTES = 16 << 10  # an order to kill is a line
SAFE_METHODS = frozenset({"GET", "HEAD"})


def find_token(file: Path | None, environ: Mapping[str, str]) -> tuple[str, bool]:
    """The token of a file, else of the environment, else a new one; and whether it is new.

    Raises:
        ConfigError: the file cannot be read, or the token is too short or no plain text.
    """
    if file is not None:
        try:
            return _checked(file.read_text(encoding="utf-8").strip(), f"--token-file {file}"), False
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigError(
                f"--token-file {file}: cannot be read ({reason}); correct the path, or leave it out for a new token"
            ) from error
    given = environ.get(TOKEN_VARIABLE)
    return (_checked(given, TOKEN_VARIABLE), False) if given else (secrets.token_urlsafe(24), True)


def _checked(token: str, where: str) -> str:
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable():
        raise ConfigError(f"{where}: holds a token of {len(token)} characters; use {MIN_TOKEN} or more printable ASCII ones")
    return token


@dataclass(frozen=True)
class Refusal:
    """Why a request goes no further."""

    status: int
    message: str


@dataclass(frozen=True)
class Access:
    """The rules of one running dashboard.

    Args:
        token: opens everything.
        open_to_loopback: it is bound to a loopback address, so whoever reaches it from there may look without the token.
        port: part of the cookie's name, since browsers send a cookie to every port of a host.
        names: of this machine, beside its addresses and localhost.
    """

    token: str = field(repr=False)
    open_to_loopback: bool
    port: int
    names: frozenset[str] = frozenset()

    @property
    def cookie_name(self) -> str:
        """Its own for each port."""
        return f"coarsefine_{self.port}"

    @property
    def cookie_value(self) -> str:
        """Opens what the token opens, and does not tell it."""
        return hmac.new(self.token.encode(), b"cookie", hashlib.sha256).hexdigest()

    def fits(self, token: str) -> bool:
        """Whether this is the token; takes as long for a nearly right one as for a wrong one."""
        return hmac.compare_digest(token.encode(), self.token.encode())

    def has_token(self, headers: Mapping[str, str]) -> bool:
        """Whether a request brings the token, as a cookie or as ``Authorization: Bearer``."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.fits(given.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self.cookie_name)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self.cookie_value.encode())

    def refusal(self, method: str, path: str, headers: Mapping[str, str], client: str | None) -> Refusal | None:
        """Why a request is refused, None if it is not.

        Args:
            method: GET, POST, ...
            path: decoded.
            headers: by lower-case name.
            client: the address that it comes from.
        """
        found = self._wrong_host(headers) or _climbing(path) or self._from_elsewhere(method, headers)
        if found:
            return found
        known = self.has_token(headers)
        if not known and not (self.open_to_loopback and is_loopback(client)):
            return Refusal(401, "a token is needed: open the address that `master serve` printed")
        return None if method in SAFE_METHODS else _change(headers, known)

    def _wrong_host(self, headers: Mapping[str, str]) -> Refusal | None:
        """A name that is not ours in the Host header: another site's name may have been made to point here (DNS rebinding)."""
        given = headers.get("host", "")
        name = _host_name(given)
        if name and (name == "localhost" or name in self.names or _is_address(name)):
            return None
        return Refusal(400, f"Host: {given!r} is not a name of this dashboard; use its address, or start it with --name {name or 'HOST'}")

    def _from_elsewhere(self, method: str, headers: Mapping[str, str]) -> Refusal | None:
        """A request that another site's page sent. A plain link to the dashboard is fine."""
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            return Refusal(403, f"Origin: {origin!r} is another site; only the dashboard's own pages may ask")
        site = headers.get("sec-fetch-site", "none")
        link = method in SAFE_METHODS and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if site not in ("same-origin", "none") and not link:
            return Refusal(403, "sent by another site's page; only the dashboard's own pages may ask")
        return None


def _change(headers: Mapping[str, str], known: bool) -> Refusal | None:
    if not known:
        return Refusal(401, "whoever changes something needs the token: open the address that `master serve` printed")
    if headers.get(CHANGE_HEADER) != "1":
        return Refusal(403, f"the header {CHANGE_HEADER}: 1 is missing; it shows that no other site's form sent this")
    length = headers.get("content-length", "")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        return Refusal(413, f"the body must say how long it is, and be at most {MAX_BODY_BYTES} bytes")
    return None


def _climbing(path: str) -> Refusal | None:
    parts = path.replace("\\", "/").split("/")
    if ".." in parts or "\\" in path or not path.isprintable():
        return Refusal(400, "the path climbs or holds what no path here has")
    return None


def without_token(query: str) -> tuple[str | None, str]:
    """The ``token`` of a query, and the query without it."""
    pairs = parse_qsl(query, keep_blank_values=True)
    token = next((value for name, value in pairs if name == "token"), None)
    return token, urlencode([(name, value) for name, value in pairs if name != "token"])


def is_loopback(address: str | None) -> bool:
    """Whether a client's or a server's address is this machine talking to itself."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def own_names(given: Iterable[str]) -> frozenset[str]:
    """What this machine is called, and what the user says that it is called."""
    return frozenset(name.lower() for name in (socket.gethostname(), *given) if name)


def _host_name(host: str) -> str:
    """The name or address in a Host header, without port and brackets; empty if it is neither."""
    try:
        return (urlsplit(f"//{host}").hostname or "") if host.isprintable() and not set(host) & set("/?#@ ") else ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

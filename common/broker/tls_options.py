"""TLS to Redis: which certificates are used, and clear messages for what goes wrong with them.

The files are checked before the first connection. The options in the URL are redis-py's
(``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``). Environment variables fill in those that it
lacks.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from redis.connection import SSLConnection

from common.errors import ConfigError

CA, CERTIFICATE, KEY = "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"
# redis-py's option -> our environment variable
FILES = {
    CA: "REDIS_CA_FILE",
    CERTIFICATE: "REDIS_CERT_FILE",
    KEY: "REDIS_KEY_FILE",
}
NOT_YET_VALID, EXPIRED = 9, 10  # OpenSSL's codes, <openssl/x509_vfy.h>
OTHER_HOST = (62, 64)  # another name, another address
GIVE_CERTIFICATE = (
    f"give one in {FILES[CERTIFICATE]} and {FILES[KEY]}, or in the URL as ssl_certfile and "
    "ssl_keyfile"
)
# TLS alerts of the server about this client, by a part of OpenSSL's reason.
ALERTS = {
    "CERTIFICATE_REQUIRED": f"asks for a client certificate; {GIVE_CERTIFICATE}",
    "HANDSHAKE_FAILURE": (
        f"does not agree on how to encrypt, or asks for a client certificate; {GIVE_CERTIFICATE}"
    ),
    "UNKNOWN_CA": (
        f"does not know the authority that signed this client's certificate; {GIVE_CERTIFICATE} "
        "that its own authority signed"
    ),
    "CERTIFICATE_EXPIRED": (
        f"refuses this client's certificate, which has expired; {GIVE_CERTIFICATE} that is valid"
    ),
    "ALERT_CERTIFICATE": (
        f"refuses this client's certificate; {GIVE_CERTIFICATE} that its own authority signed"
    ),
    "BAD_CERTIFICATE": (
        f"refuses this client's certificate; {GIVE_CERTIFICATE} that its own authority signed"
    ),
    "PROTOCOL_VERSION": (
        "speaks other versions of TLS than this Python; enable TLS 1.2 or 1.3 on it"
    ),
}
NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")
# A Redis without TLS takes the client's hello for half a command, and waits for the rest.
WAITS = "where the URL says rediss://, see whether this port speaks TLS"
HUNG_UP = (
    "it hung up at once: where its port is for TLS, write rediss:// in the URL, and where it "
    f"asks for a client certificate, name one that it accepts in {FILES[CERTIFICATE]} and "
    f"{FILES[KEY]}"
)


def with_files(options: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the connection options, with certificates from the environment where the URL has none.

    Args:
        options: the options from the URL.
        environ: may have ``REDIS_CA_FILE``, ``REDIS_CERT_FILE``, ``REDIS_KEY_FILE``.

    Raises:
        ConfigError: a file is missing or is not a certificate, a key does not fit, or certificates
            are named for a connection without TLS.
    """
    named = {
        option: environ[variable] for option, variable in FILES.items() if environ.get(variable)
    }
    if options.get("connection_class") is not SSLConnection:
        if named and "path" not in options:
            variable = FILES[next(iter(named))]
            raise ConfigError(
                f"{variable} is set, but redis:// does not encrypt; write rediss:// in the URL, "
                f"or unset {variable}"
            )
        return dict(options)
    found = {**named, **options}
    _check(found)
    return found


def _check(options: Mapping[str, Any]) -> None:
    """Read the files once here, where a message can name them."""
    for option in (CA, CERTIFICATE, KEY):
        if options.get(option):
            _read(option, Path(options[option]))
    if options.get(KEY) and not options.get(CERTIFICATE):
        raise ConfigError(
            f"{options[KEY]}: a key without its certificate; name that in {FILES[CERTIFICATE]} "
            "or as ssl_certfile"
        )
    context = ssl.create_default_context()
    try:
        if options.get(CA):
            context.load_verify_locations(options[CA])
    except ssl.SSLError:
        raise ConfigError(
            f"{options[CA]}: no certificate of an authority; give it as PEM, which begins with "
            "-----BEGIN"
        ) from None
    if not options.get(CERTIFICATE):
        return
    # Without a password here, OpenSSL would ask for one on the terminal.
    try:
        context.load_cert_chain(
            options[CERTIFICATE], options.get(KEY), options.get("ssl_password") or (lambda: b"")
        )
    except ssl.SSLError as error:
        pair = f"{options[CERTIFICATE]} and {options.get(KEY) or 'the key in it'}"
        raise ConfigError(
            f"{pair}: no certificate with its key, as PEM and without a password ({_reason(error)})"
        ) from None


def _read(option: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(
            f"{option} ({FILES[option]}) {path}: cannot be read: {error.strerror}; correct the "
            "path, or make it readable"
        ) from None


def explain_tls(error: BaseException) -> str | None:
    """Return what is wrong with the certificates and what to do; None if it is something else.

    The text follows the server's name in a message.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _explain_unverified(cause)
        if isinstance(cause, ssl.SSLError):
            return _explain_refused(cause)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _explain_unverified(error: ssl.SSLCertVerificationError) -> str:
    told = f"({error.verify_message})"
    if error.verify_code == EXPIRED:
        return (
            "has a certificate that has expired; renew it on the server, or set this machine's "
            f"clock {told}"
        )
    if error.verify_code == NOT_YET_VALID:
        return (
            "has a certificate that is not valid yet; set this machine's clock, or the server's "
            f"{told}"
        )
    if error.verify_code in OTHER_HOST:
        return (
            "has a certificate for another host; write the host in the URL as the certificate "
            f"names it {told}"
        )
    return (
        "has a certificate that no authority known here has signed; name its authority's file "
        f"in {FILES[CA]} or as ssl_ca_certs {told}"
    )


def _explain_refused(error: ssl.SSLError) -> str:
    reason = _reason(error)
    for part, message in ALERTS.items():
        if part in reason:
            return message
    if any(part in reason for part in NO_TLS):
        return (
            "does not speak TLS on this port; write redis:// in the URL, or give its port for TLS"
        )
    if "EOF" in reason:  # the server's alert was lost with the connection
        return (
            "hung up while the connection was made; where it asks for a client certificate, "
            f"{GIVE_CERTIFICATE} that it accepts"
        )
    return f"does not agree on TLS with this client; compare versions and ciphers ({reason})"


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).upper().replace(" ", "_")

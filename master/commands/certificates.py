"""Make a certificate for a server, and an authority that signs it, with the program openssl.

The authority signs this one certificate. Its key is deleted at once, so nobody can have it sign
another one.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import ConfigError, QueueError

LASTS_S = 730 * 86400.0
RENEW_S = 30 * 86400.0  # a certificate that expires sooner is made anew at a start
BEFORE_S = 86400.0  # valid from yesterday on: the clocks of other hosts may be behind
PATIENCE_S = 60.0
CONFIGURATION = """
[req]
prompt = no
distinguished_name = name
[name]
CN = coarsefine
[ca]
default_ca = own
[own]
database = index.txt
serial = serial
new_certs_dir = .
default_md = sha256
policy = policy
unique_subject = no
[policy]
commonName = supplied
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""


def make_certificates(names: Sequence[str]) -> Mapping[str, bytes]:
    """Return new files by name: ``ca.pem``, ``server.pem`` and ``server.key``.

    Args:
        names: what the certificate is for, as OpenSSL writes it: ``IP:10.0.0.5``, ``DNS:head``.

    Raises:
        ConfigError: there is no program openssl.
        QueueError: it fails.
    """
    program = shutil.which("openssl")
    if program is None:
        raise ConfigError("--tls needs the program openssl, which is not there; install openssl")
    now = time.time()
    period = ["-startdate", _written(now - BEFORE_S), "-enddate", _written(now + LASTS_S)]
    new_key = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    with tempfile.TemporaryDirectory(prefix="coarsefine-") as name:  # with rights 0700
        folder = Path(name)
        (folder / "openssl.cnf").write_text(CONFIGURATION.format(names=", ".join(names)))
        (folder / "index.txt").touch()
        (folder / "serial").write_text("01\n")
        config = ["-config", "openssl.cnf"]
        sign = ["ca", "-batch", "-notext", *config, *period, "-keyfile", "ca.key"]
        signed = [*sign, "-cert", "ca.pem"]
        for words in (
            [*new_key, "-out", "ca.key"],
            ["req", "-new", *config, "-key", "ca.key", "-out", "ca.csr"],
            [*sign, "-selfsign", "-extensions", "authority", "-in", "ca.csr", "-out", "ca.pem"],
            [*new_key, "-out", "server.key"],
            ["req", "-new", *config, "-key", "server.key", "-out", "server.csr"],
            [*signed, "-extensions", "server", "-in", "server.csr", "-out", "server.pem"],
        ):
            _run([program, *words], folder)
        return {
            file: (folder / file).read_bytes() for file in ("ca.pem", "server.pem", "server.key")
        }


def is_still_valid(authority: Path) -> bool:
    """Return whether an authority's certificate remains valid for the next month.

    The certificate that it signed is valid for the same time.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(authority)
        (found,) = context.get_ca_certs()
        return ssl.cert_time_to_seconds(str(found["notAfter"])) > time.time() + RENEW_S
    except (OSError, KeyError, ValueError):  # ssl.SSLError is an OSError
        return False


def _written(seconds: float) -> str:
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(seconds))


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QueueError(f"--tls: {command[0]} cannot be run: {error}; repair it") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()[-3:]
        raise QueueError(
            f"--tls: `openssl {command[1]}` failed: {'; '.join(lines)}. Upgrade openssl to 1.1.1 "
            "or newer, or start without --tls"
        )

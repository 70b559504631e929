"""Redis over TLS: a real server, and certificates that the test makes."""

from __future__ import annotations

import datetime
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from common.broker.connection import open_broker
from common.errors import ConfigError, QueueError
from tests.redis_server import start_redis

HOST = "127.0.0.1"


@dataclass
class Papers:
    """Two authorities and what they signed, as files."""

    folder: Path
    ours: trustme.CA
    theirs: trustme.CA

    @property
    def ca(self) -> Path:
        return self.folder / "ours.pem"

    @property
    def wrong_ca(self) -> Path:
        return self.folder / "theirs.pem"

    def issue(
        self, name: str, host: str = HOST, ca: trustme.CA | None = None, days: int = 1
    ) -> tuple[Path, Path]:
        """A certificate and its key."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        issued = (ca or self.ours).issue_cert(
            host, not_before=expires - datetime.timedelta(days=30), not_after=expires
        )
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        return certificate, key


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("papers")
    ours, theirs = trustme.CA(organization_name="ours"), trustme.CA(organization_name="theirs")
    made = Papers(folder, ours, theirs)
    ours.cert_pem.write_to_path(made.ca)
    theirs.cert_pem.write_to_path(made.wrong_ca)
    made.issue("server")
    made.issue("client", "worker.example")
    return made


def serve(folder: Path, papers: Papers, certificate: str, *options: str) -> Iterator[int]:
    port = _free_port()
    files = [
        "--tls-cert-file",
        f"{papers.folder}/{certificate}.pem",
        "--tls-key-file",
        f"{papers.folder}/{certificate}.key",
    ]
    with start_redis(
        folder, "7", "--tls-port", str(port), "--tls-ca-cert-file", str(papers.ca), *files, *options
    ):
        yield port


@pytest.fixture(scope="module")
def port(papers: Papers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a server that asks nobody for a certificate."""
    yield from serve(tmp_path_factory.mktemp("redis"), papers, "server", "--tls-auth-clients", "no")


@pytest.fixture(scope="module")
def strict_port(papers: Papers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a server that does, and wants a password too."""
    yield from serve(
        tmp_path_factory.mktemp("redis"),
        papers,
        "server",
        "--tls-auth-clients",
        "yes",
        "--requirepass",
        "s3cret",
    )


def test_with_an_own_authority_in_the_url_or_the_environment(
    port: int, papers: Papers, tmp_path: Path
) -> None:
    for url, environ in [
        (f"rediss://{HOST}:{port}/0?ssl_ca_certs={papers.ca}", {}),
        (f"rediss://{HOST}:{port}/0", {"REDIS_CA_FILE": str(papers.ca)}),
        (f"rediss://{HOST}:{port}/0?ssl_ca_certs={papers.ca}", {"REDIS_CA_FILE": "/not/looked/at"}),
    ]:
        with open_broker(url, tmp_path, environ) as broker:
            assert broker.client.ping()


def test_with_a_client_certificate(strict_port: int, papers: Papers, tmp_path: Path) -> None:
    certificate, key = papers.folder / "client.pem", papers.folder / "client.key"
    files = {
        "REDIS_CA_FILE": str(papers.ca),
        "REDIS_CERT_FILE": str(certificate),
        "REDIS_KEY_FILE": str(key),
    }
    named = f"ssl_ca_certs={papers.ca}&ssl_certfile={certificate}&ssl_keyfile={key}"
    for url, environ in [
        (f"rediss://:s3cret@{HOST}:{strict_port}/0", files),
        (f"rediss://:s3cret@{HOST}:{strict_port}/0?{named}", {}),
    ]:
        with open_broker(url, tmp_path, environ) as broker:
            assert broker.client.set("key", "value")


@pytest.mark.parametrize(
    ("certificate", "days", "host", "ca", "message"),
    [
        (
            "server",
            1,
            HOST,
            "wrong_ca",
            r"no authority known here has signed; name its authority's file in REDIS_CA_FILE",
        ),
        ("server", 1, HOST, None, r"no authority known here has signed"),
        ("expired", -1, HOST, "ca", r"has expired; renew it"),
        ("elsewhere", 1, "redis.example", "ca", r"for another host"),
    ],
)
def test_a_server_that_cannot_be_trusted(
    papers: Papers,
    tmp_path: Path,
    certificate: str,
    days: int,
    host: str,
    ca: str | None,
    message: str,
) -> None:
    if certificate != "server":
        papers.issue(certificate, host, days=days)
    environ = {"REDIS_CA_FILE": str(getattr(papers, ca))} if ca else {}
    for port in serve(tmp_path, papers, certificate, "--tls-auth-clients", "no"):
        with pytest.raises(QueueError, match=message) as caught:
            open_broker(f"rediss://:s3cret@{HOST}:{port}/0", tmp_path, environ)
        assert f"{HOST}:{port}" in str(caught.value) and "s3cret" not in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_a_server_that_does_not_trust_us(strict_port: int, papers: Papers, tmp_path: Path) -> None:
    url = f"rediss://:s3cret@{HOST}:{strict_port}/0"
    theirs, expired = papers.issue("stranger", ca=papers.theirs), papers.issue("late", days=-1)
    for pair, message in [
        (None, r"client certificate"),
        (theirs, r"does not know the authority that signed this client's certificate"),
        (expired, r"refuses this client's certificate, which has expired"),
    ]:
        own = {"REDIS_CERT_FILE": str(pair[0]), "REDIS_KEY_FILE": str(pair[1])} if pair else {}
        # A server may close the connection before its reason has been read; the remedy is the same.
        with pytest.raises(
            QueueError, match=rf"{message}|hung up .* client certificate, (give|name) one"
        ) as caught:
            open_broker(url, tmp_path, {"REDIS_CA_FILE": str(papers.ca), **own})
        assert "REDIS_CERT_FILE" in str(caught.value) and "s3cret" not in str(caught.value)


def test_one_side_speaks_tls_and_the_other_does_not(
    port: int, papers: Papers, tmp_path: Path
) -> None:
    with pytest.raises(QueueError, match=r"write rediss://"):
        open_broker(f"redis://{HOST}:{port}/0", tmp_path, {})
    plain = _free_port()
    with (
        start_redis(tmp_path, "7", "--port", str(plain)),
        pytest.raises(QueueError, match=r"see whether this port speaks TLS"),
    ):
        open_broker(f"rediss://{HOST}:{plain}/0?socket_timeout=0.3", tmp_path, {})
    with (
        _answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as web,
        pytest.raises(QueueError, match=r"does not speak TLS on this port"),
    ):
        open_broker(f"rediss://{HOST}:{web}/0", tmp_path, {})
    with pytest.raises(
        ConfigError, match=r"REDIS_CA_FILE is set, but redis:// does not encrypt; write rediss://"
    ):
        open_broker(f"redis://{HOST}:{port}/0", tmp_path, {"REDIS_CA_FILE": str(papers.ca)})


def test_files_that_are_no_certificates(papers: Papers, tmp_path: Path) -> None:
    certificate, key = papers.folder / "client.pem", papers.folder / "client.key"
    other_key = papers.issue("another")[1]
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nothing")
    for query, message in [
        ("ssl_ca_certs=/none.pem", r"/none\.pem: cannot be read"),
        (f"ssl_ca_certs={nonsense}", r"nonsense\.pem: no certificate of an authority"),
        (f"ssl_certfile={certificate}&ssl_keyfile=/none.key", r"/none\.key: cannot be read"),
        (f"ssl_certfile={certificate}&ssl_keyfile={other_key}", r"no certificate with its key"),
        (f"ssl_certfile={certificate}", r"no certificate with its key"),
        (f"ssl_keyfile={key}", r"a key without its certificate"),
    ]:
        with pytest.raises(ConfigError, match=message):
            open_broker(f"rediss://{HOST}:1/0?{query}", tmp_path, {})


@contextmanager
def _answering(answer: bytes) -> Iterator[int]:
    """A server of something else."""

    def serve(taken: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = taken.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

    with socket.create_server((HOST, 0)) as taken:
        thread = threading.Thread(target=serve, args=[taken])
        thread.start()
        yield int(taken.getsockname()[1])
        taken.shutdown(socket.SHUT_RDWR)
    thread.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])

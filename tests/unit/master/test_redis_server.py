"""What `master redis start` decides before it starts anything."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
from pathlib import Path

import pytest

from common.broker.acl import rules_for
from common.broker.server_folder import configuration
from common.broker.server_program import Program
from common.errors import ConfigError
from master.commands import certificates, redis_server
from master.commands.addresses import find_address, free_port, is_own
from master.commands.redis_server import Wanted, file_system, start


def mounts_of(path: Path, kind: str) -> str:
    number = path.stat().st_dev
    return (
        "22 1 253:99 / / rw,relatime - ext4 /dev/vda rw\n"
        f"36 22 {os.major(number)}:{os.minor(number)} / /shared rw shared:7 - {kind} head:/x rw\n"
    )


def test_an_interface_an_address_and_a_name_of_this_host_are_found() -> None:
    assert find_address("lo") == find_address("127.0.0.1") == "127.0.0.1"
    assert find_address("localhost") in ("127.0.0.1", "::1")


@pytest.mark.parametrize("host", ["eth99", "192.0.2.77", "no.such.host.invalid", "a" * 300, "1.2"])
def test_what_is_no_address_of_this_host_is_refused_with_its_interfaces(host: str) -> None:
    with pytest.raises(ConfigError, match=r"neither an interface nor an address .*\blo\b"):
        find_address(host)
    assert not is_own("192.0.2.77")


def test_a_port_that_another_program_uses_is_refused_by_its_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port {port}: .* another program listens there"):
            free_port("127.0.0.1", port)
        assert free_port("127.0.0.1", None) != port


def test_the_type_of_a_file_system_is_that_of_its_device(tmp_path: Path) -> None:
    assert file_system(tmp_path, mounts_of(tmp_path, "nfs4")) == "nfs4"
    assert file_system(tmp_path, "22 1 253:99 / / rw - ext4 /dev/vda rw\n") == ""
    assert not file_system(Path("/proc")).startswith(redis_server.NETWORK_FILE_SYSTEMS)


def test_on_a_network_file_system_the_data_is_on_the_hosts_own_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, local, said = tmp_path / "root", tmp_path / "local", list[str]()
    for folder in (root, local):
        folder.mkdir()
    shared = redis_server.SharedServer(root)
    shared.folder.mkdir()
    monkeypatch.setattr(redis_server, "LOCAL_FOLDERS", (str(local),))
    kinds = {root: "lustre", local: "ext4"}
    monkeypatch.setattr(redis_server, "file_system", kinds.__getitem__)
    home = redis_server._find_home(shared, None, said.append)
    assert Path(home).parent == local and Path(home).stat().st_mode & 0o777 == 0o700
    assert said == [f"{root} is on lustre, so the server keeps its data in {home}"]
    kinds[local] = "nfs"
    with pytest.raises(ConfigError, match="no local folder for it"):
        redis_server._find_home(shared, None, said.append)
    kinds[root] = "xfs"
    assert redis_server._find_home(shared, None, said.append) == "data"


def test_values_of_the_configuration_are_quoted() -> None:
    text = configuration([("unixsocket", '/a b/"c"\\d\ne'), ("save", ""), ("user", "x", "on")])
    assert text == 'unixsocket "/a b/\\"c\\"\\\\d\\ne"\nsave ""\nuser "x" "on"\n'


def test_rules_with_selectors_are_for_servers_that_know_them() -> None:
    assert "(" in rules_for("worker", (7, 0, 15)) and "%R" in rules_for("worker", (7, 0, 0))
    assert not set("(%") & set(rules_for("worker", (6, 2, 14)))
    assert set(rules_for("master", (6, 2, 14)).split()) == set(rules_for("master", (7,)).split())


def test_certificates_are_made_by_openssl_for_this_address_alone(tmp_path: Path) -> None:
    files = certificates.make_certificates(["IP:10.1.2.3", "DNS:head"])
    assert set(files) == {"ca.pem", "server.pem", "server.key"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
        tmp_path / "server.pem", tmp_path / "server.key"
    )
    assert certificates.is_still_valid(tmp_path / "ca.pem")
    assert not certificates.is_still_valid(tmp_path / "server.key")
    assert not certificates.is_still_valid(tmp_path / "none.pem")


def test_a_certificate_that_expires_within_a_month_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "LASTS_S", 20 * 86400.0)
    (tmp_path / "ca.pem").write_bytes(certificates.make_certificates(["DNS:head"])["ca.pem"])
    assert not certificates.is_still_valid(tmp_path / "ca.pem")


def test_without_openssl_tls_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "redis-server").symlink_to(str(shutil.which("redis-server")))
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(ConfigError, match="openssl, which is not there; install openssl"):
        start(tmp_path / "root", Wanted("lo", None, True), print)


def test_a_server_without_tls_is_not_chosen_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Program(tmp_path / "redis-server", (6, 2, 14))
    plain.path.write_text("#!/bin/sh\necho \">>> 'tls-port 0'\"\n")
    plain.path.chmod(0o700)
    assert not redis_server.speaks_tls(plain)
    assert redis_server.speaks_tls(Program(Path(str(shutil.which("redis-server"))), (7, 0, 0)))
    monkeypatch.setattr(redis_server, "find_programs", lambda: iter([plain]))
    with pytest.raises(ConfigError, match=r"built with TLS \(found: .*redis-server 6\.2\.14\)"):
        start(tmp_path / "root", Wanted("lo", None, True), print)

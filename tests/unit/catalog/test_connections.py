"""Credentials and certificates of each source and of the destination."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from layerfarm.jobs.errors import CatalogError, CatalogFileError
from layerfarm.worker.catalog.connections import check_connections, of_destination, of_sources
from layerfarm.worker.catalog.document import CatalogFile, Connection, parse_catalog
from layerfarm.worker.catalog.head import digest
from layerfarm.worker.catalog.http_client import HttpClient, NoPlainAnswer
from layerfarm.worker.catalog.pace import Pace
from layerfarm.worker.catalog.registry import Skopeo
from tests.farm.certificates import certificates
from tests.unit.catalog.http_server import Server
from tests.unit.catalog.test_head import DIGEST

FILE = """
store: s
sources:
  - {registry: 'docker://one/team', repositories: [web, 'lib/*'], access: {auth-file: one.json, cert-dir: certs/one}}
  - {registry: 'docker://one/team', repositories: [api]}
  - {registry: 'docker://two:5000', repositories: ['*'], access: {tls-verify: false}}
  - {layout: images}
policies: [{match: '*', do: {transform: keep}}]
destination: {registry: 'docker://one/team', access: {auth-file: /etc/writer.json, tls-verify: true}}
access: {auth-file: all.json, tls-verify: false, parallel: 2}
"""


def parsed(text: str = FILE) -> CatalogFile:
    return parse_catalog(text.encode(), Path("/c/catalog.yaml"))


ONE = Connection.model_validate({"auth-file": "/c/one.json", "cert-dir": "/c/certs/one", "tls-verify": False})
ALL = Connection.model_validate({"auth-file": "/c/all.json", "tls-verify": False})


@pytest.mark.parametrize(
    ("reference", "connection"),
    [
        ("docker://one/team/web", ONE),
        ("docker://one/team/web:1.0", ONE),
        (f"docker://one/team/lib/x@{DIGEST}", ONE),
        ("docker://one/team", ONE),
        ("docker://one/team/api:1", ALL),
        ("docker://two:5000", ALL),
        ("docker://two:5000/a/b:1", ALL),
        ("docker://elsewhere/x:1", ALL),
    ],
)
def test_a_reference_has_the_connection_of_its_source(reference: str, connection: Connection) -> None:
    assert of_sources(parsed())(reference) == connection


def test_the_destination_has_its_own_even_where_a_source_is_the_same_registry() -> None:
    writer = Connection.model_validate({"auth-file": "/etc/writer.json", "tls-verify": True})
    assert of_destination(parsed())("docker://one/team/web:1.0") == writer
    plain = parsed(FILE.replace(", access: {auth-file: /etc/writer.json, tls-verify: true}", ""))
    assert of_destination(plain)("docker://one/team/web:1.0") == ALL


@pytest.mark.parametrize(
    "old", ["layout: images", "registry: 'docker://one/team', access: {auth-file: /etc/writer.json"]
)
def test_a_layout_has_no_access(old: str) -> None:
    with pytest.raises(CatalogFileError, match="access needs a registry"):
        parsed(FILE.replace(old, "layout: images, access: {auth-file: x" + ("}" if old == "layout: images" else "")))


def test_skopeo_is_called_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "skopeo"
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\necho \'{{"Tags": ["1"]}}\'\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    catalog = parsed()
    skopeo = Skopeo(catalog.access, connection_of=of_sources(catalog))
    writer = skopeo.connected(of_destination(catalog))
    assert skopeo.tags("docker://one/team/web") == ["1"]
    skopeo.pull("docker://one/team/api:1", tmp_path / "layout", "t")
    writer.push(tmp_path / "layout", tmp_path / "blobs", "docker://one/team/web:1")
    listed, pulled, pushed = (tmp_path / "calls").read_text().splitlines()
    assert "--tls-verify=false --authfile /c/one.json --cert-dir /c/certs/one docker://one/team/web" in listed
    assert "--src-tls-verify=false --src-authfile /c/all.json docker://one/team/api:1" in pulled
    assert "cert-dir" not in pulled
    assert "--dest-authfile /etc/writer.json" in pushed
    assert "tls-verify" not in pushed
    assert writer.pace is skopeo.pace


def test_head_requests_have_the_certificates_of_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    authority = certificates(tmp_path, "server", "127.0.0.1", "IP:127.0.0.1")
    own = tmp_path / "own"
    own.mkdir()
    (own / "ca.crt").write_bytes(authority.read_bytes())
    with Server() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
        context.load_verify_locations(authority)
        context.verify_mode = ssl.CERT_REQUIRED
        server.secure(context)
        server.answer = lambda *_: (200, {"Docker-Content-Digest": DIGEST}, b"")

        def ask() -> str:
            connection = Connection.model_validate({"cert-dir": str(own)})
            return digest(HttpClient(connection, Pace(None)), f"docker://{server.host}/a:1")

        with pytest.raises(NoPlainAnswer):  # the server wants a certificate
            ask()
        (own / "client.cert").write_bytes((tmp_path / "server.crt").read_bytes())
        (own / "client.key").write_bytes((tmp_path / "server.key").read_bytes())
        assert ask() == DIGEST


def test_certificates_that_are_not_there_are_an_error_before_anything_runs(tmp_path: Path) -> None:
    catalog = parsed(FILE.replace("certs/one", str(tmp_path / "certs")))
    for _ in range(2):
        with pytest.raises(CatalogError, match="no certificates in the directory"):
            check_connections(catalog)
        (tmp_path / "certs").mkdir(exist_ok=True)
    (tmp_path / "certs" / "client.cert").write_text("x")
    with pytest.raises(CatalogError, match=r"no key beside it: client\.key"):
        check_connections(catalog)
    (tmp_path / "certs" / "client.key").write_text("x")
    check_connections(catalog)

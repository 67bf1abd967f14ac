"""HEAD requests to registries: what is plain, what is left to skopeo, and how access is asked for."""

from __future__ import annotations

import base64
import json
import ssl
from pathlib import Path

import pytest

from layerfarm.jobs.errors import NotInRegistry, RegistryBusy
from layerfarm.worker.catalog.document import Access
from layerfarm.worker.catalog.head import digest
from layerfarm.worker.catalog.http_client import HttpClient, NoPlainAnswer, Reference
from layerfarm.worker.catalog.pace import Pace
from tests.farm.certificates import certificates
from tests.unit.catalog.http_server import Answer, Server

DIGEST = "sha256:" + "a" * 64


def client(auth_file: Path | None = None, *, verify: bool = False) -> HttpClient:
    access = {"tls-verify": verify} | ({"auth-file": str(auth_file)} if auth_file else {})
    return HttpClient(Access.model_validate(access), Pace(None))


def test_the_digest_is_in_the_header(server: Server) -> None:
    server.answer = lambda *_: (200, {"Docker-Content-Digest": DIGEST}, b"")
    head = client()
    assert digest(head, f"docker://{server.host}/team/app:1.0") == DIGEST
    assert digest(head, f"docker://{server.host}/team/app@{DIGEST}") == DIGEST
    assert [path for _, path, _ in server.requests] == [
        "/v2/team/app/manifests/1.0",
        f"/v2/team/app/manifests/{DIGEST}",
    ]
    assert head.pace.counts == {"HEAD": 2}


@pytest.mark.large
@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (404, {}, NotInRegistry),
        (429, {}, RegistryBusy),
        (503, {}, RegistryBusy),
        (200, {}, NoPlainAnswer),
        (200, {"Docker-Content-Digest": "sha256:../../x"}, NoPlainAnswer),
        (400, {}, NoPlainAnswer),
        (405, {}, NoPlainAnswer),
        (403, {}, NoPlainAnswer),
        (401, {"WWW-Authenticate": "Negotiate"}, NoPlainAnswer),
        (401, {"WWW-Authenticate": 'Bearer realm="ftp://x/"'}, NoPlainAnswer),
        (401, {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1:1/a://b?c"'}, NoPlainAnswer),
        (401, {"WWW-Authenticate": 'Bearer realm="http://"'}, NoPlainAnswer),
        (302, {"Location": "/v2/elsewhere"}, NoPlainAnswer),
    ],
)
def test_answers_that_are_not_plain_are_left_to_skopeo(
    server: Server, status: int, headers: dict[str, str], error: type[Exception]
) -> None:
    server.answer = lambda *_: (status, headers, b"")
    with pytest.raises(error):
        digest(client(), f"docker://{server.host}/team/app-503:404")


def test_a_token_is_asked_for_once_for_each_repository(server: Server, tmp_path: Path) -> None:
    def answer(method: str, path: str, authorization: str) -> Answer:
        if path.startswith("/token"):
            return 200, {}, json.dumps({"token": path.partition("scope=")[2].partition("&")[0]}).encode()
        repository = path.split("/")[2]
        if authorization != f"Bearer repository%3A{repository}%3Apull":
            challenge = f'Bearer realm="http://{server.host}/token",service="s",scope="repository:{repository}:pull"'
            return 401, {"WWW-Authenticate": challenge}, b""
        return 200, {"Docker-Content-Digest": DIGEST}, b""

    server.answer = answer
    encoded = base64.b64encode(b"user:secret").decode()
    (tmp_path / "auth").write_text(json.dumps({"auths": {server.host: {"auth": encoded}}}))
    head = client(tmp_path / "auth")
    for repository in ("a", "b"):
        for tag in ("1", "2"):
            assert digest(head, f"docker://{server.host}/{repository}:{tag}") == DIGEST
    tokens = [(path, authorization) for _, path, authorization in server.requests if path.startswith("/token")]
    assert [authorization for _, authorization in tokens] == [f"Basic {encoded}"] * 2
    assert all("service=s" in path for path, _ in tokens)
    assert head.pace.counts == {"GET": 2, "HEAD": 6}


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[]", b"{}", b"x", b'{"token": 1}', b'{"token": "a\\nb"}'])
def test_a_token_that_cannot_be_read_is_left_to_skopeo(server: Server, body: bytes) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="http://{server.host}/token"'}
    server.answer = lambda method, path, authorization: (
        (200, {}, body) if path.startswith("/token") else (401, challenge, b"")
    )
    with pytest.raises(NoPlainAnswer):
        digest(client(), f"docker://{server.host}/a:1")


def test_a_token_that_has_expired_is_asked_for_again(server: Server) -> None:
    tokens = iter(["one", "two"])
    valid = ["one"]

    def answer(method: str, path: str, authorization: str) -> Answer:
        if path.startswith("/token"):
            return 200, {}, json.dumps({"access_token": next(tokens)}).encode()
        if authorization != f"Bearer {valid[0]}":
            return 401, {"WWW-Authenticate": f'Bearer realm="http://{server.host}/token"'}, b""
        return 200, {"Docker-Content-Digest": DIGEST}, b""

    server.answer = answer
    head = client()
    assert digest(head, f"docker://{server.host}/a:1") == DIGEST
    valid[0] = "two"
    assert digest(head, f"docker://{server.host}/a:1") == DIGEST


def test_a_password_is_sent_where_the_registry_asks_for_it(server: Server, tmp_path: Path) -> None:
    def answer(method: str, path: str, authorization: str) -> Answer:
        if authorization != "Basic dTpw":
            return 401, {"WWW-Authenticate": 'Basic realm="r"'}, b""
        return 200, {"Docker-Content-Digest": DIGEST}, b""

    server.answer = answer
    with pytest.raises(NoPlainAnswer):
        digest(client(), f"docker://{server.host}/a:1")
    (tmp_path / "auth").write_text(json.dumps({"auths": {server.host: {"auth": "dTpw"}}}))
    assert digest(client(tmp_path / "auth"), f"docker://{server.host}/a:1") == DIGEST


def test_requests_go_through_the_proxy_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = lambda *_: (200, {"Docker-Content-Digest": DIGEST}, b"")
    monkeypatch.setenv("http_proxy", f"http://{server.host}")
    assert digest(client(), "docker://registry.invalid:81/a:1") == DIGEST
    assert server.requests == [("HEAD", "http://registry.invalid:81/v2/a/manifests/1", "")]
    monkeypatch.setenv("no_proxy", "registry.invalid")
    with pytest.raises(NoPlainAnswer):
        digest(client(), "docker://registry.invalid:81/a:1")


def test_the_authority_of_a_host_is_where_containers_look_for_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = certificates(tmp_path, "server", "127.0.0.1", "IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    server.secure(context)
    server.answer = lambda *_: (200, {"Docker-Content-Digest": DIGEST}, b"")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(NoPlainAnswer):
        digest(client(verify=True), f"docker://{server.host}/a:1")
    assert digest(client(verify=False), f"docker://{server.host}/a:1") == DIGEST
    place = tmp_path / ".config/containers/certs.d" / server.host
    place.mkdir(parents=True)
    (place / "ca.crt").write_bytes(authority.read_bytes())
    assert digest(client(verify=True), f"docker://{server.host}/a:1") == DIGEST


def test_plain_http_is_not_used_unless_it_is_allowed_and_a_host_that_is_not_reached_is_tried_once(
    server: Server,
) -> None:
    head = client(verify=True)
    for _ in range(3):
        with pytest.raises(NoPlainAnswer):
            digest(head, f"docker://{server.host}/a:1")
    assert server.requests == []
    assert head.pace.counts == {}


@pytest.mark.parametrize(
    ("text", "host", "repository", "name"),
    [
        ("docker://h.example/a/b:1", "h.example", "a/b", "1"),
        ("docker://h.example:5000/a", "h.example:5000", "a", "latest"),
        (f"docker://localhost/a@{DIGEST}", "localhost", "a", DIGEST),
        (f"docker://h.example/a:1@{DIGEST}", "h.example", "a", DIGEST),
        ("docker://alpine:3", "docker.io", "library/alpine", "3"),
        ("docker://docker.io/alpine", "docker.io", "library/alpine", "latest"),
        ("docker://index.docker.io/team/app:v1_", "docker.io", "team/app", "v1_"),
        ("docker://team/app", "docker.io", "team/app", "latest"),
    ],
)
def test_references_are_read_as_docker_reads_them(text: str, host: str, repository: str, name: str) -> None:
    assert Reference.parse(text) == Reference(host, repository, name)

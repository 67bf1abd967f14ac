"""The credentials of a registry, from the files that skopeo reads."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from layerfarm.worker.catalog.credentials import Credentials, credentials_for


def auth(user: str, password: str = "p:w") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def helper(home: Path, name: str, script: str) -> None:
    write(home / "bin" / f"docker-credential-{name}", f"#!/bin/sh\n{script}\n").chmod(0o755)


def user(host: str = "h.example", repository: str = "team/app", auth_file: Path | None = None) -> str | None:
    found = credentials_for(host, repository, None if auth_file is None else str(auth_file))
    return None if found is None else found.user


def test_without_files_there_are_none(home: Path) -> None:
    assert credentials_for("h.example", "a", None) is None


def test_files_are_read_in_skopeos_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [home / ".docker/config.json", home / ".config/containers/auth.json", home / "run/containers/auth.json"]
    for number, place in enumerate(places):
        write(place, {"auths": {"h.example": auth(f"u{number}")}})
        assert user() == f"u{number}"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write(home / "named", {"auths": {"h.example": auth("named")}})))
    assert user() == "named"
    assert user(auth_file=write(home / "own", {"auths": {"h.example": auth("own")}})) == "own"
    assert user(auth_file=home / "none") is None


def test_the_most_specific_key_counts_and_dockers_urls_are_hosts(home: Path) -> None:
    keys = ["h.example", "h.example/team", "h.example/team/app", "https://d.example/v1/", "https://index.docker.io/v1/"]
    write(home / ".docker/config.json", {"auths": {key: auth(key.rpartition("//")[2]) for key in keys}})
    assert user() == "h.example/team/app"
    assert user(repository="team/web") == "h.example/team"
    assert user(repository="other") == "h.example"
    assert user("d.example") == "d.example/v1/"
    assert user("docker.io", "library/alpine") == "index.docker.io/v1/"
    assert user("h.example.org") is None


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", '{"auths": 1}', '{"auths": {"h.example": 3}}', '{"auths": {"h.example": {"auth": "%%"}}}'),
        *('{"auths": {"h.example": {}}}', '{"credsStore": "../x", "credHelpers": []}', '{"credsStore": "missing"}'),
    ],
)
def test_a_file_without_sense_is_passed_over(home: Path, content: str) -> None:
    write(home / "run/containers/auth.json", content)
    assert user() is None
    write(home / ".docker/config.json", {"auths": {"h.example": auth("next")}})
    assert user() == "next"


def test_helpers_are_asked_for_the_server(home: Path) -> None:
    helper(home, "one", 'read server; echo "{\\"Username\\": \\"one for $server\\", \\"Secret\\": \\"s\\"}"')
    helper(home, "token", 'echo "{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"t\\"}"')
    helper(home, "broken", "echo no; exit 1")
    content = {"credHelpers": {"h.example": "one", "t.example": "token", "b.example": "broken"}, "credsStore": "one"}
    write(home / ".docker/config.json", content)
    assert user() == "one for h.example"
    assert user("b.example") is None
    assert user("docker.io", "library/alpine") == "one for https://index.docker.io/v1/"
    assert credentials_for("t.example", "a", None) == Credentials("<token>", "t", identity_token=True)


def test_a_password_may_hold_colons_and_a_token_stands_alone(home: Path) -> None:
    entries = {"h.example": auth("u"), "t.example": {"identitytoken": "t"} | auth("00000000-0000")}
    write(home / ".docker/config.json", {"auths": entries})
    found = credentials_for("h.example", "a", None)
    assert found == Credentials("u", "p:w")
    assert found.basic == "Basic dTpwOnc="
    assert credentials_for("t.example", "a", None) == Credentials("", "t", identity_token=True)

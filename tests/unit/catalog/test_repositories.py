"""Repositories that patterns choose from a registry's list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from layerfarm.jobs.errors import AccessDenied, CatalogError, LayerfarmError, NotInRegistry, RegistryBusy, RegistryError
from layerfarm.worker.catalog.discovery import Found, discover
from layerfarm.worker.catalog.document import parse_catalog
from layerfarm.worker.catalog.known import Known
from layerfarm.worker.catalog.registry import Skopeo
from layerfarm.worker.catalog.repositories import repositories_at
from layerfarm.worker.catalog.sources import CatalogImage
from tests.unit.catalog.http_server import Answer, Server
from tests.unit.catalog.test_head import client


def names(server: Server, prefix: str = "") -> list[str]:
    return repositories_at(client(), f"docker://{server.host}{prefix}")


def page(*repositories: str) -> bytes:
    return json.dumps({"repositories": repositories}).encode()


@pytest.mark.parametrize("absolute", [False, True])
def test_all_pages_are_read_and_names_are_those_below_the_prefix(server: Server, absolute: bool) -> None:
    base = f"http://{server.host}" if absolute else ""

    def answer(method: str, path: str, authorization: str) -> Answer:
        if path == "/v2/_catalog?n=1000":
            link = f'<{base}/v2/_catalog?last=team%2Fapi&n=1000>; rel="next"'
            return 200, {"Link": link}, page("other/x", "team", "team/api")
        assert path == "/v2/_catalog?last=team%2Fapi&n=1000"
        return 200, {}, page("team/web/ui", "teams/z")

    server.answer = answer
    assert names(server, "/team/") == ["api", "web/ui"]
    assert names(server) == ["other/x", "team", "team/api", "team/web/ui", "teams/z"]


def test_a_link_that_leads_in_a_circle_ends(server: Server) -> None:
    server.answer = lambda *_: (200, {"Link": '</v2/_catalog?last=a>; rel="next"'}, page("a"))
    assert names(server) == ["a"]
    assert len(server.requests) == 2


@pytest.mark.large
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b""),
        (403, b""),
        (404, b"not found"),
        (405, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"repositories": {"a": 1}}'),
        (200, b'{"repositories": [1]}'),
        (200, b"[" * 100_000),
    ],
)
def test_a_registry_that_does_not_list_is_an_error_that_says_to_name_them(
    server: Server, status: int, body: bytes
) -> None:
    server.answer = lambda *_: (status, {}, body)
    with pytest.raises(RegistryError, match="names instead of patterns"):
        names(server)


def test_a_registry_that_is_busy_is_asked_again(server: Server) -> None:
    server.answer = lambda *_: (503, {}, b"")
    with pytest.raises(RegistryBusy):
        names(server)


def test_access_to_the_list_is_asked_for_by_its_scope(server: Server) -> None:
    def answer(method: str, path: str, authorization: str) -> Answer:
        if path.startswith("/token"):
            assert "scope=registry%3Acatalog%3A%2A" in path
            return 200, {}, b'{"token": "t"}'
        if authorization != "Bearer t":
            return 401, {"WWW-Authenticate": f'Bearer realm="http://{server.host}/token"'}, b""
        return 200, {}, page("a")

    server.answer = answer
    assert names(server) == ["a"]


def test_a_list_without_end_is_refused(server: Server) -> None:
    server.answer = lambda *_: (200, {}, b" " * (5 << 20))
    with pytest.raises(RegistryError):
        names(server)


# --- in a catalog ---------------------------------------------------------------------------------

FILE = b"""
store: s
sources: [{registry: 'docker://h/team', repositories: [named, 'app/*', '*-api']}]
policies: [{match: '*', do: {transform: keep}}]
"""
NOT_ASKED = cast(Known, None)
CATALOG = parse_catalog(FILE, Path("/c/catalog.yaml"))


class Lister:
    """Answers with repositories, and with the tag ``1`` of each one that exists."""

    def __init__(self, repositories: list[str] | LayerfarmError, **errors: LayerfarmError) -> None:
        self._repositories = repositories
        self._errors = errors

    def repositories(self, registry: str) -> list[str]:
        assert registry == "docker://h/team"
        if isinstance(self._repositories, LayerfarmError):
            raise self._repositories
        return self._repositories

    def tags(self, repository: str) -> list[str]:
        name = repository.removeprefix("docker://h/team/")
        if name in self._errors:
            raise self._errors[name]
        return ["1"]


def found(repositories: list[str] | LayerfarmError, known: tuple[str, ...] = (), **errors: LayerfarmError) -> Found:
    policy = CATALOG.policies[0]
    before = [CatalogImage(f"team/{name}:1", f"docker://h/team/{name}:1", True, policy) for name in known]
    return discover(CATALOG, cast(Skopeo, Lister(repositories, **errors)), NOT_ASKED, before)


def listed(result: Found) -> list[str]:
    return [image.name for image in result.listed]


def test_patterns_choose_from_the_list_and_names_need_not_be_in_it() -> None:
    result = found(["app", "app/a", "app/b/c", "x-api", "other"])
    assert listed(result) == ["team/app/a:1", "team/app/b/c:1", "team/named:1", "team/x-api:1"]
    assert (result.missed, result.notices) == ([], [])


def test_a_name_alone_does_not_ask_for_the_list() -> None:
    catalog = parse_catalog(FILE.replace(b", 'app/*', '*-api'", b""), Path("/c/catalog.yaml"))
    result = discover(catalog, cast(Skopeo, Lister(RegistryError("never asked"))), NOT_ASKED, [])
    assert (listed(result), result.missed) == (["team/named:1"], [])


def test_a_registry_that_refuses_the_list_keeps_the_repositories_of_the_last_run() -> None:
    result = found(RegistryError("refused", where="docker://h/team"), known=("app/a", "else"))
    assert listed(result) == ["team/app/a:1", "team/named:1"]
    assert [one.error for one in result.missed] == ["refused: docker://h/team"]


def test_a_repository_that_is_gone_leaves_with_a_notice_and_one_that_is_hidden_stays() -> None:
    gone = {"app/a": NotInRegistry("gone"), "app/b": AccessDenied("denied")}
    result = found(["app/x"], known=("app/a", "app/b", "app/c"), **gone)
    assert listed(result) == ["team/app/c:1", "team/app/x:1", "team/named:1"]
    assert [image.name for image in result.kept] == ["team/app/b:1"]
    assert [one.where for one in result.missed] == ["docker://h/team/app/b"]
    assert len(result.notices) == 1 and "docker://h/team/app/a" in result.notices[0]


def test_patterns_that_match_nothing_are_an_error() -> None:
    catalog = parse_catalog(FILE.replace(b"named, ", b""), Path("/c/catalog.yaml"))
    with pytest.raises(CatalogError, match=r"no repository matches app/\*, \*-api"):
        discover(catalog, cast(Skopeo, Lister(["other"])), NOT_ASKED, [])

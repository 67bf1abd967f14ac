"""The images of a catalog that a push concerns."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.worker.catalog.document import parse_catalog
from layerfarm.worker.catalog.part import Names, restricted
from layerfarm.worker.catalog.serve.concerns import concerned
from layerfarm.worker.catalog.serve.notifications import Push

CATALOG = parse_catalog(
    b"""
store: s
sources:
  - {registry: 'docker://h:5000/team', repositories: [web, /api/], tags: ['1.*', latest], exclude: ['*-rc*']}
  - {registry: 'docker://h:5000', repositories: [team/web, base], tags: ['2.*'], prefix: other/}
  - {registry: 'docker://ghcr.io/codertocat/', repositories: [hello-world]}
  - {layout: images}
policies:
  - {match: ['*/web:*', '*/api/:*', 'codertocat/*', '*base:2.0'], do: {transform: keep}}
""",
    Path("/c/catalog.yaml"),
)
REFERRER = f"sha256-{'0' * 64}"


@pytest.mark.parametrize(
    ("repository", "tag", "names"),
    [
        ("team/web", "1.0", {"team/web:1.0"}),
        ("team/web", "latest", {"team/web:latest"}),
        ("team/web", "1.0-rc1", set()),
        ("team/web", "2.0", {"other/team/web:2.0"}),
        ("team/web2", "1.0", set()),
        ("web", "1.0", set()),
        ("team", "1.0", set()),
        ("base", "2.0", {"other/base:2.0"}),
        ("base", "2.1", set()),  # no policy
        ("codertocat/hello-world", "v1", {"codertocat/hello-world:v1"}),
        ("images", "1.0", set()),
        ("team/web", REFERRER, {"team/web:*", "other/team/web:*"}),
        ("team/web", f"{REFERRER}.sig", {"team/web:*", "other/team/web:*"}),
    ],
)
def test_the_images_of_a_push(repository: str, tag: str, names: set[str]) -> None:
    assert concerned(CATALOG, Push(repository, tag)) == names


def test_a_part_of_a_catalog_has_only_the_repositories_of_its_names() -> None:
    part = restricted(CATALOG, Names(frozenset(["team/web:1.0", "other/base:*", "other/team/absent:1", "absent:1"])))
    assert [(source.registry, source.repositories) for source in part.sources] == [
        ("docker://h:5000/team", ("web",)),
        ("docker://h:5000", ("base",)),
    ]
    assert part.sources[0].tags == CATALOG.sources[0].tags


def test_names_contain_their_images() -> None:
    names = Names(frozenset(["team/web:1.0", "base:*"]))
    assert "team/web:1.0" in names and "base:2.0" in names
    assert "team/web:1.1" not in names and "x/base:2.0" not in names

"""Discovery of a part of a catalog: only its repositories are listed, and everything else stays."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from layerfarm.jobs.errors import CatalogError, LayerfarmError, RegistryBusy
from layerfarm.worker.catalog.discovery import Found
from layerfarm.worker.catalog.document import parse_catalog
from layerfarm.worker.catalog.part import Names, discover_part
from layerfarm.worker.catalog.registry import Skopeo
from layerfarm.worker.catalog.sources import CatalogImage
from layerfarm.worker.catalog.state import LastRun, Missed
from tests.unit.catalog.test_discovery import NOT_ASKED, Lister

FILE = b"""
store: s
sources:
  - {registry: 'docker://h', repositories: [a, b, 'team/*'], newest: 2}
policies: [{match: '*', do: {transform: keep}}]
"""
CATALOG = parse_catalog(FILE, Path("/c/catalog.yaml"))
REFERRERS = f"sha256-{'0' * 64}"


def images(*names: str) -> list[CatalogImage]:
    return [CatalogImage(name, f"docker://h/{name}", True, CATALOG.policies[0]) for name in names]


def found(
    asked: set[str],
    answers: dict[str, list[str] | LayerfarmError],
    known: list[CatalogImage] | None = None,
    last: LastRun | None = None,
) -> Found:
    lister = cast(Skopeo, Lister(**answers))
    return discover_part(CATALOG, lister, NOT_ASKED, known or [], last or LastRun(), Names(frozenset(asked)))


def names(group: object) -> set[str]:
    return {image.name for image in cast(list[CatalogImage], group)}


def test_only_images_of_the_names_are_listed_and_others_of_the_last_run_are_kept() -> None:
    result = found({"a:2"}, {"a": ["1", "2", "3"]}, images("a:3", "b:1", "team/x:1"))
    assert (names(result.listed), names(result.kept)) == ({"a:2"}, {"a:3", "b:1", "team/x:1"})


def test_images_that_newer_ones_push_out_leave_and_those_of_no_notification_do_not_enter() -> None:
    result = found({"a:4"}, {"a": ["1", "2", "3", "4"]}, images("a:1", "a:2"))
    assert (names(result.listed), names(result.kept)) == ({"a:4"}, set())


def test_a_whole_repository() -> None:
    result = found({"b:*"}, {"b": ["1", "2"]}, images("a:1", "b:1"))
    assert (names(result.listed), names(result.kept)) == ({"b:1", "b:2"}, {"a:1"})


def test_a_repository_of_a_pattern_is_listed_alone() -> None:
    result = found({"team/new:1"}, {"team/new": ["1", "2"]}, images("team/x:1"))
    assert (names(result.listed), names(result.kept)) == ({"team/new:1"}, {"team/x:1"})


def test_a_tag_that_is_gone_again_and_a_repository_of_no_source_are_no_errors() -> None:
    assert found({"a:1", "absent:1"}, {"a": []}).images == []


def test_a_repository_that_cannot_be_listed_is_missed_and_keeps_its_images() -> None:
    before = LastRun(
        missed=(Missed(where="docker://h/a", error="old"), Missed(where="docker://h/b", error="still")),
        referrers=frozenset([f"docker://h/a:{REFERRERS}", f"docker://h/b:{REFERRERS}"]),
    )
    result = found({"a:1"}, {"a": RegistryBusy("busy")}, images("a:0", "b:1"), before)
    assert names(result.kept) == {"a:0", "b:1"}
    assert [(one.where, one.error) for one in result.missed] == [("docker://h/b", "still"), ("docker://h/a", "busy")]
    assert result.referrers == {f"docker://h/b:{REFERRERS}"}


def test_an_image_with_the_name_of_another_source_is_refused() -> None:
    catalog = parse_catalog(
        FILE.replace(b"newest: 2}", b"newest: 2}\n  - {registry: 'docker://h/x', repositories: [a], prefix: y}"),
        Path("/c/catalog.yaml"),
    )
    other = CatalogImage("a:1", "docker://other/a:1", False, catalog.policies[0])
    with pytest.raises(CatalogError, match=r"two images have one name, docker://h/a:1 and docker://other/a:1"):
        discover_part(catalog, cast(Skopeo, Lister(a=["1"])), NOT_ASKED, [other], LastRun(), Names(frozenset(["a:1"])))

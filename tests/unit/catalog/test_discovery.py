"""Discovery of a catalog's images, when some sources cannot be listed."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from layerfarm.jobs.errors import AccessDenied, CatalogError, LayerfarmError, NotInRegistry
from layerfarm.worker.catalog.discovery import Found, discover
from layerfarm.worker.catalog.document import parse_catalog
from layerfarm.worker.catalog.known import Known
from layerfarm.worker.catalog.registry import Skopeo
from layerfarm.worker.catalog.sources import CatalogImage

FILE = b"""
store: s
sources: [{registry: 'docker://h', repositories: [a, b], tags: ['1*']}]
policies: [{match: '*', do: {transform: keep}}]
"""
NOT_ASKED = cast(Known, None)
CATALOG = parse_catalog(FILE, Path("/c/catalog.yaml"))


class Lister:
    """Answers with the tags of some repositories, or an error; any other question fails the test."""

    def __init__(self, **answers: list[str] | LayerfarmError) -> None:
        self._answers = answers

    def tags(self, repository: str) -> list[str]:
        answer = self._answers[repository.removeprefix("docker://h/")]
        if isinstance(answer, LayerfarmError):
            raise answer
        return answer


def found(known: tuple[str, ...] = (), **answers: list[str] | LayerfarmError) -> Found:
    policy = CATALOG.policies[0]
    before = [CatalogImage(name, f"docker://h/{name}", True, policy) for name in known]
    return discover(CATALOG, cast(Skopeo, Lister(**answers)), NOT_ASKED, before)


def names(images: object) -> list[str]:
    return [image.name for image in cast(list[CatalogImage], images)]


@pytest.mark.parametrize("error", [NotInRegistry("no such"), AccessDenied("denied")])
def test_a_repository_that_cannot_be_listed_stops_no_other_and_keeps_its_images(error: LayerfarmError) -> None:
    result = found(("a:1", "a:10", "b:1"), a=error, b=["1", "2"])
    assert (names(result.listed), names(result.kept)) == (["b:1"], ["a:1", "a:10"])
    assert [(one.where, one.error) for one in result.missed] == [("docker://h/a", str(error))]


def test_a_repository_that_has_no_image_any_more_keeps_them() -> None:
    result = found(("a:1", "b:1"), a=["2"], b=["11"])
    assert (names(result.listed), names(result.kept)) == (["b:11"], ["a:1"])
    (missed,) = result.missed
    assert "no images, 1 in the last run: docker://h/a" in missed.error


def test_a_repository_that_has_no_image_yet_is_no_fault() -> None:
    result = found(a=[], b=["1"])
    assert (names(result.images), result.missed) == (["b:1"], [])


def test_no_image_at_all_is_an_error_of_the_run() -> None:
    with pytest.raises(CatalogError, match="no image found"):
        found(a=["2"], b=[])
    with pytest.raises(AccessDenied):
        found(a=AccessDenied("denied"), b=[])
    assert names(found(("a:1", "b:1"), a=[], b=[]).images) == ["a:1", "b:1"]

"""Which images a catalog holds, what they are called, and in which order they were made."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.errors import CatalogError, InvalidReference, LayerfarmError
from layerfarm.worker.catalog.document import CatalogFile, parse_catalog
from layerfarm.worker.catalog.sources import Listing, select
from tests.unit.catalog.works import places


def catalog(sources: str, policies: str = "[{match: '*', do: {transform: keep}}]") -> CatalogFile:
    return parse_catalog(f"store: s\nsources: {sources}\npolicies: {policies}\n".encode(), Path("/c/catalog.yaml"))


def names(found: CatalogFile, *tags: list[str]) -> list[str]:
    listings = [Listing(source, name, tags[at]) for at, (source, name, _) in enumerate(places(found))]
    return [image.name for image in select(found, listings)]


def test_images_are_named_by_path_and_tag_without_the_host() -> None:
    found = catalog("[{registry: 'docker://host:5000/team', repositories: [web, api]}]")
    assert [where for _, _, where in places(found)] == ["docker://host:5000/team/web", "docker://host:5000/team/api"]
    assert names(found, ["1.0"], ["2.0"]) == ["team/api:2.0", "team/web:1.0"]


def test_patterns_pick_and_leave_out_and_the_newest_are_last_by_their_numbers() -> None:
    found = catalog("[{registry: 'docker://h', repositories: [a], tags: ['1.*'], exclude: ['*-rc*'], newest: 2}]")
    assert names(found, ["1.9", "1.10", "1.8", "1.11-rc1", "2.0", "latest"]) == ["a:1.9", "a:1.10"]


def test_tags_of_referrers_are_no_images() -> None:
    found = catalog("[{registry: 'docker://h', repositories: [a], newest: 1}]")
    of = "sha256-" + "a" * 64
    listing = Listing(found.sources[0], "a", ["1", "2", "sha256-notes", of, f"{of}.sig", f"{of}.sbom"])
    (image,) = select(found, [listing])
    assert (image.name, image.beside) == ("a:sha256-notes", (of, f"{of}.sbom", f"{of}.sig"))


@pytest.mark.parametrize(
    ("tags", "chosen"),
    [
        (["a:1", "a:2", "b:1"], ["old/a:2", "old/b:1"]),
        (["a-1", "a-2", "b-1", "c"], ["old/a-2", "old/b-1", "old/c"]),
        (["1.9", "1.10", "latest"], ["old/1.10"]),
        (["a:1", "a:latest", "b-1", "b-latest"], ["old/a:1", "old/b-1"]),
    ],
)
def test_newest_counts_for_each_repository_of_a_layout(tags: list[str], chosen: list[str]) -> None:
    assert names(catalog("[{layout: images, newest: 1, prefix: old/}]"), tags) == chosen


@pytest.mark.parametrize(
    ("wanted", "tags", "chosen"),
    [
        ("'*'", ["1.0", "1.1", "latest"], ["a:1.1"]),
        ("'*'", ["1.0", "latest-alpine3.19", "stable", "main"], ["a:1.0"]),
        ("'*', latest", ["1.0", "1.1", "latest", "stable"], ["a:1.1", "a:latest"]),
        ("'1.0', '1.1'", ["1.0", "1.1"], ["a:1.1"]),
        ("'*'", ["bookworm", "trixie"], ["a:trixie"]),
    ],
)
def test_newest_leaves_out_tags_that_follow_others_unless_they_are_named(
    wanted: str, tags: list[str], chosen: list[str]
) -> None:
    found = catalog(f"[{{registry: 'docker://h', repositories: [a], tags: [{wanted}], newest: 1}}]")
    assert names(found, tags) == chosen


def test_the_first_policy_that_matches_counts_and_without_one_the_image_is_left_out() -> None:
    policies = "[{match: 'a:1*', do: {transform: keep}}, {match: 'a:*', do: {transform: recompress, compress: zstd}}]"
    found = catalog("[{layout: images}]", policies)
    (source, _, _) = places(found)[0]
    images = select(found, [Listing(source, "", ["a:1", "a:2", "b:1"])])
    assert [(image.name, image.policy.do.transform) for image in images] == [("a:1", "keep"), ("a:2", "recompress")]


def test_two_images_of_one_name_are_an_error_that_names_both() -> None:
    found = catalog("[{layout: one}, {layout: two}]")
    with pytest.raises(CatalogError, match="/c/one:a:1 and /c/two:a:1"):
        names(found, ["a:1"], ["a:1"])


def test_a_name_that_cannot_be_a_tag_is_left_out_alone() -> None:
    found = catalog("[{registry: 'docker://h', repositories: [a]}, {layout: images}]")
    refused: list[tuple[str, LayerfarmError]] = []
    listings = [Listing(found.sources[0], "a", ["1"]), Listing(found.sources[1], "", ["-x", "b c", "b:2"])]
    images = select(found, listings, lambda origin, error: refused.append((origin, error)))
    assert [image.name for image in images] == ["a:1", "b:2"]
    assert sorted(origin for origin, _ in refused) == ["/c/images:-x", "/c/images:b c"]
    assert all(isinstance(error, InvalidReference) for _, error in refused)


def test_names_that_docker_allows_are_valid() -> None:
    found = catalog("[{registry: 'docker://h/t', repositories: [my__app, my---app]}]")
    tags = ["v1_", "main__2024", "1.0-", "_edge"]
    assert set(names(found, tags, tags)) == {f"t/{name}:{tag}" for name in ("my__app", "my---app") for tag in tags}

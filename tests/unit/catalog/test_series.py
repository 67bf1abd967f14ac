"""Which repository an image belongs to, and the order of its tags in time."""

from __future__ import annotations

import pytest

from layerfarm.worker.catalog.series import by_repository, in_order, natural, split_name


@pytest.mark.parametrize(
    ("name", "repository", "tag"),
    [
        ("team/web:1.0", "team/web", "1.0"),
        ("team/web:latest", "team/web", "latest"),
        ("host:5000/team/web:1.0", "host:5000/team/web", "1.0"),
        ("host:5000/team/web", "host:5000/team/web", ""),
        ("web-1.0", "web", "1.0"),
        ("base/web_v2", "base/web", "v2"),
        ("node-20-slim", "node", "20-slim"),
        ("ubuntu-22.04/web-latest", "ubuntu-22.04/web", "latest"),
        ("base/debian", "base/debian", ""),
        ("web-stable", "web-stable", ""),
        ("python3", "python3", ""),
        ("1.0", "", "1.0"),
        ("old/1.0", "old", "1.0"),
        ("latest", "", "latest"),
    ],
)
def test_the_repository_ends_at_the_tag_or_at_the_version(name: str, repository: str, tag: str) -> None:
    assert split_name(name) == (repository, tag)


def test_images_without_a_colon_are_not_all_tags_of_one_repository() -> None:
    names = ["db-3", "tools", "web-1.0", "web-1.1"]
    assert by_repository(names) == {"db": ["db-3"], "tools": ["tools"], "web": ["web-1.0", "web-1.1"]}


def test_tags_follow_each_other_by_time_of_creation_or_by_name() -> None:
    created = {
        "a:1": "2024-01-03T00:00:00Z",
        "a:2": "2024-01-01T00:00:00Z",
        "a:10": "2024-01-02T00:00:00Z",
        "b:1": None,
    }
    assert in_order(created, created, "created") == {"a": ["a:2", "a:10", "a:1"], "b": ["b:1"]}
    assert in_order(created, created, "name") == {"a": ["a:1", "a:2", "a:10"], "b": ["b:1"]}


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00.5Z"),
        ("2024-01-01T01:00:00+02:00", "2024-01-01T00:00:00Z"),
        ("2024-01-01T00:00:00Z", "2023-12-31T23:00:00-01:30"),
        ("2024-01-01T00:00:00.0000000001Z", "2024-01-01T00:00:00.00000000011Z"),
        ("0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00"),
    ],
)
def test_times_of_creation_are_compared_as_times(earlier: str, later: str) -> None:
    assert in_order(["a:1", "a:2"], {"a:1": later, "a:2": earlier}, "created") == {"a": ["a:2", "a:1"]}


def test_equal_times_are_ordered_by_name() -> None:
    created = {"a:9": "2024-01-01T00:00:00.50Z", "a:10": "2024-01-01T00:00:00.5+00:00"}
    assert in_order(created, created, "created") == {"a": ["a:9", "a:10"]}


@pytest.mark.parametrize("bad", [None, "", "yesterday", "2024-02-30T00:00:00Z", "0000-01-01T00:00:00Z"])
def test_a_repository_with_a_time_that_is_none_is_ordered_by_name(bad: str | None) -> None:
    created = {"a:1": "2024-01-02T00:00:00Z", "a:2": bad, "a:3": "2024-01-01T00:00:00Z"}
    assert in_order(created, created, "created") == {"a": ["a:1", "a:2", "a:3"]}


def test_numbers_of_any_length_and_digits_of_other_scripts_have_one_order() -> None:
    long = "9" * 5000
    ordered = ["09", "9", "10", long, f"1{long}", "x²", "٣"]
    shuffled = [ordered[place] for place in (3, 6, 1, 5, 0, 2, 4)]
    assert sorted(shuffled, key=natural) == ordered

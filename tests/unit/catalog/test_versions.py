"""Tags that a range of versions or an age selects."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from layerfarm.jobs.errors import CatalogFileError, RegistryError
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.ages import Young, young
from layerfarm.worker.catalog.document import parse_catalog
from layerfarm.worker.catalog.dry_run import outlook
from layerfarm.worker.catalog.known import Known
from layerfarm.worker.catalog.sources import Listing, select
from layerfarm.worker.catalog.versions import VersionRange, parse_age
from tests.unit.catalog.works import Seen, places, ran, work_on
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import entry, index

TAGS = ["1.1", "1.2", "v1.2.3", "1.2.3-rc.1", "1.10", "1.9.9", "2", "2.0.0-rc1", "2.1"]
TAGS += ["latest", "main", "1.2-alpine", "20240101", "3.0.0-beta.2"]


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        (">=1.2 <2", "1.2 v1.2.3 1.10 1.9.9"),
        (">=1.2, <2", "1.2 v1.2.3 1.10 1.9.9"),
        (">= 1.2 <2 !=1.9.9", "1.2 v1.2.3 1.10"),
        ("=1.2", "1.2"),
        ("==1.2.*", "1.2 v1.2.3"),
        ("<1.2 || >=2 <3", "1.1 2 2.1"),
        (">=1.2.3-rc.1 <1.3", "v1.2.3 1.2.3-rc.1"),
        (">2.1 <10", ""),
        (">=3.0.0-alpha", "3.0.0-beta.2 20240101"),
    ],
)
def test_a_range_holds_the_versions_between_and_no_other_tags(text: str, selected: str) -> None:
    wanted = VersionRange(text)
    assert {tag for tag in TAGS if tag in wanted} == set(selected.split())


@pytest.mark.parametrize("text", ["", "1.2", "^1.2", "~1.2", ">=", ">=x", ">=1 and <2", ">=1 ||", "<2 >"])
def test_an_invalid_range_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a range of versions"):
        VersionRange(text)


def test_ages_are_hours_days_and_weeks() -> None:
    assert [parse_age(text) for text in ("12h", "30d", "8w")] == [
        timedelta(hours=12),
        timedelta(days=30),
        timedelta(weeks=8),
    ]
    for text in ("", "30", "d", "0d", "-1d", "1.5d", "30 d", "1m", "9999999w"):
        with pytest.raises(ValueError, match="not an age"):
            parse_age(text)


@pytest.mark.parametrize(("key", "words"), [("semver: '^1'", "range of versions"), ("newer-than: 30", "not a string")])
def test_mistakes_are_errors_of_the_file(key: str, words: str) -> None:
    with pytest.raises(CatalogFileError, match=words):
        parse_catalog(
            f"store: s\nsources: [{{layout: a, {key}}}]\npolicies: [{{match: '*', do: {{transform: keep}}}}]".encode(),
            Path("/c.yaml"),
        )


def test_a_range_selects_tags_of_registries_and_versions_in_names_of_layouts() -> None:
    text = (
        "store: s\nsources: [{registry: 'docker://h', repositories: [a], semver: '>=1.2 <2', newest: 2},"
        " {layout: images, semver: '>=2'}]\npolicies: [{match: '*', do: {transform: keep}}]\n"
    )
    found = parse_catalog(text.encode(), Path("/c/catalog.yaml"))
    tags = [[tag for tag in TAGS if tag[0] != "v"], ["web-1.0", "web-2.0", "b:3", "tools", "9"]]
    listings = [Listing(source, name, each) for (source, name, _), each in zip(places(found), tags, strict=True)]
    assert {image.name for image in select(found, listings)} == {"a:1.9.9", "a:1.10", "web-2.0", "b:3", "9"}


# --- newer-than -----------------------------------------------------------------------------------

NOW = datetime(2024, 5, 31, 12, tzinfo=UTC)
TIMES = {
    "new": "2024-05-30T00:00:00Z",
    "edge": "2024-05-01T12:00:00Z",
    "zone": "2024-05-01T14:00:00.5+02:00",
    "old": "2024-05-01T11:59:59Z",
    "ancient": "1970-01-01T00:00:00Z",
    "none": None,
    "nonsense": "yesterday",
}


@pytest.fixture
def images(tmp_path: Path) -> Layout:
    layout = Layout.create(tmp_path / "images")
    for tag, created in TIMES.items():
        fields = {} if created is None else {"created": created}
        image(layout, [tar((tag, b"x" * 100))], tag=f"app:{tag}", **fields)
    return layout


def catalog(directory: Path, age: str = "30d") -> Path:
    path = directory / "c.yaml"
    path.write_text(
        f"store: store\nsources: [{{layout: images, newer-than: {age}}}]\n"
        "policies: [{match: '*', do: {transform: keep}}]\n"
    )
    return path


def aged(path: Path) -> Young:
    found = parse_catalog(path.read_bytes(), path)
    listing = Listing(found.sources[0], "", [f"app:{tag}" for tag in TIMES])
    return young(select(found, [listing]), cast(Known, None), 2, NOW)


def test_images_are_selected_by_the_time_in_their_configuration(images: Layout, tmp_path: Path) -> None:
    found = aged(catalog(tmp_path))
    assert {one.name for one in found.images} == {"app:new", "app:edge", "app:zone"}
    assert {one.name for one in found.undated} == {"app:none", "app:nonsense"}


def test_of_an_index_the_first_image_with_a_time_counts(images: Layout, tmp_path: Path) -> None:
    undated = image(images, [], tag="app:x")
    old, new = (image(images, [], tag="app:x", created=TIMES[name]) for name in ("old", "new"))
    index(images, [entry(undated), entry(new), entry(old)], "app:edge")
    index(images, [entry(old), entry(new)], "app:zone")
    found = aged(catalog(tmp_path))
    assert {one.name for one in found.images} == {"app:new", "app:edge"}


def test_an_image_that_cannot_be_read_is_not_left_out_silently(images: Layout, tmp_path: Path) -> None:
    path = catalog(tmp_path)
    found = parse_catalog(path.read_bytes(), path)
    (one,) = select(found, [Listing(found.sources[0], "", ["app:absent"])])
    assert young([one], cast(Known, None), 1, NOW).images == [one]


class Reader:
    """A registry of one image; counts what it is asked for."""

    def __init__(self, layout: Layout, tag: str) -> None:
        self._layout = layout
        self._tag = tag
        self.asked: list[str] = []

    def raw_manifest(self, reference: str) -> bytes:
        self.asked.append("manifest")
        return self._layout.read(self._layout.find(self._tag)[0])

    def raw_config(self, reference: str, digest: str) -> bytes:
        self.asked.append("config")
        if self._tag == "app:old":
            raise RegistryError("refused")
        return self._layout.blob_path(digest).read_bytes()


def test_of_a_registry_manifest_and_configuration_are_read(images: Layout) -> None:
    text = (
        "store: s\nsources: [{registry: 'docker://h', repositories: [app], newer-than: 30d}]\n"
        "policies: [{match: '*', do: {transform: keep}}]\n"
    )
    found = parse_catalog(text.encode(), Path("/c/catalog.yaml"))
    for tag, is_selected in (("new", True), ("ancient", False), ("old", True)):  # of the last, nothing is known
        reader = Reader(images, f"app:{tag}")
        chosen = select(found, [Listing(found.sources[0], "app", [tag])])
        assert bool(young(chosen, cast(Known, reader), 1, NOW).images) == is_selected
        assert reader.asked == ["manifest", "config"]


def test_a_run_has_the_young_images_and_says_what_has_no_time(images: Layout, tmp_path: Path) -> None:
    image(images, [tar(("f", b"x"))], tag="app:today", created=datetime.now(UTC).isoformat(timespec="seconds"))
    view = Seen()
    report = ran(catalog(tmp_path), view)
    assert ([row.name for row in report.images], report.failed) == (["app:today"], 0)
    left_out = "left out, no creation time, which newer-than needs"
    assert sorted(view.notices) == [f"app:none: {left_out}", f"app:nonsense: {left_out}"]


def test_that_all_images_are_too_old_is_no_error(images: Layout, tmp_path: Path) -> None:
    report = ran(catalog(tmp_path, "20000w"))
    assert len(report.images) == 5
    for _ in range(2):
        report = ran(catalog(tmp_path))
        assert (report.images, report.failed) == ((), 0)
    assert outlook(work_on(tmp_path / "c.yaml")) == ([], [])

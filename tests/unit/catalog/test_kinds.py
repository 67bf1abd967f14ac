"""Catalogs of layouts that hold more than images for Linux: artifacts, other systems, tags of digests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerfarm.jobs.image import resolve
from layerfarm.jobs.relayer.referrers import fallback_tag, names_image, spoken, unread_referrers
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, Index, Layout
from layerfarm.worker.catalog.series import newest
from tests.unit.catalog.works import Seen, catalog_file, costs, planned, ran
from tests.unit.image.images import image
from tests.unit.relayer.images import entry, index, manifest, two_platforms
from tests.unit.relayer.test_other_systems import LINUX, WINDOWS, two_systems

SPDX = "application/spdx+json"
TRANSFORMS = ["{transform: recompress, compress: zstd}", "{transform: squash}", "{transform: rechunk}"]


@pytest.fixture
def images(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "images")


# --- artifacts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", TRANSFORMS)
def test_an_artifact_is_skipped_and_an_earlier_image_of_the_tag_is_not_reported(
    images: Layout, tmp_path: Path, policy: str
) -> None:
    path = catalog_file(tmp_path, policy)
    image(images, LINUX, tag="chart:1")
    image(images, LINUX, tag="app:1")
    assert {row.state for row in ran(path).images} == {"done"}
    images.tag("chart:1", manifest(images, "application/vnd.chart", b"chart"))
    for _ in range(2):
        view = Seen()
        report = ran(path, view)
        rows = {row.name: row for row in report.images}
        assert (rows["app:1"].state, rows["chart:1"].state, report.failed) == ("done", "skipped", 0)
        assert (rows["chart:1"].old, rows["chart:1"].new, rows["chart:1"].bytes_before) == ("", None, 0)
        (note,) = rows["chart:1"].warnings
        assert "application/vnd.chart" in note
        assert f"chart:1: {note}" in view.notices
        assert view.steps["transform"] == 0
    assert {row.state for row in planned(path).images} <= {"done", "planned", "skipped"}


def test_an_artifact_that_is_kept_is_counted_with_its_bytes(images: Layout, tmp_path: Path) -> None:
    images.tag("chart:1", manifest(images, "application/vnd.chart", b"chart"))
    (row,) = ran(catalog_file(tmp_path, "{transform: keep}")).images
    assert (row.state, row.layers_before, row.layers_after) == ("done", 1, 1)
    assert row.bytes_before == row.bytes_after == len(b"chart") + len(b"{}")


# --- other systems -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", TRANSFORMS[1:])
def test_an_image_for_another_system_is_kept_with_a_notice_in_every_run(
    images: Layout, tmp_path: Path, policy: str
) -> None:
    path = catalog_file(tmp_path, policy)
    windows = image(images, WINDOWS, tag="win:1", os="windows")
    view = Seen()
    (row,) = costs(ran(path, view)).images
    assert (row.state, row.new) == ("done", windows.descriptor.digest)
    assert row.warnings == (view.notices[0].removeprefix("win:1: "),)
    assert "windows/amd64" in row.warnings[0]
    again = Seen()
    assert costs(ran(path, again)).images == (row,)
    assert (again.notices, again.steps["transform"]) == (view.notices, 0)


def test_a_note_goes_when_the_image_can_be_transformed(images: Layout, tmp_path: Path) -> None:
    image(images, WINDOWS, tag="app:1", os="windows")
    assert ran(catalog_file(tmp_path, TRANSFORMS[1])).images[0].warnings
    image(images, LINUX, tag="app:1")
    assert not ran(catalog_file(tmp_path, TRANSFORMS[1])).images[0].warnings
    image(images, WINDOWS, tag="app:1", os="windows")
    assert not ran(catalog_file(tmp_path, TRANSFORMS[0])).images[0].warnings  # recompress is for all systems


def test_a_plan_counts_the_platforms_that_stay(images: Layout, tmp_path: Path) -> None:
    two_systems(images)
    path = catalog_file(tmp_path, "{transform: rechunk, only-if-saves: 'off'}")
    (row,) = planned(path).images
    assert (row.state, row.layers_before) == ("planned", 2)
    before = row.bytes_before
    (row,) = ran(path).images
    assert (row.state, row.bytes_before) == ("done", before)
    windows = resolve(images, "t", "windows/amd64")
    assert row.bytes_after is not None
    assert row.bytes_after > sum(blob.size for blob in windows.manifest.layers)


# --- tags of digests -----------------------------------------------------------------------------


def test_in_a_layout_images_under_digests_are_images_and_indexes_of_referrers_are_none(
    images: Layout, tmp_path: Path
) -> None:
    one = image(images, LINUX, tag="app:1")
    images.tag(fallback_tag(one.descriptor.digest), one.descriptor)
    listed = image(images, WINDOWS, tag="app:2")
    of = fallback_tag(listed.descriptor.digest)
    index(images, [manifest(images, SPDX, b"{}", listed.descriptor)], of)
    rows = {row.name: row for row in ran(catalog_file(tmp_path, TRANSFORMS[0])).images}
    assert set(rows) == {"app:1", "app:2", fallback_tag(one.descriptor.digest)}
    assert {row.state for row in rows.values()} == {"done"}
    assert [len(row.warnings) for row in rows.values()].count(1) == 1  # the SBOM of app:2 is left


def test_an_image_names_no_referrers_of_its_own_digest(images: Layout) -> None:
    made = image(images, LINUX, tag="app:1")
    two_platforms(images, LINUX, "many")
    many = images.find("many")[0]
    for each in (made.descriptor, many):
        images.tag(fallback_tag(each.digest), each.model_copy(update={"annotations": None}))
        assert unread_referrers(images, each.digest) == []
    assert spoken(images) == {fallback_tag(made.descriptor.digest): [], fallback_tag(many.digest): []}


def test_content_decides_what_a_digest_tag_names(images: Layout) -> None:
    made = image(images, LINUX, tag="app:1")
    top = entry(made)
    other = fallback_tag("sha256:" + "5" * 64)

    def of(*entries: object) -> Index:
        return Index.model_validate({"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": list(entries)})

    plain = json.loads(made.descriptor.model_copy(update={"annotations": None}).model_dump_json(by_alias=True))
    assert names_image(other, made.descriptor.digest, None)
    assert names_image(other, "sha256:" + "1" * 64, of(top))
    assert names_image(fallback_tag("sha256:" + "1" * 64), "sha256:" + "1" * 64, of(plain))
    assert not names_image(other, "sha256:" + "1" * 64, of(plain))
    assert not names_image(other, "sha256:" + "1" * 64, of())
    unknown = {**plain, "platform": {"os": "unknown", "architecture": "unknown"}}
    assert not names_image(other, "sha256:" + "1" * 64, of(unknown))
    assert not names_image(other, "sha256:" + "1" * 64, of({**plain, "platform": {}}))


def test_tags_of_digests_are_no_newest_versions() -> None:
    of = f"app:sha256-{'9' * 64}"
    assert newest([of, "app:1", "app:2"], 1) == ["app:2"]
    assert newest([of, "app:1", "app:2"], 1, [of]) == ["app:2", of]
    assert newest([of], 1) == [of]

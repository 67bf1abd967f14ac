"""Platforms that a source chooses: what is left of an index, and what is fetched of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import CatalogFileError, LimitExceeded, MalformedDocument
from layerfarm.jobs.image import Resolved, resolve
from layerfarm.jobs.relayer.referrers import attach
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, Descriptor, Index, Layout, parse_document
from layerfarm.worker.catalog.document import parse_catalog
from layerfarm.worker.catalog.dry_run import outlook
from layerfarm.worker.catalog.offers import find, in_layout, in_registry
from layerfarm.worker.catalog.platforms import Chosen, choose
from layerfarm.worker.catalog.registry import digest_of
from tests.unit.catalog.works import Seen, planned, ran, work_on
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import attestation, entry, index, manifest, two_platforms

LAYERS = [tar(("a", b"a" * 1000)), tar(("b", b"b" * 1000))]


@pytest.fixture
def images(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "images")


def chosen(layout: Layout, name: str, *platforms: str) -> Chosen:
    return choose(in_layout(layout, find(layout, name)), platforms)


def document(found: Chosen) -> dict[str, Any]:
    assert found.offer is not None
    value = json.loads(found.offer.manifests[0].raw)
    assert isinstance(value, dict)
    return value


def with_attestations(layout: Layout, tag: str) -> tuple[Resolved, Resolved, list[Descriptor]]:
    amd, arm = two_platforms(layout, LAYERS, tag)
    beside = [attestation(layout, amd), attestation(layout, arm)]
    index(layout, [entry(amd), entry(arm), *beside], tag, annotations={"of": "index"}, unknown={"kept": 1})
    return amd, arm, beside


def test_the_index_names_the_chosen_images_and_their_attestations_alone(images: Layout) -> None:
    amd, _, beside = with_attestations(images, "app:1")
    found = chosen(images, "app:1", "linux/amd64")
    assert (found.lacking, found.platforms) == (frozenset(), ("linux/amd64", "linux/arm64/v8"))
    new = document(found)
    assert [each["digest"] for each in new["manifests"]] == [amd.descriptor.digest, beside[0].digest]
    assert (new["annotations"], new["unknown"]) == ({"of": "index"}, {"kept": 1})
    assert found.offer is not None
    assert found.offer.digests == [digest_of(found.offer.manifests[0].raw), amd.descriptor.digest, beside[0].digest]
    assert found.offer.full == (find(images, "app:1").digest,)
    again = chosen(images, "app:1", "linux/amd64")
    assert again.offer is not None and again.offer.digest == found.offer.digest


@pytest.mark.parametrize("name", ["linux/arm64", "linux/arm64/v8", "LINUX/aarch64"])
def test_platforms_are_compared_as_elsewhere(images: Layout, name: str) -> None:
    _, arm, _ = with_attestations(images, "app:1")
    assert document(chosen(images, "app:1", name))["manifests"][0]["digest"] == arm.descriptor.digest


def test_an_index_of_the_chosen_platforms_alone_keeps_its_bytes(images: Layout) -> None:
    with_attestations(images, "app:1")
    found = chosen(images, "app:1", "linux/arm64", "linux/amd64", "linux/s390x")
    assert found.offer is not None
    assert (found.offer.digest, found.offer.full) == (find(images, "app:1").digest, ())
    assert found.lacking == {"linux/s390x"}


def test_an_index_in_an_index_is_rewritten_and_an_empty_one_left_out(images: Layout) -> None:
    amd, arm = two_platforms(images, LAYERS, "inner")
    only_arm = index(images, [entry(arm)], "arm-only")
    index(images, [find(images, "inner"), only_arm], "outer:1")
    found = chosen(images, "outer:1", "linux/amd64")
    (inner,) = document(found)["manifests"]
    assert found.offer is not None
    (_, read, leaf) = found.offer.manifests
    assert inner["digest"] == read.descriptor.digest == digest_of(read.raw)
    assert inner["size"] == len(read.raw)
    assert leaf.descriptor.digest == amd.descriptor.digest


def test_an_image_without_a_platform_in_the_index_is_judged_by_its_configuration(images: Layout) -> None:
    amd, arm = two_platforms(images, LAYERS, "app:1")
    index(images, [amd.descriptor, arm.descriptor, manifest(images, "application/vnd.x", b"x")], "app:2")
    found = document(chosen(images, "app:2", "linux/arm64"))["manifests"]
    assert [each["digest"] for each in found][:-1] == [arm.descriptor.digest]
    assert len(found) == 2  # an artifact that refers to no image stays


def test_a_single_image_is_for_its_own_platform_and_an_artifact_for_any(images: Layout) -> None:
    made = image(images, LAYERS, tag="app:1", architecture="amd64")
    found = chosen(images, "app:1", "linux/amd64")
    assert found.offer is not None and found.offer.digest == made.descriptor.digest
    assert chosen(images, "app:1", "linux/arm64").offer is None
    images.tag("chart:1", manifest(images, "application/vnd.chart", b"chart"))
    chart = chosen(images, "chart:1", "linux/arm64")
    assert chart.offer is not None and (chart.platforms, chart.lacking) == ((), frozenset())


class Reader:
    """The manifests and configurations of a layout, as a registry serves them; counts what it is asked for."""

    def __init__(self, layout: Layout, tag: str) -> None:
        self._layout = layout
        self._top = find(layout, tag)
        self.asked: list[str] = []

    def raw_manifest(self, reference: str) -> bytes:
        digest = reference.partition("@")[2] or self._top.digest
        self.asked.append(digest)
        return self._layout.blob_path(digest).read_bytes()

    def raw_config(self, reference: str, digest: str) -> bytes:
        self.asked.append(digest)
        return self._layout.blob_path(digest).read_bytes()


def test_of_a_registry_the_manifests_of_other_platforms_are_not_requested(images: Layout) -> None:
    _, arm, beside = with_attestations(images, "app:1")
    reader = Reader(images, "app:1")
    assert choose(in_registry(reader, "docker://h/app:1"), ["linux/arm64"]).offer is not None
    assert reader.asked == [find(images, "app:1").digest, arm.descriptor.digest, beside[1].digest]


@pytest.mark.parametrize("entries", [{"digest": "x"}, ["text"], [{"size": 1}]])
def test_an_index_that_is_none_is_an_error(images: Layout, entries: object) -> None:
    raw = json.dumps({"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": entries}).encode()
    images.tag("app:1", images.put(raw, MEDIA_TYPE_INDEX))
    with pytest.raises(MalformedDocument):
        chosen(images, "app:1", "linux/amd64")


@pytest.mark.large
def test_indexes_that_are_nested_too_deeply_are_an_error(images: Layout) -> None:
    amd, _ = two_platforms(images, LAYERS, "app:0")
    top = index(images, [entry(amd)], "app:1")
    for _ in range(1200):  # deeper than Python's stack
        raw = json.dumps({"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": [_plain(top)]}).encode()
        top = images.put(raw, MEDIA_TYPE_INDEX)
    images.tag("app:1", top)
    with pytest.raises(LimitExceeded, match="nested deeper"):
        chosen(images, "app:1", "linux/amd64")


def _plain(top: Descriptor) -> dict[str, Any]:
    return {"mediaType": top.media_type, "digest": top.digest, "size": top.size}


# --- in a catalog ---------------------------------------------------------------------------------


def catalog(directory: Path, platforms: str, policy: str = "{transform: squash}") -> Path:
    path = directory / "c.yaml"
    path.write_text(
        f"store: store\nsources: [{{layout: images, platforms: [{platforms}]}}]\n"
        f"policies: [{{match: '*', do: {policy}}}]\ndestination: {{layout: out}}\n"
    )
    return path


@pytest.mark.parametrize("policy", ["keep", "squash", "rechunk, only-if-saves: 'off'"])
def test_only_the_chosen_platforms_are_stored_planned_and_published(
    images: Layout, tmp_path: Path, policy: str
) -> None:
    _, arm, _ = with_attestations(images, "app:1")
    path = catalog(tmp_path, "linux/amd64", f"{{transform: {policy}}}")
    (row,) = planned(path).images
    assert row.bytes_before < sum(blob.size for tag in images.tags() for blob in resolve_all(images, tag))
    (row,) = ran(path).images
    assert row.state == "done", row.error
    out, store = Layout.open(tmp_path / "out"), Layout.open(tmp_path / "store")
    for layout in (store, out):
        top = find(layout, "app:1")
        names = parse_document(Index, layout.read(top), top.digest).manifests
        assert [each.platform.architecture for each in names if each.platform][:1] == ["amd64"]
        assert not layout.has(arm.descriptor)
        assert resolve(layout, "app:1", "linux/amd64")
    view = Seen()
    ran(path, view)
    assert view.steps["transform"] == 0


def resolve_all(layout: Layout, tag: str) -> list[Descriptor]:
    return [blob for platform in ("linux/amd64", "linux/arm64") for blob in resolve(layout, tag, platform).blobs]


def test_more_platforms_later_are_fetched_and_transformed(images: Layout, tmp_path: Path) -> None:
    with_attestations(images, "app:1")
    ran(catalog(tmp_path, "linux/amd64"))
    path = catalog(tmp_path, "linux/amd64, linux/arm64")
    view = Seen()
    (row,) = ran(path, view).images
    assert (row.state, view.steps["transform"]) == ("done", 1)
    assert resolve(Layout.open(tmp_path / "out"), "app:1", "linux/arm64/v8")


def test_a_platform_that_no_image_has_is_reported_with_those_that_there_are(images: Layout, tmp_path: Path) -> None:
    with_attestations(images, "app:1")
    image(images, LAYERS, tag="app:2", architecture="amd64")
    view = Seen()
    report = ran(catalog(tmp_path, "linux/amd64, linux/arm46"), view)
    assert {row.state for row in report.images} == {"done"}
    assert [each[:2] for each in report.failures] == [
        ("platform linux/arm46", "no image of its sources has it: they have linux/amd64, linux/arm64/v8")
    ]
    assert any("linux/arm46" in text for text in view.notices)
    _, missed = outlook(work_on(tmp_path / "c.yaml"))
    assert [one.where for one in missed] == ["platform linux/arm46"]


def test_an_image_for_none_of_the_platforms_is_left_out_with_a_notice(images: Layout, tmp_path: Path) -> None:
    with_attestations(images, "app:1")
    image(images, LAYERS, tag="app:2", architecture="amd64")
    view = Seen()
    report = ran(catalog(tmp_path, "linux/arm64", "{transform: keep}"), view)
    rows = {row.name: row for row in report.images}
    assert (rows["app:1"].state, rows["app:2"].state, report.failed) == ("done", "skipped", 0)
    assert view.notices == ["app:2: left out, it is for linux/amd64, not for linux/arm64"]
    steps, _ = outlook(work_on(tmp_path / "c.yaml"))
    assert ("app:2", "nothing, it is for linux/amd64, not for linux/arm64") in steps


def test_a_referrer_of_the_whole_index_is_left_behind_with_the_reason(images: Layout, tmp_path: Path) -> None:
    amd, arm, _ = with_attestations(images, "app:1")
    top = find(images, "app:1")
    for subject in (top, amd.descriptor, arm.descriptor):
        attach(images, manifest(images, "application/spdx+json", b"{}", subject), subject.digest)
    (row,) = ran(catalog(tmp_path, "linux/amd64", "{transform: keep}")).images
    (warning,) = row.warnings
    assert top.digest.replace(":", "-") in warning and "platforms were removed" in warning


@pytest.mark.parametrize("text", ["arm64", "linux/", "linux/arm64/v8/x", "linux arm64", "''"])
def test_an_invalid_platform_is_an_error_of_the_file(text: str) -> None:
    with pytest.raises(CatalogFileError, match=r"os/arch\[/variant\]"):
        parse_catalog(
            f"store: s\nsources: [{{layout: a, platforms: [{text}]}}]\n"
            "policies: [{match: '*', do: {transform: keep}}]\n".encode(),
            Path("/c.yaml"),
        )

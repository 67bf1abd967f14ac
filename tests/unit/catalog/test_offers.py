"""Offers of tags in any format, and the names of the images in a layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import AmbiguousReference, LimitExceeded, MalformedDocument, TagNotFound
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor, Layout
from layerfarm.worker.catalog.offers import Offer, find, look, look_at, names_in
from layerfarm.worker.catalog.registry import digest_of
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import attestation, enter, entry, index, manifest, two_platforms
from tests.unit.relayer.test_other_systems import two_systems

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": "sha256:" + "c" * 64, "size": 1}
LAYER = {
    "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "digest": "sha256:" + "1" * 64,
    "size": 2,
}
FOREIGN = LAYER | {"digest": "sha256:" + "f" * 64, "urls": ["https://example.org/layer"]}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "layout")


class Reader:
    """A registry's manifests, by tag or digest."""

    def __init__(self, **tags: dict[str, Any]) -> None:
        self._raw = {tag: json.dumps(document).encode() for tag, document in tags.items()}
        self.asked: list[str] = []

    def digest(self, tag: str) -> str:
        return digest_of(self._raw[tag])

    def raw_manifest(self, reference: str) -> bytes:
        self.asked.append(reference)
        name = reference.rpartition("@")[2] if "@" in reference else reference.rpartition(":")[2]
        return next(raw for tag, raw in self._raw.items() if name in (tag, digest_of(raw)))


def docker(**fields: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": DOCKER, "config": CONFIG, "layers": [LAYER, FOREIGN]} | fields


def digests(blobs: tuple[Descriptor, ...]) -> set[str]:
    return {blob.digest for blob in blobs}


def test_of_a_registry_every_manifest_is_read_once_by_its_digest() -> None:
    reader = Reader(one=docker(), other=docker(layers=[LAYER]))
    entries = [
        {"mediaType": DOCKER, "digest": reader.digest(tag), "size": 1, "platform": {"os": os, "architecture": "amd64"}}
        for tag, os in (("one", "linux"), ("other", "windows"), ("one", "freebsd"))
    ]
    many = {"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": entries}
    reader = Reader(one=docker(), other=docker(layers=[LAYER]), many=many)
    offer = look(reader, "docker://host:5000/team/app:many")
    assert reader.asked == [
        "docker://host:5000/team/app:many",
        f"docker://host:5000/team/app@{reader.digest('one')}",
        f"docker://host:5000/team/app@{reader.digest('other')}",
    ]
    assert offer.digests == [reader.digest(tag) for tag in ("many", "one", "other")]
    assert [each.descriptor.digest for each in offer.images] == offer.digests[1:]
    assert (offer.top.media_type, offer.is_docker, offer.artifact) == (MEDIA_TYPE_INDEX, True, None)


def test_layers_to_be_fetched_from_elsewhere_are_not_offered_and_converted_configs_are_not_needed() -> None:
    offer = look(Reader(one=docker()), "docker://host/app:one")
    assert digests(offer.blobs) == {CONFIG["digest"], LAYER["digest"]}
    assert digests(offer.needed(exact=True)) == {CONFIG["digest"], LAYER["digest"]}
    assert digests(offer.needed(exact=False)) == {LAYER["digest"]}
    (one,) = offer.images
    assert [layer.digest for layer in one.layers] == [LAYER["digest"], FOREIGN["digest"]]


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"config": CONFIG | {"mediaType": "application/vnd.cncf.helm.config.v1+json"}}, "vnd.cncf.helm.config.v1"),
        ({"config": CONFIG | {"mediaType": "application/vnd.wasm.config.v0+json"}, "layers": []}, "vnd.wasm.config.v0"),
        (
            {
                "artifactType": "application/vnd.model",
                "config": CONFIG | {"mediaType": "application/vnd.oci.empty.v1+json"},
            },
            "application/vnd.model",
        ),
        (
            {"mediaType": "application/vnd.oci.artifact.manifest.v1+json", "artifactType": "a/b", "blobs": [LAYER]},
            "a/b",
        ),
        ({"manifests": []}, MEDIA_TYPE_INDEX),
    ],
)
def test_artifacts_are_told_from_images(document: dict[str, Any], kind: str) -> None:
    offer = look(Reader(one={"schemaVersion": 2} | document), "docker://host/app:one")
    assert offer.artifact is not None
    assert kind in offer.artifact
    assert offer.images == []


def test_attestations_beside_an_image_are_leaves_and_no_images(layout: Layout) -> None:
    made = image(layout, [tar(("a", b"a"))], tag="alone")
    top = index(layout, [attestation(layout, made), entry(made)], "t")
    offer = look_at(layout, top)
    assert [each.descriptor.digest for each in offer.images] == [made.descriptor.digest]
    assert len(offer.leaves) == 2
    assert offer.artifact is None


def test_an_index_of_attestations_alone_is_an_artifact(layout: Layout) -> None:
    made = image(layout, [tar(("a", b"a"))], tag="alone")
    assert look_at(layout, index(layout, [attestation(layout, made)], "t")).artifact is not None


def test_images_missing_from_a_layout_are_skipped(layout: Layout) -> None:
    first, second = two_platforms(layout, [tar(("a", b"a")), tar(("b", b"b"))], "t")
    layout.blob_path(first.descriptor.digest).unlink()
    offer = look_at(layout, find(layout, "t"))
    assert [each.descriptor.digest for each in offer.images] == [second.descriptor.digest]


def test_indexes_in_indexes_are_followed_in_their_order(layout: Layout) -> None:
    first, second = two_platforms(layout, [tar(("a", b"a")), tar(("b", b"b"))], "inner")
    last = image(layout, [tar(("c", b"c"))], tag="last", architecture="s390x")
    inner = layout.find("inner")[0].model_copy(update={"annotations": None})
    offer = look_at(layout, index(layout, [inner, entry(last)], "outer"))
    found = [each.descriptor.digest for each in offer.images]
    assert found == [each.descriptor.digest for each in (first, second, last)]


def test_foreign_layers_that_a_layout_holds_are_still_not_offered(layout: Layout) -> None:
    _, windows, top = two_systems(layout)
    offer: Offer = look_at(layout, top)
    assert windows.manifest.layers[0].digest not in digests(offer.blobs)
    assert windows.manifest.layers[1].digest in digests(offer.blobs)


@pytest.mark.parametrize("document", [{"schemaVersion": 1, "fsLayers": []}, {"mediaType": MEDIA_TYPE_MANIFEST}])
def test_dockers_schema_1_is_refused_by_name(document: dict[str, Any]) -> None:
    with pytest.raises(MalformedDocument, match="schema 1"):
        look(Reader(one=document), "docker://host/app:one")


def test_a_tag_that_leads_to_too_many_manifests_is_refused(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    two_platforms(layout, [tar(("a", b"a")), tar(("b", b"b"))], "t")
    monkeypatch.setenv("LAYERFARM_LIMIT_MANIFESTS", "2")
    with pytest.raises(LimitExceeded, match="more than 2 manifests"):
        look_at(layout, find(layout, "t"))


# --- names of a layout ------------------------------------------------------------------------------


def saved(layout: Layout, *names: str | None, tag: str = "latest") -> list[Descriptor]:
    """An image for each name, all with one tag, as ``docker save`` writes them."""
    found = []
    for number, name in enumerate(names):
        made = image(layout, [tar((f"a{number}", b"a"))], tag="made").descriptor
        layout.untag("made")
        own = {} if name is None else {"io.containerd.image.name": name}
        enter(layout, made.model_copy(update={"annotations": {"org.opencontainers.image.ref.name": tag} | own}))
        found.append(made)
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("docker.io/library/web:1", "library/web:1"),
        ("localhost/web:1", "web:1"),
        ("host:5000/team/web:1", "team/web:1"),
        ("team/web:1", "team/web:1"),
        ("web:1", "web:1"),
    ],
)
def test_images_of_one_tag_have_the_names_beside_it_without_the_host(layout: Layout, name: str, expected: str) -> None:
    one, other = saved(layout, name, "docker.io/other/one:2")
    assert names_in(layout) == [expected, "other/one:2"]
    assert (find(layout, expected).digest, find(layout, "other/one:2").digest) == (one.digest, other.digest)
    assert find(layout, expected).annotations is None


@pytest.mark.parametrize(
    "names",
    [
        (None, None),
        ("docker.io/a/b:1", None),
        ("docker.io/a/b:1", "docker.io/a/b:1"),
        ("docker.io/a/b:1", "docker.io/a/b@sha256:" + "0" * 64),
        ("docker.io/a/b:1", "docker.io/a/c"),
        ("docker.io/a/b:1", "docker.io/taken:1"),
    ],
)
def test_without_different_names_the_tag_is_ambiguous_and_the_error_names_its_images(
    layout: Layout, names: tuple[str | None, ...]
) -> None:
    image(layout, [tar(("t", b"t"))], tag="taken:1")
    one, other = saved(layout, *names)
    assert names_in(layout) == ["taken:1", "latest"]
    with pytest.raises(AmbiguousReference, match=f"{one.digest}, {other.digest}"):
        find(layout, "latest")


def test_one_image_under_one_name_keeps_its_tag(layout: Layout) -> None:
    saved(layout, "docker.io/library/web:1", tag="1")
    assert names_in(layout) == ["1"]
    with pytest.raises(TagNotFound):
        find(layout, "nothing:1")


def test_an_artifact_is_found_by_its_name_too(layout: Layout) -> None:
    layout.tag("chart:1", manifest(layout, "application/vnd.chart", b"chart"))
    assert look_at(layout, find(layout, "chart:1")).artifact == "application/vnd.chart"

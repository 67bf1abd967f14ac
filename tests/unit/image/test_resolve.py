from __future__ import annotations

import json
from typing import Any

import pytest

from layerfarm.jobs.errors import (
    AmbiguousReference,
    BlobNotFound,
    DigestMismatch,
    InvalidReference,
    LimitExceeded,
    MalformedDocument,
    SizeMismatch,
    TagNotFound,
    UnsupportedMediaType,
)
from layerfarm.jobs.image import resolve, resolve_walk
from layerfarm.jobs.image.resolve import is_artifact
from layerfarm.jobs.store import MEDIA_TYPE_CONFIG, MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor, Layout, Platform
from tests.unit.image.images import image, tar


def put(layout: Layout, document: dict[str, Any], media_type: str, **fields: Any) -> Descriptor:
    return layout.put(json.dumps(document).encode(), media_type, **fields)


def index_of(layout: Layout, *manifests: Descriptor) -> Descriptor:
    rows = [json.loads(m.model_dump_json(by_alias=True, exclude_none=True)) for m in manifests]
    return put(layout, {"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": rows}, MEDIA_TYPE_INDEX)


def for_platform(made: Descriptor, os: str, architecture: str, variant: str | None = None) -> Descriptor:
    platform = Platform(os=os, architecture=architecture, variant=variant)
    return made.model_copy(update={"platform": platform, "annotations": None})


def test_tag_leads_to_manifest_and_config(layout: Layout) -> None:
    made = image(layout, [tar(("a", b"x"))])
    found = resolve(layout, "t")
    assert found.manifest == made.manifest
    assert found.config == made.config
    assert [diff_id for _, diff_id in found.layers] == made.config.rootfs.diff_ids
    assert resolve_walk(layout, found.path) == found


def test_unknown_and_impossible_tags(layout: Layout) -> None:
    with pytest.raises(TagNotFound, match="'nope'"):
        resolve(layout, "nope")
    with pytest.raises(InvalidReference):
        resolve(layout, "no pe")


def test_two_entries_with_one_tag_are_ambiguous_unless_they_are_the_same(layout: Layout) -> None:
    one = image(layout, tag="a").path[0]
    two = image(layout, author="other", tag="b").path[0]

    def name_all(*descriptors: Descriptor) -> None:
        named = [d.model_copy(update={"annotations": {"org.opencontainers.image.ref.name": "t"}}) for d in descriptors]
        layout.update_index(lambda index: index.model_copy(update={"manifests": named}))

    name_all(one, two)
    with pytest.raises(AmbiguousReference):
        resolve(layout, "t")
    name_all(one, one)
    assert resolve(layout, "t").descriptor.digest == one.digest


def test_platform_picks_one_of_an_index(layout: Layout) -> None:
    amd, arm6, arm7 = (image(layout, author=name, tag="x").path[0] for name in ("amd", "arm6", "arm7"))
    layout.tag(
        "t",
        index_of(
            layout,
            for_platform(amd, "linux", "amd64"),
            index_of(layout, for_platform(arm6, "linux", "arm", "v6"), for_platform(arm7, "linux", "arm", "v7")),
        ),
    )
    assert resolve(layout, "t", "linux/amd64").config.author == "amd"
    assert resolve(layout, "t", "linux/arm/v7").config.author == "arm7"
    assert len(resolve(layout, "t", "linux/arm/v7").path) == 3
    with pytest.raises(AmbiguousReference, match="leads to 3 images"):
        resolve(layout, "t")
    with pytest.raises(TagNotFound, match="linux/s390x"):
        resolve(layout, "t", "linux/s390x")


@pytest.mark.parametrize(
    ("there", "wanted", "meant"),
    [
        (["arm64"], "arm64/v8", 0),
        (["arm64/v8"], "arm64", 0),
        (["arm64/8", "arm64/v9"], "aarch64", 0),
        (["arm/v6", "arm/v7"], "arm", 1),
        (["arm/v6", "arm"], "arm/v7", 1),
        (["arm/v5"], "arm", 0),
        (["arm/v6", "arm/v7"], "armel", 0),
        (["amd64/v3", "amd64"], "x86_64", 1),
        (["amd64/v3", "amd64"], "amd64/v1", 1),
        (["amd64/v3"], "amd64", 0),
        (["amd64/v3"], "amd64/v1", None),
        (["arm64/v9"], "arm64/v8", None),
        (["386"], "i386", 0),
        (["riscv64"], "riscv64/x/y", None),
    ],
)
def test_equal_platforms_are_those_of_containerd(
    layout: Layout, there: list[str], wanted: str, meant: int | None
) -> None:
    made = [image(layout, author=str(number), tag="x").path[0] for number in range(len(there))]
    named = [for_platform(each, "linux", *text.split("/")) for each, text in zip(made, there, strict=True)]
    layout.tag("t", index_of(layout, *named))
    if meant is None:
        with pytest.raises(TagNotFound, match=wanted):
            resolve(layout, "t", f"linux/{wanted}")
    else:
        assert resolve(layout, "t", f"linux/{wanted}").config.author == str(meant)


def test_a_wish_without_a_variant_that_no_default_meets_is_ambiguous(layout: Layout) -> None:
    arm5, arm6 = (image(layout, author=name, tag="x").path[0] for name in ("arm5", "arm6"))
    layout.tag(
        "t", index_of(layout, for_platform(arm5, "linux", "arm", "v5"), for_platform(arm6, "linux", "arm", "v6"))
    )
    with pytest.raises(AmbiguousReference, match=r"linux/arm/v5, linux/arm/v6\b"):
        resolve(layout, "t", "linux/arm")


def test_one_manifest_may_be_that_of_two_platforms(layout: Layout) -> None:
    made = image(layout, tag="x").path[0]
    layout.tag("t", index_of(layout, for_platform(made, "linux", "amd64"), for_platform(made, "linux", "386")))
    for wanted in (None, "linux/amd64", "linux/386"):
        assert resolve(layout, "t", wanted).descriptor.digest == made.digest


def artifact(layout: Layout, **fields: Any) -> Descriptor:
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": layout.put(b"{}", "x").digest, "size": 2}
    return put(
        layout,
        {"schemaVersion": 2, "config": empty, "layers": [], "artifactType": "a/b"},
        MEDIA_TYPE_MANIFEST,
        **fields,
    )


def test_artifacts_beside_images_are_not_meant(layout: Layout) -> None:
    """Whatever is no image: no platform, the image's own platform, BuildKit's mark, no manifest at all."""
    amd = image(layout, author="amd", tag="x").path[0]
    arm = image(layout, author="arm", tag="x", architecture="arm64").path[0].model_copy(update={"annotations": None})
    attested = image(layout, author="attestation", tag="x", os="unknown", architecture="unknown").path[0]
    beside = [
        artifact(layout),
        artifact(layout, platform={"os": "linux", "architecture": "arm64"}, annotations={"a": "b"}),
        artifact(layout, platform={}),
        layout.put(b"a file", "text/plain"),
        layout.put(b"marked", MEDIA_TYPE_MANIFEST, annotations={"vnd.docker.reference.type": "attestation-manifest"}),
        attested.model_copy(update={"annotations": None}),
    ]
    layout.tag("one", index_of(layout, *beside, for_platform(amd, "linux", "amd64")))
    layout.tag("two", index_of(layout, *beside, for_platform(amd, "linux", "amd64"), arm))
    assert resolve(layout, "one").config.author == "amd"
    assert resolve(layout, "two", "linux/amd64").config.author == "amd"
    assert resolve(layout, "two", "linux/arm64").config.author == "arm"
    with pytest.raises(AmbiguousReference, match=r"leads to 2 images.*linux/amd64, linux/arm64"):
        resolve(layout, "two")
    layout.tag("none", index_of(layout, *beside))
    with pytest.raises(TagNotFound, match="no image"):
        resolve(layout, "none")


def test_an_artifact_manifest_is_no_image_and_an_absent_one_may_be(layout: Layout) -> None:
    """The release candidates of image-spec 1.1 had manifests of this type."""
    amd = image(layout, author="amd", tag="x").path[0]
    kind = "application/vnd.oci.artifact.manifest.v1+json"
    made = layout.put(b"{}", kind)
    layout.tag("t", index_of(layout, made, for_platform(amd, "linux", "amd64")))
    assert resolve(layout, "t").config.author == "amd"
    assert is_artifact(layout, made)
    layout.blob_path(made.digest).unlink()
    assert not is_artifact(layout, made)


def test_a_damaged_image_of_another_platform_does_no_harm(layout: Layout) -> None:
    amd, arm = (image(layout, author=name, tag="x").path[0] for name in ("amd", "arm"))
    layout.tag("t", index_of(layout, for_platform(amd, "linux", "amd64"), for_platform(arm, "linux", "arm64")))
    layout.blob_path(arm.digest).write_bytes(b"x" * arm.size)
    assert resolve(layout, "t", "linux/amd64").config.author == "amd"
    with pytest.raises(DigestMismatch):
        resolve(layout, "t", "linux/arm64")


@pytest.mark.parametrize("media_type", [MEDIA_TYPE_MANIFEST, MEDIA_TYPE_INDEX])
def test_images_that_an_index_names_may_be_absent(layout: Layout, media_type: str) -> None:
    amd, arm = (image(layout, author=name, tag="x").path[0] for name in ("amd", "arm"))
    gone = Descriptor(mediaType=media_type, digest=f"sha256:{'a' * 64}", size=9)
    absent = for_platform(gone, "linux", "s390x")
    layout.tag("one", index_of(layout, absent, for_platform(amd, "linux", "amd64")))
    layout.tag(
        "two", index_of(layout, absent, for_platform(amd, "linux", "amd64"), for_platform(arm, "linux", "arm64"))
    )
    layout.tag("none", index_of(layout, absent))
    for tag, platform in (("one", None), ("one", "linux/amd64"), ("two", "linux/amd64")):
        assert resolve(layout, tag, platform).config.author == "amd"
    with pytest.raises(AmbiguousReference, match=r"leads to 2 images.*linux/amd64, linux/arm64"):
        resolve(layout, "two")
    for tag, platform in (("one", "linux/s390x"), ("none", None), ("none", "linux/s390x")):
        with pytest.raises(BlobNotFound, match="this layout does not hold"):
            resolve(layout, tag, platform)


def test_platform_of_a_single_image_is_checked_too(layout: Layout) -> None:
    image(layout)
    assert resolve(layout, "t", "linux/amd64").config.architecture == "amd64"
    with pytest.raises(TagNotFound):
        resolve(layout, "t", "linux/arm64")


def test_build_attestations_do_not_make_an_index_ambiguous(layout: Layout) -> None:
    real = image(layout, tag="x").path[0]
    attestation = image(layout, author="attestation", tag="x").path[0]
    layout.tag(
        "t",
        index_of(layout, for_platform(real, "linux", "amd64"), for_platform(attestation, "unknown", "unknown")),
    )
    assert resolve(layout, "t").config.author is None


def test_empty_index(layout: Layout) -> None:
    layout.tag("t", index_of(layout))
    with pytest.raises(TagNotFound, match="without manifests"):
        resolve(layout, "t")


def test_nesting_is_limited(layout: Layout) -> None:
    descriptor = image(layout, tag="x").path[0].model_copy(update={"annotations": None})
    for depth in range(9):
        descriptor = index_of(layout, descriptor)
        layout.tag(f"t{depth + 1}", descriptor)
    assert len(resolve(layout, "t8").path) == 9
    with pytest.raises(LimitExceeded):
        resolve(layout, "t9")


def test_index_bomb_is_limited(layout: Layout) -> None:
    descriptor = image(layout, tag="x").path[0].model_copy(update={"annotations": None})
    for _ in range(6):
        descriptor = index_of(layout, *[descriptor] * 10)
    layout.tag("t", descriptor)
    with pytest.raises(LimitExceeded):
        resolve(layout, "t")


def test_B2_5_ambiguous_documents_are_refused(layout: Layout) -> None:
    made = image(layout)
    manifest = json.loads(layout.read(made.descriptor))
    for extra in ({"manifests": []}, {"mediaType": MEDIA_TYPE_INDEX}):
        layout.tag("t", put(layout, manifest | extra, MEDIA_TYPE_MANIFEST))
        with pytest.raises(MalformedDocument):
            resolve(layout, "t")
    for extra in ({"config": {}}, {"layers": []}, {"mediaType": MEDIA_TYPE_MANIFEST}):
        layout.tag("t", put(layout, {"schemaVersion": 2, "manifests": []} | extra, MEDIA_TYPE_INDEX))
        with pytest.raises(MalformedDocument):
            resolve(layout, "t")


def test_manifest_without_a_media_type_is_fine(layout: Layout) -> None:
    manifest = json.loads(layout.read(image(layout).descriptor))
    del manifest["mediaType"]
    layout.tag("t", put(layout, manifest, MEDIA_TYPE_MANIFEST))
    assert resolve(layout, "t").manifest.media_type is None


@pytest.mark.parametrize("change", [{"schemaVersion": 1}, {"layers": [{}]}, {"config": None}, {"layers": 3}])
def test_malformed_manifest(layout: Layout, change: dict[str, Any]) -> None:
    manifest = json.loads(layout.read(image(layout).descriptor))
    layout.tag("t", put(layout, manifest | change, MEDIA_TYPE_MANIFEST))
    with pytest.raises(MalformedDocument):
        resolve(layout, "t")


@pytest.mark.parametrize("rootfs", [None, {}, {"type": "other", "diff_ids": []}, {"diff_ids": ["sha256:1"]}])
def test_malformed_config(layout: Layout, rootfs: object) -> None:
    made = image(layout)
    config = put(layout, {"os": "linux", "architecture": "amd64", "rootfs": rootfs}, MEDIA_TYPE_CONFIG)
    manifest = json.loads(layout.read(made.descriptor)) | {"config": json.loads(config.model_dump_json(by_alias=True))}
    layout.tag("t", put(layout, manifest, MEDIA_TYPE_MANIFEST))
    with pytest.raises(MalformedDocument):
        resolve(layout, "t")


def test_null_labels_are_empty_as_go_reads_them(layout: Layout) -> None:
    manifest = json.loads(layout.read(image(layout).descriptor))
    section = {"config": {"Labels": {"a": None, "b": "c"}}, "rootfs": {"type": "layers", "diff_ids": []}}
    manifest["config"] = json.loads(put(layout, section, MEDIA_TYPE_CONFIG).model_dump_json(by_alias=True))
    layout.tag("t", put(layout, manifest, MEDIA_TYPE_MANIFEST))
    made = resolve(layout, "t").config.config
    assert made is not None and made.labels == {"a": "", "b": "c"}


def test_other_media_types(layout: Layout) -> None:
    docker = "application/vnd.docker.distribution.manifest.v2+json"
    layout.tag("t", put(layout, {"schemaVersion": 2}, docker))
    with pytest.raises(UnsupportedMediaType, match="skopeo"):
        resolve(layout, "t")
    manifest = json.loads(layout.read(image(layout).descriptor))
    manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    layout.tag("t", put(layout, manifest, MEDIA_TYPE_MANIFEST))
    with pytest.raises(MalformedDocument):
        resolve(layout, "t")


@pytest.mark.parametrize("diff_ids", [lambda ids: ids[:-1], lambda ids: [*ids, ids[0]], lambda ids: []])
def test_B3_15_layers_and_diff_ids_must_be_as_many(layout: Layout, diff_ids: Any) -> None:
    """umoci panics on too few and takes no notice of too many."""
    image(layout, [tar(("a", b"x")), tar(("b", b"y"))], diff_ids=diff_ids)
    with pytest.raises(MalformedDocument, match=r"2 layers .* \d diff_ids"):
        resolve(layout, "t")


def test_corrupt_stores(layout: Layout) -> None:
    made = image(layout)
    path = layout.blob_path(made.manifest.config.digest)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"linux", b"LINUX"))
    with pytest.raises(DigestMismatch):
        resolve(layout, "t")
    path.write_bytes(content + b" ")
    with pytest.raises(SizeMismatch):
        resolve(layout, "t")
    path.unlink()
    with pytest.raises(BlobNotFound):
        resolve(layout, "t")


def test_empty_walk(layout: Layout) -> None:
    with pytest.raises(MalformedDocument):
        resolve_walk(layout, [])

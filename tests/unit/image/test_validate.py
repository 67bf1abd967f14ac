"""Validation says everything that is wrong, and nothing of what is right."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.compress import Codec, Compression
from layerfarm.jobs.image import Resolved, append_layer, pack_layer, unpack_manifest
from layerfarm.jobs.image.report import Report, Severity
from layerfarm.jobs.image.validate import validate_image, validate_layout
from layerfarm.jobs.image.validate_bundle import validate_bundle
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor, Layout
from tests.alarm import no_hanging
from tests.unit.image.images import image, special, tar
from tests.unit.layer.archives import archive, entry
from tests.unit.relayer.images import attestation

LAYERS = (
    tar(("etc", None), ("etc/passwd", b"root:x:0:0::/root:/bin/sh\n")),
    tar(("etc/new", b"x"), ("etc/.wh.old", b"")),
)


def codes(report: Report) -> list[tuple[str, str]]:
    return sorted((str(finding.severity), finding.code) for finding in report.findings)


def plain(descriptor: Descriptor) -> dict[str, Any]:
    return descriptor.model_dump(by_alias=True, exclude_none=True)


def put_json(layout: Layout, document: Any, media_type: str) -> Descriptor:
    return layout.put(json.dumps(document).encode(), media_type)


@pytest.fixture
def made(layout: Layout) -> Resolved:
    """A sound image under the tag ``t``, and nothing else in the layout."""
    found = image(layout, LAYERS)
    needed = {blob.digest.partition(":")[2] for blob in found.blobs}
    for path in layout.path.glob("blobs/sha256/*"):
        if path.name not in needed:
            path.unlink()
    return found


def rewritten(layout: Layout, made: Resolved, change: Callable[[dict[str, Any]], None]) -> Descriptor:
    """The image with its manifest changed, under the tag ``t``."""
    document = json.loads(layout.read(made.descriptor))
    change(document)
    descriptor = put_json(layout, document, MEDIA_TYPE_MANIFEST)
    layout.tag("t", descriptor)
    return descriptor


def test_an_image_is_checked_whole_though_a_referrer_of_it_comes_first(layout: Layout, made: Resolved) -> None:
    """The proof of a transform comes before the tag in the index."""
    layer = made.manifest.layers[0]
    layout.blob_path(layer.digest).write_bytes(bytes(layer.size))
    layout.untag("t")
    proof = put_json(
        layout,
        {
            "schemaVersion": 2,
            "artifactType": "application/x",
            "config": plain(layout.put(b"{}", "application/vnd.oci.empty.v1+json")),
            "layers": [],
            "subject": plain(made.descriptor),
        },
        MEDIA_TYPE_MANIFEST,
    )
    layout.update_index(lambda index: index.model_copy(update={"manifests": [proof]}))
    layout.tag("t", made.path[0])
    report = validate_layout(layout.path)
    assert [(finding.code, finding.where) for finding in report.findings] == [("blob", layer.digest)]


@pytest.mark.parametrize(
    ("compression", "checksum"),
    [
        (Compression.ZSTD_CHUNKED, "io.github.containers.zstd-chunked.manifest-checksum"),
        (Compression.ESTARGZ, "containerd.io/snapshot/stargz/toc.digest"),
    ],
)
def test_the_table_of_contents_of_a_layer_is_checked_for_each_descriptor_that_names_it(
    layout: Layout, compression: Compression, checksum: str
) -> None:
    base = image(layout)
    layer = pack_layer(layout, [LAYERS[0]], Codec(compression))
    made = append_layer(layout, base, layer, None)
    layout.tag("t", made.path[0])
    assert codes(validate_image(layout.path, "t")) == []

    def lie(document: dict[str, Any]) -> None:
        (described,) = document["layers"]
        other = {**described, "annotations": described["annotations"] | {checksum: "sha256:" + "0" * 64}}
        document["layers"] = [described, other]

    rewritten(layout, made, lie)
    report = validate_image(layout.path, "t")
    (found,) = [finding for finding in report.findings if finding.code == "toc"]
    assert (found.severity, found.where) == (Severity.ERROR, layer.descriptor.digest)
    assert checksum in found.message


def reconfigured(layout: Layout, made: Resolved, change: Callable[[dict[str, Any]], None]) -> Descriptor:
    config = json.loads(layout.read(made.manifest.config))
    change(config)
    written = put_json(layout, config, made.manifest.config.media_type)
    return rewritten(layout, made, lambda manifest: manifest.update(config=plain(written)))


def test_a_sound_layout_has_no_findings(layout: Layout, made: Resolved) -> None:
    seen: list[int] = []
    report = validate_layout(layout.path, seen.append)
    assert report.findings == []
    assert (report.reachable, report.unreachable) == (len(made.blobs), 0)
    assert report.reachable_bytes == sum(blob.size for blob in made.blobs)
    assert sum(seen) == sum(layer.size for layer in made.manifest.layers)
    assert validate_image(layout.path, "t").findings == []


def test_unreachable_blobs_are_a_warning_and_are_read(layout: Layout, made: Resolved) -> None:
    layout.put(b"garbage", "a/b")
    bad = layout.put(b"damaged", "a/b")
    layout.blob_path(bad.digest).write_bytes(b"DAMAGED")
    report = validate_layout(layout.path)
    assert codes(report) == [("error", "blob"), ("warning", "unreachable"), ("warning", "unreachable")]
    assert (report.unreachable, report.unreachable_bytes) == (2, 14)
    assert validate_image(layout.path, "t").findings == []


def test_every_damaged_blob_is_reported_not_only_the_first(layout: Layout, made: Resolved) -> None:
    first, second = made.manifest.layers
    layout.blob_path(first.digest).unlink()
    content = bytearray(layout.blob_path(second.digest).read_bytes())
    content[-3] ^= 1
    layout.blob_path(second.digest).write_bytes(content)
    layout.blob_path(made.manifest.config.digest).write_bytes(b"{}")
    report = validate_layout(layout.path)
    assert codes(report) == [("error", "blob"), ("error", "blob"), ("error", "blob-missing")]
    assert {finding.where for finding in report.findings} == {first.digest, second.digest, made.manifest.config.digest}


def test_a_layer_that_is_no_tar_and_one_with_another_diff_id(layout: Layout) -> None:
    image(layout, [b"no tar at all" * 100, LAYERS[0]], diff_ids=lambda ids: [ids[0], "sha256:" + "0" * 64])
    report = validate_image(layout.path, "t")
    assert codes(report) == [("error", "blob"), ("error", "diff-id")]
    assert "checksum" in report.findings[0].message


def test_entries_that_no_reader_can_apply_are_each_reported(layout: Layout) -> None:
    members = [
        special("fifo-is-fine", b"6"),
        special(".", b"2", "etc"),
        special("a/.wh.", b"0"),
        special("odd", b"V"),
        special("l", b"1", "/"),
        special("s", b"2", ""),
        special(".wh.d/x", b"0"),
    ]
    image(layout, [tar(*members)])
    report = validate_image(layout.path, "t")
    assert codes(report) == [("error", "tar")] * 6
    assert "root of a layer" in report.findings[0].message


def test_of_very_many_faults_of_a_layer_the_first_are_reported(layout: Layout) -> None:
    image(layout, [tar(*(special(f"odd{number}", b"V") for number in range(30)))])
    report = validate_image(layout.path, "t")
    assert [finding.where for finding in report.findings][::19] == [report.findings[0].where] * 2
    assert ["odd0" in report.findings[0].message, "odd19" in report.findings[-1].message] == [True, True]


def test_hard_links_that_take_rights_from_their_file_are_warnings(layout: Layout) -> None:
    rights = {"mode": 0o755, "uid": 5, "xattrs": {"security.capability": b"c", "user.k": b"v"}}
    layer = archive(
        entry("ping", **rights),
        entry("same", "hardlink", link="ping", **rights),
        entry("less", "hardlink", link="./ping", mode=0o755, uid=5, xattrs={"security.capability": b"c"}),
        entry("uncapable", "hardlink", link="ping", mode=0o755, uid=5),
        entry("roots", "hardlink", link="ping", **{**rights, "uid": 0}),
        entry("su", mode=0o4755),
        entry("su2", "hardlink", link="su", mode=0o4755),
        entry("su3", "hardlink", link="su2", mode=0o755),
        entry("plain"),
        entry("plain2", "hardlink", link="plain"),
        entry("lower", "hardlink", link="below"),
    )
    image(layout, (archive(entry("below", uid=5)), layer))
    report = validate_image(layout.path, "t")
    assert {(finding.severity, finding.code) for finding in report.findings} == {(Severity.WARNING, "hard-link")}
    assert [finding.message.rpartition(": ")[2] for finding in report.findings] == ["uncapable", "roots", "su3"]


@pytest.mark.parametrize("cut", [lambda raw: gzip.compress(raw)[:-8], lambda raw: gzip.compress(raw) + b"garbage"])
def test_a_damaged_compressed_stream_is_an_error(layout: Layout, cut: Callable[[bytes], bytes]) -> None:
    image(layout, LAYERS, compress=cut)
    assert codes(validate_image(layout.path, "t")) == [("error", "blob")] * 2


def test_a_diff_id_of_another_algorithm_is_a_warning(layout: Layout) -> None:
    image(layout, LAYERS, diff_ids=lambda ids: [ids[0], "sha512:" + "0" * 128])
    assert codes(validate_image(layout.path, "t")) == [("warning", "diff-id")]


def test_fewer_and_more_diff_ids_than_layers(layout: Layout) -> None:
    for diff_ids in (lambda ids: ids[:1], lambda ids: [*ids, ids[0]]):
        image(layout, LAYERS, diff_ids=diff_ids)
        assert codes(validate_image(layout.path, "t")) == [("error", "diff-ids")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m.pop("schemaVersion"), [("error", "document")]),
        (lambda m: m.update(schemaVersion=1), [("error", "document")]),
        (lambda m: m.update(manifests=[]), [("error", "document")]),
        (lambda m: m.update(mediaType=MEDIA_TYPE_INDEX), [("error", "document")]),
        (lambda m: m["layers"][0].update(digest="sha256:short"), [("error", "document")]),
        (lambda m: m["layers"][0].update(size=-1), [("error", "document")]),
        (lambda m: m["layers"][0].update(size=1), [("error", "blob")]),
        (lambda m: m["layers"][0].update(mediaType="application/vnd.docker.x.tar.gzip"), [("error", "media-type")]),
        (
            lambda m: m["layers"][0].update(data=base64.b64encode(b"x").decode()),
            [("error", "blob"), ("error", "embedded-data")],
        ),
        (lambda m: m.update(layers=m["layers"] * 64), [("error", "diff-ids"), ("warning", "layers")]),
    ],
)
def test_faults_of_a_manifest(
    layout: Layout, made: Resolved, change: Callable[[Any], None], expected: list[tuple[str, str]]
) -> None:
    rewritten(layout, made, change)
    assert codes(validate_image(layout.path, "t")) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.pop("os"), [("error", "document")]),
        (lambda c: c.pop("rootfs"), [("error", "document")]),
        (lambda c: c["rootfs"].update(type="other"), [("error", "document")]),
        (lambda c: c.update(created="yesterday"), [("error", "document")]),
        (lambda c: c.update(created=""), [("error", "document")]),
        (lambda c: c.update(created=None), []),
        (lambda c: c.update(created="20240101T120000Z"), [("error", "document")]),
        (
            lambda c: c.update(history=[{"created": "2024-W01-1"}, {"created": "2024-01-01T00:00:00+01"}]),
            [("error", "document")] * 2,
        ),
        (lambda c: c.update(history=[{"created_by": "x"}]), [("warning", "history")]),
        (lambda c: c.update(history=[{}, {"empty_layer": True}, {}]), []),
    ],
)
def test_faults_of_a_config(
    layout: Layout, made: Resolved, change: Callable[[Any], None], expected: list[tuple[str, str]]
) -> None:
    reconfigured(layout, made, change)
    assert codes(validate_image(layout.path, "t")) == expected


def test_a_foreign_layer_may_be_absent_if_it_says_where_to_get_it(layout: Layout, made: Resolved) -> None:
    layer = made.manifest.layers[0]
    layout.blob_path(layer.digest).unlink()
    rewritten(layout, made, lambda m: m["layers"][0].update(urls=["https://example.com/layer"]))
    assert codes(validate_image(layout.path, "t")) == [("warning", "blob-missing")]


def test_indexes_are_followed_and_their_platforms_compared(layout: Layout, made: Resolved) -> None:
    there = plain(made.descriptor) | {"platform": {"os": "linux", "architecture": "s390x"}}
    absent = plain(made.descriptor) | {"digest": "sha256:" + "a" * 64}
    inner = put_json(layout, {"schemaVersion": 2, "manifests": [there, absent, absent]}, MEDIA_TYPE_INDEX)
    layout.tag("t", put_json(layout, {"schemaVersion": 2, "manifests": [plain(inner)]}, MEDIA_TYPE_INDEX))
    report = validate_layout(layout.path)
    assert codes(report) == [("warning", "blob-missing"), ("warning", "platform")]
    assert report.reachable == len(made.blobs) + 2


def test_an_index_without_any_existing_image_is_an_error(layout: Layout, made: Resolved) -> None:
    absent = [plain(made.descriptor) | {"digest": "sha256:" + digit * 64} for digit in "ab"]
    layout.tag("t", put_json(layout, {"schemaVersion": 2, "manifests": absent}, MEDIA_TYPE_INDEX))
    assert codes(validate_image(layout.path, "t")) == [("error", "blob-missing")] * 2


@pytest.mark.parametrize("marked", [True, False])
def test_attestations_of_buildkit_have_their_blobs_checked_and_no_more(
    layout: Layout, made: Resolved, marked: bool
) -> None:
    """By BuildKit's mark on the entry, or without it, as one finds it under a tag of its own."""
    found = attestation(layout, made)
    if not marked:
        found = found.model_copy(update={"annotations": None, "platform": None})
    _named_in_index(layout, made.descriptor, found)
    assert validate_image(layout.path, "t").findings == []
    (statement,) = json.loads(layout.read(found))["layers"]
    layout.blob_path(statement["digest"]).unlink()
    assert codes(validate_image(layout.path, "t")) == [("error", "blob-missing")]


def test_a_config_of_docker_in_a_manifest_of_oci_is_reported(layout: Layout, made: Resolved) -> None:
    """It is no artifact: it is an image that layerfarm does not read."""
    docker = "application/vnd.docker.container.image.v1+json"
    rewritten(layout, made, lambda manifest: manifest["config"].update(mediaType=docker))
    assert codes(validate_image(layout.path, "t")) == [("error", "document")]


def test_indexes_nested_without_end_are_an_error(layout: Layout, made: Resolved) -> None:
    descriptor = made.descriptor
    for _ in range(12):
        descriptor = put_json(layout, {"schemaVersion": 2, "manifests": [plain(descriptor)]}, MEDIA_TYPE_INDEX)
    layout.tag("t", descriptor)
    assert codes(validate_image(layout.path, "t")) == [("error", "nesting")]


def test_an_artifact_has_its_blobs_checked_and_no_more(layout: Layout) -> None:
    config = layout.put(b"{}", "application/vnd.oci.empty.v1+json")
    blob = layout.put(b"chart", "application/x-chart")
    document = {"schemaVersion": 2, "config": plain(config), "layers": [plain(blob)]}
    layout.tag("t", put_json(layout, document, MEDIA_TYPE_MANIFEST))
    report = validate_layout(layout.path)
    assert (report.findings, report.reachable) == ([], 3)
    layout.blob_path(blob.digest).unlink()
    assert codes(validate_layout(layout.path)) == [("error", "blob-missing")]


def test_tags_that_break_the_grammar_or_are_given_twice(layout: Layout, made: Resolved) -> None:
    named = [
        made.descriptor.model_copy(update={"annotations": {"org.opencontainers.image.ref.name": tag}})
        for tag in ("not valid", "twice", "twice")
    ]
    layout.update_index(lambda index: index.model_copy(update={"manifests": named}))
    assert codes(validate_layout(layout.path)) == [("error", "tag"), ("error", "tag-ambiguous")]
    assert codes(validate_image(layout.path, "twice")) == [("error", "tag-ambiguous")]
    assert codes(validate_image(layout.path, "none")) == [("error", "tag-missing")]


def test_entries_that_are_no_descriptors_are_each_reported(layout: Layout, made: Resolved) -> None:
    raw = json.loads((layout.path / "index.json").read_bytes())
    named = {"org.opencontainers.image.ref.name": "odd"}
    raw["manifests"] += [None, plain(made.descriptor) | {"size": -1, "annotations": named}]
    (layout.path / "index.json").write_text(json.dumps(raw))
    report = validate_layout(layout.path)
    assert codes(report) == [("error", "document")] * 2
    assert [finding.where for finding in report.findings] == ["index.json", "odd"]
    assert codes(validate_image(layout.path, "odd")) == [("error", "document")]
    assert validate_image(layout.path, "t").findings == []


def test_a_directory_that_is_no_layout_is_one_finding(tmp_path: Path, layout: Layout) -> None:
    assert codes(validate_layout(tmp_path)) == [("error", "layout")]
    assert codes(validate_image(tmp_path, "t")) == [("error", "layout")]
    (layout.path / "index.json").write_text("{")
    assert codes(validate_layout(layout.path)) == [("error", "document")]


def test_stray_files_among_the_blobs_are_warnings(layout: Layout) -> None:
    (layout.path / "blobs" / "README").touch()
    (layout.path / "blobs" / "sha256" / "upload.part").touch()
    assert codes(validate_layout(layout.path)) == [("warning", "stray")] * 2


def test_a_directory_with_the_name_of_a_blob_is_an_error(layout: Layout) -> None:
    (layout.path / "blobs/sha256" / ("a" * 64)).mkdir()
    report = validate_layout(layout.path)
    assert [(finding.code, finding.message) for finding in report.findings] == [("blob", "blob is not a regular file")]


PRIVATE_KINDS = ("ingest", "leases", "trash", "work", "notes", "tagging", "next-index", "whatever")


@pytest.mark.parametrize("place", ["", *PRIVATE_KINDS, "index.lock"])
@pytest.mark.parametrize(
    "make", [lambda path: path.symlink_to("/"), os.mkfifo, Path.touch], ids=["link", "fifo", "file"]
)
def test_what_commands_refuse_in_the_private_directory_is_an_error(
    layout: Layout, made: Resolved, make: Callable[[Path], object], place: str
) -> None:
    path = layout.path / ".layerfarm" / place
    if path.is_dir():
        path.rename(layout.path / "before")
    path.unlink(missing_ok=True)
    make(path)
    names = {each: each.lstat().st_mtime_ns for each in layout.path.rglob("*")}
    with no_hanging(20):
        report = validate_layout(layout.path)
    is_file = path.is_file() and not path.is_symlink()
    expected = (
        [] if place == "index.lock" and is_file else [(Severity.ERROR, "private", f".layerfarm/{place}".rstrip("/"))]
    )
    assert [(finding.severity, finding.code, finding.where) for finding in report.findings] == expected
    assert {each: each.lstat().st_mtime_ns for each in layout.path.rglob("*")} == names
    assert validate_image(layout.path, "t").findings == []


@pytest.mark.parametrize("place", ["leases/1/lease", "notes/kind/note", "ingest/x", "tagging/x"])
def test_links_and_fifos_below_a_private_directory_are_warnings(layout: Layout, made: Resolved, place: str) -> None:
    path = layout.path / ".layerfarm" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    path.with_name("link").symlink_to("/")
    path.with_name("file").touch()
    with no_hanging(20):
        report = validate_layout(layout.path)
    assert codes(report) == [("warning", "private")] * 2
    parent = f".layerfarm/{place}".rpartition("/")[0]
    assert {finding.where for finding in report.findings} == {f".layerfarm/{place}", f"{parent}/link"}


def test_a_layout_without_a_private_directory_gets_none(layout: Layout, made: Resolved) -> None:
    shutil.rmtree(layout.path / ".layerfarm")
    before = sorted(layout.path.rglob("*"))
    assert validate_layout(layout.path).findings == []
    assert sorted(layout.path.rglob("*")) == before


# --- bundles -------------------------------------------------------------------------------------


@pytest.fixture
def bundle(layout: Layout, made: Resolved, tmp_path: Path) -> Path:
    unpack_manifest(layout, tmp_path / "bundle", made)
    return tmp_path / "bundle"


def test_a_sound_bundle_has_no_findings_even_when_its_tree_was_changed(bundle: Path) -> None:
    (bundle / "rootfs" / "new").touch()
    assert validate_bundle(bundle).findings == []


def test_a_path_without_a_bundle_is_one_finding(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("none", "file"):
        assert codes(validate_bundle(tmp_path / name)) == [("error", "bundle")]


def test_every_part_of_a_bundle_is_looked_at(bundle: Path, tmp_path: Path) -> None:
    (bundle / "umoci.json").write_text("{}")
    (bundle / "config.json").write_text("[]")
    (bundle / "rootfs").rename(tmp_path / "elsewhere")
    bundle.chmod(0o755)
    report = validate_bundle(bundle)
    assert codes(report) == [("error", "document"), ("error", "document"), ("error", "rootfs"), ("warning", "mode")]
    assert {finding.where for finding in report.findings} == {"umoci.json", "config.json", "rootfs", "."}


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage line\n", b"#mtree\n./a type=file\n", b"#mtree\n. type=dir\n./b type=file\n./a type=file\n"],
)
def test_a_manifest_that_cannot_be_used_is_an_error(bundle: Path, content: bytes) -> None:
    (manifest,) = bundle.glob("*.mtree")
    manifest.write_bytes(content)
    assert codes(validate_bundle(bundle)) == [("error", "mtree")]


def test_a_missing_manifest_is_an_error(bundle: Path) -> None:
    (manifest,) = bundle.glob("*.mtree")
    manifest.unlink()
    assert codes(validate_bundle(bundle)) == [("error", "mtree")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.pop("process"), [("error", "document")]),
        (lambda c: c["process"].update(args=[]), [("error", "document")]),
        (lambda c: c["process"].update(cwd="relative"), [("error", "config")]),
        (lambda c: c["process"].update(env=["A=1", "NONE"]), [("error", "config")]),
        (lambda c: c["root"].update(path="/"), [("warning", "config")]),
    ],
)
def test_faults_of_a_config_json(bundle: Path, change: Callable[[Any], None], expected: list[tuple[str, str]]) -> None:
    config = json.loads((bundle / "config.json").read_bytes())
    change(config)
    (bundle / "config.json").write_text(json.dumps(config))
    assert codes(validate_bundle(bundle)) == expected


def test_counts_of_a_report() -> None:
    report = Report()
    report.error("a", "b", "c")
    report.warning("a", "b", "c")
    report.warning("a", "b", "c")
    assert (report.errors, report.warnings) == (1, 1)
    assert report.findings[0].severity is Severity.ERROR


DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def _named_in_index(layout: Layout, *descriptors: Descriptor, tag: str = "t") -> None:
    document = {"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": [plain(d) for d in descriptors]}
    layout.tag(tag, put_json(layout, document, MEDIA_TYPE_INDEX))


def test_a_manifest_of_docker_has_its_blobs_checked_and_no_more(layout: Layout) -> None:
    blob = layout.put(b"a layer", "application/vnd.docker.image.rootfs.diff.tar.gzip")
    lost = plain(blob) | {"digest": f"sha256:{'0' * 64}"}
    for layers, expected in (
        ([plain(blob)], [("warning", "media-type")]),
        ([plain(blob), lost], [("error", "blob-missing"), ("warning", "media-type")]),
        ([{"digest": 5}], [("error", "document"), ("warning", "media-type")]),
    ):
        document = {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": plain(blob), "layers": layers}
        _named_in_index(layout, put_json(layout, document, DOCKER_MANIFEST))
        assert codes(validate_image(layout.path, "t")) == expected


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", [("warning", "media-type")]),
        ("application/vnd.docker.image.rootfs.diff.tar", [("warning", "compression"), ("warning", "media-type")]),
        ("application/vnd.oci.image.layer.v1.tar+zstd", [("warning", "compression")]),
    ],
)
def test_a_layer_of_a_media_type_of_docker_or_of_a_wrong_one_is_a_warning(
    layout: Layout, media_type: str, expected: list[tuple[str, str]]
) -> None:
    made = image(layout, [tar(("f", b"x"))])
    layer = made.manifest.layers[0].model_copy(update={"media_type": media_type})
    layout.tag("t", layout.put_document(made.manifest.model_copy(update={"layers": [layer]}), MEDIA_TYPE_MANIFEST))
    assert sorted(codes(validate_image(layout.path, "t"))) == expected


@pytest.mark.parametrize("media_type", [MEDIA_TYPE_MANIFEST, MEDIA_TYPE_INDEX, DOCKER_MANIFEST])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 5000], ids=repr)
def test_a_document_that_is_none_is_one_error(layout: Layout, media_type: str, content: bytes) -> None:
    _named_in_index(layout, layout.put(content, media_type))
    report = validate_image(layout.path, "t")
    assert [(code, severity) for severity, code in codes(report)] == [("document", "error")]
    assert all(finding.message.isprintable() for finding in report.findings)


def test_a_document_that_is_missing_is_one_finding(layout: Layout, made: Resolved) -> None:
    for media_type in (MEDIA_TYPE_MANIFEST, MEDIA_TYPE_INDEX, DOCKER_MANIFEST):
        gone = layout.put(media_type.encode(), media_type)
        (layout.path / "blobs" / gone.digest.replace(":", "/")).unlink()
        _named_in_index(layout, made.descriptor, gone, tag="holes")
        assert codes(validate_image(layout.path, "holes")) == [("warning", "blob-missing")]


def test_an_index_that_names_nothing_and_a_blob_in_the_place_of_a_manifest(layout: Layout) -> None:
    _named_in_index(layout)
    assert codes(validate_image(layout.path, "t")) == [("warning", "empty-index")]
    _named_in_index(layout, layout.put(b"whatever", "text/plain"))
    report = validate_image(layout.path, "t")
    assert (codes(report), report.reachable) == ([], 2)


def test_a_tag_that_is_not_there_or_there_twice(layout: Layout, made: Resolved) -> None:
    assert codes(validate_image(layout.path, "none")) == [("error", "tag-missing")]
    index = json.loads((layout.path / "index.json").read_bytes())
    index["manifests"] *= 2
    (layout.path / "index.json").write_text(json.dumps(index))
    assert codes(validate_image(layout.path, "t")) == [("error", "tag-ambiguous")]

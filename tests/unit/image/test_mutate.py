from __future__ import annotations

import errno
import itertools
import json
import os
from typing import Any

import pytest

from layerfarm.jobs.compress import Codec, Compression
from layerfarm.jobs.errors import MalformedDocument, RequestError, StoreError
from layerfarm.jobs.image import HistoryEntry, append_layer, pack_layer, resolve, write_image
from layerfarm.jobs.image.documents import ImageConfig, Manifest, as_go_writes, check_timestamp, timestamp
from layerfarm.jobs.image.mutate import ConfigChanges, configure, new_image
from layerfarm.jobs.image.pack import choose_compression
from layerfarm.jobs.image.resolve import host_platform
from layerfarm.jobs.store import Descriptor, Layout, Platform, encode_document, parse_document
from tests.unit.image.images import LAX, NOT_RFC3339, RFC3339, image, tar
from tests.unit.image.test_resolve import for_platform, index_of

CREATED = "2020-01-02T03:04:05Z"


def test_new_image_is_for_this_machine_and_has_no_layers(layout: Layout) -> None:
    made = new_image(layout, CREATED)
    layout.tag("t", made.path[0])
    found = resolve(layout, "t")
    assert found.manifest.layers == []
    assert found.config.created == CREATED
    here = host_platform()
    assert (found.config.os, found.config.architecture, found.config.variant) == (
        "linux",
        here.architecture,
        here.variant,
    )


def test_new_image_twice_is_one_image_and_never_reads_the_clock(layout: Layout) -> None:
    assert new_image(layout).path == new_image(layout).path
    assert new_image(layout).config.created is None


def test_new_image_for_another_platform_keeps_the_variant(layout: Layout) -> None:
    config = new_image(layout, platform=Platform(os="linux", architecture="arm", variant="v7")).config
    assert (config.architecture, config.variant) == ("arm", "v7")


def packed(layout: Layout, *names: str) -> Any:
    return pack_layer(layout, [tar(*((name, b"x") for name in names))], Codec(Compression.GZIP))


def test_append_layer_adds_blob_diff_id_and_history(layout: Layout) -> None:
    base = image(layout, [tar(("a", b"x"))], history=[{"created_by": "base"}])
    layer = packed(layout, "b")
    made = append_layer(layout, base, layer, HistoryEntry(created_by="me", created=CREATED), CREATED)
    assert made.manifest.layers == [*base.manifest.layers, layer.descriptor]
    assert made.config.rootfs.diff_ids == [*base.config.rootfs.diff_ids, layer.diff_id]
    assert made.config.history == [HistoryEntry(created_by="base"), HistoryEntry(created_by="me", created=CREATED)]
    assert made.config.created == CREATED
    layout.tag("n", made.path[0])
    assert resolve(layout, "n").config == made.config


def test_append_nothing_adds_an_empty_history_entry_only(layout: Layout) -> None:
    base = append_layer(layout, image(layout), packed(layout, "a"), HistoryEntry(created_by="first"))
    made = append_layer(layout, base, None, HistoryEntry(created_by="me"))
    assert made.manifest.layers == base.manifest.layers
    epoch = "1970-01-01T00:00:00Z"  # umoci panics on an entry without a time
    assert made.config.history is not None
    assert made.config.history[1:] == [HistoryEntry(created=epoch, created_by="me", empty_layer=True)]
    assert append_layer(layout, base, None, None).descriptor.digest == base.descriptor.digest


def test_append_to_nothing_makes_a_new_image(layout: Layout) -> None:
    made = append_layer(layout, None, packed(layout, "a"), None, CREATED)
    assert len(made.layers) == 1
    assert made.config.history is None


def test_B7_variant_unknown_fields_and_key_order_survive(layout: Layout) -> None:
    """umoci loses them all."""
    text = (
        b'{"os":"linux","x-future":{"b":[1,null],"a":2},"variant":"v7","architecture":"arm","os.version":"1",'
        b'"rootfs":{"diff_ids":[],"kind":"k","type":"layers"},"config":{"Shell":["sh"],"User":"u"}}'
    )
    config = parse_document(ImageConfig, text, "test")
    base = write_image(layout, (), new_image(layout).manifest, config)
    made = append_layer(layout, base, None, None)
    assert layout.read(made.manifest.config) == text
    manifest = layout.read(base.descriptor)[:-1] + b',"x-also":true}'
    base_manifest = parse_document(Manifest, manifest, "test")
    made = write_image(layout, base.path, base_manifest, config)
    assert layout.read(made.descriptor) == manifest


def test_parents_are_rewritten_up_the_walk(layout: Layout) -> None:
    amd, arm = image(layout, author="amd", tag="x").path[0], image(layout, author="arm", tag="x").path[0]
    inner = index_of(layout, for_platform(amd, "linux", "amd64"), for_platform(arm, "linux", "arm64", "v8"))
    layout.tag("t", index_of(layout, inner.model_copy(update={"annotations": {"keep": "me"}})))
    base = resolve(layout, "t", "linux/amd64")
    made = append_layer(layout, base, packed(layout, "a"), None)
    layout.tag("t", made.path[0])
    assert len(resolve(layout, "t", "linux/amd64").layers) == 1
    assert resolve(layout, "t", "linux/arm64").layers == []
    assert made.path[1].annotations == {"keep": "me"}
    assert made.path[2].platform == Platform(os="linux", architecture="amd64")


def test_one_image_for_two_platforms_changes_for_one_only(layout: Layout) -> None:
    both = image(layout, tag="x").path[0]
    layout.tag("t", index_of(layout, for_platform(both, "linux", "amd64"), for_platform(both, "linux", "arm64")))
    walk = (layout.find("t")[0], for_platform(both, "linux", "arm64"))
    base = resolve(layout, "x")
    made = write_image(layout, walk, base.manifest, base.config.model_copy(update={"author": "new"}))
    index = json.loads(layout.read(made.path[0]))
    assert [m["digest"] == both.digest for m in index["manifests"]] == [True, False]


def test_a_walk_that_does_not_hold_together_is_refused(layout: Layout) -> None:
    one, other = image(layout), image(layout, author="other", tag="o")
    layout.tag("t", index_of(layout, one.path[0]))
    with pytest.raises(MalformedDocument, match="does not name"):
        write_image(layout, (layout.find("t")[0], other.descriptor), other.manifest, other.config)


def test_embedded_data_and_urls_of_the_old_blob_do_not_stay(layout: Layout) -> None:
    base = image(layout)
    old = base.path[0].model_copy(update={"data": "e30=", "urls": ["u"], "annotations": {"a": "b"}})
    made = write_image(layout, (old,), base.manifest, base.config)
    assert (made.path[0].data, made.path[0].urls, made.path[0].annotations) == (None, None, {"a": "b"})


def test_pack_layer_records_sizes_and_codec(layout: Layout) -> None:
    raw = tar(("a", b"x" * 100_000))
    gzip = pack_layer(layout, [raw[:7], raw[7:]], Codec(Compression.GZIP))
    assert gzip.uncompressed_size == len(raw)
    assert gzip.descriptor.annotations is not None
    assert gzip.descriptor.annotations["ci.umo.uncompressed_blob_size"] == str(len(raw))
    assert gzip.descriptor.annotations["dev.layerfarm.codec"].startswith("gzip;")
    plain = pack_layer(layout, [raw], Codec(Compression.NONE))
    assert plain.descriptor.annotations is None
    assert plain.descriptor.digest == plain.diff_id == gzip.diff_id
    assert layout.read(plain.descriptor) == raw


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD, Compression.NONE])
def test_full_disk_ends_packing_before_the_whole_tar_is_read(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, compression: Compression, threads: int
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    endless = (os.urandom(1 << 20) for _ in itertools.count())
    with pytest.raises(StoreError, match="No space left on device"):
        pack_layer(layout, endless, Codec(compression, threads=threads))
    assert os.listdir(layout.path / ".layerfarm/ingest") == []


def test_pack_layer_that_fails_leaves_no_blob(layout: Layout) -> None:
    def failing() -> Any:
        yield b"x" * 10_000_000
        raise RuntimeError("source")

    with pytest.raises(RuntimeError, match="source"):
        pack_layer(layout, failing(), Codec(Compression.GZIP))
    assert list((layout.path / "blobs" / "sha256").iterdir()) == []
    assert list((layout.path / ".layerfarm" / "ingest").iterdir()) == []


def test_packed_layer_travels_as_json(layout: Layout) -> None:
    layer = packed(layout, "a")
    assert type(layer).model_validate(layer.model_dump(mode="json")) == layer


def with_layers(layout: Layout, *types: str) -> Any:
    base = image(layout)
    prefix = "application/vnd.oci.image.layer.v1.tar"
    layers = [Descriptor(mediaType=prefix + t, digest="sha256:" + "a" * 64, size=1) for t in types]
    return type(base)(base.path, base.manifest.model_copy(update={"layers": layers}), base.config)


@pytest.mark.parametrize(
    ("types", "wanted"),
    [
        ((), "gzip"),
        (("",), "gzip"),
        (("+gzip", "+zstd"), "zstd"),
        (("+zstd", "+gzip"), "gzip"),
        (("+zstd", ""), "zstd"),
        (("+zstd", "+brotli"), "zstd"),
    ],
)
def test_auto_compression_is_that_of_the_newest_compressed_layer_that_is_supported(
    layout: Layout, types: tuple[str, ...], wanted: str
) -> None:
    assert choose_compression("auto", with_layers(layout, *types)) == wanted


@pytest.mark.parametrize("compression", [Compression.ZSTD_CHUNKED, Compression.ESTARGZ])
def test_auto_compression_of_a_layer_with_a_table_of_contents_is_its_format(
    layout: Layout, compression: Compression
) -> None:
    base = append_layer(layout, None, pack_layer(layout, [tar(("a", b"1"))], Codec(compression)), None)
    assert choose_compression("auto", base) is compression


def test_compression_can_be_chosen() -> None:
    assert choose_compression("none", None) == "none"
    assert choose_compression("auto", None) == "gzip"
    with pytest.raises(RequestError):
        choose_compression("lzma", None)


def test_timestamps() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00Z"
    assert timestamp(-62135596800) == "0001-01-01T00:00:00Z"
    assert timestamp(253402300799) == "9999-12-31T23:59:59Z"
    for seconds in (-62135596801, 253402300800, 10**18):
        with pytest.raises(RequestError):
            timestamp(seconds)


def test_times_are_those_of_rfc_3339_and_no_others() -> None:
    for text in RFC3339:
        assert check_timestamp(text) == text
    for text in (*NOT_RFC3339, *LAX):
        with pytest.raises(RequestError, match="RFC 3339"):
            check_timestamp(text)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"),
        ("2020-01-01T00:00:00+00:00", "2020-01-01T00:00:00Z"),
        ("2020-01-01T00:00:00-00:00", "2020-01-01T00:00:00Z"),
        ("2020-01-01T00:00:00.000Z", "2020-01-01T00:00:00Z"),
        ("2020-01-01T10:00:00.500-02:30", "2020-01-01T10:00:00.5-02:30"),
        ("2020-01-01T00:00:10.010+00:00", "2020-01-01T00:00:10.01Z"),
    ],
)
def test_a_time_is_spelled_as_go_does(text: str, written: str) -> None:
    assert as_go_writes(text) == written


@pytest.mark.parametrize("created", ["20240101T120000Z", "2024-01-01", ""])
def test_no_image_is_written_with_a_time_that_go_cannot_read(layout: Layout, created: str) -> None:
    base = image(layout)
    before = sorted(layout.path.glob("blobs/*/*"))
    for write in (
        lambda: new_image(layout, created),
        lambda: append_layer(layout, base, None, None, created),
        lambda: configure(layout, base, ConfigChanges(created=created), None),
    ):
        with pytest.raises(RequestError, match="RFC 3339"):
            write()
    if created:  # an empty field of a history entry is an absent one
        with pytest.raises(RequestError, match="RFC 3339"):
            append_layer(layout, base, None, HistoryEntry(created=created))
        with pytest.raises(RequestError, match="RFC 3339"):
            configure(layout, base, ConfigChanges(), HistoryEntry(created=created))
    assert sorted(layout.path.glob("blobs/*/*")) == before


def test_documents_survive_a_round_trip(layout: Layout) -> None:
    made = image(layout, [tar(("a", b"x"))], config={"Env": ["A=ü"]})
    assert parse_document(ImageConfig, encode_document(made.config), "x") == made.config
    assert "ü".encode() in encode_document(made.config)


def test_an_image_without_a_base_leaves_no_blob_that_nothing_names(layout: Layout) -> None:
    image = append_layer(layout, None, None, None)
    layout.tag("t", image.path[0])
    assert {path.name for path in (layout.path / "blobs/sha256").iterdir()} == {
        image.descriptor.digest.partition(":")[2],
        image.manifest.config.digest.partition(":")[2],
    }

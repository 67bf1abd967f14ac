"""Compressed layers: umoci.md B6, item by item, and the promise that threads change no byte."""

from __future__ import annotations

import gzip
import io
import itertools
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from layerfarm.jobs.compress import Codec, Compression, codec_id, compress, compression_of, decompress, media_type_for
from layerfarm.jobs.compress.zstd_frames import ZstdFrames
from layerfarm.jobs.errors import (
    LayerfarmError,
    LimitExceeded,
    MalformedLayer,
    RequestError,
    TruncatedStream,
    UnsupportedMediaType,
)
from layerfarm.jobs.limits import Limits
from tests.leaks import Held
from tests.trees import read_tree, tree
from tests.unit.layer.archives import apply, archive, entry

TEXT = b"".join(b"line %d of some text that compresses\n" % n for n in range(90_000))
PACKED = [Compression.GZIP, Compression.ZSTD]
STREAMS = [compression for compression in Compression if compression is compression.of_stream]
"""The compressions of any bytes; the others are for tars."""


def pack(data: bytes, codec: Codec, step: int = 1 << 20) -> bytes:
    return b"".join(compress((data[at : at + step] for at in range(0, len(data), step)), codec))


def unpack(blob: bytes, compression: Compression | str, **options: object) -> bytes:
    with decompress(io.BytesIO(blob), compression, **options) as reader:  # type: ignore[arg-type]
        return reader.read()


def test_B6_media_types_of_the_spec_and_their_compressions() -> None:
    base = "application/vnd.oci.image.layer.v1.tar"
    foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    for compression, suffix in ((Compression.NONE, ""), (Compression.GZIP, "+gzip"), (Compression.ZSTD, "+zstd")):
        assert media_type_for(compression) == base + suffix
        assert compression_of(base + suffix) is compression
        assert compression_of(foreign + suffix) is compression
        for docker in ("rootfs.diff.tar", "rootfs.foreign.diff.tar"):
            assert compression_of(f"application/vnd.docker.image.{docker}{suffix.replace('+', '.')}") is compression


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.docker.image.rootfs.diff.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.xz",
        "application/vnd.oci.image.layer.v1.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+xz",
        "application/vnd.oci.image.layer.v1.tar+",
        "application/vnd.oci.image.layer.v1.tar+none",
        "application/vnd.oci.image.config.v1+json",
        "",
    ],
)
def test_B6_any_other_media_type_is_refused(media_type: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        compression_of(media_type)
    with pytest.raises(UnsupportedMediaType):
        decompress(io.BytesIO(b""), media_type)


@pytest.mark.parametrize("compression", STREAMS)
@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_333_333])
def test_B6_every_size_round_trips_with_and_without_read_ahead(compression: Compression, size: int) -> None:
    blob = pack(TEXT[:size], Codec(compression))
    assert unpack(blob, compression) == TEXT[:size]
    assert unpack(blob, compression, ahead=True) == TEXT[:size]


@pytest.mark.parametrize("compression", STREAMS)
def test_bytes_do_not_depend_on_threads_or_on_how_the_input_is_cut(compression: Compression) -> None:
    blobs = {pack(TEXT, Codec(compression, threads=n), step) for n in (1, 2, 5) for step in (997, 1 << 20, 1 << 22)}
    assert len(blobs) == 1


@pytest.mark.parametrize(("compression", "program"), [(Compression.GZIP, "gzip"), (Compression.ZSTD, "zstd")])
def test_other_programs_read_our_blobs(compression: Compression, program: str) -> None:
    blob = pack(TEXT, Codec(compression))
    run = subprocess.run([program, "-dc"], input=blob, capture_output=True, check=True)
    assert run.stdout == TEXT


def test_a_gzip_blob_says_nothing_of_when_and_where_it_was_made() -> None:
    blob = pack(b"x", Codec())
    assert blob[:4] == b"\x1f\x8b\x08\x00"
    assert blob[4:8] == bytes(4)
    assert blob[9] == 255


def test_a_zstd_blob_has_a_content_checksum() -> None:
    assert pack(TEXT, Codec(Compression.ZSTD))[4] & 0x04


def test_the_default_gzip_blob_is_at_most_5_percent_larger_than_zlibs() -> None:
    assert len(pack(TEXT, Codec())) <= 1.05 * len(zlib.compress(TEXT, 6))


def test_B6_multi_member_gzip_is_read_whole() -> None:
    blob = b"".join(gzip.compress(TEXT[at : at + 100_000], 1) for at in range(0, len(TEXT), 100_000))
    assert unpack(blob, "application/vnd.oci.image.layer.v1.tar+gzip") == TEXT
    assert unpack(gzip.compress(b"") * 3 + gzip.compress(b"x"), Compression.GZIP) == b"x"


def test_B6_several_zstd_frames_and_skippable_ones_are_read_whole() -> None:
    one = pack(b"one", Codec(Compression.ZSTD))
    skippable = b"\x5a\x2a\x4d\x18" + (10).to_bytes(4, "little") + bytes(10)
    assert unpack(skippable + one + skippable + one, Compression.ZSTD) == b"oneone"


@pytest.mark.parametrize("compression", PACKED)
@pytest.mark.parametrize("ahead", [False, True])
def test_B6_a_stream_cut_anywhere_is_an_error(compression: Compression, ahead: bool) -> None:
    blob = pack(b"some text" * 100, Codec(compression))
    for size in range(len(blob)):
        with pytest.raises(TruncatedStream):
            unpack(blob[:size], compression, ahead=ahead)
    large = pack(TEXT, Codec(compression))
    for size in range(1, len(large), 50_021):
        with pytest.raises(TruncatedStream):
            unpack(large[:size], compression, ahead=ahead)


@pytest.mark.parametrize("compression", PACKED)
def test_B6_any_damaged_byte_is_an_error_or_harmless(compression: Compression) -> None:
    data = b"some text" * 100
    blob = pack(data, Codec(compression))
    noticed = 0
    for at in range(len(blob)):
        for flip in (0x01, 0x80):
            damaged = bytearray(blob)
            damaged[at] ^= flip
            try:
                # Bytes of the header that say nothing about the content may change.
                assert unpack(bytes(damaged), compression) == data
            except LayerfarmError:
                noticed += 1
    assert noticed > len(blob)


def test_B6_a_wrong_gzip_checksum_or_length_is_an_error() -> None:
    blob = gzip.compress(TEXT, 1)
    for damaged in (blob[:-8] + b"\0\0\0\0" + blob[-4:], blob[:-4] + b"\0\0\0\0"):
        with pytest.raises(MalformedLayer, match="damaged"):
            unpack(damaged, Compression.GZIP)


def test_B6_zeros_after_gzip_are_padding_and_garbage_is_an_error() -> None:
    blob = gzip.compress(b"x")
    assert unpack(blob + bytes(600_000), Compression.GZIP) == b"x"
    for garbage in (b"garbage", bytes(5) + b"x", bytes(300_000) + b"\x1f\x8b", b"\x1f\x8c"):
        with pytest.raises(LayerfarmError):
            unpack(blob + garbage, Compression.GZIP)


GZIP_FIELDS = {4: b"\x05\0extra", 8: b"name\0", 16: b"comment\0"}


def gzip_member(data: bytes, flags: int) -> tuple[bytes, int]:
    """A gzip member with these header fields (RFC 1952 2.3), and the length of its header."""
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6)
    header += b"".join(field for bit, field in GZIP_FIELDS.items() if flags & bit)
    if flags & 2:
        header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    return header + gzip.compress(data, mtime=0)[10:], len(header)


class Cut(io.RawIOBase):
    """A member or frame twice; a read ends after ``first`` bytes of the second one."""

    def __init__(self, packed: bytes, first: int) -> None:
        self._pieces = iter((packed + packed[:first], packed[first:]))

    def read(self, size: int = -1, /) -> bytes:
        return next(self._pieces, b"")


@pytest.mark.parametrize("flags", [*range(0, 32, 2)])
def test_B6_a_gzip_header_may_be_cut_by_a_read_anywhere(flags: int) -> None:
    member, header = gzip_member(TEXT[:500], flags)
    for first in range(1, header + 1):
        assert decompress(Cut(member, first), Compression.GZIP).read() == 2 * TEXT[:500], first  # type: ignore[arg-type]
        with pytest.raises(TruncatedStream):
            unpack(member + member[:first], Compression.GZIP)


def test_B6_a_zstd_header_may_be_cut_by_a_read_anywhere() -> None:
    text = TEXT[:70_000]
    frame = zstandard.compress(text)
    header = zstandard.frame_header_size(frame)
    assert header > 8
    for first in range(1, header + 4):
        assert decompress(Cut(frame, first), Compression.ZSTD).read() == 2 * text, first  # type: ignore[arg-type]
        with pytest.raises(TruncatedStream):
            unpack(frame + frame[:first], Compression.ZSTD)


def test_B6_a_gzip_header_with_a_wrong_checksum_or_without_an_end_is_an_error() -> None:
    member, header = gzip_member(b"x", 2 | 8)
    wrong = member[: header - 2] + bytes(2) + member[header:]
    with pytest.raises(MalformedLayer, match="checksum"):
        unpack(wrong, Compression.GZIP)
    with pytest.raises(MalformedLayer, match="longer than"):
        unpack(member[:10] + b"n" * (3 << 20), Compression.GZIP)


@pytest.mark.parametrize(
    ("header", "window"),
    [
        (b"\x00\x00", 1 << 10),
        (b"\x00\x58", 1 << 21),
        (b"\x00\x5d", 13 << 18),
        (b"\x00\xa8", 1 << 31),
        (b"\x20\x09", 9),
        (b"\x60\x01\x02", 513 + 256),
        (b"\xa0\x01\x00\x00\x01", (1 << 24) + 1),
        (b"\xe3\xff\xff\xff\xff" + b"\x01" + bytes(6) + b"\x01", (1 << 56) + 1),
    ],
)
def test_the_window_of_a_zstd_frame_is_limited_before_anything_is_decompressed(header: bytes, window: int) -> None:
    frame = io.BytesIO(b"\x28\xb5\x2f\xfd" + header + bytes(8))
    assert ZstdFrames(frame, Limits(zstd_window=window)).read(100)
    frame.seek(0)
    with pytest.raises(LimitExceeded, match=f"{window - 1} bytes"):
        ZstdFrames(frame, Limits(zstd_window=window - 1)).read(100)


@pytest.mark.parametrize("garbage", [b"garbage", bytes(8), b"\x28\xb5\x2f\xfe1234", b"\x5a\x2a\x4d\x19", b"\x28"])
def test_B6_anything_after_zstd_is_an_error(garbage: bytes) -> None:
    with pytest.raises(LayerfarmError):
        unpack(pack(b"x", Codec(Compression.ZSTD)) + garbage, Compression.ZSTD)


def test_B6_an_empty_blob_is_no_compressed_stream_but_an_empty_plain_one() -> None:
    for compression in PACKED:
        with pytest.raises(TruncatedStream):
            unpack(b"", compression)
    assert unpack(b"", Compression.NONE) == b""


@pytest.mark.parametrize("compression", PACKED)
def test_B6_the_wrong_compression_is_an_error(compression: Compression) -> None:
    with pytest.raises(MalformedLayer):
        unpack(archive(entry("f")), compression)


@pytest.mark.large
@pytest.mark.parametrize("promised", list(Compression))
@pytest.mark.parametrize("found", list(Compression))
@pytest.mark.parametrize("ahead", [False, True])
def test_B6_a_blob_of_another_compression_than_its_media_type_says_is_read(
    promised: Compression, found: Compression, ahead: bool
) -> None:
    for tar in (archive(entry("f", content=TEXT)), bytes(1024)):
        blob = pack(tar, Codec(found))
        with decompress(io.BytesIO(blob), media_type_for(promised), ahead=ahead) as reader:
            # eStargz adds entries to the tar.
            expected = gzip.decompress(blob) if found is Compression.ESTARGZ else tar
            assert (reader.read(), reader.compression) == (expected, found.of_stream)


@pytest.mark.parametrize("begin", [b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x5a\x2a\x4d\x18"])
def test_B6_a_tar_whose_first_name_looks_compressed_is_a_tar(begin: bytes) -> None:
    tar = archive(entry(begin + b"name"), format=tarfile.GNU_FORMAT)
    assert tar.startswith(begin)
    assert unpack(tar, media_type_for(Compression.NONE)) == tar


@pytest.mark.parametrize("content", [b"", b"short", b"no tar, nor compressed" * 100])
def test_B6_bytes_that_say_nothing_are_what_the_media_type_says(content: bytes) -> None:
    assert unpack(content, media_type_for(Compression.NONE)) == content
    for compression in PACKED:
        with pytest.raises((MalformedLayer, TruncatedStream)):
            unpack(content, media_type_for(compression))


def test_B6_a_cut_or_damaged_stream_arrives_one_byte_at_a_time_and_is_still_noticed() -> None:
    class Slow(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self._data = iter(data)

        def read(self, size: int = -1, /) -> bytes:
            return bytes(itertools.islice(self._data, 1))

    for compression in PACKED:
        blob = pack(b"hello" * 50, Codec(compression))
        assert decompress(Slow(blob), compression).read() == b"hello" * 50  # type: ignore[arg-type]
        with pytest.raises(TruncatedStream):
            decompress(Slow(blob[:-1]), compression).read()  # type: ignore[arg-type]


@pytest.mark.parametrize("compression", PACKED)
def test_B2_7_a_decompression_bomb_is_an_error_in_bounded_memory(compression: Compression) -> None:
    def zeros() -> Iterator[bytes]:
        for _ in range(200):
            yield bytes(1 << 20)

    bomb = b"".join(compress(zeros(), Codec(compression)))
    limits = Limits(ratio=100, ratio_floor=50 << 20)
    reader = decompress(io.BytesIO(bomb), compression, limits=limits)
    total = 0
    with pytest.raises(LimitExceeded, match="100 times"):
        while piece := reader.read(1 << 20):
            assert len(piece) <= 1 << 20
            total += len(piece)
    assert total <= 52 << 20
    with pytest.raises(LimitExceeded, match="bytes"):
        unpack(bomb, compression, limits=Limits(stream_bytes=10 << 20))


def test_closing_a_read_ahead_early_stops_its_thread() -> None:
    held = Held()
    reader = decompress(io.BytesIO(pack(TEXT * 10, Codec())), Compression.GZIP, ahead=True)
    assert reader.read(10) == TEXT[:10]
    reader.close()
    assert not held.new()


@pytest.mark.parametrize("ahead", [False, True])
def test_progress_adds_up_to_the_compressed_bytes(ahead: bool) -> None:
    blob = pack(TEXT, Codec())
    told: list[int] = []
    with decompress(io.BytesIO(blob), Compression.GZIP, ahead=ahead, advanced=told.append) as reader:
        while reader.read(1000):
            pass
    assert sum(told) == len(blob)


def test_progress_may_stop_the_reader() -> None:
    def stop(size: int) -> None:
        raise KeyError("stop")

    with (
        pytest.raises(KeyError, match="stop"),
        decompress(io.BytesIO(pack(TEXT, Codec())), Compression.GZIP, ahead=True, advanced=stop) as reader,
    ):
        reader.read(1000)


def test_abandoning_the_compressor_stops_its_threads() -> None:
    held = Held()
    pieces = compress(iter([TEXT] * 10), Codec(threads=2))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert not held.new()


def test_an_error_of_the_input_passes_through_the_compressor() -> None:
    def broken() -> Iterator[bytes]:
        yield archive(entry("f", content=TEXT))[:-1024]
        raise TruncatedStream("no more")

    for compression in Compression:
        with pytest.raises(TruncatedStream, match="no more"):
            list(compress(broken(), Codec(compression, threads=2)))


def test_readinto_and_small_reads_give_the_same_bytes() -> None:
    blob = pack(TEXT, Codec())
    assert io.BufferedReader(decompress(io.BytesIO(blob), Compression.GZIP)).read() == TEXT
    reader = decompress(io.BytesIO(blob), Compression.GZIP)
    assert b"".join(iter(lambda: reader.read(77_777), b"")) == TEXT


@pytest.mark.parametrize(
    ("compression", "level"),
    [
        (Compression.GZIP, 0),
        (Compression.GZIP, 13),
        (Compression.ESTARGZ, 13),
        (Compression.ZSTD, 99),
        (Compression.NONE, 1),
    ],
)
def test_a_level_that_does_not_exist_is_an_error(compression: Compression, level: int) -> None:
    with pytest.raises(RequestError, match="levels"):
        Codec(compression, level)


def test_no_threads_are_an_error() -> None:
    with pytest.raises(RequestError, match="thread"):
        Codec(threads=0)


def test_the_recorded_codec_names_library_version_and_level() -> None:
    assert codec_id(Codec(level=7)).startswith("gzip;deflate=")
    assert ";level=7;block=1048576" in codec_id(Codec(level=7))
    assert codec_id(Codec()).startswith("gzip;isal=")
    assert ";deflate=" in codec_id(Codec()) and ";level=default.3;" in codec_id(Codec())
    assert codec_id(Codec(Compression.ZSTD)).startswith("zstd;libzstd=1.")
    assert codec_id(Codec(Compression.NONE)) == "none"
    assert codec_id(Codec(threads=1)) == codec_id(Codec(threads=8))


def test_levels_change_the_size() -> None:
    assert len(pack(TEXT, Codec(level=1))) > len(pack(TEXT, Codec(level=9)))


# --- the tar stream itself ---------------------------------------------------------------------------


def test_B6_zeros_and_garbage_after_the_archive_are_read_and_ignored(tmp_path: Path) -> None:
    for tail in (bytes(100_000), b"garbage" * 1000):
        stream = io.BytesIO(archive(entry("f", content=b"x")) + tail)
        root = tree(tmp_path / str(len(tail)), {})
        apply(root, stream.getvalue())
        assert read_tree(root)[b"f"].content == b"x"


def test_B6_the_whole_stream_is_read_so_that_its_hash_covers_all(tmp_path: Path) -> None:
    from layerfarm.jobs.layer import unpack_layer

    stream = io.BytesIO(archive(entry("f")) + b"tail" * 1_000_000)
    unpack_layer(tree(tmp_path / "root", {}), stream)
    assert stream.read() == b""


@pytest.mark.parametrize("raw", [b"", bytes(512), bytes(1024), bytes(10240)])
def test_B6_a_layer_without_entries_is_an_empty_layer(tmp_path: Path, raw: bytes) -> None:
    root = tree(tmp_path / "root", {})
    before = read_tree(root)
    apply(root, raw)
    assert read_tree(root) == before


def test_B6_a_missing_trailer_and_missing_last_padding_are_accepted(tmp_path: Path) -> None:
    for number, cut in enumerate((1024, 512 + 3)):
        root = tree(tmp_path / str(number), {})
        apply(root, archive(entry("f", content=b"xyz"))[:cut])
        assert read_tree(root)[b"f"].content == b"xyz"


@pytest.mark.parametrize("size", [1, 100, 511, 513, 514, 1600, 2559])
def test_B6_a_cut_header_or_content_is_an_error(tmp_path: Path, size: int) -> None:
    raw = archive(entry("f", content=b"xyz" * 1), entry("g" * 120, content=b"x" * 600))
    with pytest.raises(TruncatedStream):
        apply(tree(tmp_path / "root", {}), raw[:size] if size != 514 else raw[:1100])


def test_an_entry_after_a_zero_block_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MalformedLayer, match="zero block"):
        apply(tree(tmp_path / "root", {}), archive(entry("f"))[:512] + bytes(512) + archive(entry("g")))

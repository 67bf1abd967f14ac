"""zstd:chunked layers: plain zstd to all, files by their frames to clients that read the table of contents."""

from __future__ import annotations

import base64
import io
import os
import random
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfarm.jobs.compress import Codec, Compression, codec_id, decompress, media_type_for
from layerfarm.jobs.compress.toc import frames
from layerfarm.jobs.compress.toc.frames import Chunk
from layerfarm.jobs.compress.zstd_chunked.cut import MOST_CHUNK, chunks
from layerfarm.jobs.errors import LimitExceeded, MalformedLayer
from layerfarm.jobs.tar.writer import TRAILER, Header, encode_header
from tests.unit.compress.chunked_reader import (
    Blob,
    assembled,
    contents,
    footer_of,
    pack,
    toc_of,
)
from tests.unit.layer.archives import archive, entry

LARGE = random.Random(1).randbytes(1 << 21) + bytes(5000) + b"".join(b"line %d\n" % n for n in range(100_000))
TREE = archive(
    entry("d/", "dir", mode=0o2750, uid=1, gid=2),
    entry("d/small", content=b"small" * 99, mtime=1.25, xattrs={"user.a": b"\x01\xff", "user.b": b"x"}),
    entry("d/empty", mode=0o4711),
    entry("d/large", content=LARGE),
    entry("d/hard", "hardlink", link="d/large"),
    entry("d/link", "link", link="../café"),
    entry("café", content=b"coffee", uid=3_000_000, pax={"atime": "5.5", "ctime": "7"}),
    entry("null", "char", device=(1, 3)),
    entry("disk", "block", device=(8, 0)),
    entry("pipe", "fifo"),
    entry("x" * 200 + "/" + "y" * 90, content=b"long", mtime=-3),
    entry(".wh.gone", mode=0),
)


@pytest.fixture(scope="module")
def blob() -> Blob:
    return pack(TREE)


def unpack(data: bytes) -> bytes:
    with decompress(io.BytesIO(data), Compression.ZSTD) as stream:
        return stream.read()


def test_the_plain_stream_is_the_tar(blob: Blob) -> None:
    assert unpack(blob.data) == TREE
    assert blob.warnings == []


def test_no_number_of_threads_and_no_cut_of_the_stream_changes_a_byte(blob: Blob) -> None:
    for threads in (1, 2, 7):
        for step in (511, 65_537, len(TREE)):
            assert pack(TREE, threads=threads, step=step) == blob


def test_the_table_of_contents_says_what_the_headers_say(blob: Blob) -> None:
    toc = toc_of(blob)
    assert toc["version"] == 1
    places = ("digest", "offset", "endOffset", "chunkSize", "chunkDigest")
    found = [{k: v for k, v in e.items() if k not in places} for e in toc["entries"] if e["type"] != "chunk"]
    then = "2014-05-13T16:53:20Z"
    assert found == [
        {"type": "dir", "name": "d/", "mode": 0o2750, "uid": 1, "gid": 2, "modtime": then},
        {
            "type": "reg",
            "name": "d/small",
            "mode": 0o644,
            "size": 495,
            "modtime": "1970-01-01T00:00:01.25Z",
            "xattrs": {"user.a": base64.b64encode(b"\x01\xff").decode(), "user.b": "eA=="},
        },
        {"type": "reg", "name": "d/empty", "mode": 0o4711, "modtime": then},
        {"type": "reg", "name": "d/large", "mode": 0o644, "size": len(LARGE), "modtime": then},
        {"type": "hardlink", "name": "d/hard", "linkName": "d/large", "mode": 0o644, "modtime": then},
        {"type": "symlink", "name": "d/link", "linkName": "../café", "mode": 0o644, "modtime": then},
        {
            "type": "reg",
            "name": "café",
            "mode": 0o644,
            "size": 6,
            "uid": 3_000_000,
            "modtime": then,
            "accesstime": "1970-01-01T00:00:05.5Z",
            "changetime": "1970-01-01T00:00:07Z",
        },
        {"type": "char", "name": "null", "mode": 0o644, "modtime": then, "devMajor": 1, "devMinor": 3},
        {"type": "block", "name": "disk", "mode": 0o644, "modtime": then, "devMajor": 8},
        {"type": "fifo", "name": "pipe", "mode": 0o644, "modtime": then},
        {
            "type": "reg",
            "name": "x" * 200 + "/" + "y" * 90,
            "mode": 0o644,
            "size": 4,
            "modtime": "1969-12-31T23:59:57Z",
        },
        {"type": "reg", "name": ".wh.gone", "modtime": then},
    ]


def test_each_file_can_be_read_from_its_frames_alone(blob: Blob) -> None:
    found = contents(blob)
    assert found["d/small"] == b"small" * 99
    assert found["d/large"] == LARGE
    assert found["café"] == b"coffee"
    assert sum(each["type"] == "chunk" for each in toc_of(blob)["entries"]) > 10


def test_the_tar_split_data_and_the_files_are_the_tar() -> None:
    # The CRC of the test's own reader takes 1 us a byte.
    tar = archive(entry("d/", "dir"), entry("d/a", content=b"a" * 700), entry("d/b"), entry("c", content=b"c" * 512))
    for end in (b"", bytes(20 * 512), bytes(3 << 20)):
        assert assembled(pack(tar + end)) == tar + end


def test_the_footer_repeats_the_annotations(blob: Blob) -> None:
    position = blob.annotations["io.github.containers.zstd-chunked.manifest-position"]
    split = blob.annotations["io.github.containers.zstd-chunked.tarsplit-position"]
    assert footer_of(blob) == tuple(map(int, f"{position}:{split}".split(":")))


def test_an_unchanged_file_is_the_same_frames_wherever_it_is() -> None:
    one = pack(archive(entry("a", content=b"changed"), entry("b", content=LARGE)))
    two = pack(archive(entry("b", content=LARGE), entry("z", "dir")))
    frames = []
    for blob in (one, two):
        entry_of_b = next(each for each in toc_of(blob)["entries"] if each["name"] == "b")
        frames.append(blob.data[entry_of_b["offset"] : entry_of_b["endOffset"]])
    assert frames[0] == frames[1]


def test_all_that_decides_the_bytes_is_recorded() -> None:
    assert media_type_for(Compression.ZSTD_CHUNKED) == media_type_for(Compression.ZSTD)
    assert codec_id(Codec(Compression.ZSTD_CHUNKED)).startswith("zstd:chunked;libzstd=")
    assert codec_id(Codec(Compression.ZSTD_CHUNKED, level=3)) != codec_id(Codec(Compression.ZSTD_CHUNKED))


# --- tars that a table of contents cannot describe -----------------------------------------------


def raw(**fields: object) -> bytes:
    return encode_header(Header(b"a", b"0", 0o644)._replace(**fields))  # type: ignore[arg-type]


def global_header(tar: bytes) -> bytes:
    info = tarfile.TarInfo("pax_global_header")
    body = b"13 comment=a\n"
    info.type, info.size = b"g", len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(512, b"\0") + tar


def device_of_a_file() -> bytes:
    block = bytearray(raw())
    block[329:345] = b"0000010\x000000001\0"
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    return bytes(block) + TRAILER


@pytest.mark.parametrize(
    ("tar", "reason"),
    [
        (archive(entry("a"), entry("./a/")), "several entries of one name: a"),
        (archive(entry("a/b"), entry("a", "link", link="c")), "directory that is replaced by another entry: a"),
        (archive(entry("a", "link", link="c"), entry("a/b/c")), "entry below one that is not a directory: a/b/c"),
        (archive(entry(b"\xff", content=b"x")), "not UTF-8"),
        (archive(entry("a", "link", link=b"\xff")), "not UTF-8"),
        (archive(entry("a/../b")), "leads out"),
        (global_header(archive(entry("a"))), "global PAX header"),
        (raw(mtime=253_402_300_800) + TRAILER, "time"),
        (device_of_a_file(), "device number"),
        (archive(entry("a", b"7", b"contiguous")), "type"),
        (archive(entry("a")) + b"more", "follows the end"),
        (archive(entry("a")) + bytes(100), "whole blocks"),
        (raw(size=5) + b"12345", "whole blocks"),
    ],
)
def test_a_tar_that_it_cannot_describe_gets_none_and_a_warning(tar: bytes, reason: str) -> None:
    blob = pack(tar)
    assert unpack(blob.data) == tar
    assert blob.annotations == {}
    (warning,) = blob.warnings
    assert "pull it whole" in warning
    assert reason in warning
    assert b"\x50\x2a\x4d\x18" not in blob.data


def test_a_table_of_contents_that_clients_refuse_for_its_size_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MOST_BYTES", 3000)
    blob = pack(TREE)
    assert unpack(blob.data) == TREE
    assert (blob.annotations, ["larger than 3000 bytes" in text for text in blob.warnings]) == ({}, [True])


def test_an_empty_stream_is_an_empty_tar() -> None:
    blob = pack(b"")
    assert unpack(blob.data) == b""
    assert contents(blob) == {}


def test_a_stream_that_is_no_tar_is_refused() -> None:
    with pytest.raises(MalformedLayer):
        pack(b"no tar" * 1000)


def test_limits_hold_while_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFARM_LIMIT_ENTRIES", "3")
    with pytest.raises(LimitExceeded):
        pack(TREE)


# --- parts ---------------------------------------------------------------------------------------


def cut_by_bytes(data: bytes) -> list[Chunk]:
    """The rules of containers/storage, one byte after the other."""
    found: list[Chunk] = []
    window = bytearray(64)
    first, second, start, at = 64 * 31, 64 * 63 * 31, 0, 0

    def roll(byte: int) -> bool:
        nonlocal first, second
        dropped = window[at % 64]
        window[at % 64] = byte
        first = first + byte - dropped
        second = second + first - 64 * (dropped + 31)
        return second & 0xFFFF == 0xFFFF

    while at < len(data):
        run = len(data) - at - len(data[at:].lstrip(b"\0")) if not data[at] else 0
        if run >= 1024:
            if start < at:
                found.append(Chunk(data[start:at], False))
            found.append(Chunk(bytes(run), True))
            for _ in range(run):
                roll(0)
                at += 1
            start = at
            continue
        for byte in data[at : at + max(run, 1)]:
            split = roll(byte)
            at += 1
            if split:
                found.append(Chunk(data[start:at], False))
                start = at
    return [*found, Chunk(data[start:], False)] if start < len(data) else found


def sample(seed: int) -> bytes:
    """Content with random parts, repetitions, and runs of zeros around the length of a hole."""
    rng = random.Random(seed)
    parts = []
    for _ in range(24):
        parts.append(rng.randbytes(rng.choice([0, 1, 63, 64, 65, 40_000])))
        parts.append(bytes(rng.choice([0, 1, 1023, 1024, 1025, 5000])))
        parts.append(rng.choice([b"\xbf\x17", b"ab", b"\x01"]) * rng.choice([0, 200, 9000]))
    return b"".join(parts)


@pytest.mark.large
@pytest.mark.parametrize("seed", range(6))
def test_files_are_cut_where_containers_storage_cuts_them(seed: int) -> None:
    data = sample(seed)
    expected = cut_by_bytes(data)
    assert len(expected) > 12
    for step in (1000, 1 << 20):
        assert list(chunks(data[at : at + step] for at in range(0, len(data), step))) == expected


def test_no_chunk_is_larger_than_a_frame_may_be() -> None:
    size = 2 * MOST_CHUNK + 100
    for data in (b"\x02" * size, bytes(size), bytes(size) + b"a"):
        found = list(chunks([data]))
        assert b"".join(chunk.data for chunk in found) == data
        assert max(len(chunk.data) for chunk in found) == MOST_CHUNK
        assert [chunk.zeros for chunk in found[:3]] == [not data[0]] * 3


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..")
)
files = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=1500)),
    st.tuples(st.just("file"), st.integers(0, 700).map(lambda size: os.urandom(size) * 2)),
    st.tuples(st.sampled_from(["dir", "fifo", "link", "char"]), st.just(b"")),
)


@given(st.dictionaries(names, files, max_size=8), st.integers(0, 3), st.sampled_from(["pax", "gnu"]))
def test_any_tree_comes_back_from_its_frames(tree: dict[str, tuple[str, bytes]], blocks: int, dialect: str) -> None:
    members = [entry(name, kind, content, link="x" if kind == "link" else "") for name, (kind, content) in tree.items()]
    format = tarfile.PAX_FORMAT if dialect == "pax" else tarfile.GNU_FORMAT
    tar = archive(*members, format=format) + bytes(512 * blocks)
    blob = pack(tar)
    assert unpack(blob.data) == tar
    assert blob.warnings == []
    assert contents(blob) == {name: content for name, (kind, content) in tree.items() if kind == "file"}
    assert assembled(blob) == tar
    assert [each["name"].rstrip("/") for each in toc_of(blob)["entries"]] == list(tree)

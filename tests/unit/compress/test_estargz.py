"""eStargz layers: plain gzip to all, files by their members to clients that read the table of contents."""

from __future__ import annotations

import base64
import os
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfarm.jobs.compress import Codec, Compression, codec_id, compress, media_type_for
from layerfarm.jobs.compress.estargz import marks
from layerfarm.jobs.compress.estargz.plain import without_own
from layerfarm.jobs.compress.toc import frames
from layerfarm.jobs.errors import LimitExceeded, MalformedLayer, RequestError
from tests.unit.compress.chunked_reader import Blob
from tests.unit.compress.stargz_reader import DIGEST, TOC, contents, member, names, pack, toc_of, toc_place, unpack
from tests.unit.compress.test_zstd_chunked import files, global_header, raw
from tests.unit.compress.test_zstd_chunked import names as some_names
from tests.unit.layer.archives import archive, entry

LARGE = random.Random(1).randbytes(1 << 20) + bytes(8 << 20) + b"".join(b"line %d\n" % n for n in range(10_000))
LONG = "x" * 200 + "/" + "y" * 90
TREE = archive(
    entry("d/", "dir", mode=0o2750, uid=1, gid=2),
    entry("d/small", content=b"small" * 99, mtime=1.25, xattrs={"user.a": b"\x01\xff", "user.b": b"x"}),
    entry("d/empty", mode=0o4711),
    entry("d/large", content=LARGE),
    entry("d/hard", "hardlink", link="d/large"),
    entry("d/link", "link", link="../café"),
    entry("café", content=b"coffee", uid=3_000_000, pax={"atime": "5.5", "ctime": "7"}),
    entry("null", "char", device=(1, 3)),
    entry(LONG, content=b"long", mtime=-3),
    entry("whole", content=bytes(marks.CHUNK_SIZE)),
    entry(".wh.gone", mode=0),
)
END = bytes(1024)


@pytest.fixture(scope="module")
def blob() -> Blob:
    return pack(TREE)


def test_the_plain_stream_is_the_tar_with_a_landmark_and_the_table_of_contents(blob: Blob) -> None:
    assert names(blob) == [*names_of(TREE), ".no.prefetch.landmark", TOC]
    assert unpack(blob.data).startswith(TREE.rstrip(b"\0"))
    assert unpack(blob.data).endswith(END)
    assert blob.warnings == []


def names_of(tar: bytes) -> list[str]:
    return names(Blob(b"".join(compress([tar], Codec())), {}, []))


def test_without_the_entries_of_the_format_it_is_the_tar_again(blob: Blob) -> None:
    tar = TREE.rstrip(b"\0") + b"\0" * (-len(TREE.rstrip(b"\0")) % 512) + END
    for again in (blob, pack(tar)):
        whole = unpack(again.data)
        for step in (700, len(whole)):
            assert b"".join(without_own(whole[at : at + step] for at in range(0, len(whole), step))) == tar


@pytest.mark.parametrize("prefetch", [(), ("café", "d/hard")])
def test_no_number_of_threads_and_no_cut_of_the_stream_changes_a_byte(prefetch: tuple[str, ...]) -> None:
    blob = pack(TREE, prefetch=prefetch)
    for threads, step in ((1, 4093), (2, 65_537), (7, len(TREE))):
        assert pack(TREE, threads=threads, step=step, prefetch=prefetch) == blob


def test_the_table_of_contents_says_what_the_headers_say(blob: Blob) -> None:
    toc = toc_of(blob)
    assert toc["version"] == 1
    places = ("digest", "offset", "chunkSize", "chunkDigest")
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
        {"type": "reg", "name": "café", "mode": 0o644, "size": 6, "uid": 3_000_000, "modtime": then},
        {"type": "char", "name": "null", "mode": 0o644, "modtime": then, "devMajor": 1, "devMinor": 3},
        {
            "type": "reg",
            "name": "x" * 200 + "/" + "y" * 90,
            "mode": 0o644,
            "size": 4,
            "modtime": "1969-12-31T23:59:57Z",
        },
        {"type": "reg", "name": "whole", "mode": 0o644, "size": marks.CHUNK_SIZE, "modtime": then},
        {"type": "reg", "name": ".wh.gone", "modtime": then},
        {"type": "reg", "name": ".no.prefetch.landmark", "mode": 0o644, "size": 1, "modtime": "1970-01-01T00:00:00Z"},
    ]


def test_each_file_can_be_read_from_its_members_alone(blob: Blob) -> None:
    found = contents(blob)
    assert found["d/small"] == b"small" * 99
    assert found["d/large"] == LARGE
    assert found["whole"] == bytes(marks.CHUNK_SIZE)
    assert found[".no.prefetch.landmark"] == b"\x0f"
    assert sum(each["type"] == "chunk" for each in toc_of(blob)["entries"]) == 2


def test_members_begin_where_the_format_prescribes_and_nowhere_else(blob: Blob) -> None:
    """A member for each content or chunk, with the headers that follow it, one before all, the table, the footer."""
    starts = []
    data = blob.data
    while data:
        starts.append(len(blob.data) - len(data))
        _, data = member(data)
    offsets = [each["offset"] for each in toc_of(blob)["entries"] if "offset" in each]
    assert starts == [0, *offsets, toc_place(blob), len(blob.data) - 51]


def test_files_to_prefetch_come_first_with_their_directories_and_the_files_of_hard_links() -> None:
    blob = pack(TREE, prefetch=["/café", "missing", "d/hard", "d/hard", "./d/empty"])
    assert names(blob)[:6] == ["café", "d", "d/large", "d/hard", "d/empty", ".prefetch.landmark"]
    assert sorted(names(blob)) == sorted([*names_of(TREE), ".prefetch.landmark", TOC])
    assert contents(blob)["d/large"] == LARGE
    ends = {each["name"]: each.get("offset", 0) for each in toc_of(blob)["entries"] if each["type"] != "chunk"}
    assert ends["café"] < ends["d/large"] < ends[".prefetch.landmark"] < ends["d/small"]


def test_a_layer_without_any_of_the_files_to_prefetch_has_nothing_to_prefetch(blob: Blob) -> None:
    assert pack(TREE, prefetch=["other"]) == blob


def test_entry_with_odd_padding_does_not_become_the_last_one() -> None:
    """The format's own entries follow the last content, after zeros."""
    tar = bytearray(archive(entry("a", content=b"a"), entry("b", content=b"b")))
    tar[1023] = 1
    blob = pack(bytes(tar), prefetch=["b"])
    assert blob == pack(bytes(tar))
    assert names(blob)[:2] == ["a", "b"]


def test_the_root_directory_stays_before_what_is_in_it() -> None:
    tar = archive(entry("./", "dir"), entry("./a"), entry("./b", content=b"b"))
    assert names(pack(tar, prefetch=["b"]))[:3] == [".", "./b", ".prefetch.landmark"]


def test_all_that_decides_the_bytes_is_recorded() -> None:
    assert media_type_for(Compression.ESTARGZ) == media_type_for(Compression.GZIP)
    ids = {
        codec_id(Codec(Compression.ESTARGZ)),
        codec_id(Codec(Compression.ESTARGZ, level=3)),
        codec_id(Codec(Compression.ESTARGZ, prefetch=("a", "b"))),
        codec_id(Codec(Compression.ESTARGZ, prefetch=("b", "a"))),
        codec_id(Codec(Compression.GZIP, level=6)),
    }
    assert len(ids) == 5
    with pytest.raises(RequestError, match="prefetch"):
        Codec(Compression.GZIP, prefetch=("a",))


# --- tars that a table of contents cannot describe -----------------------------------------------


@pytest.mark.parametrize(
    ("tar", "reason"),
    [
        (archive(entry("a"), entry("./a/")), "several entries of one name: a"),
        (archive(entry("a/b"), entry("a", "link", link="c")), "directory that is replaced by another entry: a"),
        (archive(entry("a", "link", link="c"), entry("a/b/c")), "entry below one that is not a directory: a/b/c"),
        (archive(entry(b"\xff", content=b"x")), "not UTF-8"),
        (archive(entry("a/../b")), "leads out"),
        (archive(entry("a"), entry(TOC, content=b"{}")), "reserves the name"),
        (archive(entry("./.prefetch.landmark")), "reserves the name"),
        (archive(entry(".no.prefetch.landmark", content=b"\x0f")), "reserves the name"),
        (archive(entry("a", "hardlink", link="lower")), "hard link"),
        (archive(entry("a", "hardlink", link="./a")), "hard link"),
        (global_header(archive(entry("a"))), "global PAX header"),
        (archive(entry("a")) + b"more", "follows the end"),
        (archive(entry("a")) + bytes(3 << 20) + b"more" * 128, "follows the end"),
        (archive(entry("a")) + bytes(100), "whole blocks"),
        (raw(size=5) + b"12345", "whole blocks"),
    ],
)
@pytest.mark.parametrize("prefetch", [(), ("a",)])
def test_a_tar_that_it_cannot_describe_gets_none_and_a_warning(
    tar: bytes, reason: str, prefetch: tuple[str, ...]
) -> None:
    blob = pack(tar, prefetch=prefetch)
    assert unpack(blob.data) == tar
    assert blob.annotations == {}
    (warning,) = blob.warnings
    assert "pull it whole" in warning
    assert reason in warning
    assert marks.toc_offset(blob.data[-51:]) is None


def test_a_table_of_contents_that_clients_refuse_for_its_size_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MOST_BYTES", 3000)
    blobs = [pack(TREE, threads=threads) for threads in (1, 3)]
    assert blobs[0] == blobs[1]
    assert unpack(blobs[0].data) == TREE
    assert (blobs[0].annotations, ["larger than 3000 bytes" in text for text in blobs[0].warnings]) == ({}, [True])


def test_an_empty_stream_is_a_tar_of_the_entries_of_the_format() -> None:
    blob = pack(b"")
    assert names(blob) == [".no.prefetch.landmark", TOC]
    assert b"".join(without_own([unpack(blob.data)])) == END


def test_a_stream_that_is_no_tar_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    for codec in (Codec(Compression.ESTARGZ), Codec(Compression.ESTARGZ, prefetch=("a",))):
        with pytest.raises(MalformedLayer):
            list(compress([b"no tar" * 1000], codec, scratch=tmp_path))
    assert os.listdir(tmp_path) == []


def test_limits_hold_while_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFARM_LIMIT_ENTRIES", "3")
    for prefetch in ((), ("d",)):
        with pytest.raises(LimitExceeded):
            pack(TREE, prefetch=prefetch)


@given(st.dictionaries(some_names, files, max_size=8), st.integers(0, 3), st.booleans())
def test_any_tree_comes_back_from_its_members(tree: dict[str, tuple[str, bytes]], blocks: int, prefetch: bool) -> None:
    members = [entry(name, kind, content, link="x" if kind == "link" else "") for name, (kind, content) in tree.items()]
    tar = archive(*members, format=tarfile.PAX_FORMAT) + bytes(512 * blocks)
    first = sorted(tree)[:2] if prefetch else []
    blob = pack(tar, prefetch=first)
    assert blob.warnings == []
    landmark = ".prefetch.landmark" if first else ".no.prefetch.landmark"
    files = {name: content for name, (kind, content) in tree.items() if kind == "file"}
    assert contents(blob) == files | {landmark: b"\x0f"}
    listed = [each["name"].rstrip("/") for each in toc_of(blob)["entries"]]
    others = [name for name in tree if name not in first]
    assert listed == ([*first, landmark, *others] if first else [*others, landmark])
    assert DIGEST in blob.annotations

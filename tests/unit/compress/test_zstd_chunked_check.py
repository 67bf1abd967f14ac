"""A table of contents that is not what the layer holds is found, and a true one of any writer is accepted."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from layerfarm.jobs.compress import Compression, decompress
from layerfarm.jobs.compress.zstd_chunked.check import ZstdChunkedCheck
from layerfarm.jobs.limits import limits
from layerfarm.jobs.tar.reader import MemberReader
from tests.unit.compress.chunked_reader import (
    PREFIX,
    Blob,
    footer_of,
    pack,
    sha256,
    tar_split_of,
    toc_of,
    with_packed_toc,
    with_toc,
)
from tests.unit.layer.archives import archive, entry

LARGE = random.Random(2).randbytes(1_200_000) + bytes(3000) + b"end"
TREE = archive(
    entry("d/", "dir"),
    entry("d/a", content=b"a" * 700, mtime=1.25, xattrs={"user.a": b"1"}),
    entry("d/b", content=b"b" * 700),
    entry("d/empty"),
    entry("d/link", "link", link="a"),
    entry("large", content=LARGE),
)
TRUE = pack(TREE)
Toc = dict[str, Any]


def faults(blob: Blob) -> list[str]:
    """Return the faults that the check finds."""
    found: list[str] = []
    size = len(blob.data)
    check = ZstdChunkedCheck(
        lambda at, n: blob.data[at : at + n], size, blob.annotations, lambda *text: found.append(": ".join(text))
    )
    with decompress(io.BytesIO(blob.data), Compression.ZSTD) as stream:
        tar = stream.read()
    reader = MemberReader(io.BytesIO(tar), limits())
    for member in reader:
        check.member(member, reader)
    check.finish(sha256(tar), len(tar))
    return found


def rewritten(toc: bytes, split: bytes, digest: str | None = None) -> Blob:
    """The frames of TRUE with another table of contents and tar-split data, consistent in themselves."""
    return with_toc(TRUE, toc, split, digest)


def changed(change: Callable[[Toc, list[Any]], object]) -> Blob:
    toc, split = toc_of(TRUE), tar_split_of(TRUE)
    toc["tarSplitDigest"] = "DIGEST"
    change(toc, split)
    return rewritten(json.dumps(toc).encode(), b"".join(json.dumps(line).encode() + b"\n" for line in split))


def of(toc: Toc, name: str) -> Any:
    return next(each for each in toc["entries"] if each["name"] == name)


def chunk(toc: Toc, number: int) -> Any:
    return [each for each in toc["entries"] if each["name"] == "large"][number]


def setting(name: str, /, **fields: Any) -> Callable[[Toc, list[Any]], object]:
    return lambda toc, split: of(toc, name).update(fields)


def test_the_truth_is_not_complained_of() -> None:
    assert faults(TRUE) == []
    assert faults(changed(lambda toc, split: None)) == []


def test_another_order_another_zone_and_no_tar_split_data_are_true_too() -> None:
    def shuffle(toc: Toc, split: list[Any]) -> None:
        entries = toc["entries"]
        toc["entries"] = [*entries[5:], *entries[:5]]
        of(toc, "d/a")["modtime"] = "1970-01-01T02:00:01.250+02:00"
        of(toc, "d/empty")["digest"] = sha256(b"")
        del toc["tarSplitDigest"]

    assert faults(changed(shuffle)) == []


SWAPPED = {key: of(toc_of(TRUE), "d/b")[key] for key in ("offset", "endOffset")}
OTHER = sha256(b"other")
LIES: dict[str, tuple[Callable[[Toc, list[Any]], object], str]] = {
    "mode": (setting("d/a", mode=0o4755), "mode"),
    "owner": (setting("d/a", uid=1), "uid"),
    "time": (setting("d/a", modtime="1970-01-01T00:00:01.26Z"), "mtime"),
    "no time": (setting("d/a", modtime="yesterday"), "mtime"),
    "xattr": (setting("d/a", xattrs={"user.a": "Mg=="}), "xattrs"),
    "link": (setting("d/link", linkName="/etc"), "link"),
    "type": (setting("d/empty", type="fifo"), "type"),
    "size": (setting("d/a", size=701), "size"),
    "digest": (setting("d/a", digest=OTHER), "digest"),
    "offsets of another file": (setting("d/a", **SWAPPED), "another content"),
    "offset inside a frame": (setting("d/a", offset=of(toc_of(TRUE), "d/a")["offset"] + 1), "damaged"),
    "offset outside": (setting("d/a", endOffset=1 << 40), "lead out"),
    "offset before": (setting("d/a", endOffset=1), "lead out"),
    "negative": (setting("d/a", offset=-1), "invalid value"),
    "text for a number": (setting("d/a", size="700"), "invalid value"),
    "truth for a number": (setting("d/a", size=True), "invalid value"),
    "missing": (lambda toc, split: toc["entries"].remove(of(toc, "d/a")), "not in the table"),
    "name outside": (setting("d/a", name="../../etc/passwd"), "not in the tar"),
    "twice": (lambda toc, split: toc["entries"].append(of(toc, "d/a")), "more than once"),
    "too many": (lambda toc, split: toc["entries"].append({"type": "dir", "name": "x/"}), "not in the tar"),
    "chunk alone": (lambda toc, split: toc["entries"].insert(0, {"type": "chunk", "name": "d/"}), "does not follow"),
    "chunk of another": (lambda toc, split: chunk(toc, 1).update(name="d/a"), "does not follow"),
    "chunk digest": (lambda toc, split: chunk(toc, 1).update(chunkDigest=OTHER), "another digest"),
    "chunk size": (lambda toc, split: chunk(toc, 1).update(chunkSize=1 << 60), "not as large"),
    "chunk offset": (lambda toc, split: chunk(toc, 1).update(chunkOffset=7), "is at 7"),
    "zeros": (lambda toc, split: chunk(toc, 1).update(chunkType="zeros"), "another digest"),
    "case of a key": (setting("d/a", UID=0), "unknown key"),
    "version": (lambda toc, split: toc.update(version=2), "version"),
    "no list": (lambda toc, split: toc.update(entries={}), "not a list"),
    "no objects": (lambda toc, split: toc.update(entries=[{}]), "not a list"),
    "xattr of an object": (setting("d/a", xattrs={"a": {"type": "", "name": ""}}), "xattr"),
    "place in a frame": (setting("d/a", innerOffset=1), "innerOffset"),
    "number for a digest": (lambda toc, split: toc.update(tarSplitDigest=1), "not a string"),
    "segment": (lambda toc, split: split[0].update(payload=base64.b64encode(bytes(512)).decode()), "another tar"),
    "line missing": (lambda toc, split: split.pop(), "another tar"),
    "CRC": (lambda toc, split: split[3].update(payload="AAAAAAAAAAA="), "CRC-64"),
    "file again": (lambda toc, split: split.append(split[3]), "twice"),
    "no base64": (lambda toc, split: split[0].update(payload="?"), "cannot be read"),
    "unknown line": (lambda toc, split: split[0].update(type=3), "unknown type"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found(lie: str) -> None:
    change, expected = LIES[lie]
    assert expected in "\n".join(faults(changed(change)))


def test_a_key_that_occurs_twice_is_found() -> None:
    text = json.dumps(toc_of(TRUE)).replace('"mode":', '"mode": 2541, "mode":')
    assert "twice" in "\n".join(faults(rewritten(text.encode(), b"")))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"nothing", b"[" * 100_000, b'{"version":1' + b"0" * 5000 + b"}", b"\xff"]
)
def test_an_invalid_document_is_found(text: bytes) -> None:
    assert "cannot be read" in "\n".join(faults(rewritten(text, b"")))


def test_tar_split_data_of_another_digest_is_found() -> None:
    toc = toc_of(TRUE)
    toc["tarSplitDigest"] = "DIGEST"
    assert "does not lead" in "\n".join(faults(rewritten(json.dumps(toc).encode(), b"", OTHER)))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("manifest-checksum", OTHER, "is not the digest"),
        ("manifest-checksum", "sha256", "is not the digest"),
        ("manifest-position", None, "missing"),
        ("manifest-position", "1:2:3", "not a position"),
        ("manifest-position", "a:b:c:1", "not a position"),
        ("manifest-position", "-9:2:3:1", "not a position"),
        ("manifest-position", "1_0:2:3:1", "not a position"),
        ("manifest-position", "9" * 30 + ":2:3:1", "not a position"),
        ("manifest-position", "8:10:10:2", "not a position"),
        ("manifest-position", "8:10:10:1", "skippable"),
        ("manifest-position", f"{len(TRUE.data)}:10:10:1", "out of the blob"),
        ("manifest-position", f"0:{len(TRUE.data)}:10:1", "out of the blob"),
        ("tarsplit-position", None, "missing"),
        ("tarsplit-position", "8:10:10", "footer"),
        ("tarsplit-position", "x", "not a position"),
    ],
)
def test_an_annotation_that_contradicts_the_blob_is_found(name: str, value: str | None, expected: str) -> None:
    annotations = dict(TRUE.annotations)
    annotations.pop(PREFIX + name)
    if value is not None:
        annotations[PREFIX + name] = value
    assert expected in "\n".join(faults(TRUE._replace(annotations=annotations)))


def test_a_wrong_length_is_found() -> None:
    for name, at in (("manifest-position", 2), ("tarsplit-position", 2)):
        numbers = TRUE.annotations[PREFIX + name].split(":")
        numbers[at] = str(int(numbers[at]) + 1)
        blob = TRUE._replace(annotations=TRUE.annotations | {PREFIX + name: ":".join(numbers)})
        assert "uncompressed length" in "\n".join(faults(blob))


def test_a_document_that_clients_refuse_for_its_size_is_not_read() -> None:
    numbers = TRUE.annotations[f"{PREFIX}manifest-position"].split(":")
    numbers[2] = str(1 << 40)
    blob = TRUE._replace(annotations=TRUE.annotations | {f"{PREFIX}manifest-position": ":".join(numbers)})
    assert "clients refuse" in "\n".join(faults(blob))


def test_a_hundred_million_chunks_are_not_read() -> None:
    """They take 500 kB of zstd. Neither a true size nor a false one in the annotation makes the check unpack them."""
    entry = b'{"type":"chunk","name":"large"},'
    packed = zstandard.compress(b'{"version":1,"entries":[') + zstandard.compress(entry * 10_000) * 10_000
    assert len(packed) < 10_000_000
    for size, expected in ((100_000_000 * len(entry), "clients refuse"), (1000, "uncompressed length")):
        blob = with_packed_toc(TRUE, packed, size, b"", 0)
        tracemalloc.start()
        found = faults(blob)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert any(expected in fault for fault in found), found
        assert peak < 50_000_000


def test_a_footer_without_a_table_of_contents_is_found() -> None:
    """The annotations are those of the footer, which lead to frames of files, or to none."""
    data = TRUE.data[: int(TRUE.annotations[f"{PREFIX}manifest-position"].split(":")[0]) - 8]
    for offset in (8, len(data) - 100, len(data)):
        numbers = (offset, 100, 1000, 1, 0, 0, 0)
        frame = struct.pack("<7Q8s", *numbers, b"GNUlInUx")
        annotations = {
            f"{PREFIX}manifest-checksum": sha256(data[offset : offset + 100]),
            f"{PREFIX}manifest-position": ":".join(map(str, numbers[:4])),
        }
        blob = Blob(data + b"\x50\x2a\x4d\x18" + struct.pack("<I", len(frame)) + frame, annotations, [])
        (fault,) = faults(blob)
        assert "skippable" in fault or "out of the blob" in fault


def test_another_footer_is_found() -> None:
    assert len(footer_of(TRUE)) == 7
    for at in (-1, -30, -64, -72):
        data = bytearray(TRUE.data)
        data[at] ^= 1
        assert "footer" in "\n".join(faults(TRUE._replace(data=bytes(data))))


def test_a_tar_without_a_table_of_contents_is_reported() -> None:
    tar = archive(entry("a"), entry(b"\xff"))
    blob = TRUE._replace(data=pack(tar).data)
    assert faults(blob)


@given(st.data())
def test_no_damage_of_the_document_escapes_as_an_error_of_the_program(data: st.DataObject) -> None:
    toc = bytearray(json.dumps(toc_of(TRUE) | {"tarSplitDigest": "DIGEST"}, separators=(",", ":")).encode())
    split = bytearray(b"".join(json.dumps(line).encode() + b"\n" for line in tar_split_of(TRUE)))
    for text in (toc, split):
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, len(text) - 1))
            length = data.draw(st.sampled_from([0, 1, 1, 5]))
            text[at : at + length] = data.draw(st.sampled_from([b"", b"0", b"9", b'"', b",", b"{", b"null", b"\xff"]))
    found = faults(rewritten(bytes(toc), bytes(split)))
    assert isinstance(found, list)

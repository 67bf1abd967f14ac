"""A zstd:chunked blob as a client reads it, written without the code under test."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import Any, NamedTuple

import zstandard

from layerfarm.jobs.compress import Codec, Compression, compress
from layerfarm.jobs.compress.codecs import Notes

PREFIX = "io.github.containers.zstd-chunked."


class Blob(NamedTuple):
    """A blob and what the descriptor says of it."""

    data: bytes
    annotations: dict[str, str]
    warnings: list[str]


def pack(tar: bytes, *, level: int | None = 1, threads: int = 1, step: int = 1 << 20) -> Blob:
    """``tar`` as zstd:chunked, given to the compressor in pieces of ``step`` bytes."""
    notes = Notes()
    pieces = (tar[at : at + step] for at in range(0, len(tar), step))
    data = b"".join(compress(pieces, Codec(Compression.ZSTD_CHUNKED, level=level, threads=threads), notes))
    return Blob(data, notes.annotations, notes.warnings)


def toc_of(blob: Blob) -> dict[str, Any]:
    """The table of contents, found by the annotations and verified by them."""
    offset, length, size, type_ = map(int, blob.annotations[f"{PREFIX}manifest-position"].split(":"))
    assert type_ == 1
    packed = _skippable(blob.data, offset, length)
    assert sha256(packed) == blob.annotations[f"{PREFIX}manifest-checksum"]
    text = _unpacked(packed)
    assert len(text) == size
    toc: dict[str, Any] = json.loads(text)
    return toc


def tar_split_of(blob: Blob) -> list[dict[str, Any]]:
    """The lines of the tar-split data, verified by the table of contents."""
    offset, length, size = map(int, blob.annotations[f"{PREFIX}tarsplit-position"].split(":"))
    packed = _skippable(blob.data, offset, length)
    assert sha256(packed) == toc_of(blob)["tarSplitDigest"]
    text = _unpacked(packed)
    assert len(text) == size
    return [json.loads(line) for line in text.splitlines()]


def footer_of(blob: Blob) -> tuple[Any, ...]:
    """The numbers of the footer."""
    *numbers, magic = struct.unpack("<7Q8s", _skippable(blob.data, len(blob.data) - 64, 64))
    assert magic == b"GNUlInUx"
    return tuple(numbers)


def with_toc(blob: Blob, toc: bytes, split: bytes, digest: str | None = None) -> Blob:
    """The frames of a blob with another table of contents and tar-split data, consistent in themselves.

    ``DIGEST`` in the table becomes ``digest``, by default that of the tar-split data.
    """
    packed_split = zstandard.compress(split)
    toc = toc.replace(b"DIGEST", (digest or sha256(packed_split)).encode())
    return with_packed_toc(blob, zstandard.compress(toc), len(toc), packed_split, len(split))


def with_packed_toc(blob: Blob, packed: bytes, size: int, packed_split: bytes, split_size: int) -> Blob:
    """The same of compressed data, with the sizes that the annotations and the footer give."""
    offset = int(blob.annotations[f"{PREFIX}manifest-position"].split(":")[0])
    numbers = (offset, len(packed), size, 1, offset + len(packed) + 8, len(packed_split), split_size)
    parts = [packed, packed_split, struct.pack("<7Q8s", *numbers, b"GNUlInUx")]
    frames = b"".join(b"\x50\x2a\x4d\x18" + struct.pack("<I", len(part)) + part for part in parts)
    annotations = {
        f"{PREFIX}manifest-checksum": sha256(packed),
        f"{PREFIX}manifest-position": ":".join(map(str, numbers[:4])),
        f"{PREFIX}tarsplit-position": ":".join(map(str, numbers[4:])),
    }
    return Blob(blob.data[: offset - 8] + frames, annotations, [])


def contents(blob: Blob) -> dict[str, bytes]:
    """The content of each file, from its frames alone; all digests are verified."""
    found: dict[str, bytes] = {}
    entries = toc_of(blob)["entries"]
    for at, entry in enumerate(entries):
        if entry["type"] != "reg":
            continue
        chunks = [entry]
        for following in entries[at + 1 :]:
            if following["type"] != "chunk":
                break
            assert following["name"] == entry["name"]
            chunks.append(following)
        ends = [*(chunk["offset"] for chunk in chunks[1:]), entry.get("endOffset", 0)]
        parts = []
        for chunk, end in zip(chunks, ends, strict=True):
            if not entry.get("size"):
                continue
            part = _unpacked(blob.data[chunk["offset"] : end])
            if len(chunks) > 1:
                assert chunk.get("chunkOffset", 0) == sum(map(len, parts))
                assert chunk["chunkSize"] == len(part)
                assert chunk["chunkDigest"] == sha256(part)
                assert chunk.get("chunkType", "") in ("", "zeros")
                assert not chunk.get("chunkType") or not part.strip(b"\0")
            parts.append(part)
        content = b"".join(parts)
        assert len(content) == entry.get("size", 0)
        assert entry.get("digest", sha256(b"")) == sha256(content)
        found[entry["name"]] = content
    return found


def assembled(blob: Blob) -> bytes:
    """The tar made of the tar-split data and the frames, as podman makes it to compute the diff_id."""
    files = contents(blob)
    parts = []
    for position, line in enumerate(tar_split_of(blob)):
        assert line["position"] == position
        if line["type"] == 2:
            parts.append(base64.b64decode(line["payload"]))
        elif line.get("size"):
            content = files[line["name"]]
            assert len(content) == line["size"]
            assert int.from_bytes(base64.b64decode(line["payload"]), "big") == crc64(content)
            parts.append(content)
        else:
            assert line["payload"] is None
    return b"".join(parts)


def crc64(data: bytes) -> int:
    """CRC-64 of ISO 3309, bit by bit."""
    crc = (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xD800000000000000 if crc & 1 else 0)
    return crc ^ ((1 << 64) - 1)


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _skippable(data: bytes, offset: int, length: int) -> bytes:
    assert data[offset - 8 : offset] == b"\x50\x2a\x4d\x18" + struct.pack("<I", length)
    return data[offset : offset + length]


def _unpacked(data: bytes) -> bytes:
    """The content of exactly one frame."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    content = frame.decompress(data)
    assert frame.eof
    assert not frame.unused_data
    return content

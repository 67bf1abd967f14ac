"""An eStargz blob as a client reads it, written without the code under test."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Sequence
from typing import Any

from layerfarm.jobs.compress import Codec, Compression, compress
from layerfarm.jobs.compress.codecs import Notes
from tests.unit.compress.chunked_reader import Blob, sha256
from tests.unit.layer import archives

DIGEST = "containerd.io/snapshot/stargz/toc.digest"
SIZE = "io.containers.estargz.uncompressed-size"
TOC = "stargz.index.json"


def pack(
    tar: bytes, *, level: int | None = 1, threads: int = 1, step: int = 1 << 20, prefetch: Sequence[str] = ()
) -> Blob:
    """``tar`` as eStargz, given to the compressor in pieces of ``step`` bytes. What it reports of the tar is true."""
    notes = Notes()
    told = hashlib.sha256()
    pieces = (tar[at : at + step] for at in range(0, len(tar), step))
    codec = Codec(Compression.ESTARGZ, level=level, threads=threads, prefetch=tuple(prefetch))
    data = b"".join(compress(pieces, codec, notes, told.update))
    assert told.hexdigest() == hashlib.sha256(unpack(data)).hexdigest()
    return Blob(data, notes.annotations, notes.warnings)


def unpack(data: bytes) -> bytes:
    """Each member decompressed by zlib."""
    parts = []
    while data:
        content, data = member(data)
        parts.append(content)
    return b"".join(parts)


def member(data: bytes) -> tuple[bytes, bytes]:
    """The content of the gzip member at the start, and what follows it."""
    stream = zlib.decompressobj(wbits=31)
    content = stream.decompress(data)
    assert stream.eof
    return content, stream.unused_data


def toc_place(blob: Blob) -> int:
    """The offset of the table of contents, from the footer."""
    footer = blob.data[-51:]
    flags, length, subfield, digits, end = struct.unpack("<10sH4s16s19s", footer)
    assert (flags[:4], length, subfield) == (b"\x1f\x8b\x08\x04", 26, b"SG\x16\0")
    assert end == b"STARGZ" + b"\x01\x00\x00\xff\xff" + bytes(8)
    return int(digits, 16)


def toc_of(blob: Blob) -> dict[str, Any]:
    """The table of contents: one member, which the tar of this one file begins, verified by the annotation."""
    tar, footer = member(blob.data[toc_place(blob) :])
    assert len(footer) == 51
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        (only,) = archive.getmembers()
        assert (only.name, only.isreg()) == (TOC, True)
        file = archive.extractfile(only)
        assert file is not None
        text = file.read()
    assert sha256(text) == blob.annotations[DIGEST]
    assert blob.annotations[SIZE] == str(len(unpack(blob.data)))
    toc: dict[str, Any] = json.loads(text)
    return toc


def with_toc(body: bytes, text: bytes) -> Blob:
    """Members with another table of contents, consistent in itself."""
    data = body + ending(text)
    size = len(unpack(data))
    return Blob(data + footer(len(body)), {DIGEST: sha256(text), SIZE: str(size)}, [])


def ending(text: bytes, name: str = TOC) -> bytes:
    """The member of a table of contents."""
    return gzip.compress(archives.archive(archives.entry(name, content=text)), mtime=0)


def footer(offset: int) -> bytes:
    """The last member, which names the offset of the table of contents."""
    extra = b"SG\x16\0%016xSTARGZ" % offset
    return b"\x1f\x8b\x08\x04" + bytes(6) + b"\x1a\0" + extra + b"\x01\x00\x00\xff\xff" + bytes(8)


def contents(blob: Blob) -> dict[str, bytes]:
    """The content of each file, from its members alone; all digests are verified."""
    found: dict[str, bytes] = {}
    entries = toc_of(blob)["entries"]
    for at, entry in enumerate(entries):
        if entry["type"] != "reg":
            continue
        size = entry.get("size", 0)
        chunks = [entry] if size else []
        for following in entries[at + 1 :]:
            if following["type"] != "chunk":
                break
            assert following["name"] == entry["name"]
            chunks.append(following)
        content = b""
        for chunk in chunks:
            assert chunk.get("chunkOffset", 0) == len(content)
            assert ("chunkSize" in chunk) == (chunk is not chunks[-1])
            part = member(blob.data[chunk["offset"] :])[0][: chunk.get("chunkSize", size - len(content))]
            assert chunk["chunkDigest"] == sha256(part)
            content += part
        assert len(content) == size
        assert entry.get("digest", sha256(b"")) == sha256(content)
        found[entry["name"]] = content
    return found


def names(blob: Blob) -> list[str]:
    """The names of the tar's entries."""
    with tarfile.open(fileobj=io.BytesIO(unpack(blob.data))) as archive:
        return archive.getnames()

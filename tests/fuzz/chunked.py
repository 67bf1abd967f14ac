"""Hostile input of zstd:chunked: tars to be written so, and tables of contents to be checked."""

from __future__ import annotations

import hashlib
import io
import json
from random import Random
from typing import Any, Final

import zstandard

from layerfarm.jobs.compress import Codec, Compression, compress, decompress
from layerfarm.jobs.compress.codecs import Notes
from layerfarm.jobs.compress.zstd_chunked import places
from layerfarm.jobs.compress.zstd_chunked.check import ZstdChunkedCheck
from layerfarm.jobs.limits import limits
from layerfarm.jobs.tar.reader import MemberReader
from tests.fuzz import bytes_mutations, json_mutations, seeds
from tests.fuzz.sandbox import Place

_CODEC: Final = Codec(Compression.ZSTD_CHUNKED, level=1)


def written(data: bytes) -> tuple[bytes, dict[str, str]]:
    """The blob of a tar, and its annotations."""
    notes = Notes()
    blob = b"".join(compress([data], _CODEC, notes))
    return blob, notes.annotations


def faults(blob: bytes, annotations: dict[str, str]) -> list[tuple[str, str]]:
    """Return the faults that the check finds in a blob."""
    found: list[tuple[str, str]] = []
    check = ZstdChunkedCheck(
        lambda at, n: blob[at : at + n], len(blob), annotations, lambda *fault: found.append(fault)
    )
    with decompress(io.BytesIO(blob), Compression.ZSTD) as stream:
        tar = stream.read()
    reader = MemberReader(io.BytesIO(tar), limits())
    for member in reader:
        check.member(member, reader)
    check.finish(f"sha256:{hashlib.sha256(tar).hexdigest()}", len(tar))
    return found


def write(place: Place, data: bytes, variant: int) -> None:
    """Write a tar: it comes back, and the check finds no fault in a table of contents."""
    blob, annotations = written(data)
    with decompress(io.BytesIO(blob), Compression.ZSTD) as stream:
        if stream.read() != data:
            raise AssertionError("another tar comes back")
    if annotations and (found := faults(blob, annotations)):
        raise AssertionError(f"check of a written layer: {found[0][1]}")


_BLOB, _ANNOTATIONS = written(seeds.LAYER)
_FRAMES = _BLOB[: int(_ANNOTATIONS[places.POSITION].partition(":")[0]) - places.SKIPPABLE_HEADER]


def _document(annotation: str) -> bytes:
    offset, length, *_ = map(int, _ANNOTATIONS[annotation].split(":"))
    return zstandard.ZstdDecompressor().decompressobj().decompress(_BLOB[offset : offset + length])


_TOC: Any = json.loads(_document(places.POSITION))
_SPLIT = _document(places.TAR_SPLIT_POSITION)


def mutated_toc(rng: Random) -> bytes:
    """A table of contents and tar-split data, of which one is changed, with a zero byte between."""
    if rng.randrange(3):
        return json_mutations.mutate(rng, _TOC, _TOC) + b"\0" + _SPLIT
    return json.dumps(_TOC).encode() + b"\0" + bytes_mutations.mutate(rng, _SPLIT, _SPLIT)


def check(place: Place, data: bytes, variant: int) -> None:
    """Check a layer with these documents, which fit each other: nothing but faults comes of it."""
    document, _, split = data.partition(b"\0")
    packed_split = zstandard.compress(split)
    digest = f"sha256:{hashlib.sha256(packed_split).hexdigest()}"
    document = document.replace(_TOC["tarSplitDigest"].encode(), digest.encode())
    packed = zstandard.compress(document)
    first = places.Place(len(_FRAMES) + places.SKIPPABLE_HEADER, len(packed), len(document))
    second = places.Place(first.offset + len(packed) + places.SKIPPABLE_HEADER, len(packed_split), len(split))
    parts = (packed, packed_split, places.footer(first, second))
    annotations = {
        places.CHECKSUM: f"sha256:{hashlib.sha256(packed).hexdigest()}",
        places.POSITION: f"{first}:{places.CRFS}",
        places.TAR_SPLIT_POSITION: str(second),
    }
    for where, message in faults(_FRAMES + b"".join(map(places.skippable, parts)), annotations):
        if not isinstance(where, str) or not message or len(message) > 400:
            raise AssertionError("a fault is no message")

"""Hostile input of eStargz: tars to be written so, and tables of contents and footers to be checked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from random import Random
from typing import Any, Final

from layerfarm.jobs.compress import Codec, Compression, compress, decompress
from layerfarm.jobs.compress.codecs import Notes
from layerfarm.jobs.compress.estargz import marks
from layerfarm.jobs.compress.estargz.check import EstargzCheck
from layerfarm.jobs.compress.estargz.plain import without_own
from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.limits import limits
from layerfarm.jobs.tar.reader import MemberReader
from layerfarm.jobs.tar.writer import REGULAR, TRAILER, Header, encode_header, padding
from tests.fuzz import bytes_mutations, json_mutations, seeds
from tests.fuzz.sandbox import Place

PREFETCH: Final = ((), ("dir/file", "file", "a", "link"))
"""Paths to be prefetched, by variant."""


def written(data: bytes, prefetch: tuple[str, ...] = ()) -> tuple[bytes, dict[str, str]]:
    """The blob of a tar, and its annotations."""
    notes = Notes()
    blob = b"".join(compress([data], Codec(Compression.ESTARGZ, level=1, prefetch=prefetch), notes))
    return blob, notes.annotations


def plain(blob: bytes) -> bytes:
    with decompress(io.BytesIO(blob), Compression.GZIP) as stream:
        return stream.read()


def faults(blob: bytes, annotations: dict[str, str], tar: bytes) -> list[tuple[str, str]]:
    """Return the faults that the check finds in a blob of this tar."""
    found: list[tuple[str, str]] = []
    check = EstargzCheck(lambda at, n: blob[at : at + n], len(blob), annotations, lambda *fault: found.append(fault))
    reader = MemberReader(io.BytesIO(tar), limits())
    for member in reader:
        check.member(member, reader)
    check.finish(f"sha256:{hashlib.sha256(tar).hexdigest()}", len(tar))
    return found


def write(place: Place, data: bytes, variant: int) -> None:
    """Write a tar: its entries come back, and the check finds no fault in a table of contents."""
    blob, annotations = written(data, PREFETCH[variant])
    tar = plain(blob)
    if not annotations:
        if tar != data:
            raise AssertionError("another tar comes back")
        return
    if found := faults(blob, annotations, tar):
        raise AssertionError(f"check of a written layer: {found[0][1]}")
    if not variant and b"".join(without_own([tar])).rstrip(b"\0") != data.rstrip(b"\0"):
        raise AssertionError("another tar comes back without the entries of the format")


_BLOB, _ANNOTATIONS = written(seeds.LAYER)
_OFFSET = marks.toc_offset(_BLOB[-marks.FOOTER_BYTES :]) or 0
_TAR = plain(_BLOB)


def _toc() -> Any:
    """The table of contents of the seed."""
    reader = MemberReader(io.BytesIO(_TAR), limits())
    for member in reader:
        if member.name == marks.TOC_NAME:
            return json.loads(b"".join(map(bytes, reader.content())))
    raise LayerfarmError("seed has no table of contents")


_TOC: Any = _toc()


def mutated_toc(rng: Random) -> bytes:
    """A footer and a table of contents, of which one is changed."""
    footer = marks.footer(_OFFSET)
    if rng.randrange(4):
        return footer + json_mutations.mutate(rng, _TOC, _TOC)
    return (
        bytes_mutations.mutate(rng, footer, footer)[: len(footer)].ljust(len(footer), b"\0") + json.dumps(_TOC).encode()
    )


def check(place: Place, data: bytes, variant: int) -> None:
    """Check a layer that ends so: nothing but faults comes of it."""
    footer, document = data[: marks.FOOTER_BYTES], data[marks.FOOTER_BYTES :]
    header = encode_header(Header(marks.TOC_NAME, REGULAR, 0o644, size=len(document)))
    ending = header + document + padding(len(document)) + TRAILER
    blob = _BLOB[:_OFFSET] + gzip.compress(ending, 1, mtime=0) + footer
    annotations = {marks.TOC_DIGEST: f"sha256:{hashlib.sha256(document).hexdigest()}"} if variant else {}
    body = _TAR[: _TAR.rindex(marks.TOC_NAME + bytes(100 - len(marks.TOC_NAME)))]
    for where, message in faults(blob, annotations, body + ending):
        if not isinstance(where, str) or not message or len(message) > 400:
            raise AssertionError("a fault is no message")

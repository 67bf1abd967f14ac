"""Listings of layers: the headers of all members and the digests of their content, kept in the user's cache.

Transforms, proofs and comparisons need them several times for each layer, and images share layers. A listing is written
after its blob was read to the end and matched both its digest and its diff_id. Listings are trusted, as trees are
(:mod:`layerfarm.jobs.image.trees`), so they are never kept beside an image that others may have made.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from struct import Struct, error
from typing import Any, Final

from layerfarm.jobs.errors import StoreError
from layerfarm.jobs.image.layers import Advanced, read_layer, unheard
from layerfarm.jobs.layer.stack import REGULAR, Read
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.result_cache import cache_path, read_result, user_cache, write_result
from layerfarm.jobs.tar.reader import Member
from layerfarm.jobs.tar.sparse import Holes

RULES: Final = 1
"""Version of the format and of the rules by which members are read, part of each name. Increment it with every change
of either."""
_KIND: Final = "listings"
_ROW: Final = Struct("<BHIIQqIHH32s")
"""Type, mode, uid, gid, size, seconds and nanoseconds of mtime, bytes of the name and of the link, and the SHA-256."""
_COUNTS: Final = Struct("<QQ")
_NS: Final = 10**9
_NO_DEVICE: Final = (0, 0)
_LEVEL: Final = 1
_KNOWN_FOR: Final = 60.0
"""Seconds for which the cache is not opened again: that checks its owner and removes what is old."""

ReadLayer = Callable[[Layout, Descriptor, str, Advanced], Iterable[Read]]


def list_layer(layout: Layout, layer: Descriptor, diff_id: str, advanced: Advanced = unheard) -> Iterator[Read]:
    """Yield the members of a layer, with the digests of their content: from the cache, or from the verified layer.

    The blob must be in the layout in any case. It is read, and its listing kept, only if there is no listing yet.

    Raises:
        BlobNotFound, SizeMismatch: the layer is missing or has another size.
        DigestMismatch, LayerError, LimitExceeded: as reading the layer.
    """
    cache = _cache()
    known = None if cache is None else read_result(cache, _KIND, _name(layer, diff_id))
    reads = None if known is None else decode(known)
    if reads is None:
        yield from recorded(layer, diff_id, read_layer(layout, layer, diff_id, advanced))
        return
    # closing: leaving the blob's own `with` would read and verify it.
    with closing(layout.open_blob(layer)):
        advanced(layer.size)
    yield from reads


def recorded(layer: Descriptor, diff_id: str, reads: Iterable[Read]) -> Iterator[Read]:
    """Yield ``reads``, all members of a layer, and keep their listing if it can be written.

    ``reads`` must verify the layer before it ends, and raise if the layer is damaged.
    """
    listing = Listing()
    for read in reads:
        listing.add(read)
        yield read
    cache, content = _cache(), listing.encode()
    if cache is not None and content is not None:
        write_result(cache, _KIND, _name(layer, diff_id), content, durable=False)


def _name(layer: Descriptor, diff_id: str) -> str:
    # A reader with smaller limits must find out for itself that the layer exceeds them.
    return hashlib.sha256(repr((RULES, layer.digest, diff_id, limits())).encode()).hexdigest()


def _cache() -> Layout | None:
    """Return the user's cache; None: there is no home, or it belongs to another user."""
    try:
        return _cache_at(cache_path(), int(time.monotonic() / _KNOWN_FOR))
    except (RuntimeError, StoreError):
        return None


@lru_cache(maxsize=1)
def _cache_at(path: Path, when: int) -> Layout:
    return user_cache()


# --- the file --------------------------------------------------------------------------------------


class Listing:
    """Members of one layer as they are written: rows of numbers, names and links, and what few members have."""

    def __init__(self) -> None:
        self._rows = bytearray()
        self._names = bytearray()
        self._rare: dict[int, list[Any]] = {}
        self._count = 0
        self._fits = True

    def add(self, read: Read) -> None:
        """Append a member."""
        member, sha256 = read
        name, type_, mode, uid, gid, size, mtime, link, device, atime, xattrs, holes = member
        seconds, ns = divmod(mtime, _NS)
        digest = b"" if sha256 is None else bytes.fromhex(sha256)
        if xattrs or atime is not None or holes is not None or device != _NO_DEVICE:
            texts = [[key.decode("latin-1"), value.decode("latin-1")] for key, value in xattrs]
            self._rare[self._count] = [device, atime, texts, holes]
        try:
            self._rows += _ROW.pack(type_, mode, uid, gid, size, seconds, ns, len(name), len(link), digest)
        except error:  # a time or an owner that no filesystem holds
            self._fits = False
        self._names += name
        self._names += link
        self._count += 1

    def encode(self) -> bytes | None:
        """Return the listing as bytes; None: a number is too large for it."""
        if not self._fits:
            return None
        from zstandard import ZstdCompressor

        counts, rare = _COUNTS.pack(len(self._rows), len(self._names)), json.dumps(self._rare).encode()
        content = b"".join((counts, self._rows, self._names, rare))
        return ZstdCompressor(level=_LEVEL, write_checksum=True).compress(content)


def decode(content: bytes) -> Iterator[Read] | None:
    """Return the members of a listing; None: it is damaged."""
    from zstandard import ZstdDecompressor, ZstdError

    try:
        plain = ZstdDecompressor().decompress(content)
    except (ZstdError, MemoryError):
        return None
    rows, names = _COUNTS.unpack_from(plain)
    start = _COUNTS.size + rows
    end = start + names
    return _members(memoryview(plain)[_COUNTS.size : start], plain[start:end], json.loads(plain[end:]))


def _members(rows: memoryview, names: bytes, rare: dict[str, list[Any]]) -> Iterator[Read]:
    at = 0
    numbered = {int(number): fields for number, fields in rare.items()}
    for number, row in enumerate(_ROW.iter_unpack(rows)):
        type_, mode, uid, gid, size, seconds, ns, name_bytes, link_bytes, digest = row
        middle = at + name_bytes
        end = middle + link_bytes
        fields = names[at:middle], type_, mode, uid, gid, size, seconds * _NS + ns, names[middle:end]
        at = end
        member = Member(*fields, *_rare(*numbered[number])) if number in numbered else Member(*fields, _NO_DEVICE)
        yield Read(member, digest.hex() if type_ == REGULAR else None)


def _rare(
    device: list[int], atime: int | None, xattrs: list[list[str]], holes: list[Any] | None
) -> tuple[tuple[int, int], int | None, tuple[tuple[bytes, bytes], ...], Holes | None]:
    return (
        (device[0], device[1]),
        atime,
        tuple((key.encode("latin-1"), value.encode("latin-1")) for key, value in xattrs),
        None if holes is None else Holes(holes[0], tuple((offset, length) for offset, length in holes[1])),
    )

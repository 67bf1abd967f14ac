"""Put the files that a workload reads first at the start of a layer's tar, and a landmark after them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from layerfarm.jobs.compress.toc.describe import plain_name
from layerfarm.jobs.compress.toc.frames import PIECE, Index
from layerfarm.jobs.limits import limits
from layerfarm.jobs.tar.reader import MemberReader
from layerfarm.jobs.tar.writer import BLOCK

_HARDLINK: Final = 0x31


class _Extent(NamedTuple):
    """The bytes of one entry in the tar, padding included."""

    name: str
    link: str | None
    """Target of a hard link."""
    start: int
    padding: int
    """End of the content."""
    end: int


def prioritized(
    pieces: Iterable[bytes], names: Sequence[str], landmark: bytes, index: Index, scratch: Path | None
) -> tuple[Iterator[bytes], bool]:
    """Return the tar with the files ``names``, in this order, before ``landmark``, and True.

    A directory is moved before what is in it, a file before a hard link to it; everything else keeps its order. The
    tar is returned unchanged, with False, if it has none of the files, if ``index`` cannot describe it, or if the entry
    that would be the last one is padded with other bytes than zeros. It is kept in an unnamed file in the directory
    ``scratch``.

    Raises:
        LayerError, LimitExceeded: ``pieces`` is not a tar.
    """
    spool = tempfile.TemporaryFile(dir=scratch, buffering=0)
    try:
        extents, size = _read(pieces, spool, index)
        if index.flaw:
            return _parts(spool, [(0, size)]), False
        left = {extent.name: extent for extent in extents}
        first = [extent for name in names for extent in _taken(plain_name(name), left)]
        last = [*first, *left.values()][-1:]
        odd = any(piece.strip(b"\0") for each in last for piece in _range(spool, each.padding, each.end))
        if odd or not first:
            return _parts(spool, [(0, size)]), False
        moved, rest = ([(each.start, each.end) for each in found] for found in (first, left.values()))
        return _parts(spool, [*moved, landmark, *rest, (extents[-1].end, size)]), True
    except BaseException:
        spool.close()
        raise


def _read(pieces: Iterable[bytes], spool: BinaryIO, index: Index) -> tuple[list[_Extent], int]:
    """Copy the tar to ``spool``; return its entries, and its size."""
    stream = _Copied(pieces, spool)
    reader = MemberReader(stream, limits())
    extents: list[_Extent] = []
    start = 0
    for member in reader.to_the_end():
        index.member(member, reader, b"")
        padding = reader.position + reader.left
        end = padding + -reader.left % BLOCK
        if not index.flaw:
            link = plain_name(member.link.decode()) if member.type == _HARDLINK else None
            extents.append(_Extent(plain_name(member.name.decode()), link, start, padding, end))
        start = end
    if stream.size < start:
        index.flaw = index.flaw or "tar does not consist of whole blocks"
    index.trailer(b"", has_global=reader.has_global)
    for piece in _range(spool, start, stream.size):
        index.trailer(piece)
    return extents, stream.size


def _taken(name: str, left: dict[str, _Extent]) -> Iterator[_Extent]:
    """Remove an entry from ``left`` and yield it, after its directories and, for a hard link, its file."""
    chain: list[str] = []
    target: str | None = name
    while target is not None and target in left:
        chain.append(target)
        target = left[target].link
    for each in reversed(chain):
        parts = each.split("/")
        for depth in range(len(parts)):
            if directory := left.pop("/".join(parts[:depth]), None):
                yield directory
        if found := left.pop(each, None):
            yield found


def _parts(spool: BinaryIO, parts: Iterable[tuple[int, int] | bytes]) -> Iterator[bytes]:
    """Yield ranges of the spool, and bytes between them; it is closed at the end."""
    with spool:
        for part in parts:
            if isinstance(part, bytes):
                yield part
            else:
                yield from _range(spool, *part)


def _range(spool: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    while start < end and (piece := os.pread(spool.fileno(), min(PIECE, end - start), start)):
        start += len(piece)
        yield piece


class _Copied:
    """A stream of pieces that are written to a file as they are read."""

    def __init__(self, pieces: Iterable[bytes], spool: BinaryIO) -> None:
        self._pieces = iter(pieces)
        self._spool = spool
        self.size = 0

    def read(self, size: int, /) -> bytes:
        """Return the next piece, whatever its size."""
        piece = next(filter(None, self._pieces), b"")
        view = memoryview(piece)
        while view:
            view = view[self._spool.write(view) :]
        self.size += len(piece)
        return piece

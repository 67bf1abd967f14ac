"""Take the entries of the format out of an eStargz layer's tar: the landmark and the table of contents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from layerfarm.jobs.compress.estargz.marks import OWN_NAMES
from layerfarm.jobs.compress.toc.frames import Raw
from layerfarm.jobs.limits import limits
from layerfarm.jobs.tar.reader import MemberReader, is_own
from layerfarm.jobs.tar.writer import BLOCK


def without_own(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the tar, otherwise byte for byte: where layerfarm added the entries, the tar that it was.

    Raises (while iterating):
        LayerError, LimitExceeded: ``pieces`` is not a tar.
    """
    raw = Raw(pieces)
    reader = MemberReader(raw, limits())
    taken = padding = 0
    kept = True
    for member in reader:
        head = raw.take(reader.position - taken)
        if kept:
            yield head[:padding]
        kept = not is_own(member.name, OWN_NAMES)
        if kept:
            yield head[padding:]
        padding = -reader.left % BLOCK
        for piece in reader.content():
            content = raw.take(len(piece))
            if kept:
                yield content
        taken = reader.position
    dropped = 0 if kept else padding
    for rest in raw.rest():
        yield rest[dropped:]
        dropped = max(0, dropped - len(rest))

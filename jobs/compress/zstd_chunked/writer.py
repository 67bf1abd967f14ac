"""Write a zstd:chunked layer: frames that follow the files, the table of contents, the tar-split data, the footer.

What describes the frames is written as they come out, so that memory stays flat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from fastcrc.crc64 import go_iso as crc64

from layerfarm.jobs.compress.toc.frames import File, Index, compressed, frames
from layerfarm.jobs.compress.zstd_chunked.cut import MOST_CHUNK, chunks
from layerfarm.jobs.compress.zstd_chunked.places import (
    CHECKSUM,
    CRFS,
    POSITION,
    SKIPPABLE_HEADER,
    TAR_SPLIT_POSITION,
    Place,
    footer,
    skippable,
)
from layerfarm.jobs.compress.zstd_chunked.tar_split import TarSplitWriter
from layerfarm.jobs.tar.reader import Member, MemberReader

if TYPE_CHECKING:
    from layerfarm.jobs.compress.codecs import Codec, Notes


def write(pieces: Iterable[bytes], codec: Codec, notes: Notes) -> Iterator[bytes]:
    """Yield the blob of a tar, the same for any cut of ``pieces`` and any number of threads.

    ``notes`` receives the annotations of the layer at the end. Where a table of contents cannot describe the tar, the
    blob is the frames alone, and ``notes`` a warning that says why: clients pull such a layer whole.

    Raises (while iterating):
        LayerError, LimitExceeded: ``pieces`` is not a tar.
    """
    level = codec.effective_level
    assert level is not None
    index = _Index(level)
    compress = _frame_compressor(level)
    offset = 0
    for data in compressed(frames(pieces, index, MOST_CHUNK, chunks), index, compress, codec.threads, "zstd"):
        offset += len(data)
        yield data
    if not offset:
        empty = compress(b"")
        offset = len(empty)
        yield empty
    if index.flaw:
        notes.warnings.append(f"no table of contents, clients pull it whole: {index.flaw}")
    else:
        yield from index.frames(offset, notes.annotations)


def _frame_compressor(level: int) -> Callable[[bytes], bytes]:
    from zstandard import ZstdCompressor

    # Without a checksum: 4 bytes of each of two frames a file, whose content has a digest.
    return lambda data: ZstdCompressor(level=level, write_checksum=False, write_content_size=True).compress(data)


class _Index(Index):
    """The table of contents and the tar-split data, compressed as they grow."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._toc = _Document(level)
        self._split_document = _Document(level)
        self._split = TarSplitWriter(self._split_document.write)
        self._crc: int | None = None
        self._toc.write(b'{"version":1,"entries":[')

    def member(self, member: Member, reader: MemberReader, header: bytes) -> File:
        file = super().member(member, reader, header)
        if not self.flaw:
            self._split.segment(header)
        self._crc = None
        return file

    def piece(self, data: bytes) -> None:
        self._crc = crc64(data, self._crc or 0)

    def content(self, file: File) -> None:
        self._split.file(file.entry.name, file.entry.size, self._crc)

    def trailer(self, data: bytes, padding: int = 0, has_global: bool = False) -> None:
        if not self.flaw:
            self._split.segment(data)
        super().trailer(data, padding, has_global)

    def write(self, data: bytes) -> int:
        self._toc.write(data)
        return self._toc.size

    def frames(self, offset: int, annotations: dict[str, str]) -> Iterator[bytes]:
        """Yield the skippable frames at the end of the blob."""
        split = self._split_document.end()
        self._toc.write(b'],"tarSplitDigest":"sha256:%b"}' % hashlib.sha256(split).hexdigest().encode())
        toc = self._toc.end()
        toc_place = Place(offset + SKIPPABLE_HEADER, len(toc), self._toc.size)
        split_place = Place(toc_place.offset + len(toc) + SKIPPABLE_HEADER, len(split), self._split_document.size)
        yield skippable(toc)
        yield skippable(split)
        yield skippable(footer(toc_place, split_place))
        annotations[CHECKSUM] = f"sha256:{hashlib.sha256(toc).hexdigest()}"
        annotations[POSITION] = f"{toc_place}:{CRFS}"
        annotations[TAR_SPLIT_POSITION] = str(split_place)


class _Document:
    """A text that is compressed as it is written."""

    def __init__(self, level: int) -> None:
        from zstandard import ZstdCompressor

        self._compressor = ZstdCompressor(level=level).compressobj()
        self._done = bytearray()
        self.size = 0
        """Bytes written so far."""

    def write(self, data: bytes) -> None:
        self.size += len(data)
        self._done += self._compressor.compress(data)

    def end(self) -> bytes:
        return bytes(self._done + self._compressor.flush())

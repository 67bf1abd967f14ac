"""Write a zstd:chunked layer: frames that follow the files, the table of contents, the tar-split data, the footer.

The bytes depend on the tar, the level and libzstd only: a frame is cut by content, and compressed alone. Frames are
compressed side by side; what describes them is written as they come out, so that memory stays flat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from fastcrc.crc64 import go_iso as crc64

from layerfarm.jobs.compress.in_order import in_order
from layerfarm.jobs.compress.zstd_chunked.cut import MOST_CHUNK, chunks
from layerfarm.jobs.compress.zstd_chunked.describe import Undescribable, described, plain_name
from layerfarm.jobs.compress.zstd_chunked.tar_split import TarSplitWriter
from layerfarm.jobs.compress.zstd_chunked.toc import (
    CHECKSUM,
    CHUNK,
    CRFS,
    MOST_BYTES,
    POSITION,
    SKIPPABLE_HEADER,
    TAR_SPLIT_POSITION,
    ZEROS,
    Place,
    TocEntry,
    footer,
    skippable,
)
from layerfarm.jobs.limits import limits
from layerfarm.jobs.tar.reader import Member, MemberReader
from layerfarm.jobs.tar.writer import BLOCK

if TYPE_CHECKING:
    from zstandard import ZstdCompressor

    from layerfarm.jobs.compress.codecs import Codec, Notes

_BATCH: Final = 1 << 20
"""Bytes that a thread compresses at a time: passing them on takes as long as a small frame."""


@dataclass
class _File:
    """An unfinished entry of the table of contents."""

    entry: TocEntry
    chunks: list[TocEntry] = field(default_factory=list)

    def entries(self) -> list[TocEntry]:
        if len(self.chunks) < 2:
            return [self.entry]
        first, *others = self.chunks
        self.entry.chunk_size = first.chunk_size
        self.entry.chunk_digest = first.chunk_digest
        self.entry.chunk_type = first.chunk_type
        return [self.entry, *others]


class _Frame(NamedTuple):
    data: bytes
    file: _File | None = None
    """The file whose content it is; None: headers."""
    offset: int = 0
    """Offset of the content in the file."""
    zeros: bool = False
    finished: Sequence[_File] = ()
    """Files without further chunks."""


class _Compressed(NamedTuple):
    frame: _Frame
    data: bytes
    digest: str
    """Digest of the content of a file."""


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
    offset = 0
    batches = _batches(_frames(pieces, index))
    for results in in_order(lambda batch: _compressed(batch, level), batches, codec.threads, "zstd"):
        for frame, data, digest in results:
            if frame.file is not None:
                _place(frame, frame.file, offset, offset + len(data), digest)
            offset += len(data)
            for file in frame.finished:
                index.add(file)
        yield b"".join(result.data for result in results)
    if not offset:
        empty = _frame_compressor(level).compress(b"")
        offset = len(empty)
        yield empty
    if index.flaw:
        notes.warnings.append(f"no table of contents, clients pull it whole: {index.flaw}")
    else:
        yield from index.frames(offset, notes.annotations)


def _frames(pieces: Iterable[bytes], index: _Index) -> Iterator[_Frame]:
    """Yield the tar in frames: each content, or chunk of it, in its own; the headers between two in another."""
    raw = _Raw(pieces)
    reader = MemberReader(raw, limits())
    headers = bytearray()
    finished: list[_File] = []
    at = padding = 0
    for member in reader:
        header = raw.take(reader.position - at)
        at = reader.position + reader.left
        padding = -reader.left % BLOCK
        headers += header
        file = index.member(member, reader, header)
        if reader.left or len(headers) >= MOST_CHUNK:
            yield _Frame(bytes(headers), finished=finished)
            headers, finished = bytearray(), []
        yield from _content(file, reader, raw, index)
        finished.append(file)
    if headers or finished:
        yield _Frame(bytes(headers), finished=finished)
    rest = raw.rest()
    piece = next(rest, b"")
    index.trailer(piece, padding, reader.has_global)
    while piece:
        yield _Frame(piece)
        if piece := next(rest, b""):
            index.trailer(piece)


def _content(file: _File, reader: MemberReader, raw: _Raw, index: _Index) -> Iterator[_Frame]:
    """Yield the content of the current member, and its line of the tar-split data."""
    size = reader.left
    if not size:
        index.content(file, None)
        return
    crc = 0
    if size <= MOST_CHUNK:
        for _ in reader.content():
            pass
        data = raw.take(size)
        yield _Frame(data, file)
        if not index.flaw:
            crc = crc64(data)
    else:
        whole = hashlib.sha256()
        offset = 0
        for chunk in chunks(_taken(reader, raw)):
            yield _Frame(chunk.data, file, offset, chunk.zeros)
            offset += len(chunk.data)
            if not index.flaw:
                whole.update(chunk.data)
                crc = crc64(chunk.data, crc)
        file.entry.digest = f"sha256:{whole.hexdigest()}"
    index.content(file, crc)


def _taken(reader: MemberReader, raw: _Raw) -> Iterator[memoryview]:
    for piece in reader.content():
        raw.take(len(piece))
        yield piece


def _batches(frames: Iterable[_Frame]) -> Iterator[list[_Frame]]:
    batch: list[_Frame] = []
    size = 0
    for frame in frames:
        batch.append(frame)
        size += len(frame.data)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def _compressed(batch: list[_Frame], level: int) -> list[_Compressed]:
    compress = _frame_compressor(level).compress
    results = []
    for frame in batch:
        digest = "" if frame.file is None else f"sha256:{hashlib.sha256(frame.data).hexdigest()}"
        results.append(_Compressed(frame, compress(frame.data) if frame.data else b"", digest))
    return results


def _frame_compressor(level: int) -> ZstdCompressor:
    # Without a checksum: 4 bytes of each of two frames a file, whose content has a digest.
    from zstandard import ZstdCompressor

    return ZstdCompressor(level=level, write_checksum=False, write_content_size=True)


def _place(frame: _Frame, file: _File, start: int, end: int, digest: str) -> None:
    """Record the place of a file's frame in the blob."""
    entry = file.entry
    if not file.chunks:
        entry.offset = start
        entry.digest = entry.digest or digest
    entry.end = end
    file.chunks.append(
        TocEntry(
            type=CHUNK,
            name=entry.name,
            offset=start,
            chunk_size=len(frame.data),
            chunk_offset=frame.offset,
            chunk_digest=digest,
            chunk_type=ZEROS if frame.zeros else "",
        )
    )


class _Raw:
    """A stream of pieces, with all bytes not taken yet."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._held = bytearray()

    def read(self, size: int, /) -> bytes:
        """Return the next piece, whatever its size."""
        piece = next(filter(None, self._pieces), b"")
        self._held += piece
        return piece

    def take(self, size: int) -> bytes:
        """Return the first bytes that were read and not taken."""
        data = bytes(memoryview(self._held)[:size])
        del self._held[:size]
        return data

    def rest(self) -> Iterator[bytes]:
        """Yield all bytes not taken, to the end, in pieces of ``MOST_CHUNK``, the last one shorter."""
        while self._held or self.read(MOST_CHUNK):
            while len(self._held) < MOST_CHUNK and self.read(MOST_CHUNK):
                pass
            yield self.take(MOST_CHUNK)


class _Index:
    """The table of contents and the tar-split data, compressed as they grow."""

    def __init__(self, level: int) -> None:
        self.flaw = ""
        """The reason why the layer gets no table of contents."""
        self._level = level
        self._toc = _Document(level)
        self._split_document = _Document(level)
        self._split = TarSplitWriter(self._split_document.write)
        self._names: set[str] = set()
        self._toc.write(b'{"version":1,"entries":[')
        self._separator = b""

    def member(self, member: Member, reader: MemberReader, header: bytes) -> _File:
        """Begin an entry. ``header``: all bytes of the tar since the last content."""
        if not self.flaw:
            try:
                entry = described(member, reader)
            except Undescribable as error:
                self.flaw = str(error)
            else:
                name = plain_name(entry.name)
                if name in self._names:
                    self.flaw = f"several entries of one name: {name[:200]}"
                self._names.add(name)
                self._split.segment(header)
                return _File(entry)
        return _File(TocEntry())

    def content(self, file: _File, crc: int | None) -> None:
        """Record that the content of the entry was read; None: it has none."""
        if not self.flaw:
            self._split.file(file.entry.name, file.entry.size, crc)

    def trailer(self, data: bytes, padding: int = 0, has_global: bool = False) -> None:
        """Record the bytes after the last entry, and how many are the padding of its content."""
        if not self.flaw:
            if has_global:
                self.flaw = "tar has a global PAX header"
            elif data.strip(b"\0"):
                self.flaw = "data follows the end of the tar"
            elif (len(data) - padding) % BLOCK or len(data) < padding:
                self.flaw = "tar does not consist of whole blocks"
            self._split.segment(data)

    def add(self, file: _File) -> None:
        """Write a finished entry."""
        if not self.flaw:
            for entry in file.entries():
                self._toc.write(self._separator + entry.encode())
                self._separator = b","
            if self._toc.size > MOST_BYTES - 1024:
                self.flaw = f"it would be larger than {MOST_BYTES} bytes"

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

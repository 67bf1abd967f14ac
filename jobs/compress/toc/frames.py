"""Cut a tar into frames that follow its files, compress them side by side, and describe them as they come out.

The bytes depend on the tar, the level and the compressor only: a frame is cut by content, and compressed alone.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from layerfarm.jobs.compress.in_order import in_order
from layerfarm.jobs.compress.toc.describe import Undescribable, described, plain_name
from layerfarm.jobs.compress.toc.entries import CHUNK, DIRECTORY, MOST_BYTES, ZEROS, TocEntry
from layerfarm.jobs.limits import limits
from layerfarm.jobs.tar.reader import Member, MemberReader
from layerfarm.jobs.tar.writer import BLOCK

PIECE: Final = 1 << 20
"""Bytes of headers in one frame, at most."""
_BATCH: Final = 1 << 20
"""Bytes that a thread compresses at a time: passing them on takes as long as a small frame."""


class Chunk(NamedTuple):
    """A part of a file."""

    data: bytes
    zeros: bool = False
    """Consists of zeros, which a client writes without fetching them."""


Cut = Callable[[Iterable[bytes | memoryview]], Iterator[Chunk]]
"""Cuts the content of a file into chunks, the same for any cut of its argument."""


@dataclass
class File:
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


class Frame(NamedTuple):
    """Bytes of the tar that are compressed together."""

    data: bytes
    file: File | None = None
    """The file whose content it is; None: headers."""
    offset: int = 0
    """Offset of the content in the file."""
    zeros: bool = False
    finished: Sequence[File] = ()
    """Files without further chunks."""
    tail: bytes = b""
    """Bytes of the tar after the content, compressed with it."""
    end: bool = False
    """After the last entry: zeros, or data that no reader reads."""


class Compressed(NamedTuple):
    """A frame and its bytes in the blob."""

    frame: Frame
    data: bytes
    digest: str
    """Digest of the content of a file."""


class Index(ABC):
    """Describes the members of a tar, and writes the table of contents entry by entry."""

    def __init__(self) -> None:
        self.flaw = ""
        """The reason why the layer gets no table of contents."""
        self.names: set[str] = set()
        """Plain names of the entries so far."""
        self._directories: set[str] = set()
        """Those of directories, and the directories that names imply."""
        self._separator = b""

    def member(self, member: Member, reader: MemberReader, header: bytes) -> File:
        """Begin an entry. ``header``: all bytes of the tar since the last content."""
        if not self.flaw:
            try:
                entry = described(member, reader)
            except Undescribable as error:
                self.flaw = str(error)
            else:
                self._name(plain_name(entry.name), entry.type == DIRECTORY)
                return File(entry)
        return File(TocEntry())

    def _name(self, name: str, is_directory: bool) -> None:
        """Take the name of an entry. The order of entries must not matter: readers of a table have another one."""
        if name in self.names:
            self.flaw = f"several entries of one name: {name[:200]}"
        elif not is_directory and name in self._directories:
            self.flaw = f"directory that is replaced by another entry: {name[:200]}"
        self.names.add(name)
        if is_directory:
            self._directories.add(name)
        parent = name.rpartition("/")[0]
        while parent and parent not in self._directories:
            if parent in self.names:
                self.flaw = f"entry below one that is not a directory: {name[:200]}"
            self._directories.add(parent)
            parent = parent.rpartition("/")[0]

    @abstractmethod
    def piece(self, data: bytes) -> None:
        """Take a part of the current entry's content."""

    @abstractmethod
    def content(self, file: File) -> None:
        """Take the end of the current entry's content."""

    def trailer(self, data: bytes, padding: int = 0, has_global: bool = False) -> None:
        """Take the bytes after the last entry, of which ``padding`` belong to its content."""
        if not self.flaw:
            if has_global:
                self.flaw = "tar has a global PAX header"
            elif data.strip(b"\0"):
                self.flaw = "data follows the end of the tar"
            elif (len(data) - padding) % BLOCK or len(data) < padding:
                self.flaw = "tar does not consist of whole blocks"

    def add(self, file: File) -> None:
        """Write a finished entry."""
        if not self.flaw:
            size = 0
            for entry in self.entries(file):
                size = self.write(self._separator + entry.encode())
                self._separator = b","
            if size > MOST_BYTES - 1024:
                self.flaw = f"it would be larger than {MOST_BYTES} bytes"

    def entries(self, file: File) -> list[TocEntry]:
        """Return the entries of a file as the format has them."""
        return file.entries()

    @abstractmethod
    def write(self, data: bytes) -> int:
        """Append to the document; return its size."""


def frames(pieces: Iterable[bytes], index: Index, most: int, cut: Cut) -> Iterator[Frame]:
    """Yield the tar in frames: each content, or chunk of it, in its own; the headers between two in another.

    ``most``: bytes of the largest content that is not cut.

    Raises (while iterating):
        LayerError, LimitExceeded: ``pieces`` is not a tar.
    """
    raw = Raw(pieces)
    reader = MemberReader(raw, limits())
    headers = bytearray()
    finished: list[File] = []
    at = padding = 0
    for member in reader:
        header = raw.take(reader.position - at)
        at = reader.position + reader.left
        padding = -reader.left % BLOCK
        headers += header
        file = index.member(member, reader, header)
        if reader.left or len(headers) >= PIECE:
            yield Frame(bytes(headers), finished=finished)
            headers, finished = bytearray(), []
        yield from _content(file, reader, raw, index, most, cut)
        finished.append(file)
    if headers or finished:
        yield Frame(bytes(headers), finished=finished)
    rest = raw.rest()
    piece = next(rest, b"")
    index.trailer(piece, padding, reader.has_global)
    while piece:
        yield Frame(piece, end=True)
        if piece := next(rest, b""):
            index.trailer(piece)


def _content(file: File, reader: MemberReader, raw: Raw, index: Index, most: int, cut: Cut) -> Iterator[Frame]:
    """Yield the content of the current member."""
    size = reader.left
    if 0 < size <= most:
        for _ in reader.content():
            pass
        data = raw.take(size)
        yield Frame(data, file)
        if not index.flaw:
            index.piece(data)
    elif size:
        whole = hashlib.sha256()
        offset = 0
        for chunk in cut(_taken(reader, raw)):
            yield Frame(chunk.data, file, offset, chunk.zeros)
            offset += len(chunk.data)
            if not index.flaw:
                whole.update(chunk.data)
                index.piece(chunk.data)
        file.entry.digest = f"sha256:{whole.hexdigest()}"
    if not index.flaw:
        index.content(file)


def _taken(reader: MemberReader, raw: Raw) -> Iterator[memoryview]:
    for piece in reader.content():
        raw.take(len(piece))
        yield piece


def compressed(
    frames: Iterable[Frame],
    index: Index,
    compress: Callable[[bytes], bytes],
    threads: int,
    name: str,
    offset: int = 0,
) -> Iterator[bytes]:
    """Yield the blob from ``offset`` on: each frame compressed alone, and its files added to the index."""
    for results in in_order(lambda batch: _compressed(batch, compress), _batches(frames), threads, name):
        for frame, data, digest in results:
            if frame.file is not None:
                _place(frame, frame.file, offset, offset + len(data), digest)
            offset += len(data)
            for file in frame.finished:
                index.add(file)
        yield b"".join(result.data for result in results)


def _batches(frames: Iterable[Frame]) -> Iterator[list[Frame]]:
    batch: list[Frame] = []
    size = 0
    for frame in frames:
        batch.append(frame)
        size += len(frame.data)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def _compressed(batch: list[Frame], compress: Callable[[bytes], bytes]) -> list[Compressed]:
    results = []
    for frame in batch:
        digest = "" if frame.file is None else f"sha256:{hashlib.sha256(frame.data).hexdigest()}"
        whole = frame.data + frame.tail if frame.tail else frame.data
        results.append(Compressed(frame, compress(whole) if whole else b"", digest))
    return results


def _place(frame: Frame, file: File, start: int, end: int, digest: str) -> None:
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


class Raw:
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
        """Yield all bytes not taken, to the end, in pieces of ``PIECE``, the last one shorter."""
        while self._held or self.read(PIECE):
            while len(self._held) < PIECE and self.read(PIECE):
                pass
            yield self.take(PIECE)

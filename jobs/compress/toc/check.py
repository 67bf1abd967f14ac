"""Check the table of contents of a layer against the layer.

The mirror of :mod:`frames`. Clients that pull in part use the table of contents in place of the tar, so the two must
describe the same tree. Podman verifies that of zstd:chunked layers by the diff_id; others may not.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Final, NamedTuple

from layerfarm.jobs.compress.codecs import Compression
from layerfarm.jobs.compress.decompress import PlainStream, decompress
from layerfarm.jobs.compress.toc.describe import Undescribable, described, plain_name
from layerfarm.jobs.compress.toc.entries import CHUNK, MOST_BYTES, REGULAR, ZEROS, TocEntry
from layerfarm.jobs.errors import LayerError
from layerfarm.jobs.limits import limits
from layerfarm.jobs.tar.reader import Member, MemberReader, Readable

ReadAt = Callable[[int, int], bytes]
"""Bytes of the blob, by offset and size; fewer at the end."""
Fault = Callable[[str, str], object]
"""Called with the name of an entry, or an annotation, and the message."""

PIECE: Final = 1 << 20
_EMPTY: Final = f"sha256:{hashlib.sha256().hexdigest()}"
_EPOCH: Final = "1970-01-01T00:00:00Z"
_ATTRIBUTES: Final = ("type", "name", "link", "mode", "size", "uid", "gid", "major", "minor", "xattrs")


class Lie(Exception):
    """The table of contents, or its data, does not match the layer. Arguments: where, message."""


class Frame(NamedTuple):
    """Compressed content of a file, or of a part of it. Small files may share a frame."""

    digest: str
    offset: int
    bytes: int


class FileContent(NamedTuple):
    """Content of one file of a layer."""

    digest: str
    """Empty: only its frames have digests."""
    frames: tuple[Frame, ...]
    """Without those of holes, which clients do not fetch."""


class TocCheck(ABC):
    """Takes each member of the layer's tar, then :meth:`finish`. Faults are reported, not raised.

    Raises (everywhere):
        LimitExceeded: a document or a frame is larger than the limits.
    """

    compression: Compression
    times: tuple[str, ...]
    """The times that an entry has."""
    needs_digests = True
    """Each file has a digest, not only its chunks."""

    def __init__(self, read_at: ReadAt, size: int, annotations: Mapping[str, str], fault: Fault) -> None:
        """``size`` is that of the blob, ``annotations`` are those of its descriptor."""
        self.read_at = read_at
        self.size = size
        self.fault = fault
        self.limits = limits()
        self.end = size
        """End of the frames that hold files."""
        self.usable = False
        """The document could be read."""
        self._files: dict[str, list[TocEntry]] = {}
        """Entries with their further chunks, by plain name, that are not compared yet."""
        self._contents: dict[str, list[TocEntry]] = {}
        """Those with content that were, by name: the tar bounds their number and size."""
        try:
            self._group(self.read(annotations))
            self.usable = True
        except Lie as lie:
            fault(*lie.args)

    @abstractmethod
    def read(self, annotations: Mapping[str, str]) -> Iterable[TocEntry]:
        """Read the document. Raises Lie."""

    @abstractmethod
    def finish(self, diff_id: str, size: int) -> None:
        """Check the rest; ``diff_id`` is the sha256 digest of the tar, ``size`` are its bytes."""

    @abstractmethod
    def chunk_sizes(self, chunks: list[TocEntry]) -> list[int]:
        """Return the uncompressed sizes of the chunks of one file."""

    @abstractmethod
    def chunk_ends(self, chunks: list[TocEntry]) -> list[int]:
        """Return the ends of the frames of one file in the blob."""

    @abstractmethod
    def chunk(self, chunk: TocEntry, end: int, size: int) -> Iterator[bytes]:
        """Yield the content of a chunk from its frame. Raises Lie: it cannot be read, or is shorter than ``size``."""

    def member(self, member: Member, reader: MemberReader) -> None:
        """Compare the current member of ``reader`` with its entry; reads its content."""
        if not self.usable:
            return
        try:
            expected = described(member, reader)
        except Undescribable as error:
            self.fault("", f"no table of contents can describe the layer, {error}")
            self.usable = False
            return
        found = self._files.pop(plain_name(expected.name), None)
        if found is None:
            self.fault(expected.name, "is not in the table of contents, or again in the tar")
            return
        if expected.size:
            expected.digest = content_digest(reader)
        entry = found[0]
        if not self.needs_digests:
            entry.digest = entry.digest or expected.digest
        for key, says, tar in self._differences(entry, expected):
            self.fault(expected.name, f"{key} is {says!r} in the table of contents and {tar!r} in the tar"[:300])
        if expected.size and entry.size == expected.size and entry.name == expected.name:
            self._contents[entry.name] = found

    def files(self) -> Iterator[FileContent]:
        """Yield the contents that a client can fetch one by one; call it before :meth:`member`.

        Raises:
            Lie: a chunk is outside the blob, or ends before it begins.
        """
        for chunks in self._files.values():
            first = chunks[0]
            if first.type != REGULAR or not first.size:
                continue
            ends = self.chunk_ends(chunks)
            if any(not chunk.offset <= end <= self.end for chunk, end in zip(chunks, ends, strict=True)):
                raise Lie(first.name, "offsets in the table of contents lead out of the blob, or backwards")
            frames = (
                Frame(chunk.chunk_digest or first.digest, chunk.offset, end - chunk.offset)
                for chunk, end in zip(chunks, ends, strict=True)
                if chunk.chunk_type != ZEROS
            )
            yield FileContent(first.digest, tuple(frames))

    @property
    @abstractmethod
    def table_bytes(self) -> int:
        """Return the bytes of the blob that a client reads besides frames of files."""

    def absent(self) -> None:
        """Report entries that no member has."""
        for name in self._files:
            self.fault(name, "is in the table of contents, but not in the tar")

    def contents(self) -> None:
        """Compare the frames of all files that were not read by :meth:`content`."""
        for name in list(self._contents):
            try:
                for _ in self.content(name):
                    pass
            except Lie as lie:
                self.fault(*lie.args)

    def content(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file from its frames, once. Raises Lie: it is not as the table of contents says."""
        chunks = self._contents.pop(name, None)
        if chunks is None:
            raise Lie(name, "is twice in the tar-split data, or has no content that could be checked")
        entry = chunks[0]
        sizes = self.chunk_sizes(chunks)
        if sum(sizes) != entry.size or min(sizes) <= 0:
            raise Lie(name, "chunks in the table of contents are not as large as the file")
        whole = hashlib.sha256()
        at = 0
        for chunk, end, size in zip(chunks, self.chunk_ends(chunks), sizes, strict=True):
            if not chunk.offset < end <= self.end:
                raise Lie(name, "offsets in the table of contents lead out of the blob, or backwards")
            if chunk.chunk_offset != at:
                raise Lie(name, f"chunk at {at} is at {chunk.chunk_offset} in the table of contents")
            part = hashlib.sha256()
            for piece in self.chunk(chunk, end, size):
                part.update(piece)
                whole.update(piece)
                yield piece
            self.check_digest(chunk, len(chunks), f"sha256:{part.hexdigest()}")
            at += size
        if entry.digest != f"sha256:{whole.hexdigest()}":
            raise Lie(name, "frames hold another content than the digest in the table of contents says")

    def check_digest(self, chunk: TocEntry, count: int, digest: str) -> None:
        """Check the digest of one of ``count`` chunks of a file. Raises Lie."""
        if count > 1 and chunk.chunk_digest != digest:
            at = chunk.chunk_offset
            raise Lie(chunk.name, f"chunk at {at} has another digest than the table of contents says")

    def frame(self, name: str, stream: Readable, size: int, offset: int) -> Iterator[bytes]:
        """Yield ``size`` bytes of a frame that begins at ``offset`` of the blob. Raises Lie."""
        left = size
        while left:
            with damage_in(name):
                piece = stream.read(min(PIECE, left))
            if not piece:
                raise Lie(name, f"frame at {offset} holds fewer than {size} bytes")
            left -= len(piece)
            yield piece

    def plain(self, packed: Readable) -> PlainStream:
        return decompress(packed, self.compression, limits=self.limits)

    def slice(self, start: int, end: int) -> Readable:
        return _Slice(self.read_at, start, end)

    def check_size(self, where: str, *sizes: int) -> None:
        """Check the size of the document, compressed or not. Raises Lie."""
        if max(sizes) > MOST_BYTES:
            raise Lie(where, f"table of contents is larger than {MOST_BYTES} bytes, and clients refuse it")
        if max(sizes) > self.limits.toc_bytes:
            raise self.limits.exceeded("toc_bytes", "table of contents is larger than {} bytes")

    def same_time(self, says: str, tar: str) -> bool:
        return says == tar or _instant(says) == _instant(tar)

    def _group(self, entries: Iterable[TocEntry]) -> None:
        last: list[TocEntry] = []
        for entry in entries:
            if entry.type != CHUNK:
                last = [entry]
                if self._files.setdefault(plain_name(entry.name), last) is not last:
                    self.fault(entry.name, "is in the table of contents more than once")
            elif not last or last[0].type != REGULAR or last[0].name != entry.name:
                self.fault(entry.name, "chunk in the table of contents does not follow its file")
            else:
                last.append(entry)

    def _differences(self, entry: TocEntry, expected: TocEntry) -> Iterator[tuple[str, object, object]]:
        for key in _ATTRIBUTES:
            says, tar = getattr(entry, key), getattr(expected, key)
            if says != tar:
                yield key, says, tar
        for key in self.times:
            says, tar = getattr(entry, key), getattr(expected, key)
            if not self.same_time(says, tar):
                yield key, says, tar
        if (entry.digest or _EMPTY) != (expected.digest or _EMPTY):
            yield "digest", entry.digest, expected.digest


def content_digest(reader: MemberReader) -> str:
    """Return the ``sha256:`` digest of the current member's content, which it reads."""
    content = hashlib.sha256()
    for piece in reader.content():
        content.update(piece)
    return f"sha256:{content.hexdigest()}"


def _instant(text: str) -> object:
    """Return a time for comparing: in UTC, with its fraction. Clients equate no time and the epoch."""
    second, dot, rest = (text or _EPOCH).partition(".")
    digits = rest.rstrip("Z").partition("+")[0].partition("-")[0]
    zone = rest[len(digits) :] if dot else ""
    try:
        return datetime.fromisoformat(second + zone).timestamp(), digits.rstrip("0")
    except ValueError:
        return text


@contextmanager
def damage_in(where: str) -> Iterator[None]:
    """Convert an error about unreadable compressed data to a fault of its reference."""
    try:
        yield
    except LayerError as error:
        raise Lie(where, f"compressed data is damaged, {error.what}"[:300]) from None


class _Slice:
    """A part of the blob as a stream."""

    def __init__(self, read_at: ReadAt, start: int, end: int) -> None:
        self._read_at = read_at
        self._at = start
        self._end = end

    def read(self, size: int, /) -> bytes:
        piece = self._read_at(self._at, min(size, self._end - self._at))
        self._at += len(piece)
        return piece

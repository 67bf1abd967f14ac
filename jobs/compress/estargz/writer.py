"""Write an eStargz layer: gzip members that follow the files, a landmark, the table of contents, the footer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from layerfarm.jobs.compress.digest_thread import Buffer, DigestThread
from layerfarm.jobs.compress.estargz.marks import (
    CHUNK_SIZE,
    LANDMARK,
    NO_PREFETCH,
    OWN_NAMES,
    PREFETCH,
    TOC_DIGEST,
    TOC_NAME,
    UNCOMPRESSED_SIZE,
    footer,
)
from layerfarm.jobs.compress.estargz.prefetch import prioritized
from layerfarm.jobs.compress.toc.describe import plain_name
from layerfarm.jobs.compress.toc.entries import HARDLINK, TocEntry
from layerfarm.jobs.compress.toc.frames import PIECE, Chunk, File, Frame, Index, compressed, frames
from layerfarm.jobs.tar.reader import Member, MemberReader
from layerfarm.jobs.tar.writer import REGULAR, TRAILER, Header, encode_header, padding

if TYPE_CHECKING:
    from layerfarm.jobs.compress.codecs import Codec, Notes


def write(
    pieces: Iterable[bytes],
    codec: Codec,
    notes: Notes,
    seen: Callable[[Buffer], object],
    scratch: Path | None,
) -> Iterator[bytes]:
    """Yield the blob of a tar, the same for any cut of ``pieces`` and any number of threads.

    ``seen`` is called with the tar in the blob: ``pieces`` and the entries of the format. ``notes`` receives the
    annotations of the layer at the end. Where a table of contents cannot describe the tar, the blob is ``pieces`` in
    members, and ``notes`` a warning that says why: clients pull such a layer whole. ``scratch``: the directory for an
    unnamed file that holds the tar where files are to be fetched first.

    Raises (while iterating):
        LayerError, LimitExceeded: ``pieces`` is not a tar.
    """
    level = codec.effective_level
    assert level is not None
    with closing(DigestThread()) as thread:
        tar = _Tar(partial(thread.put, seen) if codec.threads > 1 else seen)
        yield from _write(pieces, codec, _compressor(level), tar, notes, scratch)
        tar.flush()
        thread.wait()


def _write(
    pieces: Iterable[bytes],
    codec: Codec,
    compress: Callable[[bytes], bytes],
    tar: _Tar,
    notes: Notes,
    scratch: Path | None,
) -> Iterator[bytes]:
    index = _Index()
    if codec.prefetch:
        pieces, index.has_landmark = prioritized(pieces, codec.prefetch, _landmark(PREFETCH), _Index(), scratch)
    body = _Body()
    offset = 0
    parts = body.but_last(_joined(tar.of(body.until_end(frames(pieces, index, CHUNK_SIZE, _cut)))))
    for data in compressed(parts, index, compress, codec.threads, "gzip"):
        offset += len(data)
        yield data
    # Known only here: the size of the table may be one.
    flaw = index.flaw
    rest = (Frame(piece, end=True) for piece in _zeros(body.zeros)) if flaw else _ending(index)
    for data in compressed(_joined([*body.last, *tar.of(rest)]), index, compress, 1, "gzip", offset):
        offset += len(data)
        yield data
    if flaw:
        notes.warnings.append(f"no table of contents, clients pull it whole: {flaw}")
        return
    toc = index.document()
    header = encode_header(Header(TOC_NAME, REGULAR, 0o644, size=len(toc)))
    yield compress(tar.add(b"".join((header, toc, padding(len(toc)), TRAILER))))
    yield footer(offset)
    notes.annotations[TOC_DIGEST] = f"sha256:{hashlib.sha256(toc).hexdigest()}"
    notes.annotations[UNCOMPRESSED_SIZE] = str(tar.size)


def _ending(index: _Index) -> Iterator[Frame]:
    """Yield the padding of the last content and, where no landmark was put in, the one of a layer without prefetch."""
    rest = bytes(index.padding)
    if index.has_landmark:
        yield Frame(rest)
        return
    index.has_landmark = True
    for frame in frames([_landmark(NO_PREFETCH)], index, CHUNK_SIZE, _cut):
        yield frame._replace(data=rest + frame.data, end=False)
        rest = b""


def _compressor(level: int) -> Callable[[bytes], bytes]:
    from deflate import gzip_compress

    return lambda data: bytes(gzip_compress(data, level))


def _landmark(name: bytes) -> bytes:
    """Return the tar entry of a landmark."""
    header = encode_header(Header(name, REGULAR, 0o644, size=len(LANDMARK)))
    return header + LANDMARK + padding(len(LANDMARK))


def _cut(pieces: Iterable[bytes | memoryview]) -> Iterator[Chunk]:
    """Cut content by size."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= CHUNK_SIZE:
            yield Chunk(bytes(memoryview(held)[:CHUNK_SIZE]))
            del held[:CHUNK_SIZE]
    if held:
        yield Chunk(bytes(held))


def _zeros(size: int) -> Iterator[bytes]:
    for at in range(0, size, PIECE):
        yield bytes(min(PIECE, size - at))


def _joined(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Compress the headers that follow a content together with it, as the format prescribes."""
    held: Frame | None = None
    for frame in frames:
        if held is None:
            held = frame
            continue
        headers = held.data if held.file is None else held.tail
        if frame.file is None and not frame.end and len(headers) < PIECE:
            headers += frame.data
            held = held._replace(finished=[*held.finished, *frame.finished])
            held = held._replace(data=headers) if held.file is None else held._replace(tail=headers)
        else:
            yield held
            held = frame
    if held is not None:
        yield held


class _Body:
    """The frames of a tar up to its end, where the entries of the format follow."""

    def __init__(self) -> None:
        self.zeros = 0
        """Bytes after the last content that were left out."""
        self.last: list[Frame] = []
        """The last frame, which was left out too: the next header belongs to it."""

    def until_end(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Yield the frames without the zeros at the end; with them if something follows."""
        for frame in frames:
            if frame.end and not frame.data.strip(b"\0"):
                self.zeros += len(frame.data)
                continue
            for piece in _zeros(self.zeros):
                yield Frame(piece, end=True)
            self.zeros = 0
            yield frame

    def but_last(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            yield from self.last
            self.last = [frame]


class _Tar:
    """Reports the bytes of the tar that is written."""

    def __init__(self, seen: Callable[[Buffer], object]) -> None:
        self._seen = seen
        self._held = bytearray()
        self.size = 0

    def add(self, data: bytes) -> bytes:
        self.size += len(data)
        self._held += data
        if len(self._held) >= PIECE:
            self.flush()
        return data

    def of(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            self.add(frame.data)
            yield frame

    def flush(self) -> None:
        if self._held:
            self._seen(bytes(self._held))
            self._held.clear()


class _Index(Index):
    """The table of contents, in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._document = bytearray(b'{"version":1,"entries":[')
        self.has_landmark = False
        """The tar has a landmark that was put in."""
        self.padding = 0

    def member(self, member: Member, reader: MemberReader, header: bytes) -> File:
        file = super().member(member, reader, header)
        entry = file.entry
        if self.flaw:
            return file
        if plain_name(entry.name).encode() in OWN_NAMES and not self._is_landmark(entry):
            self.flaw = f"eStargz reserves the name: {entry.name}"
        elif entry.type == HARDLINK and not self._is_known(entry):
            # stargz-snapshotter refuses the whole table, or recurses without end.
            self.flaw = f"hard link to no entry before it: {entry.name[:200]}"
        return file

    def _is_landmark(self, entry: TocEntry) -> bool:
        return self.has_landmark and entry.name.encode() in (PREFETCH, NO_PREFETCH)

    def _is_known(self, entry: TocEntry) -> bool:
        target = plain_name(entry.link)
        return target in self.names and target != plain_name(entry.name)

    def piece(self, data: bytes) -> None:
        pass  # a frame has its digest, and nothing else is recorded

    def content(self, file: File) -> None:
        pass

    def trailer(self, data: bytes, padding: int = 0, has_global: bool = False) -> None:
        super().trailer(data, padding, has_global)
        self.padding = self.padding or padding

    def entries(self, file: File) -> list[TocEntry]:
        found = file.entries()
        if len(found) == 1 and file.entry.size:
            file.entry.chunk_digest = file.entry.digest
        found[-1].chunk_size = 0
        for entry in found:
            entry.end = 0
            entry.atime = entry.ctime = ""
        return found

    def write(self, data: bytes) -> int:
        self._document += data
        return len(self._document)

    def document(self) -> bytes:
        return bytes(self._document) + b"]}"

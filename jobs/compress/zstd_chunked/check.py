"""Check the table of contents of a zstd:chunked layer against the layer.

The mirror of :mod:`writer`. Clients that pull in part use the table of contents in place of the tar, so the two must
describe the same tree. Podman verifies that by the diff_id, others may not.
"""

from __future__ import annotations

import hashlib
import io
import json
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from fastcrc.crc64 import go_iso as crc64

from layerfarm.jobs.compress.codecs import Compression
from layerfarm.jobs.compress.decompress import PlainStream, decompress
from layerfarm.jobs.compress.zstd_chunked.describe import Undescribable, described, plain_name
from layerfarm.jobs.compress.zstd_chunked.tar_split import FILE, SEGMENT
from layerfarm.jobs.compress.zstd_chunked.toc import (
    CHECKSUM,
    CHUNK,
    CRFS,
    FOOTER_BYTES,
    MOST_BYTES,
    POSITION,
    REGULAR,
    SKIPPABLE_HEADER,
    TAR_SPLIT_POSITION,
    ZEROS,
    Place,
    Toc,
    TocEntry,
    has_footer,
    is_skippable,
    parse_toc,
)
from layerfarm.jobs.errors import LayerError
from layerfarm.jobs.limits import limits
from layerfarm.jobs.tar.reader import Member, MemberReader, Readable

ReadAt = Callable[[int, int], bytes]
"""Bytes of the blob, by offset and size; fewer at the end."""
Fault = Callable[[str, str], object]
"""Called with the name of an entry, or an annotation, and the message."""

_PIECE: Final = 1 << 20
_LONGEST_LINE: Final = 64 << 20
_EMPTY: Final = f"sha256:{hashlib.sha256().hexdigest()}"
_EPOCH: Final = "1970-01-01T00:00:00Z"
_ATTRIBUTES: Final = ("type", "name", "link", "mode", "size", "uid", "gid", "major", "minor", "xattrs")
_TIMES: Final = ("mtime", "atime", "ctime")


class _Lie(Exception):
    """The table of contents, or its data, does not match the layer. Arguments: where, message."""


class TocCheck:
    """Takes each member of the layer's tar, then :meth:`finish`. Faults are reported, not raised.

    Raises (everywhere):
        LimitExceeded: a document or a frame is larger than the limits.
    """

    def __init__(self, read_at: ReadAt, size: int, annotations: Mapping[str, str], fault: Fault) -> None:
        """``size`` is that of the blob, ``annotations`` are those of its descriptor, among them :data:`CHECKSUM`."""
        self._read_at = read_at
        self._size = size
        self._fault = fault
        self._limits = limits()
        self._files: dict[str, list[TocEntry]] = {}
        """Entries with their further chunks, by plain name, that are not compared yet."""
        self._contents: dict[str, list[TocEntry]] = {}
        """Those with content that were, by name: the tar bounds their number and size."""
        self._toc: Toc | None = None
        self._end = size
        try:
            self._place = _place(annotations, POSITION)
            self._split = _place(annotations, TAR_SPLIT_POSITION) if TAR_SPLIT_POSITION in annotations else None
            self._toc = self._read(annotations[CHECKSUM])
            self._end = self._place.offset - SKIPPABLE_HEADER
            self._group(self._toc)
        except _Lie as lie:
            fault(*lie.args)

    def member(self, member: Member, reader: MemberReader) -> None:
        """Compare the current member of ``reader`` with its entry; reads its content."""
        if self._toc is None:
            return
        try:
            expected = described(member, reader)
        except Undescribable as error:
            self._fault("", f"no table of contents can describe the layer, {error}")
            self._toc = None
            return
        found = self._files.pop(plain_name(expected.name), None)
        if found is None:
            self._fault(expected.name, "is not in the table of contents, or again in the tar")
            return
        if expected.size:
            content = hashlib.sha256()
            for piece in reader.content():
                content.update(piece)
            expected.digest = f"sha256:{content.hexdigest()}"
        entry = found[0]
        for key, says, tar in _differences(entry, expected):
            self._fault(expected.name, f"{key} is {says!r} in the table of contents and {tar!r} in the tar"[:300])
        if expected.size and entry.size == expected.size and entry.name == expected.name:
            self._contents[entry.name] = found

    def finish(self, diff_id: str) -> None:
        """Check the rest; ``diff_id`` is the sha256 digest of the tar."""
        if self._toc is None:
            return
        for name in self._files:
            self._fault(name, "is in the table of contents, but not in the tar")
        frame = SKIPPABLE_HEADER + FOOTER_BYTES
        if not has_footer(self._read_at(max(0, self._size - frame), frame), self._place, self._split):
            self._fault(POSITION, "is not what the footer of the blob says, or there is no footer")
        try:
            if self._toc.tar_split_digest:
                self._check_tar_split(self._toc.tar_split_digest, diff_id)
        except _Lie as lie:
            self._fault(*lie.args)
        for name in list(self._contents):
            try:
                for _ in self._content(name):
                    pass
            except _Lie as lie:
                self._fault(*lie.args)

    # --- the document --------------------------------------------------------------------------------

    def _read(self, checksum: str) -> Toc:
        place = self._place
        self._check_place(place, POSITION)
        if max(place.length, place.uncompressed) > MOST_BYTES:
            raise _Lie(POSITION, f"table of contents is larger than {MOST_BYTES} bytes, and clients refuse it")
        if place.uncompressed > self._limits.toc_bytes:
            raise self._limits.exceeded("toc_bytes", "table of contents is larger than {} bytes")
        packed = self._read_at(place.offset, place.length)
        if checksum != f"sha256:{hashlib.sha256(packed).hexdigest()}":
            raise _Lie(CHECKSUM, "is not the digest of the table of contents")
        with _damage_in(POSITION):
            text = io.BufferedReader(self._plain(io.BytesIO(packed))).read(place.uncompressed + 1)
        if len(text) != place.uncompressed:
            raise _Lie(POSITION, "names another uncompressed length than that of the table of contents")
        try:
            return parse_toc(text)
        except ValueError as error:
            raise _Lie(POSITION, f"table of contents cannot be read, {error}"[:300]) from None

    def _check_place(self, place: Place, annotation: str) -> None:
        start = place.offset - SKIPPABLE_HEADER
        if start < 0 or place.offset + place.length > self._size:
            raise _Lie(annotation, "leads out of the blob")
        if not is_skippable(self._read_at(start, SKIPPABLE_HEADER), place.length):
            raise _Lie(annotation, "is not that of a skippable frame")

    def _group(self, toc: Toc) -> None:
        last: list[TocEntry] = []
        for entry in toc.entries:
            if entry.type != CHUNK:
                last = [entry]
                if self._files.setdefault(plain_name(entry.name), last) is not last:
                    self._fault(entry.name, "is in the table of contents more than once")
            elif not last or last[0].type != REGULAR or last[0].name != entry.name:
                self._fault(entry.name, "chunk in the table of contents does not follow its file")
            else:
                last.append(entry)

    # --- the frames ----------------------------------------------------------------------------------

    def _content(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file from its frames, once. Raises _Lie: it is not as the table of contents says."""
        chunks = self._contents.pop(name, None)
        if chunks is None:
            raise _Lie(name, "is twice in the tar-split data, or has no content that could be checked")
        entry = chunks[0]
        sizes = [chunk.chunk_size for chunk in chunks] if len(chunks) > 1 else [entry.size]
        ends = [*(chunk.offset for chunk in chunks[1:]), entry.end]
        if sum(sizes) != entry.size or 0 in sizes:
            raise _Lie(name, "chunks in the table of contents are not as large as the file")
        whole = hashlib.sha256()
        at = 0
        for chunk, size, end in zip(chunks, sizes, ends, strict=True):
            if not chunk.offset < end <= self._end:
                raise _Lie(name, "offsets in the table of contents lead out of the blob, or backwards")
            if chunk.chunk_offset != at:
                raise _Lie(name, f"chunk at {at} is at {chunk.chunk_offset} in the table of contents")
            part = hashlib.sha256()
            for piece in self._chunk(name, chunk, end, size):
                part.update(piece)
                whole.update(piece)
                yield piece
            if len(chunks) > 1 and chunk.chunk_digest != f"sha256:{part.hexdigest()}":
                raise _Lie(name, f"chunk at {at} has another digest than the table of contents says")
            at += size
        if entry.digest != f"sha256:{whole.hexdigest()}":
            raise _Lie(name, "frames hold another content than the digest in the table of contents says")

    def _chunk(self, name: str, chunk: TocEntry, end: int, size: int) -> Iterator[bytes]:
        if chunk.chunk_type == ZEROS:
            # A client writes them without reading the frame.
            for at in range(0, size, _PIECE):
                yield bytes(min(_PIECE, size - at))
            return
        stream = self._plain(_Slice(self._read_at, chunk.offset, end))
        left = size
        while left:
            with _damage_in(name):
                piece = stream.read(min(_PIECE, left))
            if not piece:
                raise _Lie(name, f"frame at {chunk.offset} holds fewer than {size} bytes")
            left -= len(piece)
            yield piece

    def _plain(self, packed: Readable) -> PlainStream:
        return decompress(packed, Compression.ZSTD, limits=self._limits)

    # --- the tar-split data --------------------------------------------------------------------------

    def _check_tar_split(self, digest: str, diff_id: str) -> None:
        """Assemble the tar from the tar-split data and the frames, as a client does."""
        if self._split is None:
            raise _Lie(TAR_SPLIT_POSITION, "is missing, and the table of contents names tar-split data")
        self._check_place(self._split, TAR_SPLIT_POSITION)
        end = self._split.offset + self._split.length
        packed = hashlib.sha256()
        for at in range(self._split.offset, end, _PIECE):
            packed.update(self._read_at(at, min(_PIECE, end - at)))
        if digest != f"sha256:{packed.hexdigest()}":
            raise _Lie(TAR_SPLIT_POSITION, "does not lead to the tar-split data that the table of contents names")
        tar = hashlib.sha256()
        size = 0
        lines = io.BufferedReader(self._plain(_Slice(self._read_at, self._split.offset, end)))
        while True:
            with _damage_in(TAR_SPLIT_POSITION):
                line = lines.readline(_LONGEST_LINE)
            if not line:
                break
            size += len(line)
            for piece in self._assembled(line):
                tar.update(piece)
        if size != self._split.uncompressed:
            raise _Lie(TAR_SPLIT_POSITION, "names another uncompressed length than that of the tar-split data")
        if diff_id != f"sha256:{tar.hexdigest()}":
            raise _Lie(TAR_SPLIT_POSITION, "tar-split data and files make another tar than the layer's")

    def _assembled(self, line: bytes) -> Iterator[bytes]:
        """Yield the bytes of the tar that a line describes."""
        try:
            fields = json.loads(line)
            kind, payload = fields["type"], b64decode(fields["payload"] or "", validate=True)
            name, size = fields.get("name", ""), fields.get("size", 0)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise _Lie(TAR_SPLIT_POSITION, "tar-split data cannot be read") from None
        if kind == SEGMENT:
            yield payload
        elif kind != FILE:
            raise _Lie(TAR_SPLIT_POSITION, "tar-split data has a line of an unknown type")
        elif size:
            crc = 0
            for piece in self._content(str(name)):
                crc = crc64(piece, crc)
                yield piece
            if payload != crc.to_bytes(8, "big"):
                raise _Lie(str(name), "has another CRC-64 than the tar-split data says")


def _place(annotations: Mapping[str, str], name: str) -> Place:
    try:
        text = annotations[name]
        if name == POSITION:
            text, _, kind = text.rpartition(":")
            if kind != str(CRFS):
                raise ValueError("not the type of a table of contents")
        return Place.parse(text)
    except (ValueError, KeyError):
        raise _Lie(name, "is missing, or is not a position") from None


def _differences(entry: TocEntry, expected: TocEntry) -> Iterator[tuple[str, object, object]]:
    for key in _ATTRIBUTES:
        says, tar = getattr(entry, key), getattr(expected, key)
        if says != tar:
            yield key, says, tar
    for key in _TIMES:
        says, tar = getattr(entry, key), getattr(expected, key)
        if says != tar and _instant(says) != _instant(tar):
            yield key, says, tar
    if (entry.digest or _EMPTY) != (expected.digest or _EMPTY):
        yield "digest", entry.digest, expected.digest


def _instant(text: str) -> object:
    """Return a time for comparing: in UTC, with its fraction. containers/storage equates no time and the epoch."""
    second, dot, rest = (text or _EPOCH).partition(".")
    digits = rest.rstrip("Z").partition("+")[0].partition("-")[0]
    zone = rest[len(digits) :] if dot else ""
    try:
        return datetime.fromisoformat(second + zone).timestamp(), digits.rstrip("0")
    except ValueError:
        return text


@contextmanager
def _damage_in(where: str) -> Iterator[None]:
    """Convert an error about unreadable compressed data to a fault of its reference."""
    try:
        yield
    except LayerError as error:
        raise _Lie(where, f"compressed data is damaged, {error.what}"[:300]) from None


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

"""Check a zstd:chunked layer: its table of contents, tar-split data, footer and annotations. Mirrors :mod:`writer`."""

from __future__ import annotations

import hashlib
import io
import json
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from fastcrc.crc64 import go_iso as crc64

from layerfarm.jobs.compress.codecs import Compression
from layerfarm.jobs.compress.toc.check import PIECE, Lie, TocCheck, damage_in
from layerfarm.jobs.compress.toc.entries import ZEROS, TocEntry, parse_toc
from layerfarm.jobs.compress.zstd_chunked.places import (
    CHECKSUM,
    CRFS,
    FOOTER_BYTES,
    POSITION,
    SKIPPABLE_HEADER,
    TAR_SPLIT_POSITION,
    Place,
    has_footer,
    is_skippable,
)
from layerfarm.jobs.compress.zstd_chunked.tar_split import FILE, SEGMENT

_LONGEST_LINE: Final = 64 << 20
_SPLIT_DIGEST: Final = "tarSplitDigest"


class ZstdChunkedCheck(TocCheck):
    """The check of a layer with the annotation :data:`CHECKSUM`."""

    compression = Compression.ZSTD
    times = ("mtime", "atime", "ctime")
    _place: Place
    _split: Place | None
    _split_digest: str

    def read(self, annotations: Mapping[str, str]) -> Iterable[TocEntry]:
        self._place = place = _place(annotations, POSITION)
        self._split = _place(annotations, TAR_SPLIT_POSITION) if TAR_SPLIT_POSITION in annotations else None
        self._check_place(place, POSITION)
        self.check_size(POSITION, place.length, place.uncompressed)
        packed = self.read_at(place.offset, place.length)
        if annotations[CHECKSUM] != f"sha256:{hashlib.sha256(packed).hexdigest()}":
            raise Lie(CHECKSUM, "is not the digest of the table of contents")
        with damage_in(POSITION):
            text = io.BufferedReader(self.plain(io.BytesIO(packed))).read(place.uncompressed + 1)
        if len(text) != place.uncompressed:
            raise Lie(POSITION, "names another uncompressed length than that of the table of contents")
        try:
            document = parse_toc(text, [_SPLIT_DIGEST])
            self._split_digest = document.get(_SPLIT_DIGEST, "")
            if not isinstance(self._split_digest, str):
                raise ValueError(f"{_SPLIT_DIGEST} is not a string")
            entries: list[TocEntry] = document["entries"]
            if any(entry.inner for entry in entries):
                raise ValueError("unknown key 'innerOffset'")
        except ValueError as error:
            raise Lie(POSITION, f"table of contents cannot be read, {error}"[:300]) from None
        self.end = place.offset - SKIPPABLE_HEADER
        return entries

    @property
    def table_bytes(self) -> int:
        return self._place.length + (self._split.length if self._split is not None else 0)

    def finish(self, diff_id: str, size: int) -> None:
        if not self.usable:
            return
        self.absent()
        frame = SKIPPABLE_HEADER + FOOTER_BYTES
        if not has_footer(self.read_at(max(0, self.size - frame), frame), self._place, self._split):
            self.fault(POSITION, "is not what the footer of the blob says, or there is no footer")
        try:
            if self._split_digest:
                self._check_tar_split(self._split_digest, diff_id)
        except Lie as lie:
            self.fault(*lie.args)
        self.contents()

    def _check_place(self, place: Place, annotation: str) -> None:
        start = place.offset - SKIPPABLE_HEADER
        if start < 0 or place.offset + place.length > self.size:
            raise Lie(annotation, "leads out of the blob")
        if not is_skippable(self.read_at(start, SKIPPABLE_HEADER), place.length):
            raise Lie(annotation, "is not that of a skippable frame")

    # --- the frames ----------------------------------------------------------------------------------

    def chunk_sizes(self, chunks: list[TocEntry]) -> list[int]:
        return [chunk.chunk_size for chunk in chunks] if len(chunks) > 1 else [chunks[0].size]

    def chunk_ends(self, chunks: list[TocEntry]) -> list[int]:
        return [*(chunk.offset for chunk in chunks[1:]), chunks[0].end]

    def chunk(self, chunk: TocEntry, end: int, size: int) -> Iterator[bytes]:
        if chunk.chunk_type == ZEROS:
            # A client writes them without reading the frame.
            for at in range(0, size, PIECE):
                yield bytes(min(PIECE, size - at))
            return
        yield from self.frame(chunk.name, self.plain(self.slice(chunk.offset, end)), size, chunk.offset)

    # --- the tar-split data --------------------------------------------------------------------------

    def _check_tar_split(self, digest: str, diff_id: str) -> None:
        """Assemble the tar from the tar-split data and the frames, as a client does."""
        if self._split is None:
            raise Lie(TAR_SPLIT_POSITION, "is missing, and the table of contents names tar-split data")
        self._check_place(self._split, TAR_SPLIT_POSITION)
        end = self._split.offset + self._split.length
        packed = hashlib.sha256()
        for at in range(self._split.offset, end, PIECE):
            packed.update(self.read_at(at, min(PIECE, end - at)))
        if digest != f"sha256:{packed.hexdigest()}":
            raise Lie(TAR_SPLIT_POSITION, "does not lead to the tar-split data that the table of contents names")
        tar = hashlib.sha256()
        size = 0
        lines = io.BufferedReader(self.plain(self.slice(self._split.offset, end)))
        while True:
            with damage_in(TAR_SPLIT_POSITION):
                line = lines.readline(_LONGEST_LINE)
            if not line:
                break
            size += len(line)
            for piece in self._assembled(line):
                tar.update(piece)
        if size != self._split.uncompressed:
            raise Lie(TAR_SPLIT_POSITION, "names another uncompressed length than that of the tar-split data")
        if diff_id != f"sha256:{tar.hexdigest()}":
            raise Lie(TAR_SPLIT_POSITION, "tar-split data and files make another tar than the layer's")

    def _assembled(self, line: bytes) -> Iterator[bytes]:
        """Yield the bytes of the tar that a line describes."""
        try:
            fields = json.loads(line.decode())
            kind, payload = fields["type"], b64decode(fields["payload"] or "", validate=True)
            name, size = fields.get("name", ""), fields.get("size", 0)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise Lie(TAR_SPLIT_POSITION, "tar-split data cannot be read") from None
        if kind == SEGMENT:
            yield payload
        elif kind != FILE:
            raise Lie(TAR_SPLIT_POSITION, "tar-split data has a line of an unknown type")
        elif size:
            crc = 0
            for piece in self.content(str(name)):
                crc = crc64(piece, crc)
                yield piece
            if payload != crc.to_bytes(8, "big"):
                raise Lie(str(name), "has another CRC-64 than the tar-split data says")


def _place(annotations: Mapping[str, str], name: str) -> Place:
    try:
        text = annotations[name]
        if name == POSITION:
            text, _, kind = text.rpartition(":")
            if kind != str(CRFS):
                raise ValueError("not the type of a table of contents")
        return Place.parse(text)
    except (ValueError, KeyError):
        raise Lie(name, "is missing, or is not a position") from None

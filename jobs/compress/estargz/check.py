"""Check an eStargz layer: its table of contents, footer, landmark and annotations. Mirrors :mod:`writer`."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final

from layerfarm.jobs.compress.codecs import Compression
from layerfarm.jobs.compress.decompress import PlainStream
from layerfarm.jobs.compress.estargz.marks import (
    FOOTER_BYTES,
    LANDMARK,
    NO_PREFETCH,
    PREFETCH,
    TOC_DIGEST,
    TOC_NAME,
    UNCOMPRESSED_SIZE,
    toc_offset,
)
from layerfarm.jobs.compress.toc.check import Lie, TocCheck, content_digest, damage_in
from layerfarm.jobs.compress.toc.describe import plain_name
from layerfarm.jobs.compress.toc.entries import CHUNK, HARDLINK, REGULAR, TocEntry, parse_toc
from layerfarm.jobs.tar.reader import Member, MemberReader

_FOOTER: Final = "footer"
_LANDMARKS: Final = frozenset((PREFETCH.decode(), NO_PREFETCH.decode()))
_LANDMARK_DIGEST: Final = f"sha256:{hashlib.sha256(LANDMARK).hexdigest()}"
_IGNORED: Final = frozenset(("userName", "groupName", "NumLink"))
"""Keys of entries that other builders write, and layerfarm does not need."""
_MOST_SKIPPED: Final = 1 << 30
"""Bytes of members that are read in vain, because files are not in the order of the blob."""


class EstargzCheck(TocCheck):
    """The check of a layer with a footer of eStargz, or with the annotation :data:`TOC_DIGEST`."""

    compression = Compression.GZIP
    times = ("mtime",)
    needs_digests = False

    def read(self, annotations: Mapping[str, str]) -> Iterable[TocEntry]:
        self._annotations = annotations
        self._ends_with_toc = False
        self._landmarks: list[str] = []
        self._member: tuple[int, int, PlainStream] | None = None
        """The member read last: its offset, the bytes read of it, the stream."""
        self._skipped = 0
        offset = toc_offset(self.read_at(max(0, self.size - FOOTER_BYTES), FOOTER_BYTES))
        if offset is None:
            raise Lie(TOC_DIGEST, "names a table of contents, and the blob has no footer that leads to one")
        if offset >= self.size - FOOTER_BYTES:
            raise Lie(_FOOTER, "leads out of the blob")
        self.end = offset
        text = self._document()
        self._digest = f"sha256:{hashlib.sha256(text).hexdigest()}"
        if annotations.get(TOC_DIGEST, self._digest) != self._digest:
            raise Lie(TOC_DIGEST, "is not the digest of the table of contents")
        try:
            entries: list[TocEntry] = parse_toc(text, ignored=_IGNORED)["entries"]
        except ValueError as error:
            raise Lie(_FOOTER, f"table of contents cannot be read, {error}"[:300]) from None
        self._offsets = sorted({entry.offset for entry in entries if entry.offset})
        self._check(entries)
        self._names = {plain_name(entry.name) for entry in entries if entry.type != CHUNK}
        return entries

    def _document(self) -> bytes:
        with damage_in(_FOOTER):
            stream = self.plain(self.slice(self.end, self.size - FOOTER_BYTES))
            reader = MemberReader(stream, self.limits)
            member = next(iter(reader), None)
            if member is None or member.name != TOC_NAME:
                raise Lie(_FOOTER, f"does not lead to {TOC_NAME.decode()}")
            self.check_size(_FOOTER, member.size)
            return b"".join(map(bytes, reader.content()))

    def _check(self, entries: Iterable[TocEntry]) -> None:
        """Report what makes clients refuse the table: they find content, and its digest, by the offset."""
        seen: set[tuple[int, int]] = set()
        for entry in entries:
            if entry.offset:
                if (entry.offset, entry.inner) in seen:
                    self.fault(entry.name, "has the offset of another file or chunk in the table of contents")
                seen.add((entry.offset, entry.inner))
            if (entry.size or entry.type == CHUNK) and not (entry.chunk_digest or entry.digest):
                self.fault(entry.name, "has no digest in the table of contents")

    def member(self, member: Member, reader: MemberReader) -> None:
        if not self.usable:
            return
        name = plain_name(member.name.decode("utf-8", "replace"))
        if self._ends_with_toc:
            self.fault(name, f"follows {TOC_NAME.decode()}, which must be the last entry")
            self._ends_with_toc = False
        if name == TOC_NAME.decode():
            self._ends_with_toc = True
            if self._digest != content_digest(reader):
                self.fault(name, "in the tar is another than the one that the footer leads to")
            return
        super().member(member, reader)
        if name in _LANDMARKS:
            self._landmarks.append(name)

    def _differences(self, entry: TocEntry, expected: TocEntry) -> Iterator[tuple[str, object, object]]:
        yield from super()._differences(entry, expected)
        name = plain_name(expected.name)
        if name in _LANDMARKS and (expected.type, expected.digest) != (REGULAR, _LANDMARK_DIGEST):
            yield "content", LANDMARK, "not that of a landmark"
        if expected.type == HARDLINK and ((target := plain_name(expected.link)) == name or target not in self._names):
            yield "link", "no entry", expected.link

    @property
    def table_bytes(self) -> int:
        return self.size - self.end

    def finish(self, diff_id: str, size: int) -> None:
        if not self.usable:
            return
        self.absent()
        if not self._ends_with_toc:
            self.fault(TOC_NAME.decode(), "is not the last entry of the tar")
        if len(self._landmarks) > 1:
            self.fault(self._landmarks[0], "and another landmark are in the layer")
        says = self._annotations.get(UNCOMPRESSED_SIZE)
        if says is not None and says != str(size):
            self.fault(UNCOMPRESSED_SIZE, f"is {says[:40]}, the tar has {size} bytes")
        self.contents()

    # --- the members ---------------------------------------------------------------------------------

    def same_time(self, says: str, tar: str) -> bool:
        """Compare times. Other builders round to whole seconds."""
        if super().same_time(says, tar):
            return True
        try:
            return "." not in says and abs(_seconds(says) - _seconds(tar)) <= 1
        except ValueError:
            return False

    def chunk_sizes(self, chunks: list[TocEntry]) -> list[int]:
        *others, last = chunks
        # The size of the last chunk is left out; stargz-snapshotter's builder writes it if it is a whole one.
        return [*(chunk.chunk_size for chunk in others), last.chunk_size or chunks[0].size - last.chunk_offset]

    def chunk_ends(self, chunks: list[TocEntry]) -> list[int]:
        return [self._end_of(chunk.offset) for chunk in chunks]

    def _end_of(self, offset: int) -> int:
        """Return the offset of the next content: a client fetches up to there."""
        at = bisect_right(self._offsets, offset)
        return self._offsets[at] if at < len(self._offsets) else self.end

    def chunk(self, chunk: TocEntry, end: int, size: int) -> Iterator[bytes]:
        stream = self._at(chunk, end)
        yield from self.frame(chunk.name, stream, size, chunk.offset)
        self._member = (chunk.offset, chunk.inner + size, stream)

    def _at(self, chunk: TocEntry, end: int) -> PlainStream:
        """Return the stream of a member, at the content of the chunk. Files in one member follow one another."""
        offset, at, stream = self._member or (0, 0, None)
        self._member = None
        if stream is None or offset != chunk.offset or at > chunk.inner:
            at, stream = 0, self.plain(self.slice(chunk.offset, end))
            self._skipped += chunk.inner
            if chunk.inner and self._skipped > _MOST_SKIPPED:
                raise Lie(chunk.name, "shares a member with files in another order, too many to be checked")
        for _ in self.frame(chunk.name, stream, chunk.inner - at, chunk.offset):
            pass
        return stream

    def check_digest(self, chunk: TocEntry, count: int, digest: str) -> None:
        super().check_digest(chunk, 2 if chunk.chunk_digest else count, digest)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text or "1970-01-01T00:00:00Z").timestamp()

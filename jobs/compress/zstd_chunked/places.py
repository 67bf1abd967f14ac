"""The places of the table of contents and of the tar-split data in a zstd:chunked blob, and the footer with both."""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple

PREFIX: Final = "io.github.containers.zstd-chunked."
CHECKSUM: Final = f"{PREFIX}manifest-checksum"
"""Annotation: digest of the compressed TOC."""
POSITION: Final = f"{PREFIX}manifest-position"
"""Annotation: ``offset:length:uncompressed length:type`` of the compressed TOC."""
TAR_SPLIT_POSITION: Final = f"{PREFIX}tarsplit-position"
"""Annotation: ``offset:length:uncompressed length`` of the compressed tar-split data, whose digest is in the TOC."""
CRFS: Final = 1
"""The only type of a TOC."""
SKIPPABLE_HEADER: Final = 8
FOOTER_BYTES: Final = 64

_PLACE: Final = re.compile(r"([0-9]{1,18}):([0-9]{1,18}):([0-9]{1,18})", re.ASCII)
_SKIPPABLE: Final = b"\x50\x2a\x4d\x18"
_MAGIC: Final = b"GNUlInUx"
_FOOTER: Final = struct.Struct("<7Q8s")


class Place(NamedTuple):
    """The place of compressed data in the blob, in a separate skippable frame."""

    offset: int
    """Offset of the data, after the header of the frame."""
    length: int
    uncompressed: int

    def __str__(self) -> str:
        return f"{self.offset}:{self.length}:{self.uncompressed}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Parse three decimal numbers. Raises ValueError if it is anything else."""
        found = _PLACE.fullmatch(text)
        if found is None:
            raise ValueError("not three decimal numbers")
        offset, length, uncompressed = map(int, found.groups())
        return cls(offset, length, uncompressed)


def skippable(data: bytes) -> bytes:
    """Return a frame that decompressors skip (RFC 8878 3.1.2)."""
    return _SKIPPABLE + struct.pack("<I", len(data)) + data


def is_skippable(header: bytes, length: int) -> bool:
    """Return True if the header is that of a skippable frame of ``length`` bytes."""
    return header == _SKIPPABLE + struct.pack("<I", length)


def has_footer(frame: bytes, toc: Place, tar_split: Place | None) -> bool:
    """Return True if the last ``SKIPPABLE_HEADER + FOOTER_BYTES`` bytes of a blob are a frame with these places."""
    if not is_skippable(frame[:SKIPPABLE_HEADER], FOOTER_BYTES):
        return False
    *numbers, magic = _FOOTER.unpack(frame[SKIPPABLE_HEADER:])
    return magic == _MAGIC and numbers[:4] == [*toc, CRFS] and (tar_split is None or numbers[4:] == [*tar_split])


def footer(toc: Place, tar_split: Place) -> bytes:
    """Return the content of the last frame. Clients use the annotations; this makes a blob without them readable."""
    return _FOOTER.pack(*toc, CRFS, *tar_split, _MAGIC)

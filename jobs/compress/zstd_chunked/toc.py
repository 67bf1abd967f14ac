"""The table of contents of a zstd:chunked layer, where it is in the blob, and the footer that repeats it."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field, fields
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
MOST_BYTES: Final = 150 << 20
"""Uncompressed bytes of the largest TOC that containers/storage takes; a pull of a layer with a larger one fails."""
SKIPPABLE_HEADER: Final = 8
FOOTER_BYTES: Final = 64

_SKIPPABLE: Final = b"\x50\x2a\x4d\x18"
_MAGIC: Final = b"GNUlInUx"
_FOOTER: Final = struct.Struct("<7Q8s")

REGULAR: Final = "reg"
CHUNK: Final = "chunk"
ZEROS: Final = "zeros"


@dataclass(slots=True)
class TocEntry:
    """One file of the layer, or a further chunk of the file before it. Fields with their default are not written."""

    type: str = ""
    name: str = ""
    link: str = ""
    mode: int = 0
    size: int = 0
    uid: int = 0
    gid: int = 0
    mtime: str = ""
    """Times are of RFC 3339."""
    atime: str = ""
    ctime: str = ""
    major: int = 0
    minor: int = 0
    xattrs: dict[str, str] = field(default_factory=dict)
    """Values in base64."""
    digest: str = ""
    """Of the content; empty for none."""
    offset: int = 0
    end: int = 0
    """Of the last frame in the blob."""
    chunk_size: int = 0
    """This and what follows: of files with several chunks only."""
    chunk_offset: int = 0
    chunk_digest: str = ""
    chunk_type: str = ""

    def encode(self) -> bytes:
        fields = {_KEYS[name]: value for name in _KEYS if (value := getattr(self, name))}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


_KEYS: Final = {each.name: each.name for each in fields(TocEntry)} | {
    "link": "linkName",
    "mtime": "modtime",
    "atime": "accesstime",
    "ctime": "changetime",
    "major": "devMajor",
    "minor": "devMinor",
    "end": "endOffset",
    "chunk_size": "chunkSize",
    "chunk_offset": "chunkOffset",
    "chunk_digest": "chunkDigest",
    "chunk_type": "chunkType",
}
"""The keys of the document by field."""


class Place(NamedTuple):
    """Where compressed data is in the blob, in a skippable frame of its own."""

    offset: int
    """Of the data, behind the header of the frame."""
    length: int
    uncompressed: int

    def __str__(self) -> str:
        return f"{self.offset}:{self.length}:{self.uncompressed}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Raises ValueError: it is not three numbers, or one is negative."""
        offset, length, uncompressed = map(int, text.split(":"))
        if min(offset, length, uncompressed) < 0:
            raise ValueError("negative number")
        return cls(offset, length, uncompressed)


def skippable(data: bytes) -> bytes:
    """A frame that decompressors skip (RFC 8878 3.1.2)."""
    return _SKIPPABLE + struct.pack("<I", len(data)) + data


def is_skippable(header: bytes, length: int) -> bool:
    """The header is that of a skippable frame of ``length`` bytes."""
    return header == _SKIPPABLE + struct.pack("<I", length)


def footer(toc: Place, tar_split: Place) -> bytes:
    """The content of the last frame. Clients use the annotations; this makes a blob without them readable."""
    return _FOOTER.pack(*toc, CRFS, *tar_split, _MAGIC)

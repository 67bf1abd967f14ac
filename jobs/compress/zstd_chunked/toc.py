"""The table of contents of a zstd:chunked layer, its place in the blob, and the footer that repeats it."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple

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
"""Uncompressed bytes of the largest TOC that containers/storage accepts; pulls of layers with larger ones fail."""
SKIPPABLE_HEADER: Final = 8
FOOTER_BYTES: Final = 64

_PLACE: Final = re.compile(r"([0-9]{1,18}):([0-9]{1,18}):([0-9]{1,18})", re.ASCII)
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
    """Digest of the content; empty for none."""
    offset: int = 0
    end: int = 0
    """End of the last frame in the blob."""
    chunk_size: int = 0
    """This and the following fields: only for files with several chunks."""
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
_FIELDS: Final = {key: name for name, key in _KEYS.items()}
_TYPES: Final = {each.name: type(getattr(TocEntry(), each.name)) for each in fields(TocEntry)}


class Toc(NamedTuple):
    """The whole document."""

    entries: list[TocEntry]
    tar_split_digest: str
    """Digest of the compressed tar-split data; empty if there is none."""


def parse_toc(text: bytes) -> Toc:
    """Read a table of contents. Keys must be unique and exact: containers/storage ignores case, and takes the last.

    Raises:
        ValueError: it is not a table of contents of version 1.
    """
    try:
        document = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(document, dict) or document.keys() - {"version", "entries", "tarSplitDigest"}:
        raise ValueError("not an object of version, entries and tarSplitDigest")
    entries, digest = document.get("entries"), document.get("tarSplitDigest", "")
    if document.get("version") != 1:
        raise ValueError("version is not 1")
    if not isinstance(entries, list) or not all(isinstance(entry, TocEntry) for entry in entries):
        raise ValueError("entries are not a list of objects with a type and a name")
    if not isinstance(digest, str):
        raise ValueError("tarSplitDigest is not a string")
    return Toc(entries, digest)


def _object(pairs: list[tuple[str, Any]]) -> TocEntry | dict[str, Any]:
    """Make an object of the document: an entry if it has a type and a name. Made at once: their list is large."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("key occurs twice in an object")
    if "type" not in found or "name" not in found:
        return found
    entry = TocEntry()
    for key, value in pairs:
        name = _FIELDS.get(key)
        if name is None:
            raise ValueError(f"unknown key {key[:40]!r}")
        if type(value) is not _TYPES[name] or (type(value) is int and value < 0):
            raise ValueError(f"key {key!r} has an invalid value")
        setattr(entry, name, value)
    if not all(isinstance(value, str) for value in entry.xattrs.values()):
        raise ValueError("value of an xattr is not a string")
    return entry


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


def of_toc(annotations: Mapping[str, str] | None) -> frozenset[tuple[str, str]]:
    """Return those of a layer's annotations that describe its table of contents."""
    return frozenset(pair for pair in (annotations or {}).items() if pair[0].startswith(PREFIX))


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

"""The entries of a table of contents: a JSON document whose keys CRFS defined (github.com/google/crfs)."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any, Final

MOST_BYTES: Final = 150 << 20
"""Uncompressed bytes of the largest TOC that containers/storage accepts."""

REGULAR: Final = "reg"
DIRECTORY: Final = "dir"
CHUNK: Final = "chunk"
HARDLINK: Final = "hardlink"
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
    """End of the last frame in the blob; zstd:chunked only."""
    inner: int = 0
    """Offset of the content in what is decompressed from ``offset`` on; eStargz only."""
    chunk_size: int = 0
    chunk_offset: int = 0
    chunk_digest: str = ""
    chunk_type: str = ""
    """zstd:chunked only."""

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
    "inner": "innerOffset",
    "chunk_size": "chunkSize",
    "chunk_offset": "chunkOffset",
    "chunk_digest": "chunkDigest",
    "chunk_type": "chunkType",
}
"""The keys of the document by field."""
_FIELDS: Final = {key: name for name, key in _KEYS.items()}
_TYPES: Final = {each.name: type(getattr(TocEntry(), each.name)) for each in fields(TocEntry)}


def parse_toc(text: bytes, others: Collection[str] = (), ignored: Collection[str] = ()) -> dict[str, Any]:
    """Return the document: ``version``, ``entries`` as a list of :class:`TocEntry`, and the keys of ``others``.

    Keys must be unique and exact: Go's readers ignore case, and take the last. ``ignored``: further keys of an entry.

    Raises:
        ValueError: it is not a table of contents of version 1.
    """

    def made(pairs: list[tuple[str, Any]]) -> TocEntry | dict[str, Any]:
        return _object(pairs, ignored)

    try:
        # Decoded here: json would also guess at UTF-16 and UTF-32, which no document may be (RFC 8259 8.1).
        document = json.loads(text.decode(), object_pairs_hook=made)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(document, dict) or document.keys() - {"version", "entries", *others}:
        raise ValueError(f"not an object of {', '.join(('version', 'entries', *others))}")
    if document.get("version") != 1:
        raise ValueError("version is not 1")
    entries = document.get("entries")
    if not isinstance(entries, list) or not all(isinstance(entry, TocEntry) for entry in entries):
        raise ValueError("entries are not a list of objects with a type and a name")
    return document


def _object(pairs: list[tuple[str, Any]], ignored: Collection[str]) -> TocEntry | dict[str, Any]:
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
            if key in ignored:
                continue
            raise ValueError(f"unknown key {key[:40]!r}")
        if type(value) is not _TYPES[name] or (type(value) is int and value < 0):
            raise ValueError(f"key {key!r} has an invalid value")
        setattr(entry, name, value)
    if not all(isinstance(value, str) for value in entry.xattrs.values()):
        raise ValueError("value of an xattr is not a string")
    return entry

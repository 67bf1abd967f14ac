"""Entries of a tree, and the deltas between two trees."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal, NamedTuple

__all__ = ["Delta", "DeltaKind"]

EntryType = Literal["file", "dir", "link", "char", "block", "fifo", "socket"]
Xattrs = tuple[tuple[bytes, bytes], ...]

BILLION: Final = 1_000_000_000
"""Nanoseconds of a second."""

ROOT = b"."
"""The path of a tree's root entry; every other path is relative and has no ``./`` in front."""

UNRECORDED = -1
"""A mode, uid, gid, size or nlink that the manifest does not record: it is not compared."""

UNRECORDED_TIME = -(1 << 100)
"""An mtime that the manifest does not record: it is not compared."""


class Entry(NamedTuple):
    """One path of a tree. A NamedTuple, not a dataclass: millions are made, and it is built 4x faster."""

    path: bytes
    """Relative to the root, raw bytes, ``.`` for the root itself."""
    type: EntryType
    mode: int
    """Permission bits with setuid, setgid and sticky: 0 to 0o7777."""
    uid: int
    gid: int
    size: int
    """Bytes as in lstat(2), for every type; a directory's depends on the filesystem."""
    nlink: int
    mtime: int
    """Nanoseconds since the epoch, may be negative. A manifest keeps whole seconds, rounded down."""
    link: bytes | None = None
    """A symbolic link's target."""
    sha256: str | None = None
    """Hexadecimal digest of a regular file's content; None: not hashed."""
    xattrs: Xattrs | None = ()
    """Sorted by name. None: the manifest this was read from could not record them."""
    device: tuple[int, int] | None = None
    """Major and minor of a character or block device; None: not one, or not recorded."""


class DeltaKind(StrEnum):
    """Kind of a difference: only the new tree has the path, both have it, only the old tree has it."""

    EXTRA = "extra"
    MODIFIED = "modified"
    MISSING = "missing"


class Delta(NamedTuple):
    """One path that differs. ``old`` is None for an Extra, ``new`` for a Missing."""

    kind: DeltaKind
    path: bytes
    old: Entry | None = None
    new: Entry | None = None
    keys: tuple[str, ...] = ()
    """For a Modified: the mtree keywords that differ (``mode``, ``xattr.user.x``), sorted."""


def mtree_key(path: bytes, is_directory: bool) -> bytes:
    """Return a sort key for mtree order (umoci.md D "Format").

    A directory comes first, then its non-directories, then its sub-directories with their contents, each group
    bytewise.
    """
    if path == ROOT:
        return b""
    head, _, name = path.rpartition(b"/")
    prefix = b"\1" + head.replace(b"/", b"\0\1") + b"\0" if head else b""
    return prefix + (b"\1" if is_directory else b"\0") + name + b"\0"

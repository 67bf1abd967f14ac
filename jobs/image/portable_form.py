"""A tree in the form in which a layer can hold it, and the digest of that."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

from layerfarm.jobs.fs import portable_xattrs
from layerfarm.jobs.mtree import UNRECORDED_TIME, Entry, Output, write_tree


def portable(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries as a layer can hold them: the same for the tree that was packed and for its copy.

    Whole seconds; sizes and link counts of directories, which are the filesystem's affair, are 0 and 1;
    no sockets; xattrs as :func:`layerfarm.jobs.fs.portable_xattrs` leaves them.
    """
    return (entry for entry in map(as_packed, entries) if entry is not None)


def as_packed(entry: Entry) -> Entry | None:
    """One of :func:`portable`: the same object where nothing is different; None for a socket."""
    path, kind, mode, uid, gid, size, nlink, mtime, link, sha256, xattrs, device = entry
    if kind == "socket":
        return None
    if mtime != UNRECORDED_TIME:
        mtime -= mtime % 1_000_000_000
    if kind == "dir":
        size, nlink = 0, 1
    elif kind == "link":
        size = len(link or b"")
    if xattrs:
        xattrs = portable_xattrs(xattrs)
    fields = path, kind, mode, uid, gid, size, nlink, mtime, link, sha256, xattrs, device
    # As where fragments are read: a tree has a million of these.
    made: Entry = tuple.__new__(Entry, fields)
    return entry if made == entry else made


def tree_digest(entries: Iterable[Entry]) -> str:
    """``sha256:`` digest of the mtree manifest of :func:`portable` entries, without writing it anywhere."""
    sink = ManifestDigest()
    write_tree(entries, sink.output())
    return sink.digest()


def write_tree_and_digest(entries: Iterable[Entry], manifest: BinaryIO, extra: BinaryIO) -> tuple[int, str]:
    """Write a tree as it lies on disk, and take its :func:`tree_digest`, in one pass; the entries, and the digest."""
    sink = ManifestDigest()
    count = write_tree(entries, Output(manifest, extra), sink.output())
    return count, sink.digest()


class ManifestDigest:
    """Takes a tree in its :func:`portable` form as a file would, and keeps only the digest of the manifest."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def output(self) -> Output:
        """What to write the tree to."""
        return Output(cast(BinaryIO, self), adapt=as_packed)

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return len(data)

    def digest(self) -> str:
        """``sha256:`` digest, once the tree is written."""
        return f"sha256:{self._hash.hexdigest()}"

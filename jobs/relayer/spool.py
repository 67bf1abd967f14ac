"""The content spool: an image read once, its tree in memory and the content of its files in one file.

Nothing is unpacked: rechunking needs no right to change owners, no file system with xattrs, and one open file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from layerfarm.jobs.image import Resolved
from layerfarm.jobs.image.layers import Advanced, open_layer, unheard
from layerfarm.jobs.image.listings import recorded
from layerfarm.jobs.layer.nodes import Directory
from layerfarm.jobs.layer.stack import REGULAR, Placed, Read, Source, Stack, compare_stacks, is_same, source_of
from layerfarm.jobs.limits import limits
from layerfarm.jobs.mtree.model import Entry
from layerfarm.jobs.store import Layout
from layerfarm.jobs.tar.reader import Member, MemberReader, Readable


@dataclass(frozen=True)
class Written:
    """One path in the layers above the kept ones."""

    entry: Entry
    names: tuple[bytes, ...]
    """Every path of the inode if it has several, sorted."""
    offset: int
    """Offset of a regular file's content in the spool; -1: not a regular file."""
    layer: int = 0
    """Number, from 1, of the layer of the image that holds it."""


@dataclass(frozen=True)
class Difference:
    """The difference between the tree of the kept layers (empty without any) and the tree of the image."""

    files: dict[bytes, Written]
    """All entries except directories, by path."""
    directories: dict[bytes, Entry]
    """Every directory of the image, by path."""
    changed: frozenset[bytes]
    """Directories that the kept layers lack, or hold with other metadata."""
    deleted: tuple[bytes, ...]
    """The topmost paths in the kept layers that are not in the image."""


class Spool:
    """The content of an image's files in one file. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes."""
        parts = []
        while size and (piece := os.pread(self._fd, size, offset)):
            parts.append(piece)
            offset += len(piece)
            size -= len(piece)
        return b"".join(parts)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read_image(layout: Layout, image: Resolved, keep: int, spool: Path, advanced: Advanced = unheard) -> Difference:
    """Read every layer of ``image`` once; the ``keep`` lowest are kept.

    Creates the file ``spool`` with the content of all files of the layers, including replaced ones.

    Raises:
        BlobNotFound, DigestMismatch, SizeMismatch: the image is incomplete or corrupt.
        LayerError, LimitExceeded: a layer cannot be applied.
    """
    below, whole = Stack(), Stack()
    offsets: dict[tuple[int, int], int] = {}
    with spool.open("xb", buffering=1 << 20) as out:
        for number, (layer, diff_id) in enumerate(image.layers, 1):
            opened = open_layer(layout, layer, diff_id, advanced)
            reads = recorded(layer, diff_id, _spooled(opened, out, number, offsets))
            if number <= keep:
                known = list(reads)
                below.apply_read(known)
                whole.apply_read(known)
            else:
                whole.apply_read(reads)
        out.truncate()
    return _difference(below, whole, offsets)


def _spooled(
    opened: AbstractContextManager[Readable], out: BinaryIO, layer: int, offsets: dict[tuple[int, int], int]
) -> Iterator[Read]:
    """Yield the members of a layer, their content hashed and appended to the spool."""
    with opened as stream:
        reader = MemberReader(stream, limits())
        for ordinal, member in enumerate(reader.to_the_end()):
            if member.type != REGULAR:
                yield Read(member, None)
                continue
            offsets[layer, ordinal] = out.tell()
            digest = hashlib.sha256()
            for piece in reader.expanded(member):
                digest.update(piece)
                if _is_hole(member, piece):
                    out.seek(len(piece), os.SEEK_CUR)
                else:
                    out.write(piece)
            yield Read(member, digest.hexdigest())


def _is_hole(member: Member, piece: bytes | memoryview) -> bool:
    """Return True for a hole of a sparse file, which stays a hole in the spool: it may be gigabytes long."""
    # Content is given as views of the buffer, a hole as bytes.
    return member.holes is not None and isinstance(piece, bytes)


def _difference(below: Stack, whole: Stack, offsets: dict[tuple[int, int], int]) -> Difference:
    deleted: list[bytes] = []
    changed: set[bytes] = set()
    new: set[Source] = set()
    for path, before, after in compare_stacks(below, whole):
        if after is None:
            deleted.append(path)
        elif not is_same(before, after):
            if isinstance(after, Directory):
                changed.add(path)
            else:
                new.add(source_of(after))
    names = whole.names()
    files: dict[bytes, Written] = {}
    directories: dict[bytes, Entry] = {}
    for placed in whole.placed():
        if placed.source is None:
            directories[placed.entry.path] = placed.entry
        elif placed.source in new and placed.entry.path not in files:
            # All names of an inode at once: a link cannot lead to another layer.
            for path in names.get(placed.source, (placed.entry.path,)):
                files[path] = _written(placed, path, names.get(placed.source, ()), offsets)
    if not below.root.children:
        changed.update(directories)  # the root, too, which an empty tree has as well
    return Difference(files, directories, frozenset(changed), tuple(sorted(deleted)))


def _written(placed: Placed, path: bytes, names: tuple[bytes, ...], offsets: dict[tuple[int, int], int]) -> Written:
    source = placed.source
    assert source is not None
    offset = offsets.get((source.layer, source.ordinal), -1)
    return Written(placed.entry._replace(path=path), names, offset, source.layer)

"""The entries of a tree that layers make, in memory.

A million entries take about 250 MB: a file with one name and no xattrs is one packed ``bytes`` object in its
directory's dict; only directories are separate objects.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from layerfarm.jobs.mtree.model import ROOT, Entry, EntryType, Xattrs

_FIXED: Final = Struct("<HBHIIQqI")
"""Layer, type, mode, uid, gid, size, seconds and nanoseconds of mtime; 33 bytes, less than an empty object.

Followed by a file's 32 bytes of SHA-256 if it was computed, a link's target, or a device's numbers.
"""
_DEVICE: Final = Struct("<II")
_TYPES: Final[tuple[EntryType, ...]] = ("file", "link", "char", "block", "fifo")
FILE, LINK, CHAR, BLOCK, FIFO = range(5)
_NS: Final = 10**9

Leaf = bytes


def pack_leaf(layer: int, type_: int, mode: int, uid: int, gid: int, size: int, mtime: int, tail: bytes = b"") -> Leaf:
    """Pack a non-directory into one object; ``mtime`` in nanoseconds, ``tail`` depends on the type."""
    seconds, ns = divmod(mtime, _NS)
    return _FIXED.pack(layer, type_, mode, uid, gid, size, seconds, ns) + tail


def device_tail(major: int, minor: int) -> bytes:
    return _DEVICE.pack(major, minor)


class Inode:
    """A non-directory with several names, with xattrs, or with more data (subclasses)."""

    __slots__ = ("leaf", "xattrs")

    def __init__(self, leaf: Leaf | None, xattrs: Xattrs = ()) -> None:
        self.leaf = leaf
        """None: it was on disk before the first layer, and its metadata is unknown."""
        self.xattrs = xattrs


class Name(NamedTuple):
    """One name of an :class:`Inode`, and the layer that wrote it."""

    layer: int
    inode: Inode


class Metadata(NamedTuple):
    """Metadata applied to a directory after everything in it is written. Times in nanoseconds."""

    mode: int
    uid: int
    gid: int
    mtime: int
    atime: int
    xattrs: Xattrs = ()


class Directory:
    """A directory of the tree."""

    __slots__ = (
        "changed",
        "children",
        "complete",
        "fd",
        "found",
        "metadata",
        "name",
        "named",
        "parent",
        "plain",
        "stat",
        "touched",
        "xattrs",
    )

    def __init__(self, name: bytes, parent: Directory | None, *, found: os.stat_result | None = None) -> None:
        self.name = name
        self.parent = parent
        self.children: dict[bytes, Child] | None = None
        self.complete = found is None
        """``children`` holds all entries; else there may be more on disk."""
        self.found = found
        """Its lstat, if it was on disk before the first layer."""
        self.metadata: Metadata | None = None
        """Applied at the end; None: the metadata found on disk stays, or is restored."""
        self.named = 0
        """The last layer with an entry for it."""
        self.touched = 0
        """The last layer with an entry for it or for something below."""
        self.fd = -1
        """An open descriptor, or -1; owned by the disk backend."""
        self.plain = True
        """New entries in it inherit nothing: no default ACL, no setgid."""
        self.changed = False
        """An entry in it was made or removed, so that its mtime on disk is not its own."""
        self.xattrs: Xattrs = ()
        """As applied."""
        self.stat: tuple[int, int, int, int, int, int] | None = None
        """Mode, uid, gid, size, nlink and mtime as they are on disk at the end."""

    def path(self, name: bytes | None = None) -> bytes:
        """Return the path from the root, of the directory itself or of a name in it."""
        parts = [] if name is None else [name]
        node: Directory = self
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts)) or ROOT

    def is_within(self, other: Directory) -> bool:
        """Return True if this is ``other`` or below it."""
        node: Directory | None = self
        while node is not None and node is not other:
            node = node.parent
        return node is other

    def put(self, name: bytes, child: Child) -> None:
        if self.children is None:
            self.children = {}
        self.children[name] = child

    def touch(self, layer: int) -> None:
        """Record that ``layer`` has written here, for this directory and all above it."""
        node: Directory | None = self
        while node is not None and node.touched != layer:
            node.touched = layer
            node = node.parent


Child = Leaf | Name | Directory


def layer_of(child: Leaf | Name) -> int:
    """Return the layer that wrote this name."""
    return child[0] | child[1] << 8 if isinstance(child, bytes) else child.layer


def leaf_of(child: Leaf | Name) -> Leaf | None:
    return child if isinstance(child, bytes) else child.inode.leaf


def inode_of(child: Leaf | Name) -> Inode:
    """Return the inode of a name, for further names of it."""
    return Inode(child) if isinstance(child, bytes) else child.inode


def link_target(child: Child) -> bytes | None:
    """Return the target of a symbolic link that a layer has written; None for anything else."""
    if isinstance(child, Directory):
        return None
    leaf = leaf_of(child)
    return leaf[_FIXED.size :] if leaf is not None and leaf[2] == LINK else None


def files(root: Directory) -> Iterator[tuple[Directory, bytes, Leaf | Name]]:
    """Yield directory, name and entry of every non-directory, in no particular order."""
    pending = [root]
    while pending:
        node = pending.pop()
        for name, child in (node.children or {}).items():
            if isinstance(child, Directory):
                pending.append(child)
            else:
                yield node, name, child


def in_mtree_order(root: Directory) -> Iterator[tuple[bytes, Child]]:
    """Yield path and entry of everything: a directory, its non-directories, its sub-directories, each bytewise."""
    pending = [(ROOT, root)]
    while pending:
        path, node = pending.pop()
        yield path, node
        if not node.children:
            continue
        prefix = b"" if node.parent is None else path + b"/"
        below: list[tuple[bytes, Directory]] = []
        for name in sorted(node.children):
            child = node.children[name]
            if isinstance(child, Directory):
                below.append((prefix + name, child))
            else:
                yield prefix + name, child
        pending += reversed(below)


def entries_of(root: Directory) -> Iterator[Entry]:
    """Yield every entry in mtree order; nlink of a non-directory is the number of its names in the tree."""
    links: dict[int, int] = {}
    for _, _, leaf in files(root):
        if isinstance(leaf, Name):
            links[id(leaf.inode)] = links.get(id(leaf.inode), 0) + 1
    for path, child in in_mtree_order(root):
        if isinstance(child, bytes):
            yield _leaf_entry(path, child, 1, ())
        elif isinstance(child, Directory):
            assert child.stat is not None
            yield Entry(path, "dir", *child.stat, xattrs=child.xattrs)
        elif child.inode.leaf is not None:
            yield _leaf_entry(path, child.inode.leaf, links[id(child.inode)], child.inode.xattrs)


def _leaf_entry(path: bytes, leaf: Leaf, nlink: int, xattrs: Xattrs) -> Entry:
    _, type_, mode, uid, gid, size, seconds, ns = _FIXED.unpack_from(leaf)
    tail = leaf[_FIXED.size :]
    return Entry(
        path,
        _TYPES[type_],
        mode,
        uid,
        gid,
        size,
        nlink,
        seconds * _NS + ns,
        link=tail if type_ == LINK else None,
        sha256=tail.hex() if type_ == FILE and tail else None,
        xattrs=xattrs,
        device=_DEVICE.unpack(tail) if type_ in (CHAR, BLOCK) else None,
    )

"""What an extraction knows of the tree it writes: enough to list it without a second walk, in little memory.

A million entries take about 250 MB: a file without xattrs and with one name is one packed ``bytes``
object in its directory's dict; only directories are objects of their own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from layerfarm.jobs.mtree.model import ROOT, Entry, EntryType, Xattrs

_FIXED: Final = Struct("<HBHIIQqI")
"""Layer, type, mode, uid, gid, size, seconds and nanoseconds of mtime; 33 bytes, less than an empty object.

Behind it: a file's 32 bytes of SHA-256 if it was computed, a link's target, a device's numbers.
"""
_DEVICE: Final = Struct("<II")
_TYPES: Final[tuple[EntryType, ...]] = ("file", "link", "char", "block", "fifo")
FILE: Final = 0
LINK: Final = 1
CHAR: Final = 2
BLOCK: Final = 3
FIFO: Final = 4
_NS: Final = 10**9

Leaf = bytes


def pack_leaf(layer: int, type_: int, mode: int, uid: int, gid: int, size: int, mtime: int, tail: bytes = b"") -> Leaf:
    """A non-directory as one object; ``mtime`` in nanoseconds, ``tail`` as the type asks for."""
    seconds, ns = divmod(mtime, _NS)
    return _FIXED.pack(layer, type_, mode, uid, gid, size, seconds, ns) + tail


def device_tail(major: int, minor: int) -> bytes:
    return _DEVICE.pack(major, minor)


class Inode:
    """A non-directory with several names, or with xattrs."""

    __slots__ = ("leaf", "xattrs")

    def __init__(self, leaf: Leaf | None, xattrs: Xattrs = ()) -> None:
        self.leaf = leaf
        """None: it was there before us, and nothing is known of it."""
        self.xattrs = xattrs


class Name(NamedTuple):
    """One name of an :class:`Inode`."""

    layer: int
    inode: Inode


class Metadata(NamedTuple):
    """What a directory is to get once everything in it is written."""

    mode: int
    uid: int
    gid: int
    mtime: int
    """Nanoseconds."""
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
        """By name."""
        self.complete = found is None
        """``children`` is all there is; else more may lie on disk."""
        self.found = found
        """What lstat said, if it was there before us."""
        self.metadata: Metadata | None = None
        """To be applied at the end; None: to be left, or put back, as it was found."""
        self.named = 0
        """The last layer that had an entry for it."""
        self.touched = 0
        """The last layer that had an entry for it or for something below."""
        self.fd = -1
        """An open descriptor, or -1. Kept by the cache, not here."""
        self.plain = True
        """New entries in it inherit nothing: no default ACL, no setgid."""
        self.changed = False
        """Something in it was made or removed, so its mtime on disk is not its own."""
        self.xattrs: Xattrs = ()
        """As applied."""
        self.stat: tuple[int, int, int, int, int, int] | None = None
        """Mode, uid, gid, size, nlink and mtime as they are on disk at the end."""

    def path(self, name: bytes | None = None) -> bytes:
        """The path from the root, of the directory itself or of a name in it."""
        parts = [] if name is None else [name]
        node: Directory = self
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts)) or ROOT

    def lies_in(self, other: Directory) -> bool:
        """It is ``other``, or below it."""
        node: Directory | None = self
        while node is not None and node is not other:
            node = node.parent
        return node is other

    def put(self, name: bytes, child: Child) -> None:
        if self.children is None:
            self.children = {}
        self.children[name] = child

    def touch(self, layer: int) -> None:
        """Note that ``layer`` has written here, for this directory and all above it."""
        node: Directory | None = self
        while node is not None and node.touched != layer:
            node.touched = layer
            node = node.parent


Child = Leaf | Name | Directory


def layer_of(child: Leaf | Name) -> int:
    """The layer that wrote this name."""
    return child[0] | child[1] << 8 if isinstance(child, bytes) else child.layer


def leaf_of(child: Leaf | Name) -> Leaf | None:
    return child if isinstance(child, bytes) else child.inode.leaf


def in_layer(child: Leaf | Name, layer: int) -> Leaf | Name:
    """The same name, written by ``layer``."""
    return layer.to_bytes(2, "little") + child[2:] if isinstance(child, bytes) else Name(layer, child.inode)


def link_target(child: Child) -> bytes | None:
    """The target of a symbolic link that this extraction wrote; None: no such link."""
    if isinstance(child, Directory):
        return None
    leaf = leaf_of(child)
    return leaf[_FIXED.size :] if leaf is not None and leaf[2] == LINK else None


def remember_stat(node: Directory, found: os.stat_result) -> None:
    mode = stat.S_IMODE(found.st_mode)
    node.stat = (mode, found.st_uid, found.st_gid, found.st_size, found.st_nlink, found.st_mtime_ns)


def entries_of(root: Directory) -> Iterator[Entry]:
    """Every entry in mtree order: a directory, its non-directories, its sub-directories, each bytewise."""
    links = _count_names(root)
    pending = [(ROOT, root)]
    while pending:
        path, node = pending.pop()
        yield _directory_entry(path, node)
        if not node.children:
            continue
        prefix = b"" if node.parent is None else path + b"/"
        below: list[tuple[bytes, Directory]] = []
        for name in sorted(node.children):
            child = node.children[name]
            if isinstance(child, Directory):
                below.append((prefix + name, child))
            elif isinstance(child, Name):
                leaf = child.inode.leaf
                if leaf is not None:
                    yield _leaf_entry(prefix + name, leaf, links[id(child.inode)], child.inode.xattrs)
            else:
                yield _leaf_entry(prefix + name, child, 1, ())
        pending += reversed(below)


def _count_names(root: Directory) -> dict[int, int]:
    """How many names inside the tree each inode has, by the inode's identity."""
    links: dict[int, int] = {}
    pending = [root]
    while pending:
        for child in (pending.pop().children or {}).values():
            if isinstance(child, Directory):
                pending.append(child)
            elif isinstance(child, Name):
                links[id(child.inode)] = links.get(id(child.inode), 0) + 1
    return links


def _directory_entry(path: bytes, node: Directory) -> Entry:
    assert node.stat is not None
    mode, uid, gid, size, nlink, mtime = node.stat
    return Entry(path, "dir", mode, uid, gid, size, nlink, mtime, xattrs=node.xattrs)


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

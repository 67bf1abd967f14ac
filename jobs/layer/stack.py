"""The tree that a stack of layers makes, in memory: no layer is unpacked.

The mirror of :class:`layerfarm.jobs.layer.extract.Extractor` for callers that need only to know the tree: comparing
images, merging their layers, checking a rebase.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from layerfarm.jobs.errors import MalformedLayer
from layerfarm.jobs.fs.resolve import MOST_LINKS
from layerfarm.jobs.layer.apply import Applier
from layerfarm.jobs.layer.nodes import (
    BLOCK,
    CHAR,
    FIFO,
    FILE,
    LINK,
    Child,
    Directory,
    Inode,
    Metadata,
    Name,
    files,
    in_mtree_order,
    layer_of,
    pack_leaf,
)
from layerfarm.jobs.layer.owners import HIGHEST_ID
from layerfarm.jobs.layer.tree import Tree
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.limits import limits as process_limits
from layerfarm.jobs.mtree.model import ROOT, Entry, EntryType
from layerfarm.jobs.tar.reader import Member, MemberReader, Readable

REGULAR: Final = 0x30
SYMLINK: Final = 0x32
IMPLIED: Final = Metadata(0o755, 0, 0, mtime=0, atime=0)
"""Metadata that extraction gives the root, and parents without an entry (umoci.md B3.2)."""
_TYPES: Final[dict[int, tuple[EntryType, int]]] = {
    REGULAR: ("file", FILE),
    SYMLINK: ("link", LINK),
    0x33: ("char", CHAR),
    0x34: ("block", BLOCK),
    0x36: ("fifo", FIFO),
}


class Read(NamedTuple):
    """One member of a layer, without its content."""

    member: Member
    sha256: str | None
    """Hexadecimal; of regular files only."""


class Source(Inode):
    """A non-directory, and the member that it comes from."""

    __slots__ = ("layer", "member", "ordinal", "sha256")

    def __init__(self, read: Read, layer: int, ordinal: int) -> None:
        member = read.member
        # Enough for the rules of applying: the type, and where a link leads.
        super().__init__(pack_leaf(layer, _TYPES[member.type][1], 0, 0, 0, 0, 0, member.link), member.xattrs)
        self.member = member
        self.sha256 = read.sha256
        self.layer = layer
        """1 for the lowest."""
        self.ordinal = ordinal
        """The position of the member in its layer, from 0."""


def read_members(stream: Readable, limits: Limits | None = None) -> Iterator[Read]:
    """Yield every member of a raw tar, with the digest of its content. The stream is read to its end.

    Raises (while iterating):
        LayerError, LimitExceeded: the stream is damaged or larger than the limits.
    """
    reader = MemberReader(stream, limits or process_limits())
    for member in reader.to_the_end():
        digest = None
        if member.type == REGULAR:
            hashed = hashlib.sha256()
            for piece in reader.expanded(member):
                hashed.update(piece)
            digest = hashed.hexdigest()
        yield Read(member, digest)


class Placed(NamedTuple):
    """One path of the tree."""

    entry: Entry
    """Sizes of directories are 0 and their link counts 1; nlink is the number of names in the tree."""
    layer: int
    """The last layer that has an entry for this path; 0 for a directory without any."""
    source: Source | None
    """None: a directory."""


class Stack(Applier["_MemoryTree"]):
    """Layers applied, lowest first, to a tree in memory."""

    def __init__(self, limits: Limits | None = None) -> None:
        limits = limits or process_limits()
        root = Directory(b"", None)
        root.metadata = IMPLIED
        super().__init__(_MemoryTree(root, IMPLIED, limits), limits)

    @classmethod
    def of(cls, layers: Iterable[Iterable[Read]], limits: Limits | None = None) -> Stack:
        """Return the tree of these layers, lowest first. Raises LayerError as applying them does."""
        stack = cls(limits)
        for reads in layers:
            stack.apply_read(reads)
        return stack

    @property
    def root(self) -> Directory:
        return self._tree.root

    def apply_read(self, reads: Iterable[Read]) -> None:
        """Apply one layer.

        Raises:
            LayerError: it is malformed; LimitExceeded: it exceeds the limits.
        """
        self.apply_members(self._tree.following(reads))

    def look_up(self, path: bytes) -> Source | None:
        """Return the file that a program inside finds at ``path``, links followed; None: no file is there."""
        for _ in range(MOST_LINKS):
            found = self._tree.find(path, through_own_links=True)
            child = None if found is None else self._tree.child(*found)
            if found is None or child is None or isinstance(child, Directory):
                return None
            source = source_of(child)
            if source.member.type != SYMLINK:
                return source
            target = source.member.link
            path = target if target.startswith(b"/") else found[0].path(target)
        return None

    def placed(self) -> Iterator[Placed]:
        """Yield every path in mtree order: a directory, its non-directories, its sub-directories, each bytewise."""
        names = self.names()
        for path, child in in_mtree_order(self.root):
            if isinstance(child, Directory):
                yield _directory(path, child)
            else:
                yield _leaf(path, child, len(names.get(source_of(child), (b"",))))

    def entries(self) -> Iterator[Entry]:
        """Return the entries of :meth:`placed`."""
        return (placed.entry for placed in self.placed())

    def names(self) -> dict[Source, tuple[bytes, ...]]:
        """Return the paths, sorted, of each inode that has several."""
        linked = self._tree.linked
        found: dict[Source, list[bytes]] = {}
        for node, name, child in files(self.root) if linked else ():
            source = source_of(child)
            if source in linked:
                found.setdefault(source, []).append(node.path(name))
        return {source: tuple(sorted(paths)) for source, paths in found.items() if len(paths) > 1}

    def paths_of(self, layer: int) -> Iterator[bytes]:
        """Yield the paths whose last entry is one of this layer, 1 for the lowest, in no particular order."""
        pending = [self.root]
        while pending:
            node = pending.pop()
            if node.named == layer:
                yield node.path()
            for name, child in (node.children or {}).items():
                if isinstance(child, Directory):
                    pending.append(child)
                elif layer_of(child) == layer:
                    yield node.path(name)


class _MemoryTree(Tree):
    """Records the source of each entry."""

    _read: Read
    _ordinal: int

    def __init__(self, root: Directory, implied: Metadata, limits: Limits) -> None:
        super().__init__(root, implied, limits)
        self.linked: set[Source] = set()
        """Inodes that got a second name."""

    def following(self, reads: Iterable[Read]) -> Iterator[Member]:
        """Yield the members of a layer; the tree records the current one."""
        for self._ordinal, self._read in enumerate(reads):
            member = self._read.member
            if member.uid > HIGHEST_ID or member.gid > HIGHEST_ID:
                raise MalformedLayer(f"uid {member.uid} or gid {member.gid} is out of range")
            yield member

    def write_file(self, member: Member, node: Directory, base: bytes) -> None:
        node.put(base, Name(self.layer, Source(self._read, self.layer, self._ordinal)))

    write_symlink = write_special = write_file

    def write_hardlink(self, source: Directory, name: bytes, node: Directory, base: bytes) -> None:
        assert source.children is not None
        self.linked.add(source_of(source.children[name]))

    def directory_metadata(self, member: Member) -> Metadata:
        return Metadata(member.mode, member.uid, member.gid, member.mtime, member.mtime, member.xattrs)


def compare_stacks(
    old: Stack, new: Stack, gone: Callable[[bytes], bool] = lambda path: False
) -> Iterator[tuple[bytes, Child | None, Child | None]]:
    """Yield each path of the new tree with its old and new entry, and each deleted path with None as new entry.

    Of a deleted directory only the topmost path is yielded. Paths for which ``gone`` returns True count as missing from
    both trees, with everything below them.
    """
    pending: list[tuple[bytes, Directory | None, Directory]] = [(ROOT, old.root, new.root)]
    while pending:
        path, before, after = pending.pop()
        yield path, before, after
        prefix = b"" if path == ROOT else path + b"/"
        olds = before.children or {} if before is not None else {}
        news = after.children or {}
        for name in olds.keys() - news.keys():
            if not gone(prefix + name):
                yield prefix + name, olds[name], None
        for name, child in news.items():
            below = prefix + name
            if gone(below):
                continue
            known = olds.get(name)
            if isinstance(child, Directory):
                pending.append((below, known if isinstance(known, Directory) else None, child))
            else:
                yield below, known, child


def is_same(before: Child | None, after: Child) -> bool:
    """Return True for the same member of the same layer, and for directories with the same metadata.

    Both are of stacks with the same lower layers.
    """
    if before is None or isinstance(before, Directory) or isinstance(after, Directory):
        return isinstance(before, Directory) and isinstance(after, Directory) and before.metadata == after.metadata
    old, new = source_of(before), source_of(after)
    return (old.layer, old.ordinal) == (new.layer, new.ordinal)


def source_of(child: Child) -> Source:
    """Return the source of a non-directory of a stack."""
    assert isinstance(child, Name) and isinstance(child.inode, Source)
    return child.inode


def _directory(path: bytes, node: Directory) -> Placed:
    assert node.metadata is not None
    mode, uid, gid, mtime, _, xattrs = node.metadata
    layer = 0 if node.metadata is IMPLIED else node.named
    return Placed(Entry(path, "dir", mode, uid, gid, 0, 1, mtime, xattrs=xattrs), layer, None)


def _leaf(path: bytes, child: Child, nlink: int) -> Placed:
    source = source_of(child)
    assert isinstance(child, Name)
    member = source.member
    kind = _TYPES[member.type][0]
    link = member.link if kind == "link" else None
    entry = Entry(
        path,
        kind,
        0o777 if kind == "link" else member.mode,
        member.uid,
        member.gid,
        len(member.link) if kind == "link" else member.size,
        nlink,
        member.mtime,
        link,
        source.sha256,
        member.xattrs,
        member.device if kind in ("char", "block") else None,
    )
    return Placed(entry, child.layer, source)

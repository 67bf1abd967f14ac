"""The tree that a stack of layers makes, without unpacking any: who wins where, by the rules of extraction.

The mirror of :class:`layerfarm.jobs.layer.extract.Extractor` for those who need to know the tree and not to have it:
comparing images, merging their layers, asking what a rebase would change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple

from layerfarm.jobs.errors import MalformedLayer
from layerfarm.jobs.layer.applying import Applier
from layerfarm.jobs.layer.idmap import HIGHEST_ID
from layerfarm.jobs.layer.modeltree import ModelTree
from layerfarm.jobs.layer.tree import BLOCK, CHAR, FIFO, FILE, LINK, Child, Directory, Inode, Metadata, Name, pack_leaf
from layerfarm.jobs.layer.writing import check_device, check_link
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.limits import limits as process_limits
from layerfarm.jobs.mtree.model import ROOT, Entry, EntryType
from layerfarm.jobs.tar.reader import Member, MemberReader

REGULAR: Final = 0x30
SYMLINK: Final = 0x32
IMPLIED: Final = Metadata(0o755, 0, 0, mtime=0, atime=0)
"""What extraction gives the root, and the parents that no entry names (umoci.md B3.2)."""
_TYPES: Final[dict[int, tuple[EntryType, int]]] = {
    REGULAR: ("file", FILE),
    SYMLINK: ("link", LINK),
    0x33: ("char", CHAR),
    0x34: ("block", BLOCK),
    0x36: ("fifo", FIFO),
}
_MOST_LINKS: Final = 40  # the kernel's own limit, path_resolution(7)
_ZEROS: Final = bytes(1 << 20)


class Read(NamedTuple):
    """One member of a layer, its content read and gone."""

    member: Member
    sha256: str | None
    """Hexadecimal; of regular files only."""


class Source(Inode):
    """A non-directory, and where it comes from."""

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


def read_members(stream: BinaryIO, limits: Limits | None = None, *, hash_content: bool = True) -> Iterator[Read]:
    """Every member of a raw tar, with the digest of its content if wanted. The stream is read to its end.

    Raises (while iterating):
        LayerError, LimitExceeded: the stream is damaged or larger than the limits.
    """
    reader = MemberReader(stream, limits or process_limits())
    for member in reader:
        yield Read(member, content_digest(reader, member) if hash_content and member.type == REGULAR else None)
    reader.drain()


def content_digest(reader: MemberReader, member: Member) -> str:
    """The SHA-256 of a file's content, holes included."""
    digest = hashlib.sha256()
    for piece in expanded(reader, member):
        digest.update(piece)
    return digest.hexdigest()


def expanded(reader: MemberReader, member: Member) -> Iterator[bytes | memoryview]:
    """A file's content as it reads, zeros where it has holes; pieces are valid until the next one."""
    if member.holes is None:
        yield from reader.content()
        return
    content = reader.content()
    held = memoryview(b"")
    end = 0
    for offset, length in member.holes.parts:
        yield from _zeros(offset - end)
        end = offset + length
        while length:
            held = held or next(content)
            piece, held = held[:length], held[length:]
            length -= len(piece)
            yield piece
    yield from _zeros(member.holes.size - end)


def _zeros(size: int) -> Iterator[bytes]:
    while size > 0:
        yield _ZEROS[:size]
        size -= len(_ZEROS)


class Placed(NamedTuple):
    """One path of the tree."""

    entry: Entry
    """Sizes of directories are 0 and their link counts 1; nlink is the number of names in the tree."""
    layer: int
    """The last layer that has an entry for this path; 0 for a directory that none names."""
    source: Source | None
    """None: a directory."""


class Stack(Applier):
    """Layers applied, lowest first, to a tree that is nowhere on disk."""

    def __init__(self, limits: Limits | None = None) -> None:
        limits = limits or process_limits()
        root = Directory(b"", None)
        root.metadata = IMPLIED
        self._recorder = _Recorder(ModelTree(root, IMPLIED, limits), limits)
        super().__init__(self._recorder.tree, self._recorder, limits)

    @classmethod
    def of(cls, layers: Iterable[Iterable[Read]], limits: Limits | None = None) -> Stack:
        """The tree of these layers, lowest first. Raises LayerError as applying them does."""
        stack = cls(limits)
        for reads in layers:
            stack.apply_read(reads)
        return stack

    @property
    def root(self) -> Directory:
        """The root of the tree."""
        return self._tree.root

    def look_up(self, path: bytes) -> Source | None:
        """The file that a program inside finds at ``path``, links followed; None: there is none, or a directory."""
        for _ in range(_MOST_LINKS):
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

    def apply_read(self, reads: Iterable[Read]) -> None:
        """Apply one layer.

        Raises:
            LayerError: it is malformed; LimitExceeded: it exceeds the limits.
        """
        self.apply_members(self._recorder.following(reads))

    def placed(self) -> Iterator[Placed]:
        """Every path in mtree order: a directory, its non-directories, its sub-directories, each bytewise."""
        names = self.names()
        pending: list[tuple[bytes, Directory]] = [(ROOT, self._tree.root)]
        while pending:
            path, node = pending.pop()
            yield _directory(path, node)
            prefix = b"" if node.parent is None else path + b"/"
            below: list[tuple[bytes, Directory]] = []
            for name, child in sorted((node.children or {}).items()):
                if isinstance(child, Directory):
                    below.append((prefix + name, child))
                else:
                    source = source_of(child)
                    yield _leaf(prefix + name, child, source, len(names.get(source, (b"",))))
            pending += reversed(below)

    def entries(self) -> Iterator[Entry]:
        """The entries of :meth:`placed`."""
        return (placed.entry for placed in self.placed())

    def names(self) -> dict[Source, tuple[bytes, ...]]:
        """The paths, sorted, of each inode that has several."""
        found: dict[Source, list[bytes]] = {}
        pending: list[tuple[bytes, Directory]] = [(b"", self._tree.root)]
        while pending:
            prefix, node = pending.pop()
            for name, child in (node.children or {}).items():
                if isinstance(child, Directory):
                    pending.append((prefix + name + b"/", child))
                else:
                    found.setdefault(source_of(child), []).append(prefix + name)
        return {source: tuple(sorted(paths)) for source, paths in found.items() if len(paths) > 1}


class _Recorder:
    """The writer of a stack: it remembers instead."""

    reader: MemberReader

    def __init__(self, tree: ModelTree, limits: Limits) -> None:
        self.tree = tree
        self._limits = limits
        self._read: Read
        self._ordinal = -1
        self._unpacked = 0

    def following(self, reads: Iterable[Read]) -> Iterator[Member]:
        for self._ordinal, self._read in enumerate(reads):
            member = self._read.member
            if member.uid > HIGHEST_ID or member.gid > HIGHEST_ID:
                raise MalformedLayer(f"uid {member.uid} or gid {member.gid} is out of range")
            yield member

    def regular(self, member: Member, node: Directory, base: bytes) -> None:
        self._unpacked += member.size
        if self._unpacked > self._limits.unpacked_bytes:
            raise self._limits.exceeded("unpacked_bytes", "image unpacks to more than {} bytes")
        self._put(member, node, base)

    def symlink(self, member: Member, node: Directory, base: bytes) -> None:
        check_link(member)
        self._put(member, node, base)

    def special(self, member: Member, node: Directory, base: bytes) -> None:
        check_device(member)
        self._put(member, node, base)

    def hardlink(self, source: Directory, name: bytes, node: Directory, base: bytes) -> None:
        self._make_room(node, base)

    def metadata(self, member: Member) -> Metadata:
        return Metadata(member.mode, member.uid, member.gid, member.mtime, member.mtime, member.xattrs)

    def report(self, size: int) -> None:
        pass

    def _put(self, member: Member, node: Directory, base: bytes) -> None:
        self._make_room(node, base)
        node.put(base, Name(self.tree.layer, Source(self._read, self.tree.layer, self._ordinal)))

    def _make_room(self, node: Directory, base: bytes) -> None:
        existing = self.tree.child(node, base)
        if existing is not None:
            self.tree.remove(node, base, existing)
        node.touch(self.tree.layer)


def source_of(child: Child) -> Source:
    """Where a non-directory of a stack comes from."""
    assert isinstance(child, Name) and isinstance(child.inode, Source)
    return child.inode


def _directory(path: bytes, node: Directory) -> Placed:
    assert node.metadata is not None
    mode, uid, gid, mtime, _, xattrs = node.metadata
    layer = 0 if node.metadata is IMPLIED else node.named
    return Placed(Entry(path, "dir", mode, uid, gid, 0, 1, mtime, xattrs=xattrs), layer, None)


def _leaf(path: bytes, child: Child, source: Source, nlink: int) -> Placed:
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

"""The rules by which layers change a tree (image-spec layer.md "Applying Changesets").

Nothing here knows of a disk: :mod:`layerfarm.jobs.layer.extract` applies layers to a directory by these rules,
:mod:`layerfarm.jobs.layer.stack` to a tree that exists in memory only. Every rule is one of umoci.md B2 to B5,
without its BUGs.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final, Protocol

from layerfarm.jobs.errors import LayerError, LayerfarmError, MalformedLayer, RootfsError, UnsupportedEntry
from layerfarm.jobs.layer.modeltree import ModelTree, clean
from layerfarm.jobs.layer.tree import Directory, Inode, Metadata, Name
from layerfarm.jobs.layer.whiteouts import AUFS_LINKS, OPAQUE, PREFIX, whiteout_target
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.tar.reader import Member, MemberReader

_MOST_LAYERS: Final = 65535
_MOST_ROUNDS: Final = 40
"""Through the links whose target came later; only a way that another late link leads takes more than one."""
_AUFS_METADATA: Final = b".wh..wh."


class Writer(Protocol):
    """Who makes the entries that an :class:`Applier` has found a place for."""

    reader: MemberReader
    """Where the content of the current layer's members comes from."""

    def regular(self, member: Member, node: Directory, base: bytes) -> None:
        """Write a file, in place of whatever is there."""

    def symlink(self, member: Member, node: Directory, base: bytes) -> None:
        """Write a symbolic link."""

    def special(self, member: Member, node: Directory, base: bytes) -> None:
        """Write a device or fifo."""

    def hardlink(self, source: Directory, name: bytes, node: Directory, base: bytes) -> None:
        """Give what is ``name`` in ``source`` one more name; the tree's model is the caller's affair."""

    def metadata(self, member: Member) -> Metadata:
        """What a directory is to get by this entry."""

    def report(self, size: int) -> None:
        """Tell progress; ``size`` 0 at the end of a layer."""


class Applier:
    """Applies layers, one after the other, to a tree."""

    def __init__(self, tree: ModelTree, writer: Writer, limits: Limits, *, keep_dirlinks: bool = False) -> None:
        self._tree = tree
        self._writer = writer
        self._limits = limits
        self._keep_dirlinks = keep_dirlinks
        self._deferred: dict[tuple[Directory, bytes], Member] = {}
        self._finished = False
        self._has_aufs_links = False
        """The current layer has files in the directory that AUFS keeps for hard links."""
        self._handlers: dict[int, Callable[[Member, Directory, bytes], None]] = {
            ord("0"): writer.regular,
            ord("1"): self._hardlink,
            ord("2"): writer.symlink,
            ord("3"): writer.special,
            ord("4"): writer.special,
            ord("5"): self._directory,
            ord("6"): writer.special,
        }

    def apply(self, stream: BinaryIO) -> None:
        """Apply one layer's raw tar. The stream is read to its end, also what follows the archive.

        Raises:
            LayerError: the layer is malformed.
            RootfsError: the tree cannot be written, or a path would lead out of it.
            LimitExceeded: the layer exceeds the limits.
        """
        reader = self._writer.reader = MemberReader(stream, self._limits)
        self.apply_members(_to_the_end(reader))

    def apply_members(self, members: Iterable[Member]) -> None:
        """The same for the members of one layer. Raises as :meth:`apply`."""
        if self._finished:
            raise LayerError("no layer can be applied to a finished tree")
        tree = self._tree
        if tree.layer == _MOST_LAYERS:
            raise LayerError(f"more than {_MOST_LAYERS} layers")
        tree.begin_layer()
        self._deferred.clear()
        self._has_aufs_links = False
        member: Member | None = None
        try:
            for member in members:
                self._apply(member)
            member = None
            self._link_deferred()
            self._remove_aufs_links()
        except OSError as error:
            raise explained(error, None if member is None else member.name) from error
        except LayerfarmError as error:
            if error.where is None and member is not None:
                raise type(error)(error.what, where=member.name, hint=error.hint) from error
            raise
        self._writer.report(0)

    # --- one member ----------------------------------------------------------------------------------

    def _apply(self, member: Member) -> None:
        name = member.name
        if b".wh." in name:
            if _is_aufs_link(member):
                self._has_aufs_links = True
            elif self._is_deletion(name):
                return
        handler = self._handlers.get(member.type)
        if handler is None:
            raise UnsupportedEntry(f"tar entry of type {chr(member.type)!r}", where=name)
        place = self._tree.place(name)
        if place is not None:
            node, base = place
            if self._deferred:
                self._deferred.pop(place, None)
            handler(member, node, base)
        elif member.type == 0x35:
            self._set_metadata(member, self._tree.root)
        else:
            # A link as root would redirect all layers above (CVE-2021-29136).
            raise MalformedLayer("the root of a layer must be a directory", where=name)

    def _is_deletion(self, name: bytes) -> bool:
        """Apply ``name`` if it is a whiteout; what else must not exist under such a name is an error."""
        parts = name.split(b"/")
        while parts and parts[-1] in (b"", b"."):
            parts.pop()
        if not parts:
            return False
        base = parts.pop()
        for part in parts:
            if part.startswith(PREFIX):
                if part.startswith(_AUFS_METADATA):
                    return True
                raise MalformedLayer("a directory cannot have a name that starts with .wh.", where=name)
        if not base.startswith(PREFIX):
            return False
        target = None if base == OPAQUE else whiteout_target(base)
        # Links that the layer made are not followed: a whiteout applies to the layers below, in which this
        # path led elsewhere. umoci writes such layers, and loses files by them (B1.12).
        if target is not None:
            found = self._tree.find(b"/".join((*parts, target)), through_own_links=False)
            if found is not None:
                self._tree.hide(*found)
        elif not clean(b"/".join(parts)):
            self._tree.hide_all(self._tree.root)
        else:
            found = self._tree.find(b"/".join((*parts, b".opaque")), through_own_links=False)
            if found is not None:
                self._tree.hide_all(found[0])
        return True

    def _directory(self, member: Member, node: Directory, base: bytes) -> None:
        tree = self._tree
        existing = tree.child(node, base)
        if not isinstance(existing, Directory):
            if existing is not None:
                if self._keep_dirlinks:
                    target = tree.target(node, base, existing)
                    if target is not None and tree.leads_to_directory(node, target):
                        tree.keep(node, base, existing)
                        return
                tree.remove(node, base, existing)
            existing = tree.make_directory(node, base)
        self._set_metadata(member, existing)

    def _set_metadata(self, member: Member, node: Directory) -> None:
        node.metadata = self._writer.metadata(member)
        node.named = self._tree.layer
        node.touch(self._tree.layer)

    # --- hard links ----------------------------------------------------------------------------------

    def _hardlink(self, member: Member, node: Directory, base: bytes) -> None:
        """Link now, or at the end of the layer if the target is yet to come (B3.6)."""
        if not self._link(member, node, base):
            self._deferred[node, base] = member

    def _link(self, member: Member, node: Directory, base: bytes) -> bool:
        """Make the link; False if its target does not exist."""
        tree = self._tree
        found = tree.find(member.link, through_own_links=True)
        if found is None:
            if not clean(member.link):
                raise MalformedLayer("hard link to the root", where=member.name)
            return False
        source, name = found
        target = tree.child(source, name)
        if target is None:
            return False
        if isinstance(target, Directory):
            raise MalformedLayer("hard link to a directory", where=member.name)
        if source is node and name == base:
            # A link to itself says that the file is there; it is.
            tree.keep(node, base, target)
            return True
        replaced = tree.child(node, base)
        if isinstance(replaced, Directory) and source.lies_in(replaced):
            raise MalformedLayer("hard link takes the place of a directory that its target is in", where=member.name)
        if isinstance(target, bytes):
            target = Name(target[0] | target[1] << 8, Inode(target))
            source.put(name, target)
        self._writer.hardlink(source, name, node, base)
        node.put(base, Name(tree.layer, target.inode))
        return True

    def _link_deferred(self) -> None:
        """Links whose target came later."""
        waiting = list(self._deferred.values())
        for _ in range(_MOST_ROUNDS):
            left = self._link_waiting(waiting)
            if not left:
                return
            if len(left) == len(waiting):
                break
            waiting = left
        raise MalformedLayer("hard link to a file that does not exist", where=left[0].name)

    def _remove_aufs_links(self) -> None:
        """Leave of the files that AUFS kept for hard links the links alone."""
        if self._has_aufs_links:
            directory = self._tree.child(self._tree.root, AUFS_LINKS)
            if directory is not None:
                self._tree.remove(self._tree.root, AUFS_LINKS, directory)

    def _link_waiting(self, waiting: list[Member]) -> list[Member]:
        """Make these links, one that waits for another as soon as that is made; those that cannot be made.

        So a chain of links, each to the next one, takes as many steps as it has links.
        """
        tree = self._tree
        blocked: dict[tuple[Directory, bytes] | None, list[Member]] = {}
        """By the place of the target; None: its directory does not exist."""
        for first in waiting:
            ready = [first]
            while ready:
                member = ready.pop()
                place = tree.place(member.name)
                if place is not None and self._link(member, *place):
                    ready += reversed(blocked.pop(place, ()))
                else:
                    blocked.setdefault(tree.find(member.link, through_own_links=True), []).append(member)
        return [member for members in blocked.values() for member in members]


def _is_aufs_link(member: Member) -> bool:
    """A file that is there for the layer's hard links only; Docker reads it, and ignores all else of AUFS (B4.6)."""
    parts = clean(member.name)
    return member.type == 0x30 and parts[:1] == [AUFS_LINKS] and len(parts) == 2 and not parts[1].startswith(PREFIX)


def _to_the_end(reader: MemberReader) -> Iterator[Member]:
    yield from reader
    reader.drain()


def explained(error: OSError, where: bytes | None) -> LayerfarmError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
        return RootfsError(f"the tree changed while a layer was applied, {error.strerror}", where=where)
    hint = {errno.EPERM: "run as root, or use --rootless", errno.EACCES: "run as root, or use --rootless"}
    return RootfsError(f"entry cannot be written, {error.strerror}", where=where, hint=hint.get(error.errno or 0))

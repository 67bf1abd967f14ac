"""The rules by which layers change a tree (image-spec layer.md "Applying Changesets"; umoci.md B2 to B5).

The same rules serve :mod:`layerfarm.jobs.layer.extract`, which applies layers to a directory, and
:mod:`layerfarm.jobs.layer.stack`, which applies them in memory.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from layerfarm.jobs.errors import LayerError, LayerfarmError, MalformedLayer, RootfsError, UnsupportedEntry
from layerfarm.jobs.layer.names import AUFS_LINKS, OPAQUE, PREFIX, clean, whiteout_target
from layerfarm.jobs.layer.nodes import Directory, Name, inode_of, layer_of
from layerfarm.jobs.layer.tree import Tree
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.tar.reader import Member

_MOST_LAYERS: Final = 65535
_MOST_ROUNDS: Final = 40
"""Passes over links whose targets come later; only a path through another such link takes more than one."""
_AUFS_METADATA: Final = b".wh..wh."
_HIGHEST_MAJOR: Final = (1 << 12) - 1
_HIGHEST_MINOR: Final = (1 << 20) - 1
"""Limits of Linux (``MINORBITS``); beyond them mknod(2) would truncate the number and create another device."""

Place = tuple[Directory, bytes]
AnyTree = TypeVar("AnyTree", bound=Tree)


class Applier(Generic[AnyTree]):
    """Applies layers, one after the other, to a tree."""

    def __init__(self, tree: AnyTree, limits: Limits, *, keep_dirlinks: bool = False) -> None:
        self._tree = tree
        self._limits = limits
        self._keep_dirlinks = keep_dirlinks
        self._deferred: dict[Place, Member] = {}
        self._has_aufs_links = False
        """The current layer has files in the directory that AUFS keeps for hard links."""
        self._unpacked = 0
        """Bytes of the files of all layers."""
        self._handlers: dict[int, Callable[[Member, Directory, bytes], None]] = {
            ord("0"): self._file,
            ord("1"): self._hardlink,
            ord("2"): self._symlink,
            ord("3"): self._special,
            ord("4"): self._special,
            ord("5"): self._directory,
            ord("6"): self._special,
        }

    def apply_members(self, members: Iterable[Member]) -> None:
        """Apply one layer.

        Raises:
            LayerError: the layer is malformed.
            RootfsError: the tree cannot be written, or a path would lead out of it.
            LimitExceeded: the layer exceeds the limits.
        """
        if self._tree.layer == _MOST_LAYERS:
            raise LayerError(f"more than {_MOST_LAYERS} layers")
        self._tree.begin_layer()
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
        """Apply ``name``, which contains ``.wh.``, and return True if it is a whiteout.

        Others are errors, AUFS' files, or have it inside a component.
        """
        parts = name.split(b"/")
        while parts[-1] in (b"", b"."):
            parts.pop()
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

    def _file(self, member: Member, node: Directory, base: bytes) -> None:
        self._unpacked += member.size
        if self._unpacked > self._limits.unpacked_bytes:
            raise self._limits.exceeded("unpacked_bytes", "image unpacks to more than {} bytes")
        self._tree.make_room(node, base)
        self._tree.write_file(member, node, base)

    def _symlink(self, member: Member, node: Directory, base: bytes) -> None:
        if not member.link or b"\0" in member.link:
            raise MalformedLayer("symbolic link has no target", where=member.name)
        self._tree.make_room(node, base)
        self._tree.write_symlink(member, node, base)

    def _special(self, member: Member, node: Directory, base: bytes) -> None:
        major, minor = member.device
        if major > _HIGHEST_MAJOR or minor > _HIGHEST_MINOR:
            raise MalformedLayer("device number is out of range", where=member.name)
        self._tree.make_room(node, base)
        self._tree.write_special(member, node, base)

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
        node.metadata = self._tree.directory_metadata(member)
        node.named = self._tree.layer
        node.touch(self._tree.layer)

    # --- hard links ----------------------------------------------------------------------------------

    def _hardlink(self, member: Member, node: Directory, base: bytes) -> None:
        """Link now, or at the end of the layer if the target does not exist yet (B3.6)."""
        if not self._link(member, node, base):
            self._deferred[node, base] = member

    def _link(self, member: Member, node: Directory, base: bytes) -> bool:
        """Create the link; return False if its target does not exist."""
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
            # A link to itself: the file is there already.
            tree.keep(node, base, target)
            return True
        replaced = tree.child(node, base)
        if isinstance(replaced, Directory) and source.is_within(replaced):
            raise MalformedLayer("hard link replaces a directory that contains its target", where=member.name)
        inode = inode_of(target)
        if isinstance(target, bytes):
            source.put(name, Name(layer_of(target), inode))
        tree.make_room(node, base)
        tree.write_hardlink(source, name, node, base)
        node.put(base, Name(tree.layer, inode))
        return True

    def _link_deferred(self) -> None:
        """Create the links whose targets came later."""
        waiting = list(self._deferred.values())
        for _ in range(_MOST_ROUNDS):
            left = self._link_waiting(waiting)
            if not left:
                return
            if len(left) == len(waiting):
                break
            waiting = left
        raise MalformedLayer("hard link to a file that does not exist", where=left[0].name)

    def _link_waiting(self, waiting: list[Member]) -> list[Member]:
        """Create these links, each as soon as its target exists; return those that cannot be created.

        A chain of links, each to the next one, takes as many steps as it has links.
        """
        tree = self._tree
        blocked: dict[Place | None, list[Member]] = {}
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

    def _remove_aufs_links(self) -> None:
        """Remove AUFS' own names of the files with hard links; the links stay."""
        if self._has_aufs_links:
            directory = self._tree.child(self._tree.root, AUFS_LINKS)
            if directory is not None:
                self._tree.remove(self._tree.root, AUFS_LINKS, directory)


def _is_aufs_link(member: Member) -> bool:
    """Return True for a mere target of the layer's hard links. Docker reads no other file of AUFS (B4.6)."""
    parts = clean(member.name)
    return member.type == 0x30 and parts[:1] == [AUFS_LINKS] and len(parts) == 2 and not parts[1].startswith(PREFIX)


def explained(error: OSError, where: bytes | None) -> LayerfarmError:
    """Convert an error of the kernel to one of a layer or tree; ``where``: the entry that was being written."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
        return RootfsError(f"the tree changed while a layer was applied, {error.strerror}", where=where)
    hint = "run as root, or use --rootless" if error.errno in (errno.EPERM, errno.EACCES) else None
    return RootfsError(f"entry cannot be written, {error.strerror}", where=where, hint=hint)

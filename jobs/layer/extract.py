"""Layers onto a tree: tar streams applied to a directory (image-spec layer.md "Applying Changesets").

The mirror of :mod:`jobs.layer.generate`. Every rule is one of umoci.md B2 to B5, without its BUGs.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from jobs.errors import LayerError, LayerfarmError, MalformedLayer, RootfsError, UnsupportedEntry
from jobs.layer.members import Member, MemberReader
from jobs.layer.metadata import Dresser, Warnings, is_safe_time
from jobs.layer.tree import (
    Directory,
    Inode,
    Metadata,
    Name,
    entries_of,
    remember_stat,
)
from jobs.layer.whiteouts import OPAQUE, PREFIX, whiteout_target
from jobs.layer.worktree import KEPT_XATTRS, WorkTree, clean
from jobs.layer.writing import EntryWriter, ExtractOptions
from jobs.mtree.model import Entry
from jobs.rootfs import Rootfs, get_xattrs

__all__ = ["ExtractOptions", "Extractor", "unpack_layer"]

_MOST_LAYERS: Final = 65535
_AUFS_METADATA: Final = b".wh..wh."


def unpack_layer(root: Path, stream: BinaryIO, options: ExtractOptions | None = None) -> None:
    """Apply one layer, a raw tar stream, to the tree at ``root``.

    Directories that the layer has no entry for keep their metadata, mtime included.

    Raises:
        RootfsNotFound: ``root`` is not a directory.
        LayerError: the layer is malformed; RootfsError: the tree cannot be written. Either leaves what
            was done until then.
    """
    with Extractor(root, options) as extractor:
        extractor.apply(stream)
        extractor.finish()


class Extractor:
    """Applies layers, one after the other, to a directory; a context manager.

    Directories get their metadata once, in :meth:`finish`, which must be called for a whole tree.
    Nobody else may change the tree meanwhile: nothing outside is ever touched, but an error may come (B2.4).

    Raises:
        RootfsNotFound: ``root`` is not a directory.
    """

    def __init__(self, root: Path, options: ExtractOptions | None = None) -> None:
        self._options = options or ExtractOptions()
        self._rootfs = Rootfs(root)
        try:
            self._warnings = Warnings(self._options.warn)
            self._dresser = Dresser(
                self._options.uid_map, self._options.gid_map, self._options.rootless, self._warnings
            )
            self._was_empty = not os.listdir(self._rootfs.fd)
            if self._was_empty:
                # The bundle's own place must not leak into the image: a default ACL there would reach
                # every entry below.
                with suppress(OSError):
                    os.removexattr(self._rootfs.fd, "system.posix_acl_default")
            implied = Metadata(0o755, *self._dresser.owner(0, 0), mtime=0, atime=0)
            self._tree = WorkTree(self._rootfs.fd, implied, self._options.limits)
            self._tree.root.complete = self._was_empty
        except BaseException:
            self._rootfs.close()
            raise
        self._writer = EntryWriter(self._tree, self._dresser, self._warnings, self._options)
        self._deferred: dict[tuple[Directory, bytes], Member] = {}
        self._finished = False
        self._handlers: dict[int, Callable[[Member, Directory, bytes], None]] = {
            ord("0"): self._writer.regular,
            ord("1"): self._hardlink,
            ord("2"): self._writer.symlink,
            ord("3"): self._writer.special,
            ord("4"): self._writer.special,
            ord("5"): self._directory,
            ord("6"): self._writer.special,
        }

    @property
    def warnings(self) -> list[str]:
        """What went otherwise than the layers asked, each kind once."""
        return self._warnings.texts

    def apply(self, stream: BinaryIO) -> None:
        """Apply one layer's raw tar. The stream is read to its end, also what follows the archive.

        Raises:
            LayerError: the layer is malformed.
            RootfsError: the tree cannot be written, or a path would lead out of it.
            LimitExceeded: the layer exceeds the limits.
        """
        if self._finished:
            raise LayerError("no layer can be applied to a finished tree")
        tree = self._tree
        if tree.layer == _MOST_LAYERS:
            raise LayerError(f"more than {_MOST_LAYERS} layers")
        tree.layer += 1
        self._deferred.clear()
        reader = self._writer.reader = MemberReader(stream, self._options.limits)
        member: Member | None = None
        try:
            for member in reader:
                self._apply(member)
            reader.drain()
            member = None
            self._link_deferred()
        except OSError as error:
            raise _explained(error, None if member is None else member.name) from error
        except LayerfarmError as error:
            if error.where is None and member is not None:
                raise type(error)(error.what, where=member.name, hint=error.hint) from error
            raise
        self._writer.report(0)

    def finish(self) -> None:
        """Give every directory its metadata, deepest first. Nothing can be applied afterwards.

        Raises:
            RootfsError: metadata cannot be set.
        """
        if self._finished:
            return
        self._finished = True
        order: list[Directory] = []
        pending = [self._tree.root]
        while pending:
            node = pending.pop()
            order.append(node)
            pending += [child for child in (node.children or {}).values() if isinstance(child, Directory)]
        # Parents come before their children in this order, so children before their parents from its end.
        while order:
            node = order.pop()
            try:
                self._finish_directory(node)
            except OSError as error:
                raise _explained(error, node.path()) from error
            except RootfsError as error:
                raise RootfsError(error.what, where=node.path(), hint=error.hint) from error
        self._tree.close()

    def entries(self) -> Iterator[Entry]:
        """The whole tree in mtree order as it now lies on disk, known without a second walk.

        Raises:
            LayerError: not finished, or the tree was not empty at the begin.
        """
        if not self._finished or not self._was_empty:
            raise LayerError("entries are known of a finished tree that began empty")
        return entries_of(self._tree.root)

    def close(self) -> None:
        self._tree.close()
        self._rootfs.close()

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- one member ----------------------------------------------------------------------------------

    def _apply(self, member: Member) -> None:
        name = member.name
        if b".wh." in name and self._is_deletion(name):
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
        # The layer's own links are not followed: a whiteout speaks of the layers below, in which this
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
                if self._options.keep_dirlinks:
                    target = tree.target(node, base, existing)
                    if target is not None and tree.leads_to_directory(node, target):
                        tree.keep(node, base, existing)
                        return
                tree.remove(node, base, existing)
            existing = tree.make_directory(node, base)
        self._set_metadata(member, existing)

    def _set_metadata(self, member: Member, node: Directory) -> None:
        atime = member.mtime if member.atime is None else member.atime
        owner = self._dresser.owner(member.uid, member.gid)
        node.metadata = Metadata(member.mode, *owner, member.mtime, atime, self._dresser.xattrs(member))
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
        if isinstance(target, bytes):
            target = Name(target[0] | target[1] << 8, Inode(target))
            source.put(name, target)
        held = os.dup(tree.fd(source))
        try:
            self._writer.make_room(node, base)
            # The last component is not followed: a link to a symbolic link is one more name of it (B2.3).
            os.link(name, base, src_dir_fd=held, dst_dir_fd=tree.fd(node), follow_symlinks=False)
        finally:
            os.close(held)
        node.put(base, Name(tree.layer, target.inode))
        return True

    def _link_deferred(self) -> None:
        """Links whose target came later; in rounds, for the target may be such a link itself."""
        waiting = list(self._deferred.values())
        while waiting:
            missing: list[Member] = []
            for member in waiting:
                place = self._tree.place(member.name)
                if place is None or not self._link(member, *place):
                    missing.append(member)
            if len(missing) == len(waiting):
                raise MalformedLayer("hard link to a file that does not exist", where=missing[0].name)
            waiting = missing

    # --- directories at the end ----------------------------------------------------------------------

    def _finish_directory(self, node: Directory) -> None:
        wanted = node.metadata
        if wanted is None and not node.changed and not self._was_empty:
            return
        fd = self._tree.fd(node)
        found = node.found
        if wanted is not None:
            if found is not None:
                self._dresser.clear(fd)
            owner = wanted.uid, wanted.gid
            node.xattrs = self._dresser.dress_fd(fd, owner, wanted.mode, wanted.mtime, wanted.atime, wanted.xattrs)
        elif found is not None:
            if stat.S_IMODE(found.st_mode) != stat.S_IMODE(os.fstat(fd).st_mode):
                os.fchmod(fd, stat.S_IMODE(found.st_mode))
            os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))
        if self._was_empty:
            now = os.fstat(fd)
            if wanted is not None and not is_safe_time(wanted.mtime):
                self._dresser.check_time(now, wanted.mtime)
            if found is not None and wanted is None:
                node.xattrs = tuple(pair for pair in get_xattrs(fd) if pair[0] not in KEPT_XATTRS)
            remember_stat(node, now)


def _explained(error: OSError, where: bytes | None) -> LayerfarmError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
        return RootfsError(f"the tree changed while a layer was applied, {error.strerror}", where=where)
    hint = {errno.EPERM: "run as root, or use --rootless", errno.EACCES: "run as root, or use --rootless"}
    return RootfsError(f"entry cannot be written, {error.strerror}", where=where, hint=hint.get(error.errno or 0))

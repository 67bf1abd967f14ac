"""Layers onto a tree: tar streams applied to a directory (image-spec layer.md "Applying Changesets").

The mirror of :mod:`layerfarm.jobs.layer.generate`. The rules are those of :mod:`layerfarm.jobs.layer.applying`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from layerfarm.jobs.errors import LayerError, RootfsError
from layerfarm.jobs.fs import HOST_XATTRS, Rootfs, get_xattrs
from layerfarm.jobs.layer.applying import Applier, explained
from layerfarm.jobs.layer.metadata import Dresser, Warnings, is_safe_time
from layerfarm.jobs.layer.tree import Directory, Metadata, entries_of, remember_stat
from layerfarm.jobs.layer.unwritten import find_unwritten
from layerfarm.jobs.layer.worktree import WorkTree
from layerfarm.jobs.layer.writing import EntryWriter, ExtractOptions
from layerfarm.jobs.mtree.model import Entry
from layerfarm.jobs.tar.reader import MemberReader

__all__ = ["ExtractOptions", "Extractor", "unpack_layer"]


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


class Extractor(Applier):
    """Applies layers, one after the other, to a directory; a context manager.

    Directories get their metadata once, in :meth:`finish`, which must be called for a whole tree.
    Nobody else may change the tree meanwhile: nothing outside is ever touched, but an error may come (B2.4).

    Raises:
        RootfsNotFound: ``root`` is not a directory.
    """

    _tree: WorkTree
    _writer: EntryWriter

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
            tree = WorkTree(self._rootfs.fd, implied, self._options.limits)
            tree.root.complete = self._was_empty
            if self._options.doomed is not None and not self._was_empty:
                raise LayerError("only of a tree that begins empty is it known what will be left of it")
        except BaseException:
            self._rootfs.close()
            raise
        writer = EntryWriter(tree, self._dresser, self._warnings, self._options)
        self.count = 1
        """Entries of the tree, the root included; known when it is finished."""
        super().__init__(tree, writer, self._options.limits, keep_dirlinks=self._options.keep_dirlinks)

    def warn(self, text: str) -> None:
        """Add a warning about what is being applied."""
        self._warnings.once(text, text)

    @property
    def warnings(self) -> list[str]:
        """What went otherwise than the layers asked, each kind once."""
        return self._warnings.texts

    def left_out(self) -> list[int]:
        """The layers, 1 for the lowest, with files that were left out and are in the tree all the same.

        Once all layers are applied each of these has to be given to :meth:`write_left_out`.
        """
        return sorted(find_unwritten(self._tree.root)) if self._options.doomed is not None else []

    def write_left_out(self, layer: int, stream: BinaryIO) -> None:
        """Write what was left out of this layer and is in the tree. Raises as :meth:`apply`."""
        wanted = find_unwritten(self._tree.root).get(layer, {})
        reader = self._writer.reader = MemberReader(stream, self._limits)
        for member in reader:
            places = wanted.get(reader.ordinal)
            if places is not None:
                try:
                    self._writer.write_left_out(member, places)
                except OSError as error:
                    raise explained(error, member.name) from error
        reader.drain()

    def finish(self) -> None:
        """Give every directory its metadata, deepest first. Nothing can be applied afterwards.

        Raises:
            LayerError: some of :meth:`left_out` are not written.
            RootfsError: metadata cannot be set.
        """
        if self._finished:
            return
        if self.left_out():
            raise LayerError("files of the tree are left out")
        self._finished = True
        order: list[Directory] = []
        pending = [self._tree.root]
        while pending:
            node = pending.pop()
            order.append(node)
            self.count += len(node.children or {})
            pending += [child for child in (node.children or {}).values() if isinstance(child, Directory)]
        # Parents come before their children in this order, so children before their parents from its end.
        while order:
            node = order.pop()
            try:
                self._finish_directory(node)
            except OSError as error:
                raise explained(error, node.path()) from error
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
        self._writer.close()
        self._tree.close()
        self._rootfs.close()

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

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
                node.xattrs = tuple(pair for pair in get_xattrs(fd) if pair[0] not in HOST_XATTRS)
            remember_stat(node, now)

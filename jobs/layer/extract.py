"""Layers applied to a directory (image-spec layer.md "Applying Changesets").

The mirror of :mod:`layerfarm.jobs.layer.generate`. The rules are those of :mod:`layerfarm.jobs.layer.apply`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from layerfarm.jobs.errors import LayerError, RootfsError
from layerfarm.jobs.fs import HOST_XATTRS, Rootfs, clear_xattrs, get_xattrs
from layerfarm.jobs.layer.apply import Applier, explained
from layerfarm.jobs.layer.disk import DiskTree, ExtractOptions
from layerfarm.jobs.layer.look_ahead import find_skipped
from layerfarm.jobs.layer.metadata import Warnings, is_safe_time
from layerfarm.jobs.layer.nodes import Directory, entries_of
from layerfarm.jobs.mtree.model import Entry
from layerfarm.jobs.tar.reader import MemberReader, Readable

__all__ = ["ExtractOptions", "unpack_layer"]


def unpack_layer(root: Path, stream: Readable, options: ExtractOptions | None = None) -> None:
    """Apply one layer, a raw tar stream, to the tree at ``root``.

    Directories that the layer has no entry for keep their metadata, mtime included.

    Raises:
        RootfsNotFound: ``root`` is not a directory.
        LayerError: the layer is malformed; RootfsError: the tree cannot be written. Entries applied before either
            stay.
    """
    with Extractor(root, options) as extractor:
        extractor.apply(stream)
        extractor.finish()


class Extractor(Applier[DiskTree]):
    """Applies layers, one after the other, to a directory; a context manager.

    Directories get their metadata once, in :meth:`finish`, which must be called for a whole tree.
    No other process may change the tree meanwhile: nothing outside is ever touched, but errors are possible (B2.4).

    Raises:
        RootfsNotFound: ``root`` is not a directory.
    """

    def __init__(self, root: Path, options: ExtractOptions | None = None) -> None:
        options = options or ExtractOptions()
        self._can_skip = options.skip is not None
        self._finished = False
        self.count = 1
        """Entries of the tree, the root included; known when it is finished."""
        self._rootfs = Rootfs(root)
        try:
            self._warnings = Warnings(options.warn)
            self._was_empty = not os.listdir(self._rootfs.fd)
            if self._can_skip and not self._was_empty:
                raise LayerError("files can only be skipped in a tree that is empty at first")
            if self._was_empty:
                # A default ACL of the bundle's directory must not reach the image: every entry would inherit it.
                with suppress(OSError):
                    os.removexattr(self._rootfs.fd, "system.posix_acl_default")
            tree = DiskTree(self._rootfs.fd, options, self._warnings)
            tree.root.complete = self._was_empty
        except BaseException:
            self._rootfs.close()
            raise
        super().__init__(tree, options.limits, keep_dirlinks=options.keep_dirlinks)

    def warn(self, text: str) -> None:
        """Add a warning about the current layer."""
        self._warnings.once(text, text)

    @property
    def warnings(self) -> list[str]:
        """Return deviations from the layers, each kind once."""
        return self._warnings.texts

    def apply(self, stream: Readable) -> None:
        """Apply one layer's raw tar. The stream is read to its end, also after the archive.

        Raises:
            LayerError, RootfsError, LimitExceeded: as :meth:`apply_members`.
        """
        if self._finished:
            raise LayerError("no layer can be applied to a finished tree")
        self._tree.reader = reader = MemberReader(stream, self._limits)
        self.apply_members(reader.to_the_end())
        self._tree.settle()

    def skipped(self) -> list[int]:
        """Return the layers, 1 for the lowest, whose skipped files are in the tree after all.

        After all layers are applied, each must be passed to :meth:`write_skipped`.
        """
        return sorted(find_skipped(self._tree.root)) if self._can_skip else []

    def write_skipped(self, layer: int, stream: Readable) -> None:
        """Write the skipped files of this layer that are in the tree. Raises as :meth:`apply`."""
        wanted = find_skipped(self._tree.root).get(layer, {})
        self._tree.reader = reader = MemberReader(stream, self._limits)
        for member in reader.to_the_end():
            places = wanted.get(reader.ordinal)
            if places is not None:
                try:
                    self._tree.write_skipped(member, places)
                except OSError as error:
                    raise explained(error, member.name) from error
        self._tree.settle()

    def finish(self) -> None:
        """Apply the metadata of every directory, deepest first. Nothing can be applied afterwards.

        Raises:
            LayerError: some of :meth:`skipped` are not written.
            RootfsError: metadata cannot be set.
        """
        if self._finished:
            return
        if self.skipped():
            raise LayerError("skipped files are not written")
        self._finished = True
        order: list[Directory] = []
        pending = [self._tree.root]
        while pending:
            node = pending.pop()
            order.append(node)
            self.count += len(node.children or {})
            pending += [child for child in (node.children or {}).values() if isinstance(child, Directory)]
        # Parents precede their children in this order, so the reversed order has children first.
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
        """Yield the whole tree on disk in mtree order, without a second walk.

        Raises:
            LayerError: not finished, or the tree was not empty at first.
        """
        if not self._finished or not self._was_empty:
            raise LayerError("entries are known only of a finished tree that was empty at first")
        return entries_of(self._tree.root)

    def close(self) -> None:
        self._tree.close()
        self._rootfs.close()

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _finish_directory(self, node: Directory) -> None:
        wanted = node.metadata
        if wanted is None and not node.changed and not self._was_empty:
            return
        fd = self._tree.fd(node)
        found = node.found
        metadata = self._tree.metadata
        if wanted is not None:
            if found is not None:
                clear_xattrs(fd, HOST_XATTRS)
            node.xattrs = metadata.apply_fd(fd, wanted)
        elif found is not None:
            if stat.S_IMODE(found.st_mode) != stat.S_IMODE(os.fstat(fd).st_mode):
                os.fchmod(fd, stat.S_IMODE(found.st_mode))
            os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))
        if self._was_empty:
            now = os.fstat(fd)
            if wanted is not None and not is_safe_time(wanted.mtime):
                metadata.stored_time(now, wanted.mtime)
            if found is not None and wanted is None:
                node.xattrs = tuple(pair for pair in get_xattrs(fd) if pair[0] not in HOST_XATTRS)
            mode = stat.S_IMODE(now.st_mode)
            node.stat = (mode, now.st_uid, now.st_gid, now.st_size, now.st_nlink, now.st_mtime_ns)

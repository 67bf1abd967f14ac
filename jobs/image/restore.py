"""The single steps of a revert, inside the rootfs only: no link is followed (law 5, docs/architecture.md)."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from layerfarm.jobs.fs import (
    HOST_XATTRS,
    DirectoryCache,
    Rootfs,
    clear_xattrs,
    get_xattrs,
    proc_path,
    set_xattr,
    stat_regular,
)
from layerfarm.jobs.fs.names import rename
from layerfarm.jobs.fs.remove import open_directory, remove
from layerfarm.jobs.fs.unprivileged import may
from layerfarm.jobs.mtree import ROOT, Entry

_Inode = tuple[int, int]


class Restorer:
    """Restores entries of a tree from a staged copy on the same file system; a context manager.

    Directories that it changes need :meth:`apply_metadata` afterwards.
    """

    def __init__(self, rootfs: Path, staging: Path | None) -> None:
        self._stack = ExitStack()
        try:
            self._root = self._stack.enter_context(Rootfs(rootfs, follow=False)).fd
            self._staged = -1 if staging is None else self._stack.enter_context(Rootfs(staging, follow=False)).fd
        except BaseException:
            self._stack.close()
            raise
        self._here = self._stack.enter_context(DirectoryCache(self._root))
        self._there = self._stack.enter_context(DirectoryCache(self._staged))
        self._widened: set[bytes] = set()
        self._claimed: set[_Inode] = set()

    def __enter__(self) -> Restorer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def remove(self, path: bytes) -> None:
        """Remove the entry and all below it."""
        self._here.close()  # descriptors of removed directories must not be reused by name
        directory, name = self._parent(path)
        with suppress(FileNotFoundError):
            remove(directory, name)

    def make_directory(self, path: bytes) -> None:
        directory, name = self._parent(path)
        os.mkdir(name, 0o700, dir_fd=directory)

    def put_back(self, path: bytes) -> None:
        """Move the staged entry, which has all its metadata, to its place."""
        source, name = self._staged_parent(path)
        target, _ = self._parent(path)
        rename(name, name, src_dir_fd=source, dst_dir_fd=target)

    def groups(self, linked: Iterable[bytes]) -> list[list[bytes]]:
        """Return groups of paths that share an inode in the staged copy."""
        found: defaultdict[_Inode, list[bytes]] = defaultdict(list)
        for path in linked:
            directory, name = self._staged_parent(path)
            found[_identity(os.stat(name, dir_fd=directory, follow_symlinks=False))].append(path)
        return [sorted(paths) for paths in found.values() if len(paths) > 1]

    def link_again(self, group: list[bytes], lost: Collection[bytes]) -> int:
        """Make all paths of ``group`` names of one inode again; return the number of changed paths.

        An inode that is still in the tree, under a path that is not in ``lost``, is kept.
        """
        inodes = {path: self._inode(path) for path in group}
        good = [path for path in group if path not in lost and inodes[path] not in self._claimed and inodes[path]]
        changed = 0
        source = good[0] if good else group[0]
        if not good:
            self.put_back(source)
            changed += 1
        inode = self._inode(source)
        assert inode is not None
        self._claimed.add(inode)
        for path in group:
            if path != source and self._inode(path) != inode:
                self._link(source, path)
                changed += 1
        return changed

    def apply_metadata(self, entry: Entry) -> None:
        """Restore owner, xattrs, mode and mtime of an entry in place; write only what differs."""
        if entry.type == "dir":
            fd = self._root if entry.path == ROOT else self._here.directory(entry.path)
            self._apply_to_fd(fd, entry)
            self._here.settle(fd)
            return
        directory, name = self._here.parent(entry.path)
        if entry.type == "file":
            try:
                fd, _ = stat_regular(directory, name)
            except PermissionError:  # an ordinary user's own file of mode 000
                pass
            else:
                try:
                    self._apply_to_fd(fd, entry)
                finally:
                    os.close(fd)
                return
        self._apply_to_name(directory, name, entry)

    # --- inside --------------------------------------------------------------------------------------

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        """Return the directory in the tree that holds ``path``, open and writable."""
        directory, name = self._here.parent(path)
        mode = stat.S_IMODE(os.fstat(directory).st_mode)
        if mode & 0o300 != 0o300 and not may(directory, os.W_OK | os.X_OK):
            os.fchmod(directory, mode | 0o700)  # restored by apply_metadata
        return directory, name

    def _staged_parent(self, path: bytes) -> tuple[int, bytes]:
        self._widen(path.rpartition(b"/")[0])
        return self._there.parent(path)

    def _widen(self, path: bytes) -> None:
        """Make the staged directories above ``path`` accessible; the staged copy is removed afterwards."""
        if path in self._widened:
            return
        self._widened.add(path)
        here = os.dup(self._staged)
        try:
            _open_up(here)
            for part in path.split(b"/") if path else ():
                below = open_directory(here, part)
                os.close(here)
                here = below
                _open_up(here)
        finally:
            os.close(here)

    def _inode(self, path: bytes) -> _Inode | None:
        directory, name = self._here.parent(path)
        try:
            return _identity(os.stat(name, dir_fd=directory, follow_symlinks=False))
        except FileNotFoundError:
            return None

    def _link(self, source: bytes, path: bytes) -> None:
        directory, name = self._parent(path)
        held = os.dup(directory)
        try:
            origin, base = self._here.parent(source)
            # Under another name first: rename replaces an existing entry atomically.
            temporary = b".layerfarm-%s" % os.urandom(8).hex().encode()
            os.link(base, temporary, src_dir_fd=origin, dst_dir_fd=held, follow_symlinks=False)
            rename(temporary, name, src_dir_fd=held, dst_dir_fd=held)
        finally:
            os.close(held)

    def _apply_to_fd(self, fd: int, entry: Entry) -> None:
        found = os.fstat(fd)
        if (found.st_uid, found.st_gid) != (entry.uid, entry.gid):
            os.fchown(fd, entry.uid, entry.gid)
        try:
            _set_xattrs(fd, entry)
        except PermissionError:
            if found.st_mode & 0o200:
                raise
            os.fchmod(fd, stat.S_IMODE(found.st_mode) | 0o200)  # user.* xattrs need it
            _set_xattrs(fd, entry)
        if stat.S_IMODE(os.fstat(fd).st_mode) != entry.mode:
            os.fchmod(fd, entry.mode)
        os.utime(fd, ns=(found.st_atime_ns, entry.mtime))

    def _apply_to_name(self, directory: int, name: bytes, entry: Entry) -> None:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (found.st_uid, found.st_gid) != (entry.uid, entry.gid):
            os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        if entry.type == "file":
            os.chmod(name, entry.mode | 0o600, dir_fd=directory)
        _set_xattrs(proc_path(directory, name), entry)
        if entry.type != "link":
            os.chmod(name, entry.mode, dir_fd=directory)
        os.utime(name, ns=(found.st_atime_ns, entry.mtime), dir_fd=directory, follow_symlinks=False)


def _set_xattrs(target: int | bytes, entry: Entry) -> None:
    if entry.xattrs is None:
        return
    wanted = dict(entry.xattrs)
    there = dict(get_xattrs(target))
    if there.keys() - wanted.keys() - HOST_XATTRS:
        clear_xattrs(target, HOST_XATTRS.union(wanted))
    for name, value in wanted.items():
        if there.get(name) != value and name not in HOST_XATTRS:
            set_xattr(target, name, value)


def _open_up(directory: int) -> None:
    if not may(directory, os.R_OK | os.W_OK | os.X_OK):
        os.fchmod(directory, 0o700)


def _identity(found: os.stat_result) -> _Inode:
    return found.st_dev, found.st_ino

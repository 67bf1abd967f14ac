"""The tree under extraction: the model of it (:mod:`layerfarm.jobs.layer.modeltree`), and the directory on disk.

What the model says is opened with O_NOFOLLOW from the descriptor of its parent, so a wrong model, or
somebody who changes the tree meanwhile, cannot lead out.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from typing import Final

from layerfarm.jobs.fs import HOST_XATTRS, clear_xattrs
from layerfarm.jobs.fs.remove import open_directory, remove
from layerfarm.jobs.fs.unprivileged import may
from layerfarm.jobs.layer.modeltree import ModelTree
from layerfarm.jobs.layer.tree import Child, Directory, Inode, Metadata, Name, leaf_of, link_target
from layerfarm.jobs.layer.unwritten import is_unwritten
from layerfarm.jobs.limits import Limits

_OPEN_DIRECTORIES: Final = 128


class WorkTree(ModelTree):
    """Directories and entries below an open root; writes no metadata but what keeps it accessible."""

    def __init__(self, root: int, implied: Metadata, limits: Limits) -> None:
        super().__init__(Directory(b"", None, found=os.fstat(root)), implied, limits)
        self.root.fd = root
        self._open: deque[Directory] = deque()
        self._look_at_found(self.root)

    def close(self) -> None:
        """Close every descriptor but the root's."""
        while self._open:
            node = self._open.popleft()
            os.close(node.fd)
            node.fd = -1

    # --- looking -------------------------------------------------------------------------------------

    def fd(self, node: Directory) -> int:
        """A descriptor of the directory, good until the next call."""
        if node.fd >= 0:
            return node.fd
        closed: list[Directory] = []
        here = node
        while here.fd < 0:
            closed.append(here)
            assert here.parent is not None
            here = here.parent
        for below in reversed(closed):
            below.fd = open_directory(here.fd, below.name)
            self._open.append(below)
            here = below
            if len(self._open) > _OPEN_DIRECTORIES:
                oldest = self._open.popleft()
                os.close(oldest.fd)
                oldest.fd = -1
        return node.fd

    def child(self, node: Directory, name: bytes) -> Child | None:
        if node.children is not None:
            known = node.children.get(name)
            if known is not None:
                return known
        if node.complete:
            return None
        try:
            found = os.stat(name, dir_fd=self.fd(node), follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(found.st_mode):
            return Name(0, Inode(None))
        below = Directory(name, node, found=found)
        node.put(name, below)
        self._look_at_found(below)
        return below

    def names(self, node: Directory) -> list[bytes]:
        names = super().names(node)
        if not node.complete:
            names += set(map(os.fsencode, os.listdir(self.fd(node)))).difference(names)
        return names

    def target(self, node: Directory, name: bytes, child: Child) -> bytes | None:
        if isinstance(child, Directory):
            return None
        if leaf_of(child) is not None:
            return link_target(child)
        try:
            return os.readlink(name, dir_fd=self.fd(node))
        except OSError:
            return None

    # --- changing ------------------------------------------------------------------------------------

    def make_directory(self, node: Directory, name: bytes) -> Directory:
        below = super().make_directory(node, name)
        os.mkdir(name, 0o700, dir_fd=self.fd(node))
        if not node.plain:
            # A default ACL or setgid above has left its mark; it must not spread further down.
            fd = self.fd(below)
            clear_xattrs(fd, HOST_XATTRS)
            os.fchmod(fd, 0o700)
        return below

    def remove(self, node: Directory, name: bytes, child: Child) -> None:
        if isinstance(child, Directory):
            self.close()
            remove(self.fd(node), name)
        else:
            if leaf_of(child) is None:
                self._parents.clear()
            if not is_unwritten(child):
                os.unlink(name, dir_fd=self.fd(node))
        super().remove(node, name, child)

    # --- inside --------------------------------------------------------------------------------------

    def _look_at_found(self, node: Directory) -> None:
        assert node.found is not None
        fd = self.fd(node) if node.found.st_mode & 0o700 != 0o700 else -1
        if fd >= 0 and not may(fd, os.R_OK | os.W_OK | os.X_OK):
            # Widened while we work in it; put back, or set as its own entry says, at the end.
            os.fchmod(fd, stat.S_IMODE(node.found.st_mode) | 0o700)
            node.changed = True
        try:
            has_default_acl = b"system.posix_acl_default" in map(os.fsencode, os.listxattr(self.fd(node)))
        except OSError:
            has_default_acl = False
        node.plain = not has_default_acl and not node.found.st_mode & stat.S_ISGID

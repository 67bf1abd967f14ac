"""A directory that exists and is unpacked into: what it was, and how it is restored after an error."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from layerfarm.jobs.errors import BundleError, BundleExists
from layerfarm.jobs.fs import HOST_XATTRS, clear_xattrs, get_xattrs, set_xattr
from layerfarm.jobs.image.remove import remove_tree
from layerfarm.jobs.mtree.model import Xattrs
from layerfarm.jobs.paths import is_directory


@dataclass(frozen=True)
class Target:
    """The directory as it was found."""

    path: Path
    empty: bool
    _stat: os.stat_result
    _xattrs: Xattrs

    def restore(self) -> None:
        """Empty the directory and restore its metadata as far as the process may; for one that was empty."""
        for left in os.listdir(self.path):
            remove_tree(self.path / left)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(OSError):
                os.fchown(fd, self._stat.st_uid, self._stat.st_gid)
            if get_xattrs(fd) != self._xattrs:
                with suppress(OSError):
                    clear_xattrs(fd, HOST_XATTRS.union(name for name, _ in self._xattrs))
                for name, value in self._xattrs:
                    with suppress(OSError):
                        set_xattr(fd, name, value)
            with suppress(OSError):
                os.fchmod(fd, stat.S_IMODE(self._stat.st_mode))
                os.utime(fd, ns=(self._stat.st_atime_ns, self._stat.st_mtime_ns))
        finally:
            os.close(fd)


def open_target(path: Path) -> Target | None:
    """The directory at ``path``; None: nothing is there.

    Raises:
        BundleExists: something that is no directory is there.
        BundleError: the directory cannot be read.
    """
    if not os.path.lexists(path):
        return None
    if not is_directory(path):
        raise BundleExists("something that is no directory is here already", where=path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"directory cannot be read, {error.strerror}", where=path) from error
    try:
        return Target(path, not os.listdir(fd), os.fstat(fd), get_xattrs(fd))
    finally:
        os.close(fd)

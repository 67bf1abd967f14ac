"""Access to the files of a bundle or a layout, which others may have filled.

The directory itself is the operator's path, and may be reached through links. Below it no symbolic link is followed and
only regular files are opened: a link would lead root's reading and writing elsewhere, and opening a fifo waits for a
writer that never comes (law 5, docs/architecture.md).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Final

from layerfarm.jobs.errors import UnsafePath
from layerfarm.jobs.fs.closing import ClosedOnError
from layerfarm.jobs.fs.names import rename
from layerfarm.jobs.fs.remove import remove
from layerfarm.jobs.fs.resolve import open_beneath

_HANDLE: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: never wait for the other end of a fifo; O_NOCTTY: never take a terminal.
_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_FILE: Final = (errno.ELOOP, errno.ENXIO, errno.ENODEV)


class Beneath:
    """Access to files below ``top``; holds no file open. Every path begins with ``top``.

    ``linked``: names in ``top`` that may be links, and have links below them; they are followed to read.

    Every method raises:
        UnsafePath: a symbolic link is in the path, or the file to open is not a regular one.
        OSError: as the system call of the same name.
    """

    def __init__(self, top: Path, linked: Collection[str] = ()) -> None:
        self.top = top
        self._prefix = f"{top}/"
        self._linked = linked

    # --- files ---------------------------------------------------------------------------------------

    def open(self, path: Path, flags: int = os.O_RDONLY) -> int:
        """Return a descriptor of a regular file; the caller closes it."""
        follow = flags == os.O_RDONLY and self._may_be_linked(self._below(os.fspath(path)))
        with self._parent(path) as parent:
            try:
                fd = os.open(path.name, flags | _FILE & ~(os.O_NOFOLLOW * follow), 0o666, dir_fd=parent)
            except OSError as error:
                if error.errno in _NO_FILE:
                    raise UnsafePath("not a regular file", where=path) from error
                raise
        with ClosedOnError(fd):
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UnsafePath("not a regular file", where=path)
        return fd

    def read(self, path: Path, most: int = -1) -> bytes:
        """Return the whole file, or at most ``most`` bytes of it."""
        with os.fdopen(self.open(path), "rb") as stream:
            return stream.read(most)

    def is_file(self, path: Path) -> bool:
        """Return True if a regular file is there."""
        try:
            return stat.S_ISREG(self.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def lstat(self, path: Path) -> os.stat_result:
        with self._parent(path) as parent:
            return os.stat(path.name, dir_fd=parent, follow_symlinks=False)

    def size(self, path: Path) -> int:
        """Return the bytes of a file, or of all files in a directory; those that vanish meanwhile count 0."""
        total, pending = 0, [path]
        while pending:
            here = pending.pop()
            with suppress(OSError):
                found = self.lstat(here)
                if stat.S_ISDIR(found.st_mode):
                    pending += map(here.joinpath, self.names(here))
                else:
                    total += found.st_size
        return total

    def touch(self, path: Path) -> None:
        """Set the times of a file, or of a link itself, to now."""
        with self._parent(path) as parent:
            os.utime(path.name, dir_fd=parent, follow_symlinks=False)

    # --- directories ---------------------------------------------------------------------------------

    def is_directory(self, path: Path) -> bool:
        """Return True if a directory is there."""
        try:
            with self.directory(path):
                return True
        except (FileNotFoundError, NotADirectoryError):
            return False

    def names(self, path: Path) -> list[str]:
        """Return the names in a directory; none if it does not exist."""
        return [name for _, name in self._listed(path)]

    def lstats(self, path: Path) -> Iterator[tuple[str, os.stat_result]]:
        """Yield name and status of each entry of a directory; none if it does not exist. The path is resolved once."""
        for directory, name in self._listed(path):
            with suppress(FileNotFoundError):
                yield name, os.stat(name, dir_fd=directory, follow_symlinks=False)

    def contents(self, path: Path) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each regular file in a directory that can be read; none if it does not exist.

        The path is resolved once for all: 8 us a small file, a quarter of :meth:`read`.
        """
        for directory, name in self._listed(path):
            with suppress(OSError):
                fd = os.open(name, os.O_RDONLY | _FILE, dir_fd=directory)
                try:
                    found = os.fstat(fd)
                    content = os.read(fd, found.st_size) if stat.S_ISREG(found.st_mode) else None
                finally:
                    os.close(fd)
                if content is not None:
                    yield name, content

    def _listed(self, path: Path) -> Iterator[tuple[int, str]]:
        """Yield the open directory with each of its names; nothing if it does not exist."""
        try:
            opened = self.directory(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return
        with opened as directory:
            for name in os.listdir(directory):
                yield directory, name

    def directory(self, path: Path, flags: int = _HANDLE) -> OpenDirectory:
        """Open a directory for a ``with`` block: by default for the ``*at`` calls, not to list or sync it."""
        return OpenDirectory(self._open_directory(os.fspath(path), flags))

    # --- names ---------------------------------------------------------------------------------------

    def rename(self, source: Path, target: Path, *, unique: bool = False) -> None:
        """Rename on NFS, too: :func:`layerfarm.jobs.fs.names.rename`."""
        with self._parent(source) as old, self._parent(target) as new:
            rename(source.name, target.name, src_dir_fd=old, dst_dir_fd=new, unique=unique)

    def unlink(self, path: Path) -> None:
        with self._parent(path) as parent:
            os.unlink(path.name, dir_fd=parent)

    def rmdir(self, path: Path) -> None:
        with self._parent(path) as parent:
            os.rmdir(path.name, dir_fd=parent)

    def remove(self, path: Path) -> None:
        """Remove a file, or a directory with all that is in it."""
        with self._parent(path) as parent:
            remove(parent, os.fsencode(path.name))

    # --- inside --------------------------------------------------------------------------------------

    def _parent(self, path: Path) -> OpenDirectory:
        parent = os.fspath(path).rpartition("/")[0]
        return OpenDirectory(self._open_directory(parent or os.fspath(path.parent), _HANDLE))

    def _open_directory(self, path: str, flags: int) -> int:
        below = self._below(path)
        if not below or self._may_be_linked(below):
            return os.open(path, flags | os.O_CLOEXEC)
        top = os.open(self.top, _HANDLE)
        try:
            return open_beneath(top, os.fsencode(below), flags)
        except UnsafePath as error:
            raise UnsafePath(error.what, where=path) from error
        finally:
            os.close(top)

    def _below(self, path: str) -> str:
        """``path`` relative to ``top``, empty for itself. Without pathlib: a job does this a hundred times."""
        if path.startswith(self._prefix):
            return path[len(self._prefix) :]
        return "" if path == self._prefix[:-1] else os.fspath(Path(path).relative_to(self.top))

    def _may_be_linked(self, below: str) -> bool:
        return below.partition("/")[0] in self._linked


class OpenDirectory:
    """A directory's descriptor, closed at the end of a ``with`` block. A generator would cost more than the calls."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


def open_file(path: Path) -> BufferedReader:
    """Open a regular file in one of the operator's directories for reading. Raises as :class:`Beneath`."""
    return os.fdopen(Beneath(path.parent).open(path), "rb")


def own_directory(path: Path) -> None:
    """Create a directory that only its owner may enter, if it does not exist.

    Raises:
        UnsafePath: another user created it in a world-writable directory, or it is not a directory.
        OSError: as mkdir(2).
    """
    try:
        path.mkdir(mode=0o700)
        return
    except FileExistsError:
        found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafePath("path exists and is not a directory", where=path)
    if path.parent.stat().st_mode & stat.S_IWOTH and found.st_uid not in (os.geteuid(), 0):
        raise UnsafePath("directory belongs to another user", where=path)

"""Remove a whole tree below an open directory, however deep, wide or unreadable it is."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from layerfarm.jobs.errors import TreeChanged
from layerfarm.jobs.fs.unprivileged import may

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(parent: int, name: bytes) -> None:
    """Remove ``name`` from an open directory, with everything below; no link is followed.

    Raises:
        OSError: something cannot be removed; ENOENT if there is nothing.
        TreeChanged: another process moves directories meanwhile.
    """
    try:
        os.unlink(name, dir_fd=parent)
        return
    except OSError as error:
        # EISDIR on Linux; POSIX says EPERM.
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise
    _remove_directory(parent, name)


def remove_tree(path: Path) -> None:
    """Remove ``path`` and everything below it, if it exists. No link is followed.

    shutil.rmtree recurses, and fails on an image that is nested a thousand deep.

    Raises:
        OSError: something cannot be removed.
    """
    with suppress(FileNotFoundError):
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove(parent, os.fsencode(path.name))
        finally:
            os.close(parent)


def open_directory(parent: int, name: bytes) -> int:
    """Open a directory by its name in ``parent``; as an ordinary user even if its mode forbids it.

    The mode is then widened to u+rwx, and not restored.
    """
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        # chmod follows links: only if lstat says that it is a directory. Nobody else writes to this tree.
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            raise
        os.chmod(name, stat.S_IMODE(found.st_mode) | 0o700, dir_fd=parent)
        return os.open(name, _DIRECTORY, dir_fd=parent)


def _remove_directory(parent: int, name: bytes) -> None:
    """Remove depth first with one descriptor at a time, returning through ``..``.

    A name that is gone is no error: an NFS client repeats a request whose answer was lost, and gets ENOENT.

    A stack of descriptors is limited by the number of open files, recursion by Python's limit. ``..`` is safe because
    the directory it leads to is compared with the one that was left.
    """
    here = os.dup(parent)
    above: list[tuple[tuple[int, int], list[bytes], bytes]] = []
    names = [name]
    try:
        while True:
            if names:
                child = names[-1]
                try:
                    below = open_directory(here, child)
                except FileNotFoundError:
                    names.pop()
                    continue
                above.append((_identity(here), names, child))
                os.close(here)
                here = below
                names = _empty(here)
            elif above:
                identity, names, child = above.pop()
                up = os.open(b"..", _DIRECTORY, dir_fd=here)
                os.close(here)
                here = up
                if _identity(here) != identity:
                    raise TreeChanged("a directory moved while it was being removed", where=child)
                with suppress(FileNotFoundError):
                    os.rmdir(child, dir_fd=here)
                names.pop()
            else:
                return
    finally:
        os.close(here)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _empty(directory: int) -> list[bytes]:
    """Unlink every non-directory; returns the names of the directories.

    An ordinary user's directory without u+w is widened first.
    """
    if not may(directory, os.W_OK | os.X_OK):
        os.fchmod(directory, stat.S_IMODE(os.fstat(directory).st_mode) | 0o700)
    directories: list[bytes] = []
    with os.scandir(directory) as found:
        for entry in list(found):
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                directories.append(name)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
    return directories

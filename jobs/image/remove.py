"""Remove a tree of any depth, whatever is in it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path) -> None:
    """Remove ``path`` and all that is below it; fine if it is gone already. Never follows a link.

    shutil.rmtree calls itself for each level and gives up on an unpacked image that is nested a
    thousand deep. Here sub-directories are moved up to the top before they are emptied, so neither
    depth nor the length of a path matters.

    Raises:
        OSError: something cannot be removed.
    """
    try:
        top = _open(path)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        path.unlink()
        return
    try:
        pending = _empty(top, top, 0)
        serial = len(pending)
        while pending:
            name = pending.pop()
            child = _open(name, top)
            try:
                found = _empty(child, top, serial)
            finally:
                os.close(child)
            serial += len(found)
            pending += found
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


def _empty(directory: int, top: int, serial: int) -> list[bytes]:
    """Unlink what is no directory, move sub-directories to ``top`` under new names; returns those."""
    moved: list[bytes] = []
    with os.scandir(directory) as entries:
        found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
            continue
        target = b".layerfarm-removing-%d-%d" % (os.getpid(), serial + len(moved))
        os.rename(name, target, src_dir_fd=directory, dst_dir_fd=top)
        moved.append(target)
    return moved


def _open(path: Path | bytes, parent: int | None = None) -> int:
    """Open a directory to be emptied. One of ours that forbids it (mode 000, not root) is made to allow it."""
    try:
        fd = os.open(path, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        os.chmod(path, 0o700, dir_fd=parent)
        return os.open(path, _DIRECTORY, dir_fd=parent)
    with suppress(PermissionError):
        os.fchmod(fd, 0o700)
    return fd

"""Names in directories that other hosts change, or that a file server holds."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

Name = Path | str | bytes

_LISTED: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def ask_for_names(directory: Name, *, listed: bool = False, dir_fd: int | None = None) -> None:
    """Let the next lookup of a name in ``directory`` find the file that has it now, on NFS, too.

    A client believes for a minute that a name leads to the file that it knows. One of NFS 4.1 even opens it by its
    handle. The server finds it although it was renamed, or replaced while any host has it open; then its content is
    old, and a holder of the index's lock would remove all newer tags. But a directory that is opened is compared with
    the server's (nfs(5) "Close-to-open cache consistency"), and names in a changed one are looked up again.

    ``listed``: also a name of which the client believes more, because it has a delegation for the file. The server
    recalls that if another client changes the name, but a host that has mounted an export twice, with different
    options or ``nosharecache``, is one client with two caches. If a changed directory is listed, the answer has the
    file of each name, for the cache. Only for small directories.
    """
    with suppress(OSError):  # One that may be searched, but not listed, is read as the client knows it.
        fd = os.open(directory, _LISTED, dir_fd=dir_fd)
        try:
            if listed:
                os.listdir(fd)
        finally:
            os.close(fd)


def rename(
    source: Name, target: Name, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None, unique: bool = False
) -> None:
    """As os.rename, on NFS, too.

    A client that did not get the server's answer repeats the request, and gets ENOENT if it was done: always when the
    server has forgotten the client meanwhile. The target then shows that it was done (relayer.md 4.2, point 2).

    ``unique``: any file with the target's name will do, even one that other hosts have written to or touched.
    """
    ours = None if unique else os.stat(source, dir_fd=src_dir_fd, follow_symlinks=False)
    try:
        os.rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    except FileNotFoundError:
        ask_for_names(Path(os.fsdecode(target)).parent, dir_fd=dst_dir_fd)
        with suppress(OSError):
            found = os.stat(target, dir_fd=dst_dir_fd, follow_symlinks=False)
            if ours is None or _same_file(ours, found):
                return
        raise


def _same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Return True for one file that was renamed; a newer file may have the inode number of a removed one."""
    return os.path.samestat(one, other) and (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)

"""The lock of a layout, against threads, processes and hosts (relayer.md 4.2, point 4).

An fcntl lock works on NFSv4, where flock may not. It belongs to the open file (``F_OFD_SETLK``) and not to the process:
two threads exclude each other, whatever names they open it by, and no other code of the process that closes the same
file releases it. The file is open for writing, which NFS requires for an exclusive lock, and is never removed: a
waiter could hold a lock on an unlinked file while a third process locks a new one.

It is opened with O_DIRECT, because Linux' NFS client then requests no delegation. With a write delegation, as servers
give since Linux 6.6, a client keeps its locks to itself. The server recalls it for other clients only; but a host that
has mounted an export twice, with different options or ``nosharecache``, is one client with two sets of locks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from layerfarm.jobs.fs import Beneath
from layerfarm.jobs.fs.closing import ClosedOnError
from layerfarm.jobs.store.atomic_file import files_of, give_to_owner, make_directory, pauses

_WHOLE_FILE: Final = (os.SEEK_SET, 0, 0, 0)
_LOCK: Final = struct.pack("@hhqqi", fcntl.F_WRLCK, *_WHOLE_FILE)
_UNLOCK: Final = struct.pack("@hhqqi", fcntl.F_UNLCK, *_WHOLE_FILE)

_open: set[int] = set()


def _forget_in_child() -> None:
    """Close the lock files in a forked child: an open copy would keep them locked after the parent's death."""
    for fd in _open:
        with suppress(OSError):
            os.close(fd)
    _open.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class LockLost(Exception):
    """Another process may have changed what the lock protects, and this one changed nothing.

    A file server ends the leases of a host that it does not hear of, and gives its locks to others.
    """


class Lock:
    """The lock named by a file, open and not taken; a context manager that releases it."""

    def __init__(self, lock_file: Path, layout: Path) -> None:
        self._fd = _lock_file(lock_file, layout)
        _open.add(self._fd)

    def touch(self) -> float:
        """Set the file's times to now; return seconds on the clock of its file system (relayer.md 4.2, point 6).

        Without an explicit time, a server's clock applies where there is one.
        """
        os.utime(self._fd)
        return os.fstat(self._fd).st_mtime

    def take_if_free(self) -> bool:
        """Take the lock unless another holds it; return True if this one does now."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _LOCK)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as fcntl(2) allows
            return False
        return True

    def take(self) -> None:
        """Take the lock, waiting without limit. The death of its holder releases it.

        Polling replaces waiting in the kernel: an NFS client retries after 1 s, then 2, up to 30 (NFSv4.0) unless its
        server calls back, and a thread that sleeps there does not notice that another holder granted its request.
        """
        waits = pauses()
        while not self.take_if_free():
            time.sleep(next(waits))

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock, if it is taken, and close the file."""
        if self._fd not in _open:  # in a child that was forked meanwhile: its parent holds the lock
            return
        # Unlocked explicitly: a child just forked may not have closed its copy yet.
        with suppress(OSError):
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _UNLOCK)
        _open.discard(self._fd)
        os.close(self._fd)


def _lock_file(path: Path, layout: Path) -> int:
    """Open the file; it and its directory are created if missing.

    Only a new file is given to the layout's owner: an existing one, perhaps a hard link to another user's, keeps its
    owner.
    """
    files = files_of(layout)
    with suppress(FileNotFoundError):
        return _opened(files, path)
    make_directory(path.parent, layout)
    try:
        fd = _opened(files, path, os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return _opened(files, path)
    with ClosedOnError(fd):
        give_to_owner(fd, layout)
    return fd


def _opened(files: Beneath, path: Path, flags: int = 0) -> int:
    try:
        return files.open(path, os.O_RDWR | os.O_DIRECT | flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # A filesystem without O_DIRECT, which creates the file nevertheless.
    return files.open(path, os.O_RDWR | flags & ~os.O_EXCL)


def lock_if_free(lock_file: Path, layout: Path) -> Lock | None:
    """Return the lock, taken; None: another holds it."""
    lock = Lock(lock_file, layout)
    taken = False
    try:
        taken = lock.take_if_free()
    finally:
        if not taken:
            lock.close()
    return lock if taken else None


@contextmanager
def exclusive(lock_file: Path, layout: Path) -> Iterator[None]:
    """Hold the lock named by ``lock_file``."""
    with Lock(lock_file, layout) as lock:
        lock.take()
        yield

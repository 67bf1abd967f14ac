"""The lock of a layout, against threads, processes and hosts (relayer.md 4.2, point 4).

An fcntl lock, which works on NFSv4, where flock may not. It belongs to the open file (``F_OFD_SETLK``) and not
to the process: two threads keep each other out, whichever names they reach the file by, and no other part of
the process that closes the same file takes it away. The file is opened for writing, without which NFS gives no
exclusive lock, and is never removed: a waiter could hold a lock on a file that no longer has the name, while a
third process locks a new one.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from layerfarm.jobs.store.durable import files_of, give_to_owner

_WHOLE_FILE: Final = (os.SEEK_SET, 0, 0, 0)
_LOCK: Final = struct.pack("@hhqqi", fcntl.F_WRLCK, *_WHOLE_FILE)
_UNLOCK: Final = struct.pack("@hhqqi", fcntl.F_UNLCK, *_WHOLE_FILE)

_open: set[int] = set()


def _forget_in_child() -> None:
    """A child that is forked while a thread holds a lock has its file open too, and would keep it locked after
    its parent's death."""
    for fd in _open:
        with suppress(OSError):
            os.close(fd)
    _open.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class Lock:
    """The lock named by a file, open and not taken; a context manager, at whose end it is free again."""

    def __init__(self, lock_file: Path, owner_of: Path) -> None:
        self._fd = _lock_file(lock_file, owner_of)
        _open.add(self._fd)

    def touch(self) -> float:
        """Date the file now; seconds on the clock of its file system (relayer.md 4.2, point 6).

        An update without a time of our own is dated by the server where there is one.
        """
        os.utime(self._fd)
        return os.fstat(self._fd).st_mtime

    def take_if_free(self) -> bool:
        """Take it, unless another one holds it."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _LOCK)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, fcntl(2) lets systems choose
            return False
        return True

    def take(self) -> None:
        """Take it; waits for as long as it takes. Its holder's death frees it."""
        for pause in pauses():
            if self.take_if_free():
                return
            time.sleep(pause)

    def give_back(self) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _UNLOCK)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._fd not in _open:  # in a child that was forked meanwhile: its parent holds the lock
            return
        # Told, not only closed: somebody may have been forked and not come to its own closing yet.
        with suppress(OSError):
            self.give_back()
        _open.discard(self._fd)
        os.close(self._fd)


def _lock_file(path: Path, owner_of: Path) -> int:
    """Open the file, made if there is none. Only then it is given to the layout's owner: what he has put there
    himself, perhaps a second name of somebody's file, keeps its owner."""
    files = files_of(owner_of)
    try:
        fd = files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return files.open(path, os.O_RDWR)
    try:
        give_to_owner(fd, owner_of)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def exclusive(lock_file: Path, owner_of: Path) -> Iterator[None]:
    """Hold the lock named by ``lock_file``."""
    with Lock(lock_file, owner_of) as lock:
        lock.take()
        yield


def pauses() -> Iterator[float]:
    """Seconds between two looks at a lock that another one holds: from 1 ms to some 30, at random.

    Not left to the kernel: an NFS client whose lock is taken asks again after 1 s, then 2, up to 30 (NFSv4.0) unless
    its server calls back, and who sleeps in there does not see that another one did its work.
    """
    pause = 0.001
    while True:
        yield random.uniform(0.5, 1.5) * pause
        pause = min(pause * 1.4, 0.02)

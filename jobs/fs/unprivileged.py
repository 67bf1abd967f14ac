"""Read entries whose mode denies access even to their owner, for a process without root's rights.

A rootless unpack leaves files and directories of mode 000 that belong to the user, who then cannot read them. The mode
is widened while they are read and restored afterwards, also after an error (as umoci's pkg/unpriv). It is widened only
after the kernel returned EACCES, so root never does it unless it has dropped CAP_DAC_OVERRIDE.

Two processes may read one tree: the one that widened a mode also restores it, perhaps while the other still needs it.
The other one then gets EACCES and retries with growing pauses, at most :data:`ATTEMPTS` times.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from time import sleep
from types import TracebackType
from typing import Final, TypeVar

from layerfarm.jobs.fs.closing import ClosedOnError

T = TypeVar("T")

ATTEMPTS: Final = 50
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_RIGHTS: Final = {stat.S_IFDIR: 0o700, stat.S_IFREG: 0o400}


class Widened:
    """The entry ``name`` of an open directory, readable for its owner until :meth:`restore`; a context manager.

    Raises:
        PermissionError: it belongs to another user, or is neither a file nor a directory.
        OSError: as open(2).
    """

    _forbidden = False

    def __init__(self, directory: int, name: bytes | str) -> None:
        self._take(os.open(name, _LOOK, dir_fd=directory))

    @classmethod
    def of_handle(cls, handle: int) -> Widened:
        """Return the entry behind an O_PATH descriptor, which the caller still owns."""
        made = cls.__new__(cls)
        made._take(os.dup(handle))
        return made

    @classmethod
    def forbid(cls) -> None:
        """Let every entry of this process that would have to be widened raise PermissionError."""
        cls._forbidden = True

    def _take(self, handle: int) -> None:
        self._handle = handle
        with ClosedOnError(handle):
            self.found = os.fstat(handle)
            """The entry before it was widened."""
            mode = self.found.st_mode
            rights = _RIGHTS.get(stat.S_IFMT(mode))
            if rights is None or self.found.st_uid != os.geteuid() or self._forbidden:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._changed = mode & rights != rights
        if self._changed:
            self._chmod(stat.S_IMODE(mode) | rights)

    def again(self) -> bool:
        """Widen once more if another process has restored the mode; False if none has."""
        now = os.fstat(self._handle)
        rights = _RIGHTS[stat.S_IFMT(now.st_mode)]
        if now.st_mode & rights == rights:
            return False
        if not self._changed:
            # The other process was to restore the mode; now this one is.
            self.found, self._changed = now, True
        self._chmod(stat.S_IMODE(now.st_mode) | rights)
        return True

    def open(self, opened: Callable[[], T]) -> T:
        """Return ``opened()``, called again if another process restored the mode just before.

        Raises:
            PermissionError: the mode is not the reason, or it was restored :data:`ATTEMPTS` times.
        """
        for attempt in range(ATTEMPTS):
            try:
                return opened()
            except PermissionError:
                if not self.again():
                    raise
                sleep(attempt / 1000)
        return opened()

    def restore(self) -> None:
        """Restore the mode."""
        try:
            if self._changed:
                self._chmod(stat.S_IMODE(self.found.st_mode))
        finally:
            os.close(self._handle)

    def leave(self) -> None:
        """Keep the current mode of the entry, which is its final one."""
        os.close(self._handle)

    def _chmod(self, mode: int) -> None:
        # fchmod(2) takes no O_PATH descriptor; the path in /proc leads to this inode even if it was renamed.
        os.chmod(b"/proc/self/fd/%d" % self._handle, mode)

    def __enter__(self) -> Widened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.restore()


def is_locked(directory: int, name: bytes | str, found: os.stat_result) -> bool:
    """Return True if an ordinary user owns the directory ``name`` and its mode denies listing or searching it.

    ``found`` is its lstat; ``name`` is relative to an open directory.
    """
    return (
        found.st_mode & 0o500 != 0o500 and found.st_uid == os.geteuid() and not may(directory, os.R_OK | os.X_OK, name)
    )


def may(directory: int, rights: int, name: bytes | str = b".") -> bool:
    """Return True if this process has the ``rights`` (access(2)) over an open directory, or its entry ``name``.

    The kernel is asked: a process of uid 0 may be without CAP_DAC_OVERRIDE, as in a container that drops it.
    """
    return os.access(name, rights, dir_fd=directory, effective_ids=True)

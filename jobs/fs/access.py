"""An opened root filesystem, and cheap access to many entries of it."""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from pathlib import Path
from types import TracebackType

from layerfarm.jobs.errors import LimitExceeded, RootfsError, RootfsNotFound, TreeChanged, UnsafePath
from layerfarm.jobs.fs.closing import ClosedOnError
from layerfarm.jobs.fs.resolve import open_beneath, open_in_root
from layerfarm.jobs.fs.unprivileged import Widened, is_locked

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: never hang on a fifo; O_NOCTTY: never take a terminal. A file opened so is checked to be a regular one
# before a byte is read (law 5, docs/architecture.md).
_REGULAR = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_S_IFREG_BITS = stat.S_IFREG >> 12


def unreadable(error: OSError, where: bytes | Path) -> RootfsError:
    """Return the error to raise for an entry that cannot be read, with a hint if a right is missing."""
    hint = "run as root, or make it readable" if error.errno in (errno.EACCES, errno.EPERM) else None
    return RootfsError(f"entry cannot be read, {error.strerror}", where=where, hint=hint)


class Rootfs:
    """A root filesystem held open by its descriptor; a context manager.

    Raises:
        RootfsNotFound: the path does not exist or is not a directory.
    """

    def __init__(self, path: Path, *, to_be_read: bool = False, follow: bool = True) -> None:
        """``follow``: the path is the operator's own and may end in a link.

        ``to_be_read``: if its mode denies reading to an ordinary user who owns it, widen the root until the end.
        """
        self.path = path
        self.fd = -1
        self._widened: Widened | None = None
        try:
            handle = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
            try:
                self._open(handle, to_be_read)
            finally:
                os.close(handle)
        except FileNotFoundError as error:
            raise RootfsNotFound("root filesystem does not exist", where=path) from error
        except NotADirectoryError as error:
            raise RootfsNotFound("root filesystem is not a directory", where=path) from error
        except OSError as error:
            raise RootfsError(f"root filesystem cannot be opened, {error.strerror}", where=path) from error

    def _open(self, handle: int, to_be_read: bool) -> None:
        self.found = os.fstat(handle)
        """The root before it was widened."""

        def opened() -> int:
            return os.open(b".", _DIRECTORY, dir_fd=handle)

        try:
            self.fd = opened()
        except PermissionError:
            if not to_be_read:
                raise
            self._widened = Widened.of_handle(handle)
            self.found = self._widened.found
            try:
                self.fd = self._widened.open(opened)
            except BaseException:
                self.close()
                raise

    def regain(self) -> None:
        """Widen the root again if another process that had widened it has restored its mode."""
        if self._widened is not None:
            self._widened.again()
        elif is_locked(self.fd, b".", os.fstat(self.fd)):
            self._widened = Widened.of_handle(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._widened is not None:
            self._widened.restore()
            self._widened = None

    def __enter__(self) -> Rootfs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class DirectoryCache:
    """Descriptors of directories below a root, opened *beneath* (no link followed) and kept for reuse.

    Sorted access opens each directory once. At most ``limit`` stay open. An ordinary user's own directory whose mode
    denies access is widened while it is open.
    """

    def __init__(self, root: int, limit: int = 64) -> None:
        self._root = root
        self._limit = limit
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._widened: dict[int, Widened] = {}

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """Return the descriptor of the directory that holds ``path``, and the last component of ``path``.

        The cache closes the descriptor. For the root itself (``.``) it is the root and ``.``.

        Raises:
            UnsafePath: a parent is a symbolic link now.
            OSError: as open(2).
        """
        directory, _, name = path.rpartition(b"/")
        return (self.directory(directory) if directory else self._root), name

    def directory(self, path: bytes) -> int:
        """Return the descriptor of the directory ``path``, which the cache closes."""
        fd = self._open.get(path)
        if fd is not None:
            self._open.move_to_end(path)
            return fd
        fd = self._unlocked(self._root, path)
        return self._step_by_step(path) if fd is None else self._keep(path, fd)

    def settle(self, fd: int) -> None:
        """Do not restore the old mode of an open directory that has received its final mode."""
        if fd in self._widened:
            self._widened.pop(fd).leave()

    def close(self) -> None:
        """Close all; each is opened again when it is needed."""
        while self._open:
            self._release(self._open.popitem()[1])

    def _keep(self, path: bytes, fd: int) -> int:
        self._open[path] = fd
        if len(self._open) > self._limit:
            self._release(self._open.popitem(last=False)[1])
        return fd

    def _release(self, fd: int) -> None:
        os.close(fd)
        if fd in self._widened:
            self._widened.pop(fd).restore()

    @staticmethod
    def _unlocked(parent: int, path: bytes) -> int | None:
        """Return a descriptor, unless the directory or one above it denies access to its owner."""
        try:
            fd = open_beneath(parent, path, _DIRECTORY)
        except PermissionError:
            return None
        with ClosedOnError(fd):
            locked = is_locked(fd, b".", os.fstat(fd))
        if locked:
            os.close(fd)
            return None
        return fd

    def _step_by_step(self, path: bytes) -> int:
        """Open a directory below one whose mode denies access to its owner, an ordinary user."""
        here, known = self._root, b""
        for name in path.split(b"/"):
            known = known + b"/" + name if known else name
            held = self._open.get(known)
            if held is not None:
                self._open.move_to_end(known)
                here = held
                continue
            fd = self._unlocked(here, name)
            here = self._widen(here, name, known) if fd is None else self._keep(known, fd)
        return here

    def _widen(self, parent: int, name: bytes, path: bytes) -> int:
        widened = Widened(parent, name)
        try:
            fd = widened.open(lambda: open_beneath(parent, name, _DIRECTORY))
        except BaseException:
            widened.restore()
            raise
        self._widened[fd] = widened
        return self._keep(path, fd)

    def __enter__(self) -> DirectoryCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def stat_regular(directory: int, name: bytes | str) -> tuple[int, os.stat_result]:
    """Open the regular file ``name`` of an open directory for reading, for the caller to close; and its fstat(2).

    Raises:
        TreeChanged: it is not a regular file (any more).
        OSError: as open(2).
    """
    try:
        fd = os.open(name, _REGULAR, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            raise TreeChanged("not a regular file any more", where=os.fsencode(name)) from error
        raise
    with ClosedOnError(fd):
        found = os.fstat(fd)
        if found.st_mode >> 12 != _S_IFREG_BITS:
            raise TreeChanged("not a regular file any more", where=os.fsencode(name))
    return fd, found


def read_regular(root: int, path: bytes, limit: int) -> bytes | None:
    """Return the content of a small regular file inside the root, links resolved *in root*; None if there is none.

    For the few files whose content layerfarm interprets (``etc/passwd``, package databases). Anything but a regular
    file (a fifo, a device, a directory, a dangling link) counts as absent and is never opened for reading.

    Raises:
        LimitExceeded: the file is larger than ``limit`` bytes.
    """
    try:
        handle = open_in_root(root, path, os.O_PATH)
    except (UnsafePath, OSError):
        return None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            return None
        if found.st_size > limit:
            raise LimitExceeded(f"file is larger than {limit} bytes", where=path)

        # Through /proc/self/fd the very inode that was checked is opened, not its name again.
        def opened() -> int:
            try:
                return os.open(b"/proc/self/fd/%d" % handle, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
            except FileNotFoundError:  # /proc is not mounted
                return _same_file(root, path, found)

        try:
            fd = opened()
        except PermissionError:
            with Widened.of_handle(handle) as widened:
                fd = widened.open(opened)
    except PermissionError as error:
        raise RootfsError("file cannot be read", where=path) from error
    finally:
        os.close(handle)
    with os.fdopen(fd, "rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise LimitExceeded(f"file is larger than {limit} bytes", where=path)
    return content


def _same_file(root: int, path: bytes, wanted: os.stat_result) -> int:
    """Return the regular file ``path``, opened by name and only if it still is the inode ``wanted``.

    Raises:
        TreeChanged: it is another one.
    """
    fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    with ClosedOnError(fd):
        if not os.path.samestat(os.fstat(fd), wanted):
            raise TreeChanged("file was replaced by another one", where=path)
    return fd


def umask() -> int | None:
    """Return the process's umask from proc(5): umask(2) would change it for a moment. None: unknown."""
    try:
        with open("/proc/self/status", "rb") as stream:
            return next((int(line.split()[1], 8) for line in stream if line.startswith(b"Umask:")), None)
    except OSError:
        return None

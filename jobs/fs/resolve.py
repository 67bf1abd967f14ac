"""Resolve a path inside a root, by openat2(2) where the kernel has it and by an equal walk where not.

Two ways to resolve:

* *beneath*: no symbolic link is followed. For paths that a walk of the tree has found, where every component is a real
  directory; a link there means that it was swapped meanwhile.
* *in root*: symbolic links are followed as if the root were ``/``, so absolute targets and ``..`` stay inside
  (image-spec layer.md "Applying Changesets" leaves this open; umoci.md B2.1, B3.12).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from functools import cache
from typing import Any

from layerfarm.jobs.errors import UnsafePath

_SYS_OPENAT2 = 437  # the same number on every architecture (openat2(2))
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE_IN_ROOT = 0x10
MOST_LINKS = 40
"""Links that one path may lead through: the kernel's own limit, path_resolution(7)."""


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_SIZE_OF_HOW = ctypes.sizeof(_OpenHow)


@cache
def _how(flags: int, resolve: int) -> Any:
    # The kernel only reads it.
    return ctypes.byref(_OpenHow(flags, 0, resolve))


_libc = ctypes.CDLL(None, use_errno=True)
_kernel_has_openat2 = True


def open_beneath(root: int, path: bytes, flags: int) -> int:
    """Open ``path`` below the directory descriptor ``root``, following no symbolic link anywhere.

    Returns a descriptor that the caller closes. ``flags`` are those of open(2); O_CLOEXEC is added. With
    O_PATH a link in the last place is not followed but opened itself, unless O_DIRECTORY wants a directory there.

    Raises:
        UnsafePath: a component is a symbolic link, or the path leads out of the root.
        OSError: as open(2).
    """
    # With O_NOFOLLOW a link where O_DIRECTORY wants a directory would be ENOTDIR: the resolve flag says it.
    no_follow = os.O_NOFOLLOW if flags & os.O_PATH and not flags & os.O_DIRECTORY else 0
    return _open(root, path, flags & ~os.O_NOFOLLOW | no_follow, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)


def open_in_root(root: int, path: bytes, flags: int) -> int:
    """Open ``path`` with ``root`` taken as ``/``: links and ``..`` are followed but never lead out.

    Raises:
        UnsafePath: the path cannot be resolved safely (magic links of /proc, too many links).
        OSError: as open(2).
    """
    return _open(root, path, flags, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)


def _open(root: int, path: bytes, flags: int, resolve: int) -> int:
    global _kernel_has_openat2
    if b"\0" in path:
        raise UnsafePath("path holds a NUL byte", where=path)
    path = path or b"."
    if _kernel_has_openat2:
        try:
            return _openat2(root, path, flags | os.O_CLOEXEC, resolve)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UnsafePath("path goes through a symbolic link", where=path) from error
            if error.errno == errno.EXDEV:
                raise UnsafePath("path leads out of the root", where=path) from error
            if error.errno == errno.ENAMETOOLONG and len(path) >= 4096:
                return _walk(root, path, flags | os.O_CLOEXEC, resolve)
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            # EPERM is also what a seccomp profile without openat2 answers; let the walk decide.
            if error.errno == errno.ENOSYS:
                _kernel_has_openat2 = False
    return _walk(root, path, flags | os.O_CLOEXEC, resolve)


def _openat2(root: int, path: bytes, flags: int, resolve: int) -> int:
    how = _how(flags, resolve)
    while True:
        fd: int = _libc.syscall(_SYS_OPENAT2, root, path, how, _SIZE_OF_HOW)
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        # EAGAIN: a rename elsewhere raced with ".." resolution; openat2(2) says try again.
        if code not in (errno.EINTR, errno.EAGAIN):
            raise OSError(code, os.strerror(code), path)


def _walk(root: int, path: bytes, flags: int, resolve: int) -> int:
    """Emulate openat2 in user space: open one component at a time, each with O_PATH|O_NOFOLLOW from its parent."""
    parents: list[int] = [os.open(b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)]
    pending = _components(path)
    links = 0
    try:
        if resolve & _RESOLVE_BENEATH and path.startswith(b"/"):
            raise UnsafePath("path leads out of the root", where=path)
        while pending:
            part = pending.pop()
            if part == b".":
                continue
            if part == b"..":
                if len(parents) > 1:
                    os.close(parents.pop())
                elif resolve & _RESOLVE_BENEATH:
                    raise UnsafePath("path leads out of the root", where=path)
                continue
            here = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parents[-1])
            parents.append(here)  # closed below, whatever happens
            mode = os.fstat(here).st_mode
            if pending and stat.S_ISDIR(mode):
                continue
            os.close(parents.pop())
            if not stat.S_ISLNK(mode):
                if pending:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                return os.open(part, flags | os.O_NOFOLLOW, dir_fd=parents[-1])
            if not pending and flags & os.O_NOFOLLOW:
                return _open_link(parents[-1], part, flags, path)
            links += 1
            if resolve & _RESOLVE_NO_SYMLINKS or links > MOST_LINKS:
                raise UnsafePath("path goes through a symbolic link", where=path)
            target = os.readlink(part, dir_fd=parents[-1])
            if target.startswith(b"/"):
                while len(parents) > 1:
                    os.close(parents.pop())
            pending += _components(target)
        return os.open(b".", flags & ~os.O_NOFOLLOW, dir_fd=parents[-1])
    finally:
        for fd in parents:
            os.close(fd)


def _open_link(parent: int, name: bytes, flags: int, path: bytes) -> int:
    """Open a link that may not be followed as the kernel does: with O_PATH, the link itself."""
    try:
        return os.open(name, flags, dir_fd=parent)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafePath("path goes through a symbolic link", where=path) from error
        raise


def _components(path: bytes) -> list[bytes]:
    """Return the components of a path, the first one last, without ``.`` except at its end.

    A final ``.`` or a trailing slash requires a directory before it, and a link there is followed.
    """
    parts = path.split(b"/")
    kept = [part for part in parts if part not in (b"", b".")]
    if kept and parts[-1] in (b"", b"."):
        kept.append(b".")
    return kept[::-1]

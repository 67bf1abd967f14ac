"""Extended attributes of any entry, symbolic links and devices included, without following it."""

from __future__ import annotations

import errno
import os

_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_GONE = (errno.ENODATA,)


def proc_path(directory: int, name: bytes) -> bytes:
    """A path for the entry ``name`` of an open directory, for system calls that take no descriptor.

    A link, a device or a fifo cannot be opened without side effects, and the xattr calls have no
    ``*at`` form; through /proc/self/fd only the last component is looked up by name.
    """
    return b"/proc/self/fd/%d/%s" % (directory, name)


def get_xattrs(target: int | bytes) -> tuple[tuple[bytes, bytes], ...]:
    """All xattrs of an open file, or of the path from :func:`proc_path`, sorted by name.

    Names and values of any number and size are read. A filesystem without xattrs has none; an
    attribute that goes away between list and read is left out.

    Raises:
        OSError: the attributes exist but cannot be read.
    """
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return ()
        raise
    if not names:
        return ()
    found: list[tuple[bytes, bytes]] = []
    for name in sorted(map(os.fsencode, names)):
        try:
            found.append((name, os.getxattr(target, name, follow_symlinks=follow)))
        except OSError as error:
            if error.errno not in _UNSUPPORTED + _GONE:
                raise
    return tuple(found)


def set_xattr(target: int | bytes, name: bytes, value: bytes) -> None:
    """Set one xattr without following ``target``.

    Raises:
        OSError: as lsetxattr(2); ENOTSUP where the filesystem or the entry's type has none.
    """
    os.setxattr(target, name, value, follow_symlinks=isinstance(target, int))


def clear_xattrs(target: int | bytes, keep: frozenset[bytes] = frozenset()) -> None:
    """Remove every xattr but those named in ``keep``.

    Raises:
        OSError: an attribute exists and cannot be removed.
    """
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return
        raise
    for name in map(os.fsencode, names):
        if name in keep:
            continue
        try:
            os.removexattr(target, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _UNSUPPORTED + _GONE:
                raise

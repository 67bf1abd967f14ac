"""Extended attributes of any entry, links and devices included, never followed; and which of them are portable.

Walks record all xattrs on disk. Comparing trees, packing them, unpacking layers and reverting bundles follow the rules
here, so that a tree's manifest and its layer hold the same xattrs (umoci.md B1.6, B5).
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

HOST_XATTRS: Final = frozenset((b"security.selinux", b"system.nfs4_acl"))
"""Labels and ACLs of the machine: never packed, compared, cleared or taken from a layer."""
_DESCRIPTORS: Final = b"/proc/self/fd/"
_CAPABILITY: Final = b"security.capability"
_UNSUPPORTED: Final = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_IGNORED: Final = (*_UNSUPPORTED, errno.ENODATA)
_CLONE_FS: Final = 0x200
"""Flag of unshare(2): gives the thread a working directory of its own. Needs no privilege."""


def proc_path(directory: int, name: bytes) -> bytes:
    """Return a path for the entry ``name`` of an open directory, for system calls that take no descriptor.

    A link, a device or a fifo cannot be opened without side effects, and the xattr calls have no ``*at`` form; through
    /proc/self/fd only the last component is looked up by name. Where /proc is not mounted, the functions here split the
    path again.
    """
    return b"%s%d/%s" % (_DESCRIPTORS, directory, name)


def get_xattrs(target: int | bytes) -> tuple[tuple[bytes, bytes], ...]:
    """All xattrs of an open file, or of the path from :func:`proc_path`, sorted by name.

    A filesystem without xattrs has none; an attribute that is removed between list and read is left out.

    Raises:
        OSError: the attributes exist but cannot be read.
    """
    names = _names(target)
    if not names:
        return ()
    found: list[tuple[bytes, bytes]] = []
    for name in sorted(map(os.fsencode, names)):
        try:
            found.append((name, get_xattr(target, name)))
        except OSError as error:
            if error.errno not in _IGNORED:
                raise
    return tuple(found)


def get_xattr(target: int | bytes, name: bytes) -> bytes:
    """One xattr, without following ``target``.

    Raises:
        OSError: as lgetxattr(2).
    """
    return _call(os.getxattr, target, name)


def set_xattr(target: int | bytes, name: bytes, value: bytes) -> None:
    """Set one xattr without following ``target``.

    Raises:
        OSError: as lsetxattr(2); ENOTSUP where the filesystem or the entry's type has none.
    """
    _call(os.setxattr, target, name, value)


def clear_xattrs(target: int | bytes, keep: frozenset[bytes] = frozenset()) -> None:
    """Remove every xattr but those named in ``keep``.

    Raises:
        OSError: an attribute exists and cannot be removed.
    """
    for name in map(os.fsencode, _names(target)):
        if name in keep:
            continue
        try:
            _call(os.removexattr, target, name)
        except OSError as error:
            if error.errno not in _IGNORED:
                raise


def _names(target: int | bytes) -> list[str]:
    try:
        return _call(os.listxattr, target)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return []
        raise


def _call(call: Callable[..., T], target: int | bytes, *args: bytes) -> T:
    """Run ``call`` on an open file or a path from :func:`proc_path`, which is not followed."""
    try:
        return call(target, *args, follow_symlinks=isinstance(target, int))
    except FileNotFoundError:
        if isinstance(target, int) or os.path.exists(_DESCRIPTORS):
            raise
        directory, _, name = target.removeprefix(_DESCRIPTORS).partition(b"/")
        return _in_directory(int(directory), lambda: call(name, *args, follow_symlinks=False))


def _in_directory(directory: int, call: Callable[[], T]) -> T:
    """Run ``call()`` in a thread whose working directory is ``directory``: for a chroot without /proc.

    The process keeps its own.

    Raises:
        OSError: unshare(2) is forbidden, or ``call`` raises it.
    """
    found: list[T] = []
    failed: list[BaseException] = []

    def there() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_FS):
                raise OSError(ctypes.get_errno(), "a thread cannot have its own working directory")
            os.fchdir(directory)
            found.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def portable_xattrs(
    xattrs: tuple[tuple[bytes, bytes], ...], left_out: Callable[[bytes, str], None] | None = None
) -> tuple[tuple[bytes, bytes], ...]:
    """Return the xattrs on disk that a layer can hold, in the same order; capabilities without their user namespace.

    Omitted are the host's xattrs, those with an empty value (a PAX record without a value deletes) and those with ``=``
    in their name (PAX ends a keyword at its first equals sign). For the latter two ``left_out`` is called with the name
    and the reason.
    """
    kept: list[tuple[bytes, bytes]] = []
    for name, value in xattrs:
        if name in HOST_XATTRS:
            continue
        if value and b"=" not in name:
            kept.append((name, version_2(value) if name == _CAPABILITY else value))
        elif left_out is not None:
            left_out(name, "has a name that tar cannot hold" if value else "has an empty value and is left out")
    return tuple(kept)


def version_2(capability: bytes) -> bytes:
    """Return file capabilities without the user namespace of this host.

    Version 3 names the namespace's root as a uid of the host, which means nothing elsewhere; Docker rewrites it the
    same way (moby#41724, umoci #261). Anything else is unchanged.
    """
    magic = int.from_bytes(capability[:4], "little")
    if len(capability) == 24 and magic >> 24 == 3:
        return (magic & 0xFFFFFF | 2 << 24).to_bytes(4, "little") + capability[4:20]
    return capability

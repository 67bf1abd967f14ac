"""Owner, xattrs, mode and times of extracted entries, applied in the one order that loses nothing.

chown first: it clears setuid, setgid and file capabilities. xattrs before chmod: ``user.*`` needs write
permission, which the mode may take away (B5's rootless bug). Times last.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from layerfarm.jobs.errors import MalformedLayer, RootfsError
from layerfarm.jobs.fs import HOST_XATTRS, get_xattr, proc_path, set_xattr
from layerfarm.jobs.layer.nodes import Metadata
from layerfarm.jobs.layer.owners import HIGHEST_ID, OWNER_XATTR, IdMap, encode_owner
from layerfarm.jobs.mtree.model import Xattrs
from layerfarm.jobs.tar.reader import Member

_SAFE_TIMES: Final = range(-(2**31) * 10**9, 2**31 * 10**9)
"""Nanoseconds that every filesystem holds; outside, the time that was stored is read back."""
_LAST: Final = 2**62 * 10**9
"""Nanoseconds that a timespec holds; the kernel clamps further to the range of the filesystem."""


class Warnings:
    """Deviations from the layer's metadata, each kind reported once."""

    def __init__(self, warn: Callable[[str], None] | None) -> None:
        self.texts: list[str] = []
        self._warn = warn
        self._kinds: set[str] = set()

    def once(self, kind: str, text: str) -> None:
        if kind not in self._kinds:
            self._kinds.add(kind)
            self.texts.append(text)
            if self._warn is not None:
                self._warn(text)


class MetadataWriter:
    """Applies metadata to extracted entries."""

    def __init__(self, uid_map: IdMap, gid_map: IdMap, rootless: bool, warnings: Warnings) -> None:
        self._uid_map = uid_map
        self._gid_map = gid_map
        self._rootless = rootless
        self._warnings = warnings
        self._owners: dict[tuple[int, int], tuple[int, int]] = {}
        self._lenient = rootless or in_user_namespace()

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """Return the host's ids of an entry's owner.

        Raises:
            UnmappedId: an id is in no range of its map.
            MalformedLayer: an id is beyond those of Linux.
        """
        known = self._owners.get((uid, gid))
        if known is not None:
            return known
        if uid > HIGHEST_ID or gid > HIGHEST_ID:
            raise MalformedLayer(f"uid {uid} or gid {gid} is out of range")
        if self._rootless:
            # The entry's owner goes into an xattr instead (B5).
            host = os.geteuid(), os.getegid()
        else:
            host = self._uid_map.to_host(uid), self._gid_map.to_host(gid)
        if len(self._owners) < 65536:
            self._owners[uid, gid] = host
        return host

    def xattrs(self, member: Member) -> Xattrs:
        """Return the xattrs to set for an entry: its own and, if rootless, its owner."""
        if not member.xattrs and not (self._rootless and (member.uid or member.gid)):
            return ()
        wanted = dict(member.xattrs)
        if OWNER_XATTR in wanted:
            self._warnings.once("rootless", "the layer holds xattr user.rootlesscontainers, which unpacking may set")
            if self._rootless:
                del wanted[OWNER_XATTR]
        if self._rootless and (member.uid or member.gid):
            wanted[OWNER_XATTR] = encode_owner(member.uid, member.gid)
        return tuple(sorted(wanted.items()))

    def of(self, member: Member) -> Metadata:
        """Return the metadata to apply for an entry, with the host's ids."""
        atime = member.mtime if member.atime is None else member.atime
        owner = self.owner(member.uid, member.gid)
        return Metadata(member.mode, *owner, member.mtime, atime, self.xattrs(member))

    def apply_fd(self, fd: int, wanted: Metadata) -> Xattrs:
        """Apply metadata to an open file or directory; return the xattrs that were set."""
        mode, uid, gid, mtime, atime, xattrs = wanted
        try:
            os.fchown(fd, uid, gid)
        except PermissionError as error:
            raise _may_not_chown(uid, gid) from error
        applied = self._set_xattrs(fd, xattrs) if xattrs else ()
        os.fchmod(fd, mode)
        os.utime(fd, ns=in_range(atime, mtime))
        return applied

    def apply_name(self, directory: int, name: bytes, wanted: Metadata, *, is_link: bool) -> Xattrs:
        """Apply metadata to a symbolic link, device or fifo, which cannot be opened; return as :meth:`apply_fd`."""
        mode, uid, gid, mtime, atime, xattrs = wanted
        try:
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
        except PermissionError as error:
            raise _may_not_chown(uid, gid) from error
        applied = self._set_xattrs(proc_path(directory, name), xattrs) if xattrs else ()
        if not is_link:
            os.chmod(name, mode, dir_fd=directory)
        os.utime(name, ns=in_range(atime, mtime), dir_fd=directory, follow_symlinks=False)
        return applied

    def stored_time(self, found: os.stat_result, mtime: int) -> int:
        """Return the mtime that an entry has on disk; warn if the filesystem cannot hold ``mtime`` (B3.13)."""
        if found.st_mtime_ns // 10**9 != mtime // 10**9:
            self._warnings.once("time", f"the filesystem cannot hold the mtime {mtime // 10**9}, it keeps the nearest")
        return found.st_mtime_ns

    def _set_xattrs(self, target: int | bytes, xattrs: Xattrs) -> Xattrs:
        """Set xattrs; return those that were set. A refusal by the host or the filesystem is a warning."""
        applied: list[tuple[bytes, bytes]] = []
        for name, value in xattrs:
            if name in HOST_XATTRS:
                if _current(target, name) != value:
                    text = name.decode()
                    self._warnings.once(text, f"xattr {text} belongs to the host and is not taken from the layer")
                continue
            try:
                set_xattr(target, name, value)
            except OSError as error:
                self._refused(error, target, name)
            else:
                applied.append((name, value))
        return tuple(applied)

    def _refused(self, error: OSError, target: int | bytes, name: bytes) -> None:
        if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP):
            self._warnings.once("unsupported", "the filesystem does not hold all xattrs of the layer")
        elif error.errno == errno.EPERM and isinstance(target, bytes) and name.startswith(b"user."):
            # xattr(7): no link, device or fifo can hold one, not even for root.
            self._warnings.once("user", "user.* xattrs are for files and directories only, others are left out")
        elif error.errno in (errno.EPERM, errno.EACCES) and self._lenient:
            self._warnings.once("forbidden", f"xattr {os.fsdecode(name)!r} may not be set without privileges")
        else:
            hint = "use --rootless" if error.errno == errno.EPERM else None
            raise RootfsError(f"xattr {os.fsdecode(name)!r} cannot be set, {error.strerror}", hint=hint) from error


def is_safe_time(mtime: int) -> bool:
    return mtime in _SAFE_TIMES


def in_range(atime: int, mtime: int) -> tuple[int, int]:
    """Return both times, clamped to the range of a timespec."""
    return min(max(atime, -_LAST), _LAST), min(max(mtime, -_LAST), _LAST)


def in_user_namespace() -> bool:
    """Return True if some ids of the host do not exist for this process."""
    try:
        with open("/proc/self/uid_map", "rb") as stream:
            return stream.read().split() != [b"0", b"0", b"4294967295"]
    except OSError:
        return False


def _current(target: int | bytes, name: bytes) -> bytes | None:
    try:
        return get_xattr(target, name)
    except OSError:
        return None


def _may_not_chown(uid: int, gid: int) -> RootfsError:
    return RootfsError(f"owner {uid}:{gid} cannot be set without privileges", hint="use --rootless")

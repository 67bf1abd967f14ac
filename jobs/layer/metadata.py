"""Owner, xattrs, mode and times of what is extracted, in the one order that loses nothing.

chown first: it clears setuid, setgid and file capabilities. xattrs before chmod: ``user.*`` needs write
permission, which the mode may take away (B5's rootless bug). Times last.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from layerfarm.jobs.errors import MalformedLayer, RootfsError
from layerfarm.jobs.fs import HOST_XATTRS, clear_xattrs, get_xattr, proc_path, set_xattr
from layerfarm.jobs.layer import rootless
from layerfarm.jobs.layer.idmap import HIGHEST_ID, IdMap
from layerfarm.jobs.mtree.model import Xattrs
from layerfarm.jobs.tar.reader import Member

_SAFE_TIMES: Final = range(-(2**31) * 10**9, 2**31 * 10**9)
"""Nanoseconds that every filesystem holds; outside, what it made of them is looked up."""
_LAST_SECOND: Final = 2**62
_UNSUPPORTED: Final = (errno.ENOTSUP, errno.EOPNOTSUPP)


class Warnings:
    """What went otherwise than the layer asked, each kind said once."""

    def __init__(self, said: Callable[[str], None] | None) -> None:
        self.texts: list[str] = []
        self._said = said
        self._kinds: set[str] = set()

    def once(self, kind: str, text: str) -> None:
        if kind not in self._kinds:
            self._kinds.add(kind)
            self.texts.append(text)
            if self._said is not None:
                self._said(text)


class Dresser:
    """Gives extracted entries their metadata."""

    def __init__(self, uid_map: IdMap, gid_map: IdMap, is_rootless: bool, warnings: Warnings) -> None:
        self._uid_map = uid_map
        self._gid_map = gid_map
        self._rootless = is_rootless
        self._warnings = warnings
        self._owners: dict[tuple[int, int], tuple[int, int]] = {}
        self._lenient = is_rootless or in_user_namespace()

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """The host's ids for an entry's.

        Raises:
            UnmappedId: an id has no place in the map.
            MalformedLayer: an id is beyond what Linux has.
        """
        known = self._owners.get((uid, gid))
        if known is not None:
            return known
        if uid > HIGHEST_ID or gid > HIGHEST_ID:
            raise MalformedLayer(f"uid {uid} or gid {gid} is out of range")
        if self._rootless:
            # What the entry asks for goes into an xattr instead (B5).
            host = os.geteuid(), os.getegid()
        else:
            host = self._uid_map.to_host(uid), self._gid_map.to_host(gid)
        if len(self._owners) < 65536:
            self._owners[uid, gid] = host
        return host

    def xattrs(self, member: Member) -> Xattrs:
        """The xattrs to set for an entry: its own, less the host's, plus the owner if rootless."""
        if not member.xattrs and not (self._rootless and (member.uid or member.gid)):
            return ()
        wanted = dict(member.xattrs)
        if rootless.XATTR_NAME in wanted:
            self._warnings.once("rootless", "the layer holds xattr user.rootlesscontainers, which unpacking may set")
            if self._rootless:
                del wanted[rootless.XATTR_NAME]
        if self._rootless and (member.uid or member.gid):
            wanted[rootless.XATTR_NAME] = rootless.encode_owner(member.uid, member.gid)
        return tuple(sorted(wanted.items()))

    def dress_fd(self, fd: int, owner: tuple[int, int], mode: int, mtime: int, atime: int, xattrs: Xattrs) -> Xattrs:
        """For an open file or directory; returns the xattrs that it took."""
        self._chown(fd, owner)
        applied = self.set_xattrs(fd, xattrs) if xattrs else ()
        os.fchmod(fd, mode)
        os.utime(fd, ns=in_range(atime, mtime))
        return applied

    def dress_name(
        self,
        directory: int,
        name: bytes,
        owner: tuple[int, int],
        mode: int | None,
        mtime: int,
        atime: int,
        xattrs: Xattrs,
    ) -> Xattrs:
        """For a link (``mode`` None), device or fifo, which cannot be opened."""
        try:
            os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)
        except PermissionError as error:
            raise _may_not_chown(owner) from error
        applied = self.set_xattrs(proc_path(directory, name), xattrs) if xattrs else ()
        if mode is not None:
            os.chmod(name, mode, dir_fd=directory)
        os.utime(name, ns=in_range(atime, mtime), dir_fd=directory, follow_symlinks=False)
        return applied

    def check_time(self, found: os.stat_result, mtime: int) -> int:
        """The mtime that an entry really got; a warning where the filesystem cannot hold it (B3.13)."""
        if found.st_mtime_ns // 10**9 != mtime // 10**9:
            self._warnings.once("time", f"the filesystem cannot hold the mtime {mtime // 10**9}, it keeps the nearest")
        return found.st_mtime_ns

    def set_xattrs(self, target: int | bytes, xattrs: Xattrs) -> Xattrs:
        """Set them; those that were taken. What the host or the filesystem does not allow is a warning."""
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
                if error.errno in _UNSUPPORTED:
                    self._warnings.once("unsupported", "the filesystem does not hold all xattrs of the layer")
                elif error.errno == errno.EPERM and isinstance(target, bytes) and name.startswith(b"user."):
                    # xattr(7): no link, device or fifo can hold one, whoever asks.
                    self._warnings.once("user", "user.* xattrs are for files and directories only, others are left out")
                elif error.errno in (errno.EPERM, errno.EACCES) and self._lenient:
                    self._warnings.once("forbidden", f"xattr {os.fsdecode(name)!r} may not be set without privileges")
                else:
                    hint = "use --rootless" if error.errno == errno.EPERM else None
                    raise RootfsError(
                        f"xattr {os.fsdecode(name)!r} cannot be set, {error.strerror}", hint=hint
                    ) from error
            else:
                applied.append((name, value))
        return tuple(applied)

    @staticmethod
    def clear(target: int | bytes) -> None:
        """Remove what a default ACL, or an earlier life, has left."""
        clear_xattrs(target, HOST_XATTRS)

    def _chown(self, fd: int, owner: tuple[int, int]) -> None:
        try:
            os.fchown(fd, *owner)
        except PermissionError as error:
            raise _may_not_chown(owner) from error


def is_safe_time(mtime: int) -> bool:
    return mtime in _SAFE_TIMES


def in_range(atime: int, mtime: int) -> tuple[int, int]:
    """Both times within what a timespec holds; the kernel clamps further to what the filesystem does."""
    low, high = -_LAST_SECOND * 10**9, _LAST_SECOND * 10**9
    return min(max(atime, low), high), min(max(mtime, low), high)


def in_user_namespace() -> bool:
    """Whether some ids of the host do not exist for this process."""
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


def _may_not_chown(owner: tuple[int, int]) -> RootfsError:
    return RootfsError(f"owner {owner[0]}:{owner[1]} cannot be set without privileges", hint="use --rootless")

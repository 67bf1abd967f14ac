"""A private place for hostile input, with a canary tree around it that an escape would change.

As root the place is a tmpfs of its own in a private mount namespace, and the process is chrooted into it:
what gets out of the tree under test meets the canary, never the machine. Without that right it is a
directory with the canary beside it.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from layerfarm.jobs.fs.remove import remove_tree

_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 4, 32, 4096, 16384, 1 << 18
_SIZE = b"size=512m,mode=755"

# Names that hostile seeds and mutations point at: /canary, /etc/passwd, and whatever lies above the root.
_CANARY = {
    "canary/file": b"alive",
    "canary/dir/below": b"alive too",
    "canary/mode": b"secret",
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nhost:x:4242:4242::/:/bin/sh\n",
    "etc/group": b"root:x:0:\n",
    "file": b"at the top",
}

Look = dict[str, tuple[object, ...]]


class Place(NamedTuple):
    """A directory to work in, and the top of the canary around it."""

    work: Path
    top: Path
    private: bool
    """In a mount namespace and chroot of its own."""

    def look(self) -> Look:
        """Everything outside ``work``: what lstat says, less the access times, and the contents."""
        seen: Look = {}
        pending = [self.top]
        while pending:
            directory = pending.pop()
            seen[str(directory)] = _identity(os.lstat(directory))
            for entry in os.scandir(directory):
                path = Path(entry.path)
                if path in (self.work, self.top / "proc"):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                    continue
                found = os.lstat(path)
                content = path.read_bytes() if entry.is_file(follow_symlinks=False) else b""
                seen[entry.path] = (*_identity(found), content)
        return seen

    def clear(self) -> None:
        """Empty the working directory, whatever is in it."""
        for name in os.listdir(self.work):
            remove_tree(self.work / name)

    def restore(self) -> None:
        """Put a changed canary back."""
        for name in os.listdir(self.top):
            if name not in (self.work.name, "proc"):
                remove_tree(self.top / name)
        _fill(self.top)


def enter(top: Path) -> Place:
    """Make ``top``, an empty directory, the place; in a namespace of this process' own if that is allowed."""
    private = os.geteuid() == 0 and _enter_namespace(top)
    if private:
        top = Path("/")
    _fill(top)
    (top / "work").mkdir(mode=0o700)
    tempfile.tempdir = str(top / "work")
    return Place(top / "work", top, private)


def _enter_namespace(top: Path) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        return False
    where = os.fsencode(top)
    calls = (
        (b"none", b"/", None, _MS_REC | _MS_PRIVATE, None),
        (b"fuzz", where, b"tmpfs", _MS_NODEV, _SIZE),
    )
    if any(libc.mount(*call) for call in calls):
        return False
    # The rooms reach xattrs of links through /proc/self/fd; nothing in it may be written by name.
    proc = where + b"/proc"
    os.mkdir(proc)
    for flags in (_MS_BIND | _MS_REC, _MS_BIND | _MS_REMOUNT | _MS_RDONLY):
        if libc.mount(b"/proc", proc, None, flags, None):
            raise OSError(ctypes.get_errno(), "proc cannot be mounted")
    os.chroot(top)
    os.chdir("/")
    return True


def _fill(top: Path) -> None:
    for name, content in _CANARY.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(0, 0))
    os.chmod(top / "canary/mode", 0o600)
    os.symlink("file", top / "canary/link")


def _identity(found: os.stat_result) -> tuple[object, ...]:
    return (
        found.st_mode,
        found.st_ino,
        found.st_uid,
        found.st_gid,
        found.st_nlink,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )

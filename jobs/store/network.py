"""What is different where the store lies on a network file system (relayer.md 4.2, point 7)."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Final

_NETWORK: Final = ("nfs", "cifs", "smb3", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "9p", "afs", "ocfs2", "gfs2")
_LATE: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


def late_pauses(path: Path) -> tuple[float, ...]:
    """Seconds to wait, one after another, for a file that another host has made and this one does not see yet.

    A client of NFS that has once looked for a name in vain remembers for a while that there is no such file, up to
    a minute unless it is mounted with ``lookupcache=positive``. None of it on a disk of this machine, where what is
    not there is not there.
    """
    try:
        return _LATE if _type_of(os.stat(path).st_dev).startswith(_NETWORK) else ()
    except OSError:
        return ()


@lru_cache(maxsize=64)
def _type_of(device: int) -> str:
    """The type of the mounted file system, as proc(5) has it in mountinfo; empty: not found there."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, kind = line.partition(" - ")
            if fields.split()[2] == wanted:
                name = kind.split()[0]
                return name.removeprefix("fuse.")
    return ""

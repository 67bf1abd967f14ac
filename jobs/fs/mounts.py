"""The kinds of mounted file systems."""

from __future__ import annotations

import os
from functools import lru_cache


@lru_cache(maxsize=64)
def filesystem_type(device: int) -> str:
    """Return the type of the mounted file system ``st_dev`` by proc(5) mountinfo, without ``fuse.``.

    It is empty if it is not listed.

    Raises:
        OSError: /proc is not mounted.
    """
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, kind = line.partition(" - ")
            if fields.split()[2] == wanted:
                return kind.split()[0].removeprefix("fuse.")
    return ""

"""Descriptors, threads and children of this process that a test leaves.

They are not counted: those of earlier tests may end meanwhile, and fewer than before failed a test once.
"""

from __future__ import annotations

import gc
import os
import threading
from contextlib import suppress
from pathlib import Path


class Held:
    """The descriptors, threads and children of this process when it is made."""

    def __init__(self) -> None:
        gc.collect()  # a descriptor that is closed later than here could be opened again, for the same file
        self._before = _everything()

    def new(self) -> list[object]:
        """Return the descriptors with their files, the threads and the children that are new."""
        return [each for each in _everything() if each not in self._before]


def _everything() -> list[object]:
    held: list[object] = list(threading.enumerate())
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one of this listing
            held.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return [*held, *map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]

"""The clock that a file system sets ctimes by, and what a ctime proves.

A ctime cannot be set, only advanced, by touching the entry. Yet an entry touched twice within one tick of the clock
(4 ms on most kernels, seconds on some file systems) has one ctime for both, so a record made between the two looks
right and is wrong: git's "racily clean" entries. Hence the clock is read before a walk begins. Touching an entry
after it was walked gives it a ctime that is not older than that reading, so a ctime that *was* older when it was
walked is replaced, whatever the tick.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

_UNNAMED = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
_NAMED = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_LONGEST_TICK = 0.02
"""Seconds. Ticks of 1, 4 and 10 ms are awaited; those of a file system that counts in seconds are not."""


class Clock(NamedTuple):
    """A reading of a file system's clock."""

    now: int
    """Nanoseconds."""
    devices: frozenset[int]
    """st_dev of the entries that it dates. Mounts below may have another clock with other ticks."""


NO_CLOCK = Clock(-1 << 80, frozenset())
"""A clock by which no ctime proves anything."""


def read_clock(directory: Path) -> Clock:
    """Return the clock of the file system of ``directory``; :data:`NO_CLOCK` if no file can be created there.

    It is read by creating a file, without a name where the file system supports that.
    """
    try:
        fd, name = _probe(directory)
    except OSError:
        return NO_CLOCK
    try:
        found = os.fstat(fd)
        # An overlay may give files the device number of their layer, and directories its own.
        return Clock(found.st_ctime_ns, frozenset((found.st_dev, directory.stat().st_dev)))
    finally:
        os.close(fd)
        if name is not None:
            name.unlink(missing_ok=True)


def next_tick(directory: Path) -> Clock:
    """Return :func:`read_clock` after the clock has advanced: everything written before this call is older.

    Waits for the usual ticks only. With a longer one the last writes are not older, which is safe.
    """
    first = read_clock(directory)
    until = time.monotonic() + _LONGEST_TICK
    clock = first
    while clock.now <= first.now and clock != NO_CLOCK and time.monotonic() < until:
        time.sleep(0.001)
        clock = read_clock(directory)
    return clock


def _probe(directory: Path) -> tuple[int, Path | None]:
    try:
        return os.open(directory, _UNNAMED, 0o600), None
    except OSError:  # old and network file systems answer O_TMPFILE with different errors
        path = directory / f".clock-{os.urandom(8).hex()}"
        return os.open(path, _NAMED, 0o600), path

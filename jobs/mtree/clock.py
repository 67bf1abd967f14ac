"""The clock that a file system stamps its ctimes with, and what a ctime proves by it.

A ctime cannot be set, only advanced, by touching the entry. Yet an entry touched twice within one tick of the clock
(4 ms on most kernels, seconds on some file systems) has one ctime for both, so a record made between the two looks
right and is not: the "racily clean" entries of git. Hence the clock is read before a walk begins. Touching an entry
after it was walked gives it a ctime that is not older than that reading; a ctime that *was* older when it was walked
is therefore replaced, whatever the tick.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

_UNNAMED = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
_NAMED = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_LONGEST_TICK = 0.02
"""Seconds. Ticks of 1, 4 and 10 ms are waited for; a file system that counts in seconds is not."""


class Clock(NamedTuple):
    """A reading of a file system's clock."""

    now: int
    """Nanoseconds."""
    devices: frozenset[int]
    """st_dev of what is stamped by it. Mounts below may have a clock of their own, and other ticks."""


NO_CLOCK = Clock(-1 << 80, frozenset())
"""No ctime proves anything by this one."""


def read_clock(directory: Path) -> Clock:
    """The clock of the file system of ``directory``, read by making a file there; :data:`NO_CLOCK` if none can be made.

    The file has no name, and so leaves no trace, where the file system supports that.
    """
    try:
        fd, name = _probe(directory)
    except OSError:
        return NO_CLOCK
    try:
        found = os.fstat(fd)
        # An overlay may give files the device number of the layer that they are in, and directories its own.
        return Clock(found.st_ctime_ns, frozenset((found.st_dev, directory.stat().st_dev)))
    finally:
        os.close(fd)
        if name is not None:
            name.unlink(missing_ok=True)


def next_tick(directory: Path) -> Clock:
    """:func:`read_clock` once the clock has moved on: all that was written before this call is older than it.

    Waits for usual clocks only; with a slower one, what was written last is not older, which is safe.
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
    except OSError:  # what an old or a network file system says to O_TMPFILE differs
        path = directory / f".clock-{os.urandom(8).hex()}"
        return os.open(path, _NAMED, 0o600), path

"""Who holds a claim: one process, told from every other on every host, alive or dead."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Owner(NamedTuple):
    """``place`` is equal for processes that can see each other's pids: one boot, one pid namespace."""

    place: str
    pid: int
    started: int
    """Clock ticks after boot: a pid is used again, a pid with its start time is not."""

    @classmethod
    def parse(cls, text: str) -> Owner:
        place, pid, started = text.split("/")
        return cls(place, int(pid), int(started))

    def __str__(self) -> str:
        return f"{self.place}/{self.pid}/{self.started}"

    @property
    def is_known_dead(self) -> bool:
        """True only if this process can see that the owner is gone; False of owners elsewhere."""
        return self.place == _place() and _start_time(self.pid) != self.started


def this_process() -> Owner:
    return owner_of(os.getpid())


def owner_of(pid: int) -> Owner:
    """A process that this one can see."""
    return Owner(_place(), pid, _start_time(pid) or 0)


@cache
def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - follows the magic link


def _start_time(pid: int) -> int | None:
    """Field 22 of proc_pid_stat(5); None when there is no such process, or only its zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])

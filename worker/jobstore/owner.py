"""Owners of claims: one process, told from every other on every host, alive or dead."""

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
        """True only if this process can see that the owner is gone; False of owners elsewhere.

        That /proc does not show a process is no evidence: it may hide others (``hidepid``, systemd's ProtectProc=).
        """
        if self.place != _place():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        state, started = _stat(self.pid)
        return state in _DEAD or (started is not None and started != self.started)


def this_process() -> Owner:
    return owner_of(os.getpid())


def owner_of(pid: int) -> Owner:
    """A process that this one can see."""
    return Owner(_place(), pid, _stat(pid)[1] or 0)


@cache
def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - follows the magic link


_DEAD = ("Z", "X")
"""States of a process that has ended and whose parent has not asked for it."""


def _stat(pid: int) -> tuple[str, int | None]:
    """State and start time, fields 3 and 22 of proc_pid_stat(5); empty and None where /proc shows no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return "", None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])

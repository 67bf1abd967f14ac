"""Owners of claims: one process, distinguishable from all others on every host, alive or dead."""

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
    """Clock ticks after boot: a pid is reused, a pid with its start time is not."""

    @classmethod
    def parse(cls, text: str) -> Owner:
        place, pid, started = text.split("/")
        return cls(place, int(pid), int(started))

    def __str__(self) -> str:
        return f"{self.place}/{self.pid}/{self.started}"

    @property
    def is_known_dead(self) -> bool:
        """Return True only if this process can see that the owner is dead; False for owners elsewhere.

        A process missing in /proc is no evidence: /proc may hide others (``hidepid``, systemd's ProtectProc=).
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
    """Return the owner for a process that this one can see."""
    return Owner(_place(), pid, _stat(pid)[1] or 0)


@cache
def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - follows the magic link


_DEAD = ("Z", "X")
"""States of an ended process whose parent has not waited for it."""


def _stat(pid: int) -> tuple[str, int | None]:
    """Return state and start time, fields 3 and 22 of proc_pid_stat(5); empty and None if /proc does not show it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return "", None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])

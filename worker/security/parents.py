"""Let a process end when the one that started it ends, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """Ask the kernel to send this process ``signum`` when the thread that started it ends (prctl(2)).

    Called in the child. ``parent`` is the pid of the starter as it saw itself: should it be gone
    already, before the request could be made, this process leaves at once.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)

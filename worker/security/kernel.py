"""System calls that Python does not provide."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

_libc = ctypes.CDLL(None, use_errno=True)


def syscall(what: str, number: int, *arguments: object) -> int:
    """Call system call ``number`` and return its result.

    Raises:
        OSError: the kernel's error; its text begins with ``what``.
    """
    return _checked(what, int(_libc.syscall(number, *arguments)))


def prctl(what: str, option: int, argument: int) -> None:
    """Call prctl(2). Raises OSError as :func:`syscall`."""
    _checked(what, int(_libc.prctl(option, argument, 0, 0, 0)))


def forbid_new_privileges() -> None:
    """Prevent programs executed by this process from gaining rights (setuid, capabilities of files)."""
    prctl("no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process, a child, when the thread that started it ends.

    ``parent`` is the pid of the starter as it saw itself; if it has already ended, this process ends at once.
    """
    prctl("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _checked(what: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result

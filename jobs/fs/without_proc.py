"""System calls by name in an open directory where /proc is not mounted, as in a bare chroot."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_CLONE_FS = 0x200
"""Flag of unshare(2): gives the thread a working directory of its own. Needs no privilege."""


def in_directory(directory: int, call: Callable[[], T]) -> T:
    """Run ``call()`` in a thread whose working directory is ``directory``; the process keeps its own.

    Raises:
        OSError: unshare(2) is forbidden, or ``call`` raises it.
    """
    found: list[T] = []
    failed: list[BaseException] = []

    def there() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_FS):
                raise OSError(ctypes.get_errno(), "a thread cannot have its own working directory")
            os.fchdir(directory)
            found.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]

"""Descriptors that no error leaves open."""

from __future__ import annotations

import os


class ClosedOnError:
    """Closes a descriptor if the ``with`` block raises; otherwise the caller has it.

    Even fstat(2) may fail: with ESTALE, for a file that another client of NFS has removed. One left open would keep
    that file on the server. A class, because a generator would cost more than the system calls.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            os.close(self._fd)

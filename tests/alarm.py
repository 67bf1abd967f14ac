"""Fail a test that blocks."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_hanging(seconds: int) -> Iterator[None]:
    """Interrupt code that waits for the other end of a fifo: the block fails after ``seconds``."""

    def hung(*_: object) -> None:
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

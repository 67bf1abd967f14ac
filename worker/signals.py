"""Orderly termination: SIGTERM and SIGHUP unwind the stack, so that every ``finally`` runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
"""SIGHUP comes when a terminal is closed. Under nohup(1) it is ignored, and stays so."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise SystemExit on SIGTERM and SIGHUP inside the block, except where one is ignored or has a handler."""
    in_main = threading.current_thread() is threading.main_thread()
    taken = [number for number in _ENDING if in_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)

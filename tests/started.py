"""The programs that this process has started, so that those of a test end with it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

_started: list[subprocess.Popen[Any]] = []
_start = subprocess.Popen.__init__


def note_all() -> None:
    """From now on, note every program that is started by way of :mod:`subprocess`."""

    def start(self: subprocess.Popen[Any], *args: Any, **options: Any) -> None:
        _start(self, *args, **options)
        _started.append(self)

    subprocess.Popen.__init__ = start  # type: ignore[method-assign]


@contextmanager
def for_later_tests() -> Iterator[None]:
    """Leave what the block starts to a fixture of a wider scope, for which a test has started it."""
    before = len(_started)
    yield
    del _started[before:]


@contextmanager
def ended() -> Iterator[None]:
    """End the programs, with their children, that the block has started and left running; fail for that."""
    before = len(_started)
    yield
    left = [process for process in _started[before:] if process.poll() is None]
    del _started[before:]
    for process in left:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
        process.wait()
    assert not left, f"the test has left programs running: {[process.args for process in left]}"

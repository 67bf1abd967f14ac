"""Work on bytes beside the thread that makes or takes them: digests, which cost it no time so."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final

_AHEAD: Final = 4
"""Pieces that may wait; who brings one more waits himself, so memory stays flat."""

Buffer = bytes | memoryview


class Beside:
    """Calls functions with pieces of bytes, one after the other, in one thread of its own.

    Worth it from some 100 KiB a piece: hashlib releases the interpreter lock, and handing a piece over
    takes 20 us. The thread starts with the first piece; :meth:`close` ends it.
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Callable[[Buffer], object], Buffer] | None] = queue.Queue(_AHEAD)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def put(self, function: Callable[[Buffer], object], piece: Buffer) -> None:
        """Have ``function(piece)`` called; the bytes must stay as they are until :meth:`wait`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="beside", daemon=True)
            self._thread.start()
        self._queue.put((function, piece))

    def wait(self) -> None:
        """Return when all that was put is done.

        Raises:
            Exception: what a function raised; nothing was called after it.
        """
        self._queue.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread; what was put and not waited for may be left undone."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    item[0](item[1])
                except BaseException as error:  # kept for wait(): this thread has nobody to raise it to
                    self._error = error
            self._queue.task_done()

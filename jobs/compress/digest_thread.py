"""Digests of bytes, computed in a thread beside the producer or consumer of the bytes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import Final

_AHEAD: Final = 4
"""Pieces that may wait; then the caller waits, so memory stays constant."""

Buffer = bytes | memoryview


class DigestThread:
    """Calls functions, such as a hash object's ``update``, with pieces of bytes, one after the other, in one thread.

    Worth it from some 100 KiB a piece: hashlib releases the interpreter lock, and handing a piece over
    takes 20 us. The thread starts with the first piece; :meth:`close` ends it.
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Callable[[Buffer], object], Buffer] | None] = queue.Queue(_AHEAD)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def put(self, function: Callable[[Buffer], object], piece: Buffer) -> None:
        """Queue a call of ``function(piece)``; the bytes must not change until :meth:`wait`.

        Raises:
            Exception: raised by an earlier call.
        """
        if self._error is not None:
            raise self._error
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="digest", daemon=True)
            self._thread.start()
        self._queue.put((function, piece))

    def wait(self) -> None:
        """Return when all calls are done.

        Raises:
            Exception: raised by a function; nothing was called after it.
        """
        self._queue.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread; calls that were not waited for may be skipped."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    item[0](item[1])
                except BaseException as error:  # kept for wait(): this thread has no caller
                    self._error = error
            self._queue.task_done()


def digested(
    pieces: Iterable[bytes], update: Callable[[Buffer], object], *, in_thread: bool
) -> Generator[bytes, None, None]:
    """Pass ``pieces`` on, and call ``update`` with each, in a thread if requested; all calls are done before the end.

    Raises (while iterating):
        Exception: raised by ``update``.
    """
    with closing(DigestThread()) as thread:
        for piece in pieces:
            if in_thread:
                thread.put(update, piece)
            else:
                update(piece)
            yield piece
        thread.wait()

"""Deltas that a comparison cannot tell yet, and those behind them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from heapq import heappop, heappush
from tempfile import TemporaryFile
from typing import BinaryIO

from layerfarm.jobs.mtree.model import Delta, Entry

_HELD_IN_MEMORY = 20_000


class Held:
    """Deltas held back while it is open whether the other tree has a directory of the same name.

    A file that only one tree has comes before a directory of its name in mtree order, so it cannot be
    told at once from one half of a change of type. It waits until the other tree has passed that place;
    deltas that come meanwhile stand behind it, on disk if they are many.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, bytes]] = []
        """Heap of (place of the directory, path)."""
        self._open: dict[bytes, Delta] = {}
        self._settled: dict[bytes, Delta | None] = {}
        self._queue: list[Delta | bytes] = []
        self._file: BinaryIO | None = None

    def wait(self, place: bytes, delta: Delta) -> None:
        heappush(self.waiting, (place, delta.path))
        self._open[delta.path] = delta
        self.append(delta.path)

    def append(self, item: Delta | bytes) -> None:
        self._queue.append(item)
        if len(self._queue) >= _HELD_IN_MEMORY:
            if self._file is None:
                self._file = TemporaryFile()
            pickle.dump(self._queue, self._file, pickle.HIGHEST_PROTOCOL)
            self._queue.clear()

    def counterpart(self, entry: Entry) -> Delta | None:
        return self._open.get(entry.path) if self._open and entry.type == "dir" else None

    def resolve(self, path: bytes, delta: Delta | None) -> None:
        """The held delta of ``path`` becomes ``delta``, or nothing."""
        del self._open[path]
        self._settled[path] = delta

    def settle(self, key: bytes | None) -> None:
        """Both trees have come to ``key``: who waits for a place before it is what it seemed to be."""
        while self.waiting and (key is None or self.waiting[0][0] < key):
            path = heappop(self.waiting)[1]
            delta = self._open.pop(path, None)
            if delta is not None:
                self._settled[path] = delta

    def release(self) -> Iterator[Delta]:
        """All that was held, in order; only when nobody waits any more."""
        if not self._queue and self._file is None:
            return
        for queue in self._queues():
            for item in queue:
                delta = self._settled.pop(item) if isinstance(item, bytes) else item
                if delta is not None:
                    yield delta
        self._queue.clear()

    def _queues(self) -> Iterator[list[Delta | bytes]]:
        if self._file is not None:
            with self._file as stream:
                end = stream.tell()
                stream.seek(0)
                while stream.tell() < end:
                    yield pickle.load(stream)  # written by ourselves, to a file without a name
            self._file = None
        yield self._queue

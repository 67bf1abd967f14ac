"""``index.json`` on disk: read as it is now, changed by one writer at a time (umoci #146)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from layerfarm.jobs.limits import limits
from layerfarm.jobs.store.durable import explained, make_directory, read_unmoved, replace_file
from layerfarm.jobs.store.indextext import IndexText
from layerfarm.jobs.store.locks import Lock

PRIVATE_DIRECTORY: Final = ".layerfarm"
"""What layerfarm keeps in a layout beside the specified files; other tools ignore it."""


class IndexFile:
    """The index of the layout at ``layout``."""

    def __init__(self, layout: Path) -> None:
        self._layout = layout
        self.path = layout / "index.json"
        self._lock = layout / PRIVATE_DIRECTORY / "index.lock"

    def read(self) -> IndexText:
        """As it is now.

        Raises:
            MalformedDocument: it does not parse.
            LimitExceeded: it is too large.
        """
        raw, where = self.raw(), str(self.path)
        known = _known.get(self.path)
        if known is not None and known.is_of(raw):
            return known
        text = (known and known.goes_on(raw, where)) or IndexText.parse(raw, where)
        _known.put(self.path, text)
        return text

    def raw(self) -> bytes:
        """The bytes of the file."""
        return read_file(self.path, "index_bytes", self._layout)

    def update(self, change: Callable[[IndexText], IndexText]) -> IndexText:
        """Replace the index by ``change`` of it, which is called under the lock and must be quick."""
        with self.locked():
            return self.replace(change)

    def replace(self, change: Callable[[IndexText], IndexText]) -> IndexText:
        """The same for whoever holds the lock already."""
        old = self.read()
        new = change(old)
        if new is not old:
            raw = new.encode()
            bounds = limits()
            if len(raw) > bounds.index_bytes:
                # Nobody could read it any more.
                raise bounds.exceeded("index_bytes", "index.json would be larger than {} bytes", self.path)
            self.write(raw)
            _known.put(self.path, new)
        return new

    def write(self, raw: bytes) -> None:
        """Give the file new content, whole and durably."""
        staging = self._layout / PRIVATE_DIRECTORY / "ingest"
        with explained("index.json cannot be updated", self._layout):
            make_directory(staging, self._layout)
            replace_file(self.path, raw, staging, self._layout)

    def now(self) -> float:
        """Seconds on the clock of the file system that dates the blobs (relayer.md 4.2, point 6)."""
        with self.lock() as lock:
            return lock.touch()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other writer out."""
        with self.lock() as lock:
            lock.take()
            yield

    @contextmanager
    def lock(self) -> Iterator[Lock]:
        """The lock that writers of the index hold."""
        with explained("index.json cannot be locked", self._layout):
            make_directory(self._lock.parent, self._layout)
            lock = Lock(self._lock, self._layout)
        with lock:
            yield lock


def read_file(path: Path, limit: str, layout: Path) -> bytes:
    """A small file of a layout whole.

    Raises:
        StoreError: it cannot be read.
        UnsafePath: a link stands in the way, or it is not a regular file.
        LimitExceeded: it is larger than the limit of that name.
    """
    bounds = limits()
    most: int = getattr(bounds, limit)
    with explained("file cannot be read", path):
        content = read_unmoved(path, most + 1, layout)
    if len(content) > most:
        raise bounds.exceeded(limit, "file is larger than {} bytes", path)
    return content


class _Known:
    """The indexes that this process has read last: the next reading is of what is new in them."""

    _MOST: Final = 2
    """A large index takes three times its bytes."""

    def __init__(self) -> None:
        self._texts: OrderedDict[Path, IndexText] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, path: Path) -> IndexText | None:
        with self._guard:
            return self._texts.get(path)

    def put(self, path: Path, text: IndexText) -> None:
        with self._guard:
            self._texts[path] = text
            self._texts.move_to_end(path)
            while len(self._texts) > self._MOST:
                self._texts.popitem(last=False)


_known = _Known()
